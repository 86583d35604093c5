"""The report's page: what it says of a run, what it does with names that attack it, and its structure."""

import copy
import itertools
import re
from html.parser import HTMLParser

import numpy as np
import pytest

from hansa_server.report import render_report

HARMED = "Quayside Books"


@pytest.fixture(scope="module")
def run(finished_run):
    return finished_run


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


def notice_of(page):
    return text_of(re.search(r"<aside.*?</aside>", page, re.DOTALL)[0])


def test_summary_weighs_alone_against_together_on_the_same_rows(run, page):
    weights = [m["num_test_rows"] for m in run["merchants"].values()]
    alone, together, pooled = (
        np.average([m[party]["pr_auc"] for m in run["merchants"].values()], weights=weights)
        for party in ("local", "federated", "pooled")
    )
    text = text_of(page)
    assert f"raised PR-AUC from {alone:.3f} alone to {together:.3f} together." in text
    assert f"That is below the {pooled:.3f} that pooling all rows in one place gives." in text
    assert "Five shops of the harbour" in text


def test_merchant_worse_off_beyond_its_interval_is_named_and_only_that_one(run, page):
    notice = notice_of(page)
    assert "1 merchant does worse together than alone, beyond what chance explains" in notice
    assert f"{HARMED} : PR-AUC \N{MINUS SIGN}" in notice
    assert not any(name in notice for name in run["merchants"] if name != HARMED)


def test_privacy_ledger_that_went_back_is_told_before_anything_else(run, page):
    assert "privacy ledger" not in text_of(page)
    went_back = {"at": "2026-03-01T12:00:00+00:00", "from_line": 8, "to_line": 5}
    older = {"at": "2026-02-01T00:00:00+00:00", "from_line": None, "to_line": None}
    warned = render_report({**run, "ledgers_went_back": {"Zoe's <b>": went_back, HARMED: older}})
    notice = notice_of(warned)
    assert "The privacy ledgers of 2 merchants went back" in notice
    assert "Zoe's <b> : noticed at 2026-03-01T12:00:00+00:00 from line 8 to line 5" in notice
    assert f"{HARMED} : noticed at 2026-02-01T00:00:00+00:00 " in notice
    assert "can be spent again" in notice
    assert warned.index("<aside") < warned.index('<dl class="tiles">')
    assert "1 merchant went back" not in notice


def test_merchant_worse_off_is_named_before_any_figure_is_shown_large(page):
    assert page.index("<aside") < page.index('<dl class="tiles">')


def test_merchant_worse_off_within_its_interval_is_not_named(run):
    unsure = copy.deepcopy(run)
    for measure in ("roc_auc", "pr_auc"):
        unsure["merchants"][HARMED]["gain"][measure]["high"] = 0.001
    notice = notice_of(render_report(unsure))
    assert "No merchant does worse together than alone" in notice
    assert HARMED not in notice


def test_merchant_worse_off_in_roc_auc_alone_is_named_too(run):
    mixed = copy.deepcopy(run)
    mixed["merchants"][HARMED]["gain"]["pr_auc"]["high"] = 0.001
    assert f"{HARMED} : ROC-AUC \N{MINUS SIGN}" in notice_of(render_report(mixed))


def test_dropped_replies_are_shown_with_reason_and_rounds(page):
    text = text_of(page)
    assert "3 of 110 replies were left out of the average" in text
    assert "Bergen Fishworks 3 did not answer in time: round 3, 7\N{EN DASH}8" in text


def test_run_without_a_dropped_reply_says_so(run):
    calm = {**run, "rounds": [{**entry, "dropped": {}} for entry in run["rounds"]]}
    assert "Every reply of every round arrived and was accepted." in text_of(render_report(calm))


def test_page_states_fingerprint_plan_thresholds_quality_and_versions(run, page):
    text = text_of(page)
    threshold = run["merchants"]["Bergen Fishworks"]["threshold"]
    for expected in (
        run["agreement_fingerprint"],
        "Algorithm scaffold",
        "Hidden layers 64, 32",
        "reads 4 columns of every row: ProductPrice, Country, Weekday, Browser.",
        f"{threshold:.3f}",
        "ProductPrice: ",
        "0.1.0",
        "run-0001",
    ):
        assert expected in text


def test_page_says_by_which_rule_liars_are_withstood_and_whose_updates_it_took(run):
    krum = {"rule": "krum", "num_dishonest": 1, "max_norm": None, "groups": None}
    selected = [["Bergen Fishworks"], [], ["Bergen Fishworks"]]
    entries = [{**entry, "selected": names} for entry, names in zip(run["rounds"], selected, strict=False)]
    text = text_of(render_report({**run, "robustness": krum, "rounds": entries}))
    assert "Rule krum" in text
    assert "made of Bergen Fishworks alone round 1, 3" in text.replace("Made of", "made of")
    plain = {**krum, "rule": "mean", "num_dishonest": 0}
    assert "What holds although some may lie" not in text_of(render_report({**run, "robustness": plain}))


def test_page_says_where_the_coordinator_saw_sums_alone(run):
    masked = {"protocol": "double-masking", "colluders": 1, "threshold": 6, "least_in_sum": 6, "dropouts": 4}
    text = text_of(render_report({**run, "secure_aggregation": masked}))
    assert "What the coordinator saw were sums" in text
    assert "Least in sum 6" in text
    clear = text_of(render_report({**run, "secure_aggregation": {"protocol": "none"}}))
    assert "What the coordinator saw were sums" not in clear


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
    "features",
    "model",
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
    assert "figures are withheld" in text_of(render_report(withheld))


def test_figure_that_came_to_nothing_is_a_dash_and_its_merchant_is_named_as_not_compared(run):
    poorer = copy.deepcopy(run)
    values = poorer["merchants"]["Bergen Fishworks"]
    values.update({party: {"roc_auc": None, "pr_auc": None} for party in ("local", "federated", "pooled")})
    values["threshold"] = None
    del values["gain"]
    page = render_report(poorer)
    assert "Not compared, for want of figures: Bergen Fishworks." in notice_of(page)
    row = re.search(r"<tr>\s*<th scope=\"row\">Bergen Fishworks</th>.*?</tr>", page, re.DOTALL)[0]
    assert text_of(row).split()[2:11] == ["\N{EN DASH}"] * 9
    assert not {"None", "nan"} & set(re.findall(r"\w+", text_of(page)))


def test_sentence_for_the_manager_counts_what_is_found_and_what_it_costs(run, page):
    rows, positives, recall = (run["federated"][key] for key in ("num_rows", "num_positives", "recall_at_5_fpr"))
    num_buyers, mistaken = 10_000 * positives / rows, 0.05 * 10_000 * (1 - positives / rows)
    expected = f"{recall * num_buyers:,.0f} of {num_buyers:,.0f}, at the price of {mistaken:,.0f} false alarms."
    assert f"in 10,000 rows like these {expected}" in text_of(page)


def test_rare_positives_are_counted_in_more_rows(run):
    rare = {**run, "federated": {**run["federated"], "num_rows": 1_000_000, "num_positives": 50}}
    assert "in 1,000,000 rows like these" in text_of(render_report(rare))


def test_distance_to_the_pool_that_chance_explains_is_not_called_one(run):
    unsure = copy.deepcopy(run)
    unsure["intervals"]["federated_minus_pooled"]["pr_auc"].update(low=-0.02, high=0.001)
    text = text_of(render_report(unsure))
    assert "As far as these test rows can tell, that is as good as pooling all rows in one place." in text
    assert "That is below" not in text


def test_merchants_stand_in_the_order_of_the_numbers_in_their_names(run):
    values = list(run["merchants"].values())
    numbered = {**run, "merchants": dict(zip(("10", "9", "2 b", "2 a"), values, strict=False))}
    table = re.search(r"<caption>Each merchant.*?</table>", render_report(numbered), re.DOTALL)[0]
    assert re.findall(r'<th scope="row">([^<]*)', table) == ["2 a", "2 b", "9", "10"]


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


def test_every_link_in_the_page_leads_to_a_part_of_it(run, page):
    for shown in (page, render_report(process_run(run))):
        links = re.findall(r'<a (?:class="skip" )?href="([^"]*)"', shown)
        assert len(links) > 3
        assert all(re.search(rf'<section id="{link.removeprefix("#")}"', shown) for link in links)


def test_hundred_merchants_still_make_a_chart_of_bounded_height(run):
    values = run["merchants"][HARMED]
    crowd = {**run, "merchants": {f"merchant {i:03}": values for i in range(100)}}
    page = render_report(crowd)
    assert "The 60 merchants in the middle are in the table only." in page
    heights = [float(height) for height in re.findall(r'viewBox="0 0 [\d.]+ ([\d.]+)"', page)]
    assert max(heights) < 900
