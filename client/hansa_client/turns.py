"""One at a time, in the order of arrival, and only a few wait: a line that cannot grow."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final

from hansa_common.errors import BusyError

# How often who waits looks whether it still should.
_LOOK_SECONDS: Final = 0.2


class Turns:
    """A line of threads, of which the first has its turn and at most `max_waiting` wait behind it."""

    def __init__(self, max_waiting: int) -> None:
        self._max_waiting = max_waiting
        self._line: deque[object] = deque()
        self._moved = threading.Condition()

    @contextmanager
    def taken(self, has_gone: Callable[[], bool] = lambda: False) -> Iterator[None]:
        """Have one's turn while the block runs; waits for it as long as `has_gone` says False.

        Raises:
            BusyError: the line is full, or who waited has gone.
        """
        place = object()
        with self._moved:
            self._take_place(place)
            try:
                self._wait(place, has_gone)
            except BaseException:
                self._leave(place)
                raise
        try:
            yield
        finally:
            with self._moved:
                self._leave(place)

    def _take_place(self, place: object) -> None:
        if len(self._line) > self._max_waiting:
            raise BusyError(f"one order is worked on and {self._max_waiting} wait; ask again later")
        self._line.append(place)

    def _wait(self, place: object, has_gone: Callable[[], bool]) -> None:
        while self._line[0] is not place:
            if has_gone():
                raise BusyError("nobody waits for this order any more")
            self._moved.wait(_LOOK_SECONDS)

    def _leave(self, place: object) -> None:
        self._line.remove(place)
        self._moved.notify_all()
