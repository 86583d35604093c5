"""The report: what it says of a run, what it does with names that attack it, and how it stands in a browser."""

import copy
import html
import itertools
import json
import re
import shutil
import subprocess
from html.parser import HTMLParser

import numpy as np
import pytest

from hansa_common.bootstrap import paired_bootstrap
from hansa_common.metrics import decision_threshold, metrics_from_histogram, score_histogram
from hansa_server.report import render_report

NOISE = {"federated": 0.5, "local": 1.1, "pooled": 0.45}
HARMED = "Quayside Books"
MERCHANTS = ("Alder Lane Grocers", "Bergen Fishworks", "Cinnamon and Salt", "Gotland Outdoor Equipment", HARMED)


def merchant_rows(rng, num_rows):
    """Labels, and the logits that each party's model gives: the truth blurred by more or less noise."""
    truth = rng.normal(-2.2, 1.6, num_rows)
    labels = rng.random(num_rows) < 1 / (1 + np.exp(-truth))
    return labels, {party: truth + rng.normal(0, noise, num_rows) for party, noise in NOISE.items()}


def areas(logits, labels):
    metrics = metrics_from_histogram(score_histogram(logits, labels))
    return {"roc_auc": metrics.roc_auc, "pr_auc": metrics.pr_auc}


def merchant_part(rng, labels, logits):
    gain = paired_bootstrap(logits["federated"], logits["local"], labels, rng=rng, resamples=50)
    return {
        "num_train_rows": 4 * labels.size,
        "num_test_rows": int(labels.size),
        "num_test_positives": int(labels.sum()),
        **{party: areas(logits[party], labels) for party in NOISE},
        "gain": {measure: interval.to_json() for measure, interval in gain.items()},
        "threshold": decision_threshold(score_histogram(logits["federated"], labels)),
        "quality": {
            "num_rows": int(labels.size) * 5,
            "duplicates": int(rng.integers(40)),
            "missing": {"ProductPrice": int(rng.integers(30)), "Country": int(rng.integers(9)), "Weekday": 0},
            "unseen_categories": {"Browser": int(rng.integers(5))},
        },
    }


def round_part(rng, number, plan):
    level = 1 - np.exp(-number / 5)
    return {
        "round": number,
        "plan": plan,
        "seconds": float(rng.uniform(0.5, 0.8)),
        "cohort": list(MERCHANTS),
        "dropped": {"Bergen Fishworks": "deadline"} if number in {3, 7, 8} else {},
        "validation": None if number == 1 else {
            "roc_auc": float(0.6 + 0.27 * level - 0.03 * plan + rng.normal(0, 0.002)),
            "pr_auc": float(0.2 + 0.34 * level - 0.06 * plan + rng.normal(0, 0.006)),
        },
        "train_loss": float(0.6 - 0.3 * level),
        "bytes_received": 524_288,
        "bytes_sent": 1_310_720,
    }  # fmt: skip


def sample_run():
    """A simulated run with baselines in the shape of metrics.json; one merchant is better off alone."""
    rng = np.random.default_rng(7)
    rows = {name: merchant_rows(rng, 500 + 350 * place) for place, name in enumerate(MERCHANTS)}
    for party, other in (("federated", "local"), ("local", "federated")):
        rows[HARMED][1][f"swapped {party}"] = rows[HARMED][1][other]
    harmed = rows[HARMED][1]
    harmed["federated"], harmed["local"] = harmed.pop("swapped federated"), harmed.pop("swapped local")
    labels = np.concatenate([labels for labels, _ in rows.values()])
    logits = {party: np.concatenate([logits[party] for _, logits in rows.values()]) for party in NOISE}
    plans = [0] * 4 + [1] * 4 + [0] * 14
    gap = paired_bootstrap(logits["federated"], logits["pooled"], labels, rng=rng, resamples=50)
    return {
        "agreement_fingerprint": "3f0c" * 16,
        "agreement_name": "Five shops of the harbour",
        "task": "purchase",
        "label": "Revenue",
        "seed": 0,
        "hansa_version": "0.1.0",
        "run_id": "run-0001",
        "best_round": 18,
        "plan": {"algorithm": "scaffold", "optimizer": "sgd", "learning_rate": 0.1, "batch_size": 32},
        "rounds": [round_part(rng, number, plan) for number, plan in enumerate(plans, 1)],
        "federated": metrics_from_histogram(score_histogram(logits["federated"], labels)).to_json(),
        "pooled": metrics_from_histogram(score_histogram(logits["pooled"], labels)).to_json(),
        "local": {"roc_auc": 0.8, "pr_auc": 0.5},
        "merchants": {name: merchant_part(rng, *part) for name, part in rows.items()},
        "intervals": {"federated_minus_pooled": {measure: interval.to_json() for measure, interval in gap.items()}},
        "data": {"silos": "TrafficType", "split": "stratified", "test_share": 0.2},
    }


@pytest.fixture(scope="module")
def run():
    return sample_run()


@pytest.fixture(scope="module")
def page(run):
    return render_report(run)


def process_run(run):
    """What real processes leave: no baselines, and no figures of a merchant."""
    rest = {
        key: value for key, value in run.items() if key not in {"pooled", "local", "intervals", "data", "merchants"}
    }
    rows = {name: {"num_train_rows": values["num_train_rows"]} for name, values in run["merchants"].items()}
    return {**rest, "merchants": rows}


def text_of(page):
    words, hidden = [], []

    class Text(HTMLParser):
        def handle_starttag(self, tag, attrs):  # noqa: ARG002
            hidden.extend([tag] * (tag in {"style", "svg"}))

        def handle_endtag(self, tag):
            if hidden and hidden[-1] == tag:
                hidden.pop()

        def handle_data(self, data):
            if not hidden:
                words.append(data)

    parser = Text()
    parser.feed(page)
    return " ".join(" ".join(words).split())


def test_summary_weighs_alone_against_together_on_the_same_rows(run, page):
    weights = [m["num_test_rows"] for m in run["merchants"].values()]
    alone, together, pooled = (
        np.average([m[party]["pr_auc"] for m in run["merchants"].values()], weights=weights)
        for party in ("local", "federated", "pooled")
    )
    text = text_of(page)
    assert f"raised PR-AUC from {alone:.3f} alone to {together:.3f} together, +{together - alone:.3f}." in text
    assert f"That is {pooled - together:.3f} below what pooling all rows in one place gives." in text
    assert "Five shops of the harbour" in text


def test_merchant_worse_off_beyond_its_interval_is_named_and_only_that_one(run, page):
    notice = re.search(r"<aside.*?</aside>", page, re.DOTALL)[0]
    assert "1 merchant does worse together than alone" in notice
    assert f"{HARMED}: PR-AUC \N{MINUS SIGN}" in notice
    assert not any(name in notice for name in MERCHANTS if name != HARMED)


def test_merchant_worse_off_within_its_interval_is_not_named(run):
    unsure = copy.deepcopy(run)
    for measure in ("roc_auc", "pr_auc"):
        unsure["merchants"][HARMED]["gain"][measure]["high"] = 0.001
    notice = re.search(r"<aside.*?</aside>", render_report(unsure), re.DOTALL)[0]
    assert "No merchant does worse together than alone" in notice
    assert HARMED not in notice


def test_merchant_worse_off_in_roc_auc_alone_is_named_too(run):
    mixed = copy.deepcopy(run)
    mixed["merchants"][HARMED]["gain"]["pr_auc"]["high"] = 0.001
    notice = re.search(r"<aside.*?</aside>", render_report(mixed), re.DOTALL)[0]
    assert f"{HARMED}: ROC-AUC \N{MINUS SIGN}" in notice


def test_dropped_replies_are_shown_with_reason_and_rounds(page):
    assert "Bergen Fishworks did not answer in time 3 3, 7\N{EN DASH}8" in text_of(page)


def test_run_without_a_dropped_reply_says_so(run):
    calm = {**run, "rounds": [{**entry, "dropped": {}} for entry in run["rounds"]]}
    assert "Every reply of every round arrived and was accepted." in text_of(render_report(calm))


def test_page_states_fingerprint_plan_thresholds_quality_and_versions(run, page):
    text = text_of(page)
    threshold = run["merchants"]["Bergen Fishworks"]["threshold"]
    for expected in (
        run["agreement_fingerprint"],
        "scaffold",
        f"{threshold:.3f}",
        "ProductPrice: ",
        "0.1.0",
        "run-0001",
    ):
        assert expected in text


def test_real_processes_report_what_they_know_and_say_what_was_not_measured(run):
    text = text_of(render_report(process_run(run)))
    assert f"reaches a PR-AUC of {run['federated']['pr_auc']:.3f}" in text
    assert "not measured in this run" in text
    assert "Alone" not in text.split("Words used here")[0]


IDENTITY = (
    "agreement_fingerprint",
    "agreement_name",
    "task",
    "label",
    "seed",
    "hansa_version",
    "run_id",
    "plan",
    "data",
)
PIECES = ("federated", "pooled", "local", "merchants", "rounds", "intervals", "best_round")
INNER = ("merchants.gain", "merchants.local", "merchants.quality", "merchants.threshold", "rounds.validation")


def without(run, *keys):
    poorer = {key: copy.deepcopy(value) for key, value in run.items() if key not in keys}
    for outer, _, inner in (key.partition(".") for key in keys):
        if inner:
            for entry in poorer["rounds"] if outer == "rounds" else poorer["merchants"].values():
                del entry[inner]
    return poorer


@pytest.mark.parametrize("keys", [IDENTITY, (*IDENTITY, *PIECES), *zip(PIECES), *zip(INNER)])
def test_any_absent_piece_leaves_a_whole_page(run, keys):
    page = render_report(without(run, *keys))
    assert page.rstrip().endswith("</html>")
    assert "Words used here" in page
    assert not {"None", "nan", "Undefined"} & set(re.findall(r"\w+", text_of(page)))


def test_withheld_figures_are_named_as_withheld(run):
    withheld = {**process_run(run), "federated": None}
    assert "figures were withheld" in text_of(render_report(withheld))


HOSTILE = (
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "</svg><style>*{display:none}</style>",
    "$\\frac{1}{0}$ & {{ 7 * 7 }} {% raw %}",
    "\u6e2f\u5e97\n\x07" + "long" * 30,
)


def test_names_that_attack_the_page_are_shown_as_text(run):
    hostile = copy.deepcopy(run)
    hostile["merchants"] = dict(zip(HOSTILE, hostile["merchants"].values(), strict=True))
    hostile["agreement_name"] = hostile["label"] = hostile["agreement_fingerprint"] = HOSTILE[1]
    hostile["rounds"][0]["dropped"] = {HOSTILE[0]: HOSTILE[1]}
    hostile["plan"] = hostile["data"] = {HOSTILE[0]: HOSTILE[2]}
    for values in hostile["merchants"].values():
        values["quality"] = {HOSTILE[1]: {HOSTILE[0]: 1}}
    page = render_report(hostile)
    tags = []

    class Tags(HTMLParser):
        def handle_starttag(self, tag, attrs):
            tags.append(tag)
            assert not any(name.startswith("on") for name, _ in attrs)

    Tags().feed(page)
    assert not {"script", "img", "iframe", "object"} & set(tags)
    assert tags.count("style") == 1
    assert "{{ 7 * 7 }}" in text_of(page)


def test_equal_runs_give_equal_bytes(run, page):
    assert render_report(copy.deepcopy(run)) == page


def test_page_refers_to_nothing_outside_itself(page):
    assert not re.search(r"https?:|//[a-z]|@import|src=|url\((?!#)", page)
    references = set(re.findall(r'(?:href="|url\()#([\w-]+)', page))
    ids = re.findall(r' id="([^"]*)"', page)
    assert len(ids) == len(set(ids))
    assert references <= set(ids)


def test_page_is_accessible_in_its_structure(page):
    assert '<html lang="en">' in page
    levels = [int(level) for level in re.findall(r"<h([1-6])", page)]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(after - before <= 1 for before, after in itertools.pairwise(levels))
    drawings = re.findall(r'<div class="drawing" role="img" aria-label="([^"]+)"', page)
    assert len(drawings) == page.count("<svg ") == 6
    assert all(re.search(r"\d", drawing) for drawing in drawings)
    assert page.count("<caption>") == page.count("<table>")
    assert all("<thead>" in table for table in re.findall(r"<table>.*?</table>", page, re.DOTALL))


def luminance(colour):
    channels = np.array([int(colour[i : i + 2], 16) for i in (1, 3, 5)]) / 255
    linear = np.where(channels <= 0.03928, channels / 12.92, ((channels + 0.055) / 1.055) ** 2.4)
    return linear @ [0.2126, 0.7152, 0.0722]


@pytest.mark.parametrize("scheme", [0, 1])
def test_text_colours_have_the_contrast_that_wcag_asks(page, scheme):
    palettes = re.findall(r":root \{(.*?)\}", page, re.DOTALL)
    colour = dict(re.findall(r"--([\w-]+): (#[0-9a-f]{6})", palettes[scheme]))
    for text in ("ink", "muted", "together", "pooled", "warn"):
        for ground in ("ground", "card", "warn-soft" if text == "warn" else "together-soft"):
            light, dark = sorted((luminance(colour[text]), luminance(colour[ground])), reverse=True)
            assert (light + 0.05) / (dark + 0.05) >= 4.5, (text, ground)


def test_hundred_merchants_still_make_a_chart_of_bounded_height(run):
    values = run["merchants"][MERCHANTS[0]]
    crowd = {**run, "merchants": {f"merchant {i:03}": values for i in range(100)}}
    page = render_report(crowd)
    assert "The 60 merchants in the middle are in the table only." in page
    heights = [float(height) for height in re.findall(r'viewBox="0 0 [\d.]+ ([\d.]+)"', page)]
    assert max(heights) < 900


WIDTHS = (1280, 375)
OPTIONS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-dev-shm-usage",
    "--disable-background-networking", "--disable-component-update", "--disable-sync", "--enable-logging=stderr",
    "--dump-dom",
)  # fmt: skip
PROBE = """<script>
const seen = [];
function look(frame) {
  const page = frame.contentDocument, view = frame.contentWindow;
  const resources = view.performance.getEntriesByType("resource");
  page.querySelectorAll("details").forEach(part => part.open = true);
  const wide = [...page.querySelectorAll("body *")].filter(part => !part.closest(".scroll, svg, .skip")
    && part.getBoundingClientRect().right > view.innerWidth + 0.5).map(part => part.tagName + "." + part.className);
  const small = Math.min(...[...page.querySelectorAll("svg text")].map(part => part.getBoundingClientRect().height));
  seen.push({inner: view.innerWidth, scroll: page.documentElement.scrollWidth, wide, resources: resources.length,
    drawn: [...page.querySelectorAll("svg")].every(part => part.getBoundingClientRect().height > 50), small});
  document.getElementById("seen").textContent = JSON.stringify(seen);
}
</script><pre id="seen"></pre>"""


def chromium():
    found = next(
        (path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))), None
    )
    if found is None:
        pytest.skip("no chromium on PATH: the page is not looked at in a browser")
    return found


def looked_at(page, folder):
    """Open the page in Chromium in one frame for each width; what each frame measured, and the console's lines."""
    source = html.escape(page)
    frames = "".join(
        f'<iframe width="{width}" height="900" style="border:0" onload="look(this)" srcdoc="{source}"></iframe>'
        for width in WIDTHS
    )
    (folder / "frames.html").write_text(f"<!doctype html><meta charset=utf-8>{PROBE}{frames}", encoding="utf-8")
    done = subprocess.run(
        [chromium(), *OPTIONS, f"--user-data-dir={folder / 'profile'}", f"file://{folder / 'frames.html'}"],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    seen = html.unescape(re.search(r'<pre id="seen">(.*?)</pre>', done.stdout, re.DOTALL)[1])
    frames_seen = sorted(json.loads(seen), key=lambda frame: -frame["inner"])
    return frames_seen, [line for line in done.stderr.splitlines() if "CONSOLE" in line]


@pytest.mark.parametrize("kind", ["simulation", "processes"])
def test_page_fits_desktop_and_phone_in_a_browser_and_fetches_nothing(run, kind, tmp_path):
    long_names = {name + " of the old harbour quarter" * (name == HARMED): m for name, m in run["merchants"].items()}
    shown = {**run, "merchants": long_names} if kind == "simulation" else process_run(run)
    frames, console = looked_at(render_report(shown), tmp_path)
    assert console == []
    assert [frame["inner"] for frame in frames] == list(WIDTHS)
    for frame in frames:
        assert frame["wide"] == []
        assert frame["scroll"] <= frame["inner"]
        assert frame["resources"] == 0
        assert frame["drawn"]
        assert frame["small"] >= 9
