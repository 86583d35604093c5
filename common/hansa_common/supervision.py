"""Parts of a command that are kept running: one that dies is started again, soon at first, and later the more often.

- A part that cannot be started the first time is an error, and nothing is kept.
- After that a part that dies, or cannot be started again, is tried until the block ends. Only one whose refusal is
  final ends the whole: it has said why, and trying again would not mend it.
- People hear once that a part died, and once that it runs again.
- Nothing is left when the block ends; if this process is killed, the parts end as children.py says.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from types import TracebackType
from typing import Final, NoReturn, Self

from hansa_common.children import Child, how_it_ended
from hansa_common.errors import HansaError
from hansa_common.readiness import EndedEarlyError

FIRST_DELAY_SECONDS: Final = 0.5
LONGEST_DELAY_SECONDS: Final = 30.0
# Who has lived so long is started again as soon as the first time.
STEADY_SECONDS: Final = 60.0

Begun = Callable[[Child], object]


@dataclass(frozen=True)
class Part:
    """A child under the name that people know it by. `start` gives a context that is the child, entered once it can be
    used; it tells the function that it is given of the child as soon as its process runs.
    """

    name: str
    start: Callable[[Begun], AbstractContextManager[Child]]
    refusal_is_final: bool = False


class Delays:
    """How long to wait before a part is started again: doubled each time, until one has lived for a while."""

    def __init__(self) -> None:
        self._next_seconds = FIRST_DELAY_SECONDS

    def after(self, lived_seconds: float) -> float:
        """The delay after a part has lived so long; 0 where it could not be started."""
        if lived_seconds >= STEADY_SECONDS:
            self._next_seconds = FIRST_DELAY_SECONDS
        delay, self._next_seconds = self._next_seconds, min(2 * self._next_seconds, LONGEST_DELAY_SECONDS)
        return delay


class Kept:
    """The parts that are kept running."""

    def __init__(self, stack: ExitStack, tell: Callable[[str], object]) -> None:
        self._stack = stack
        self._tell = tell
        self._failures: queue.Queue[HansaError] = queue.Queue()

    def keep(self, part: Part) -> None:
        """Start a part and keep it running.

        Raises:
            HansaError: it cannot be started.
        """
        self._stack.enter_context(_KeptPart(part, self._tell, self._failures))

    def wait(self) -> NoReturn:
        """Wait for the end of it all.

        Raises:
            HansaError: always: why a part refuses to be started again.
        """
        raise self._failures.get()


@contextmanager
def keeping(tell: Callable[[str], object]) -> Iterator[Kept]:
    """Keep parts running while the block runs, and stop them in the other order than they were started in; `tell` gets
    the lines for people.
    """
    with ExitStack() as stack:
        yield Kept(stack, tell)


class _KeptPart:
    """One part, with the thread that starts it again."""

    def __init__(self, part: Part, tell: Callable[[str], object], failures: queue.Queue[HansaError]) -> None:
        self._part = part
        self._tell = tell
        self._failures = failures
        self._stopping = threading.Event()
        self._lock = threading.Lock()
        self._child: Child | None = None
        self._thread: threading.Thread | None = None

    def __enter__(self) -> Self:
        running, child = self._started()
        self._thread = threading.Thread(target=self._watch, args=(running, child), daemon=True)
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._lock:
            self._stopping.set()
            child = self._child
        if child is not None:
            child.stop()
        if self._thread is not None:
            self._thread.join()

    def _started(self) -> tuple[ExitStack, Child]:
        running = ExitStack()
        return running, running.enter_context(self._part.start(self._begun))

    def _begun(self, child: Child) -> None:
        with self._lock:
            self._child = child
            is_late = self._stopping.is_set()
        if is_late:
            child.stop()

    def _watch(self, running: ExitStack, child: Child) -> None:
        delays = Delays()
        while True:
            began = time.monotonic()
            code = child.process.wait()
            # Also what it started and left behind.
            running.close()
            if self._stopping.is_set():
                return
            self._tell(f"{self._part.name} {how_it_ended(code)}; it is started again")
            started = self._started_again(delays, time.monotonic() - began)
            if started is None:
                return
            running, child = started
            self._tell(f"{self._part.name} runs again")

    def _started_again(self, delays: Delays, lived_seconds: float) -> tuple[ExitStack, Child] | None:
        """The part once it is there again; None where the block ends, or it refuses for good."""
        while not self._stopping.wait(delays.after(lived_seconds)):
            lived_seconds = 0.0
            try:
                return self._started()
            except EndedEarlyError as error:
                if self._part.refusal_is_final and error.ended_with > 0 and not self._stopping.is_set():
                    self._failures.put(error)
                    return None
            except (HansaError, OSError):
                # Not ready in time, or the machine has nothing left to start it with: later, perhaps.
                continue
        return None
