"""What a simulation shows in a terminal besides the run itself: its baselines as they train, and the outcome."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final, Self

from rich.console import Console
from rich.table import Table
from rich.text import Text

from hansa_server.moving_line import MovingLine
from hansa_server.progress import duration
from hansa_server.run_events import traffic
from hansa_simulations.scenario import BaselineProgress

_PARTIES: Final = {"local": "Alone", "federated": "Together", "pooled": "Pooled"}


class BaselineDisplay(MovingLine):
    """A line that moves while baselines train; in a pipe or a log, one line when they are done."""

    def __init__(self, console: Console | None = None, now: Callable[[], float] = time.monotonic) -> None:
        super().__init__("baselines", None, console)
        self._now = now
        self._began: float | None = None

    def __enter__(self) -> Self:
        # It moves from the first baseline on: the run itself has a display of its own.
        return self

    def show(self, progress: BaselineProgress) -> None:
        """Take in that one more plan has been trained."""
        if self._began is None:
            self._began = self._now()
            self._bar.reset(self._task, total=progress.num_all)
            self._bar.start()
        self._bar.update(self._task, completed=progress.num_trained, description=self._status(progress))
        if progress.num_trained == progress.num_all:
            done = Text(f"baselines: {progress.num_all} models trained, each plan to its own end")
            # Above a moving line, rich would cut it to that line's width.
            self._console.print(done, soft_wrap=True)

    def _status(self, progress: BaselineProgress) -> str:
        since = 0.0 if self._began is None else self._now() - self._began
        status = f"baselines: {progress.name}, {progress.num_trained} of {progress.num_all} models"
        if progress.num_trained < 2:  # noqa: PLR2004 - the first one says when it ended, not how long it took
            return status
        left = since / (progress.num_trained - 1) * (progress.num_all - progress.num_trained)
        return f"{status}, about {duration(left)} left"


def print_summary(metrics: Mapping[str, Any], report: Path, console: Console | None = None) -> None:
    """Print who gained what, and where the report is."""
    parties = [party for party in _PARTIES if party in metrics]
    table = Table("PR-AUC / ROC-AUC on test rows", *(_PARTIES[party] for party in parties), title_justify="left")
    for name, merchant in metrics["merchants"].items():
        table.add_row(Text(name), *(_areas(merchant.get(party)) for party in parties))
    table.add_section()
    everyone = "everyone (alone: the mean)" if "local" in parties else "everyone"
    table.add_row(everyone, *(_areas(metrics[party]) for party in parties), style="bold")
    console = Console() if console is None else console
    console.print(table)
    rounds = metrics["rounds"]
    received, sent = (sum(entry[key] for entry in rounds) for key in ("bytes_received", "bytes_sent"))
    console.print(Text(f"{len(rounds)} rounds, {traffic(received, sent)} by the coordinator"))
    console.print(Text(f"agreement {metrics['agreement_fingerprint'][:12]}, seed {metrics['seed']}"))
    if "audit" in metrics:
        console.print(Text(metrics["audit"]["verdict"]), soft_wrap=True)
    console.print(Text(f"The report is {report}"), soft_wrap=True)


def _areas(figures: Mapping[str, Any] | None) -> str:
    """Both figures of a party.

    >>> _areas({"pr_auc": 0.51234, "roc_auc": 0.9}), _areas(None)
    ('.512 / .900', '-')
    """
    if not figures or figures.get("pr_auc") is None:
        return "-"
    return f"{figures['pr_auc']:.3f} / {figures['roc_auc']:.3f}".replace("0.", ".")
