"""The report in a real browser, with no network: at a desktop's and a phone's width, light, dark and on paper."""

import base64
import contextlib
import copy
import json
import os
import re
import select
import shutil
import subprocess
from collections import defaultdict

import pytest

from hansa_server.report import render_report

pytestmark = pytest.mark.system

WIDTHS = (1280, 390)
NUM_CROWD = 40
LONG_NAME = "Gesellschaft_zur_Verschiffung_von_Netzen_und_Tauwerk_mit_beschraenkter_Haftung"
SECONDS = 60
# The sandbox needs rights that a container's root has not; nothing but our own page is opened.
OPTIONS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-dev-shm-usage",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
    "--host-resolver-rules=MAP * ~NOTFOUND", "--remote-debugging-pipe",
)  # fmt: skip
LOOK = """(() => {
  const part = document.scrollingElement;
  document.querySelectorAll("details").forEach(details => details.open = true);
  const wide = [...document.querySelectorAll("body *")].filter(element => !element.closest(".scroll, svg, .skip")
    && element.getBoundingClientRect().right > part.clientWidth + 0.5).map(element => element.outerHTML.slice(0, 80));
  const size = text => {
    const drawn = text.getScreenCTM();
    return parseFloat(getComputedStyle(text).fontSize) * Math.hypot(drawn.a, drawn.b);
  };
  const hidden = [...document.querySelectorAll(".notes, .narrow, .columns .scroll")].filter(
    element => element.scrollWidth > element.clientWidth).map(element => element.getAttribute("aria-label"));
  return {inner: window.innerWidth, scroll: part.scrollWidth, client: part.clientWidth, wide, hidden,
    drawn: [...document.querySelectorAll("svg")].every(svg => svg.getBoundingClientRect().height > 50),
    smallest: Math.min(...[...document.querySelectorAll("svg text")].map(size)),
    ground: getComputedStyle(document.body).backgroundColor};
})()"""


class Browser:
    """Chromium over its debugging pipe: a command a call; what it reports meanwhile is kept by method."""

    def __init__(self, executable, profile):
        commands, self._commands = os.pipe()
        self._replies, replies = os.pipe()
        # Chromium reads commands from descriptor 3 and writes to 4, whatever the numbers here.
        bind = f'exec "$@" 3<&{commands} 4>&{replies}'
        self._process = subprocess.Popen(
            ["bash", "-c", bind, "_", executable, *OPTIONS, f"--user-data-dir={profile}", "about:blank"],
            pass_fds=(commands, replies),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(commands)
        os.close(replies)
        self._session, self._number, self._unread = {}, 0, b""
        self.reported = defaultdict(list)
        page = next(target for target in self("Target.getTargets")["targetInfos"] if target["type"] == "page")
        attached = self("Target.attachToTarget", targetId=page["targetId"], flatten=True)
        self._session = {"sessionId": attached["sessionId"]}
        for domain in ("Page", "Log", "Runtime", "Network"):
            self(f"{domain}.enable")

    def __call__(self, method, **params):
        self._number += 1
        command = {"id": self._number, "method": method, "params": params, **self._session}
        os.write(self._commands, json.dumps(command).encode() + b"\0")
        while (reply := self._next()).get("id") != self._number:
            self.reported[reply.get("method")].append(reply.get("params"))
        assert "error" not in reply, reply
        return reply["result"]

    def _next(self):
        while b"\0" not in self._unread:
            assert select.select([self._replies], [], [], SECONDS)[0], "Chromium has not answered"
            self._unread += (received := os.read(self._replies, 1 << 20))
            assert received, "Chromium has gone"
        message, _, self._unread = self._unread.partition(b"\0")
        return json.loads(message)

    def open(self, path):
        self.reported.clear()
        self("Page.navigate", url=path.as_uri())
        while not self.reported["Page.loadEventFired"]:
            reply = self._next()
            self.reported[reply.get("method")].append(reply.get("params"))

    def evaluate(self, expression):
        return self("Runtime.evaluate", expression=expression, returnByValue=True)["result"]["value"]

    def complaints(self):
        methods = ("Log.entryAdded", "Runtime.consoleAPICalled", "Runtime.exceptionThrown")
        return [entry for method in methods for entry in self.reported[method]]

    def close(self):
        with contextlib.suppress(AssertionError, OSError):
            self("Browser.close")
        try:
            self._process.wait(SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        os.close(self._commands)
        os.close(self._replies)


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    names = ("chromium", "chromium-browser", "google-chrome")
    executable = next((path for name in names if (path := shutil.which(name))), None)
    if executable is None:
        pytest.skip("no chromium on PATH: the report is not looked at in a browser")
    opened = Browser(executable, tmp_path_factory.mktemp("profile"))
    yield opened
    opened.close()


def crowd(run):
    """Forty merchants, one of them with a name that has nowhere to break, and replies left out in every round."""
    crowded, values = copy.deepcopy(run), list(run["merchants"].values())
    names = [LONG_NAME, *(f"merchant {number}" for number in range(1, NUM_CROWD))]
    crowded["merchants"] = {name: values[place % len(values)] for place, name in enumerate(names)}
    for place, entry in enumerate(crowded["rounds"]):
        entry["dropped"] = {names[place]: "deadline", names[-place - 1]: "busy"}
    return crowded


def bare(run):
    """What real processes leave where every figure is withheld."""
    known = {name: {"num_train_rows": values["num_train_rows"]} for name, values in run["merchants"].items()}
    rounds = [{**entry, "validation": None} for entry in run["rounds"]]
    nothing = {"federated": {"roc_auc": None, "pr_auc": None}, "best_round": None}
    kept = {key: value for key, value in run.items() if key not in {"pooled", "local", "intervals", "data"}}
    return {**kept, "merchants": known, "rounds": rounds, **nothing}


def areas(pr_auc):
    return {"roc_auc": 0.9, "pr_auc": pr_auc}


def small(run):
    """A pruned small model at forty merchants."""
    found = {"bytes": 22_504_000, "gzip_bytes": 7_913_000, "float32_bytes": 75_780_000, "sparsity": 0.7973}
    stages = {"pruned": areas(0.598), "control": areas(0.597)}
    pruning = {"sparsity": 0.8, "pruned": True, "reason": "", "validation": stages, "test": stages}
    judged = {"original": areas(0.6), "candidate": areas(0.595)}
    compression = {"released": True, "reason": "", "validation": judged, "found": found, "pruning": pruning}
    crowded = {**crowd(run), "compression": compression, "compressed": areas(0.5)}
    crowded["merchants"] = {name: {**m, "compressed": areas(0.4)} for name, m in crowded["merchants"].items()}
    return crowded


def refused(run):
    """A small model that one merchant with a long name would not have."""
    reason = f"{LONG_NAME} would lose more than 0.05 PR-AUC on their own validation rows"
    return {**run, "compression": {**small(run)["compression"], "released": False, "reason": reason}}


@pytest.mark.parametrize("kind", [dict, crowd, bare, small, refused])
def test_page_fits_desktop_and_phone_is_legible_and_asks_for_nothing(browser, finished_run, tmp_path, kind):
    path = tmp_path / "report.html"
    path.write_text(render_report(kind(finished_run)), encoding="utf-8")
    grounds = set()
    for width in WIDTHS:
        for scheme in ("light", "dark"):
            mobile = width < min(WIDTHS) + 1
            browser("Emulation.setDeviceMetricsOverride", width=width, height=844, deviceScaleFactor=1, mobile=mobile)
            browser("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
            browser.open(path)
            seen = browser.evaluate(LOOK)
            grounds.add(seen["ground"])
            assert browser.complaints() == []
            assert [sent["request"]["url"] for sent in browser.reported["Network.requestWillBeSent"]] == [path.as_uri()]
            assert seen["inner"] == width
            assert seen["scroll"] <= seen["client"]
            assert seen["wide"] == []
            assert seen["hidden"] == []
            assert seen["drawn"]
            assert seen["smallest"] is None or seen["smallest"] >= 11
    assert len(grounds) == 2


def test_complaints_and_overflow_would_be_seen(browser, tmp_path):
    path = tmp_path / "broken.html"
    path.write_text(
        "<!doctype html><meta name=viewport content='width=device-width'><script>console.error('x'); f()</script>"
        "<link rel=icon href=data:,><img src='http://example.org/a.png'><p style='width:2000px'>wide</p>",
        encoding="utf-8",
    )
    browser("Emulation.setDeviceMetricsOverride", width=390, height=844, deviceScaleFactor=1, mobile=True)
    browser.open(path)
    seen = browser.evaluate(LOOK)
    assert seen["scroll"] > 390
    assert [mark for mark in seen["wide"] if "wide" in mark]
    assert len(browser.complaints()) >= 2
    assert len(browser.reported["Network.requestWillBeSent"]) == 2


def test_printed_page_shows_every_round_without_being_asked(browser, finished_run, tmp_path):
    path = tmp_path / "report.html"
    path.write_text(render_report(finished_run), encoding="utf-8")
    browser("Emulation.clearDeviceMetricsOverride")
    browser.open(path)
    browser("Emulation.setEmulatedMedia", media="print", features=[])
    cells = "[...document.querySelectorAll('details td')]"
    shown = browser.evaluate(f"{cells}.length > 0 && {cells}.every(cell => cell.checkVisibility())")
    pdf = base64.b64decode(browser("Page.printToPDF", printBackground=True)["data"])
    browser("Emulation.setEmulatedMedia", media="", features=[])
    assert shown
    assert 3 <= len(re.findall(rb"/Type\s*/Page\b(?!s)", pdf)) <= 8
