"""What `hansa compress` shows in a terminal: the choices as they are made, and the table of them."""

from __future__ import annotations

import logging
from typing import Final

from rich.console import Console
from rich.table import Table
from rich.text import Text

from hansa_common.bootstrap import Interval
from hansa_server.moving_line import MovingLine
from hansa_server.run_events import CompressionStarted, Event, RoundFinished
from hansa_simulations.choices import Choice, named
from hansa_simulations.choices_files import Choices

# Of the time that a choice takes, what its rounds may have; the rest is the child process that makes the files.
_SHARE_OF_ROUNDS: Final = 0.5


class ChoicesDisplay(MovingLine):
    """A line that moves while choices are made; in a pipe or a log, one line for each that is done."""

    def __init__(self, num_asked: int, pruning_rounds: int, console: Console | None = None) -> None:
        """`num_asked` is how many are made at least: a search adds to them."""
        self._num_stage_rounds = 4 * pruning_rounds
        self._num_asked = num_asked
        self._num_made = 0
        self._num_rounds = 0
        self._name = ""
        super().__init__("choices", float(num_asked), console)

    def begin(self, sparsity: float) -> None:
        """A choice is to be made."""
        self._num_rounds = 0
        self._name = named(sparsity)
        total = max(self._num_asked, self._num_made + 1)
        self._bar.update(self._task, total=float(total), completed=float(self._num_made), description=self._name)

    def show(self, event: Event) -> None:
        """Take in what happens while it is made."""
        match event:
            case RoundFinished():
                self._num_rounds += 1
                part = _SHARE_OF_ROUNDS * min(1.0, self._num_rounds / self._num_stage_rounds)
                told = f"{self._name}: {event.stage}, round {event.round}"
                self._bar.update(self._task, completed=self._num_made + part, description=told)
            case CompressionStarted():
                told = f"{self._name}: making the files and having them judged"
                self._bar.update(self._task, completed=self._num_made + _SHARE_OF_ROUNDS, description=told)
        if event.level >= logging.WARNING:
            self._console.print(Text(f"{self._name}: {event.line}", style="yellow"), soft_wrap=True)

    def end(self, choice: Choice) -> None:
        """It is made."""
        self._num_made += 1
        self._bar.update(self._task, completed=float(self._num_made))
        if choice.is_allowed:
            self._console.print(Text(f"{self._name}: {_loss(choice.loss)} of PR-AUC lost, allowed"), soft_wrap=True)


def print_choices(choices: Choices, console: Console | None = None) -> None:
    """Print every choice in a line, and the verdict."""
    table = Table("zeros", "found", "KB", "gzip", "PR-AUC lost (95 %)", "control", "test PR / ROC-AUC", "")
    for choice in choices.tried:
        control = "-" if choice.control_loss is None else f"{choice.control_loss.estimate:.4f}"
        row = (f"{100 * choice.sparsity:.3g} %", *_sizes(choice), _loss(choice.loss), control, _areas(choice))
        style = "bold" if choice is choices.chosen else ""
        table.add_row(*map(Text, row), Text(_outcome(choice, choices)), style=style)
    console = Console() if console is None else console
    console.print(table)
    console.print("Lost are validation PR-AUC against the model as trained; the control had the same rounds, no masks.")
    console.print(Text(choices.verdict), soft_wrap=True)


def _sizes(choice: Choice) -> tuple[str, str, str]:
    report = choice.report
    if report is None:
        return "-", "-", "-"
    return f"{100 * report.sparsity:.1f} %", f"{report.bytes / 1000:.1f}", f"{report.gzip_bytes / 1000:.1f}"


def _outcome(choice: Choice, choices: Choices) -> str:
    told = "chosen" if choice is choices.chosen else "within" if choice.is_allowed else "refused"
    return told if choice.asked else f"{told}, searched"


def _loss(interval: Interval | None) -> str:
    """A loss with its interval.

    >>> _loss(Interval(0.0012, -0.001, 0.003)), _loss(None)
    ('0.0012 (-0.0010 to 0.0030)', '-')
    """
    return "-" if interval is None else f"{interval.estimate:.4f} ({interval.low:.4f} to {interval.high:.4f})"


def _areas(choice: Choice) -> str:
    figures = choice.found.get("compressed") or {}
    if figures.get("pr_auc") is None:
        return "-"
    return f"{figures['pr_auc']:.4f} / {figures['roc_auc']:.4f}"
