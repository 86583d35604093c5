"""When the work on one order stops before its end: at its deadline, or once nobody waits for its reply any more.

Nothing is interrupted: whoever works asks between two chunks of it. What stops leaves nothing behind.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

from hansa_common.errors import DeadlineError


@dataclass(frozen=True)
class Halt:
    """One order's deadline, in seconds of time.monotonic(), and whether who asked has gone, or this process ends."""

    deadline: float
    is_cancelled: Callable[[], bool] = lambda: False

    def is_due(self) -> bool:
        """Whether to stop."""
        return self.is_cancelled() or time.monotonic() >= self.deadline

    @property
    def seconds_left(self) -> float:
        """Seconds until the deadline, 0 once it is over."""
        return max(0.0, self.deadline - time.monotonic())

    def check(self) -> None:
        """Go on, or stop here.

        Raises:
            DeadlineError: it is time to stop.
        """
        if self.is_due():
            raise DeadlineError("the order's deadline is over, or nobody waits for its reply any more")
