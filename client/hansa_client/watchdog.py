"""Ends this process when the work on an order hangs, so that whoever keeps it running starts it again.

- An order is late when its work has not stopped some time after its deadline: neither deadline nor cancellation have
  reached it, so nothing else would.
- Where every thread stands goes into a file first; it has names of functions and no values.
- The last words are said before the process ends, unless they hang too; where Python itself stands still, a thread that
  does not need it ends the process a little later.
"""

from __future__ import annotations

import faulthandler
import logging
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

# A network's first compilation ends late and well; who waited has gone long before.
GRACE_SECONDS: Final = 120.0
# What is left for the last words.
LAST_SECONDS: Final = 10.0
# EX_TEMPFAIL: it may go better the next time.
HUNG_EXIT_CODE: Final = 75
STACKS_NAME: Final = "hung.txt"

_log = logging.getLogger(__name__)


class Watchdog:
    """Watches one piece of work at a time, in this process."""

    def __init__(self, stacks: Path, *, grace_seconds: float = GRACE_SECONDS) -> None:
        """Open the file for the stacks, which none but this user can read."""
        self._path = stacks
        self._stacks = os.open(stacks, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        self._grace_seconds = grace_seconds
        self._lock = threading.Lock()

    @contextmanager
    def watching(self, seconds: float, last_words: Callable[[], object]) -> Iterator[None]:
        """End this process, after the last words, if the block has not ended a while after so many seconds."""
        is_over = threading.Event()

        def bark() -> None:
            with self._lock:
                if not is_over.is_set():
                    self._end(last_words)

        late_after = max(0.0, seconds) + self._grace_seconds
        timer = threading.Timer(late_after, bark)
        timer.daemon = True
        timer.start()
        faulthandler.dump_traceback_later(late_after + LAST_SECONDS, exit=True, file=self._stacks)
        try:
            yield
        finally:
            with self._lock:
                is_over.set()
            timer.cancel()
            faulthandler.cancel_dump_traceback_later()

    def _end(self, last_words: Callable[[], object]) -> None:
        try:
            faulthandler.dump_traceback(file=self._stacks)
            _log.error(
                "an order hangs: its work has not stopped %.0f seconds after its deadline. The trainer ends; where it "
                "stood is in %s", self._grace_seconds, self._path,
            )  # fmt: skip
            last_words()
        finally:
            os._exit(HUNG_EXIT_CODE)
