"""What someone who watches a run sees: round, cohort, PR-AUC and time left, live in a terminal, as lines elsewhere."""

from __future__ import annotations

import io
from dataclasses import replace

import pytest
from rich.console import Console

from hansa_common.metrics import metrics_from_histogram, score_histogram
from hansa_server.progress import RunProgress
from hansa_server.run_events import (
    MerchantsIntroduced,
    ModelValidated,
    NodeRefused,
    ReplyDropped,
    ReplyReceived,
    RoundFinished,
    RoundStarted,
    RunFinished,
    RunStarted,
    StoppedEarly,
)

METRICS = metrics_from_histogram(score_histogram([0.0, 1.0, 2.0, -1.0], [0, 1, 0, 0]))
FINISHED = RoundFinished(
    round=1,
    plan=0,
    seconds=4.0,
    cohort=("alpha", "beta"),
    dropped={"beta": "deadline"},
    aggregated=True,
    validation=METRICS,
    train_loss=0.5,
    bytes_received=1_500_000,
    bytes_sent=20_000,
)
CAME = "1.50 MB received, 0.02 MB sent"


class Watched:
    """A display whose output and clock the test holds."""

    def __init__(self, *, terminal):
        self.output = io.StringIO()
        self.seconds = 0.0
        console = Console(file=self.output, force_terminal=terminal, width=100, color_system=None)
        self.progress = RunProgress(console, now=lambda: self.seconds)

    def show(self, *events):
        for event in events:
            self.progress.show(event)

    def rounds(self, num_rounds, seconds_each):
        for number in range(1, num_rounds + 1):
            self.show(
                RoundStarted(number, 0, FINISHED.cohort),
                ReplyReceived(number, "alpha"),
                ReplyReceived(number, "beta"),
            )
            self.seconds += seconds_each
            self.show(replace(FINISHED, round=number))


STARTED = RunStarted("run", "shops", "0" * 64, ("alpha", "beta"), 10)


def lines(watched):
    return watched.output.getvalue().splitlines()


def test_pipe_gets_one_line_a_round_with_the_time_left():
    watched = Watched(terminal=False)
    with watched.progress:
        watched.show(STARTED)
        watched.seconds = 100.0  # the wait for merchants is not reckoned as training
        watched.rounds(3, seconds_each=4.0)
    came_in = f"validation PR-AUC of the incoming model {METRICS.pr_auc:.4f}"
    assert lines(watched)[1:] == [
        f"round 1: 1 of 2 merchants, {came_in}, 4.0 s, {CAME}, at most 36 s left",
        f"round 2: 1 of 2 merchants, {came_in}, 4.0 s, {CAME}, at most 32 s left",
        f"round 3: 1 of 2 merchants, {came_in}, 4.0 s, {CAME}, at most 28 s left",
    ]


def test_run_that_goes_on_reckons_the_time_left_from_its_own_rounds():
    watched = Watched(terminal=False)
    with watched.progress:
        watched.show(replace(STARTED, num_rounds_done=6))
        watched.seconds = 100.0
        watched.show(RoundStarted(7, 0, FINISHED.cohort))
        watched.seconds += 4.0
        watched.show(replace(FINISHED, round=7))
    assert "run run goes on after round 6; waiting for 2 merchants" in lines(watched)[0]
    assert lines(watched)[-1].endswith(f"4.0 s, {CAME}, at most 12 s left")


def test_terminal_shows_round_cohort_and_best_figure_while_a_round_runs():
    watched = Watched(terminal=True)
    with watched.progress:
        watched.show(STARTED)
        watched.rounds(1, seconds_each=4.0)
        watched.show(ModelValidated(1, 0.61, 1, 0.61), RoundStarted(2, 0, FINISHED.cohort))
        watched.progress._bar.refresh()
    assert "round 2 of 10, 2 merchants, best PR-AUC 0.6100, at most 36 s left" in watched.output.getvalue()


def test_bar_reaches_its_end_and_no_further():
    watched = Watched(terminal=True)
    with watched.progress:
        watched.show(STARTED)
        watched.rounds(10, seconds_each=1.0)
        (task,) = watched.progress._bar.tasks
        assert (task.completed, task.total) == (10, 10)


def test_lost_merchants_and_early_stop_are_seen():
    watched = Watched(terminal=False)
    events = [
        MerchantsIntroduced(("alpha",), ("beta",)),
        ReplyDropped("alpha", "round 3", "norm", "update has norm 1e+20, allowed is 1e+04"),
        StoppedEarly(5, 2),
        RunFinished(2, METRICS),
    ]
    with watched.progress:
        watched.show(*events)
    assert lines(watched) == [
        "1 merchant: alpha; missing: beta",
        "round 3: alpha is left out, norm (update has norm 1e+20, allowed is 1e+04)",
        "stopped after round 5: nothing better since round 2",
        f"model after round 2 kept: test PR-AUC {METRICS.pr_auc:.4f}, ROC-AUC {METRICS.roc_auc:.4f}",
    ]


def test_round_below_the_minimum_says_that_the_model_stays():
    assert replace(FINISHED, aggregated=False).line.endswith("too few replies, the last model stays")


@pytest.mark.parametrize("name", ["[red]alpha[/red]", "[/]", "\x1b[2J", "a\nround 9: all fine"])
def test_hostile_name_is_text_in_one_line(name):
    watched = Watched(terminal=True)
    watched.show(NodeRefused(7, "unknown-name", name))
    (line,) = lines(watched)
    assert line == f"node 7 that calls itself {name!r} is not taken: unknown-name"


def test_rounds_after_the_training_are_told_without_a_time_left_that_was_the_trainings():
    watched = Watched(terminal=False)
    with watched.progress:
        watched.show(STARTED)
        watched.rounds(1, seconds_each=4.0)
        watched.show(RoundStarted(2, 0, FINISHED.cohort, "prune"), replace(FINISHED, round=2, stage="prune"))
    assert lines(watched)[-1].startswith("prune, round 2: 1 of 2 merchants")
    assert "left" not in lines(watched)[-1]
