"""What a process of ours writes to its log: one line of bounded length each, and not a line for every attempt.

Whoever sends a request chooses part of what is said of it, and how often it is said.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Final

from hansa_common.plain_text import printable

MAX_LOG_CHARS: Final = 2000


class OneLine(logging.Formatter):
    """Writes a message as one line that can neither draw on a terminal, nor forge a line, nor fill a disk."""

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 - logging's name
        """The line before a traceback, if there is one."""
        return printable(super().formatMessage(record), MAX_LOG_CHARS)


def log_to_stderr(level: int) -> None:
    """Let this process's log lines go to standard error, with their time."""
    handler = logging.StreamHandler()
    handler.setFormatter(OneLine("%(asctime)s %(levelname)s %(message)s"))
    logging.basicConfig(handlers=[handler], level=level)


class Sparing:
    """Says a few lines of each subject in a while; how many were left unsaid stands in the next one.

    `now` gives seconds on a clock that never goes back. Not for two threads at once.
    """

    LINES: Final = 5
    SECONDS: Final = 60.0
    _MAX_SUBJECTS: Final = 1000

    def __init__(self, say: Callable[[str], object], now: Callable[[], float]) -> None:
        self._say = say
        self._now = now
        self._began = now()
        self._lines: dict[str, int] = {}

    def __call__(self, subject: str, line: str) -> None:
        """Say a line of a subject, unless enough was said of it."""
        if self._now() - self._began >= self.SECONDS:
            self._begin_anew()
        if subject not in self._lines and len(self._lines) >= self._MAX_SUBJECTS:
            subject = "others"
        self._lines[subject] = said = self._lines.get(subject, 0) + 1
        if said <= self.LINES:
            self._say(f"{subject}: {line}")

    def _begin_anew(self) -> None:
        for subject, lines in self._lines.items():
            if lines > self.LINES:
                self._say(f"{subject}: {lines - self.LINES} more such lines in the last minute")
        self._began = self._now()
        self._lines.clear()
