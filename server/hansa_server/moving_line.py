"""A line that moves in a terminal while something long is done; in a pipe or a log there is none."""

from __future__ import annotations

from types import TracebackType
from typing import Final, Self

from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

# Training runs in this process in a simulation: a display that redraws often would be noticed.
_REFRESHES_PER_SECOND: Final = 2


class MovingLine:
    """Moves while it is entered. What it tells is a subclass's, and told as text, never as markup."""

    def __init__(self, description: str, total: float | None, console: Console | None) -> None:
        """`total` is what `completed` comes to, None where that is not known; the console is standard output's where
        none is given.
        """
        self._console = Console() if console is None else console
        self._bar = Progress(
            SpinnerColumn(),
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=24),
            TimeElapsedColumn(),
            console=self._console,
            transient=True,
            refresh_per_second=_REFRESHES_PER_SECOND,
            disable=not self._console.is_terminal,
        )
        self._task = self._bar.add_task(description, total=total)

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()
