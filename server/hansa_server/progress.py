"""How a run looks while it runs: a live line in a terminal, plain lines elsewhere (a pipe, a log, `flwr run --stream`).

Shows round, cohort, validation PR-AUC and the time left. What happens comes in as events; no row, update or key
is in them, and names are printed as text, never as markup.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import Final

from rich.console import Console
from rich.text import Text

from hansa_server.moving_line import MovingLine
from hansa_server.run_events import (
    Event,
    ModelValidated,
    PlanChosen,
    ReplyReceived,
    RoundFinished,
    RoundStarted,
    RunFinished,
    RunStarted,
    StoppedEarly,
)

_STYLES: Final = {logging.INFO: "", logging.WARNING: "yellow"}


class RunProgress(MovingLine):
    """Shows a run; give it events while it is entered."""

    def __init__(self, console: Console | None = None, now: Callable[[], float] = time.monotonic) -> None:
        self._now = now
        self._began = now()
        self._num_rounds = 0
        self._num_finished = 0
        self._num_earlier = 0
        self._cohort_size = 0
        self._best: ModelValidated | None = None
        super().__init__("waiting for merchants", None, console)

    def show(self, event: Event) -> None:
        """Take an event in, and show it as far as it matters to someone who watches."""
        match event:
            case RunStarted():
                self._num_rounds = event.num_rounds
                self._num_earlier = self._num_finished = event.num_rounds_done or 0
            case RoundStarted() if event.stage != "train":
                # The bar and the time left are of the training, which is over.
                self._bar.update(self._task, total=None, description=f"{event.stage}, round {event.round}")
            case RoundStarted():
                self._start_round(event)
            case ReplyReceived():
                self._bar.advance(self._task, 1 / max(1, self._cohort_size))
            case ModelValidated():
                self._best = event
            case RoundFinished() if event.stage == "train":
                self._finish_round(event)
                return
            case StoppedEarly() | RunFinished():
                self._num_rounds = self._num_finished
        if event.level >= logging.INFO or isinstance(event, PlanChosen):
            self._print(event.line, event.level)

    def _start_round(self, event: RoundStarted) -> None:
        if self._num_finished == self._num_earlier:
            # Time left is reckoned from rounds, not from the wait before them.
            self._began = self._now()
        self._cohort_size = len(event.cohort)
        self._bar.update(
            self._task, total=self._num_rounds, completed=self._num_finished, description=self._status(event.round)
        )

    def _finish_round(self, event: RoundFinished) -> None:
        self._num_finished += 1
        self._bar.update(self._task, completed=self._num_finished, description=self._status(event.round))
        self._print(f"{event.line}{self._left()}", event.level)

    def _status(self, round_number: int) -> str:
        best = "" if self._best is None else f", best PR-AUC {self._best.best_pr_auc:.4f}"
        return f"round {round_number} of {self._num_rounds}, {self._cohort_size} merchants{best}{self._left()}"

    def _left(self) -> str:
        """How much longer at most: early stopping may end it sooner."""
        num_timed = self._num_finished - self._num_earlier
        if num_timed == 0:
            return ""
        seconds = (self._now() - self._began) / num_timed * (self._num_rounds - self._num_finished)
        return f", at most {duration(seconds)} left"

    def _print(self, line: str, level: int) -> None:
        self._console.print(Text(line, style=_STYLES.get(level, "red")), soft_wrap=True)


def duration(seconds: float) -> str:
    """Seconds in the words of someone who waits.

    >>> duration(4.2), duration(75), duration(7260)
    ('4 s', '1 min 15 s', '2 h 1 min')
    """
    whole = round(seconds)
    if whole < 60:  # noqa: PLR2004 - seconds of a minute
        return f"{whole} s"
    minutes, rest = divmod(whole, 60)
    if minutes < 60:  # noqa: PLR2004 - minutes of an hour
        return f"{minutes} min {rest} s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min"
