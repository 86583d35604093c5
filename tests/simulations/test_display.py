"""What a simulation shows: in a terminal a line that moves, in a log one line at the end, and the outcome in both."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from rich.console import Console

from hansa_simulations.display import BaselineDisplay, print_summary
from hansa_simulations.scenario import BaselineProgress

FIGURES = {
    "alder [bold]": {"federated": (0.51234, 0.9), "local": (0.4, 0.81), "pooled": (0.61, 0.95)},
    "birch": {"federated": (0.7, 0.99), "local": None, "pooled": (1.0, 1.0)},
}


def console_of(is_terminal):
    return Console(file=io.StringIO(), force_terminal=is_terminal, width=120, color_system=None, legacy_windows=False)


def shown(display_of, num_all=4, is_terminal=False):
    console = console_of(is_terminal)
    seconds = iter(float(i) for i in range(0, 1000, 10))
    with display_of(console, lambda: next(seconds)) as display:
        for number in range(1, num_all + 1):
            display.show(BaselineProgress("birch", number, num_all))
    return console.file.getvalue()


def areas(pair):
    return {"pr_auc": None, "roc_auc": None} if pair is None else dict(zip(("pr_auc", "roc_auc"), pair, strict=True))


def metrics_with(parties):
    merchants = {name: {party: areas(told[party]) for party in parties} for name, told in FIGURES.items()}
    whole = {party: areas((0.25, 0.75)) for party in parties}
    rounds = [{"bytes_received": 900_000, "bytes_sent": 20_000}] * 3
    return {
        **whole,
        "merchants": merchants,
        "agreement_fingerprint": "0123456789abcdef" * 4,
        "seed": 41,
        "rounds": rounds,
    }


def summary(parties):
    console = console_of(is_terminal=False)
    print_summary(metrics_with(parties), Path("runs/x/report.html"), console)
    return console.file.getvalue()


def test_in_a_log_there_is_one_line_when_all_baselines_are_done():
    assert shown(BaselineDisplay) == "baselines: 4 models trained, each plan to its own end\n"


def test_no_baselines_show_nothing():
    console = console_of(is_terminal=True)
    with BaselineDisplay(console):
        pass
    assert console.file.getvalue() == ""


def test_in_a_terminal_the_line_moves_and_the_last_word_stays_whole():
    text = shown(BaselineDisplay, num_all=7, is_terminal=True)
    assert "baselines: birch, 7 of 7 models, about 0 s left" in text
    assert "baselines: 7 models trained, each plan to its own end" in text


def test_time_left_is_that_of_the_models_before():
    seconds = [100.0]
    with BaselineDisplay(console_of(is_terminal=True), lambda: seconds[0]) as display:
        display.show(BaselineProgress("alder", 1, 5))
        # The first one tells when it ended, not how long it took.
        assert display._bar.tasks[0].description == "baselines: alder, 1 of 5 models"
        seconds[0] = 120.0
        display.show(BaselineProgress("birch", 2, 5))
        assert display._bar.tasks[0].description == "baselines: birch, 2 of 5 models, about 1 min 0 s left"


def test_summary_stands_every_party_side_by_side():
    text = summary(("local", "federated", "pooled"))
    rows = [[cell.strip() for cell in line.split("│")[1:-1]] for line in text.splitlines() if line.startswith("│")]
    assert rows == [
        ["alder [bold]", ".400 / .810", ".512 / .900", ".610 / .950"],
        ["birch", "-", ".700 / .990", "1.000 / 1.000"],
        ["everyone (alone: the mean)", ".250 / .750", ".250 / .750", ".250 / .750"],
    ]
    assert all(title in text for title in ("Alone", "Together", "Pooled"))


@pytest.mark.parametrize("parties", [("federated",), ("local", "federated"), ("federated", "pooled")])
def test_summary_has_no_column_for_a_baseline_that_was_not_trained(parties):
    text = summary(parties)
    assert ("Alone" in text) == ("local" in parties)
    assert ("Pooled" in text) == ("pooled" in parties)
    assert ("everyone (alone: the mean)" in text) == ("local" in parties)
    assert "Together" in text
    assert "everyone" in text


def test_summary_names_the_bytes_of_all_rounds_the_report_the_agreement_and_the_seed():
    text = summary(("federated",))
    assert "3 rounds, 2.70 MB received, 0.06 MB sent by the coordinator" in text
    assert "The report is runs/x/report.html" in text
    assert "agreement 0123456789ab, seed 41" in text
