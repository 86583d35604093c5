"""The numbers that a coordinator gives its introductions: a merchant refuses one that is not above all it has seen
(order_log.py), so nobody takes it back into an old run with an introduction that was kept.

- A number is above all that were given before, by any run or process of this coordinator, and after any kill.
- It is the time in milliseconds, or one more than the last where the clock is behind: so a state folder that was put
  back from an older copy goes on above what it had given, and a clock that was ahead for a while leaves nobody out.

Two processes that draw one in the same millisecond may draw the same; a merchant then takes the run that asks first.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from hansa_common import durable_files
from hansa_common.errors import CoordinatorError
from hansa_common.messages import MAX_INTRODUCTION

INTRODUCTIONS: Final = "introductions"
_MAX_DIGITS: Final = len(str(MAX_INTRODUCTION))


def _milliseconds() -> int:
    return time.time_ns() // 1_000_000


@dataclass(frozen=True)
class IntroductionNumbers:
    """Gives numbers; the last one stands in a file of the coordinator's state folder."""

    path: Path
    now: Callable[[], int] = _milliseconds

    def draw(self) -> int:
        """A number above all before it, on disk when this returns.

        Raises:
            CoordinatorError: the file cannot be read, or is damaged.
        """
        number = max(self._last() + 1, self.now())
        durable_files.write(self.path, f"{number}\n".encode())
        return number

    def _last(self) -> int:
        try:
            written = self.path.read_bytes()
        except FileNotFoundError:
            return 0
        except OSError as error:
            raise CoordinatorError(f"{self.path} cannot be read: {error.strerror}") from error
        digits = written.strip()
        number = int(digits) if digits.isdigit() and len(digits) <= _MAX_DIGITS else MAX_INTRODUCTION
        if number >= MAX_INTRODUCTION:
            raise CoordinatorError(f"{self.path} is damaged; remove it, if this machine's clock is right")
        return number
