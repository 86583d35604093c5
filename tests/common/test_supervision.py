"""A part that dies is started again while the block runs, and none is left after it."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from contextlib import contextmanager

import pytest

from hansa_common.readiness import EndedEarlyError, running_when_ready
from hansa_common.supervision import LONGEST_DELAY_SECONDS, STEADY_SECONDS, Delays, Part, keeping

# Says its number, and serves; from the start on that is named in a file, it does otherwise.
PROGRAM = """
import os, sys
from pathlib import Path
from hansa_common.readiness import tell_ready
log = Path(sys.argv[2])
with log.open("a") as file:
    file.write(f"{os.getpid()}\\n")
what = Path(sys.argv[3]).read_text() if Path(sys.argv[3]).exists() else "serve"
if what == "refuse":
    print("hansa: the table is gone", file=sys.stderr)
    sys.exit(2)
if what == "die":
    os.kill(os.getpid(), 9)
if what != "never ready":
    tell_ready(int(sys.argv[1]), "ready")
sys.stdin.read()
"""
WAIT_SECONDS = 60.0


class Played:
    """A part whose processes can be counted, and what it is to do when it is started next."""

    def __init__(self, folder) -> None:
        self.starts, self._order = folder / "starts", folder / "order"
        self.lines: list[str] = []
        self._changed = threading.Condition()

    def part(self, *, refusal_is_final: bool = False) -> Part:
        @contextmanager
        def start(begun):
            words = lambda ready: [sys.executable, "-c", PROGRAM, str(ready), str(self.starts), str(self._order)]  # noqa: E731
            with running_when_ready("the part", words, os.environ, seconds=WAIT_SECONDS, begun=begun) as (child, _):
                yield child

        return Part("the part", start, refusal_is_final)

    def tell(self, line: str) -> None:
        with self._changed:
            self.lines.append(line)
            self._changed.notify_all()

    def wait_for_lines(self, number: int) -> None:
        with self._changed:
            assert self._changed.wait_for(lambda: len(self.lines) >= number, WAIT_SECONDS), self.lines

    def next_time(self, what: str) -> None:
        self._order.write_text(what)

    @property
    def pids(self) -> list[int]:
        return [int(line) for line in self.starts.read_text().split()]

    def wait_for_start(self, number: int) -> None:
        deadline = time.monotonic() + WAIT_SECONDS
        while len(self.pids) < number:
            assert time.monotonic() < deadline
            time.sleep(0.01)


@pytest.fixture
def played(tmp_path) -> Played:
    return Played(tmp_path)


def is_gone(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    return False


def test_killed_part_is_started_again_and_told_so_and_no_process_is_left(played):
    with keeping(played.tell) as kept:
        kept.keep(played.part())
        for times in (1, 2):
            os.kill(played.pids[-1], signal.SIGKILL)
            played.wait_for_lines(2 * times)
        assert len(set(played.pids)) == 3
        assert not is_gone(played.pids[-1])
    assert played.lines == ["the part was ended by SIGKILL; it is started again", "the part runs again"] * 2
    assert all(map(is_gone, played.pids))


def test_part_that_cannot_be_started_the_first_time_is_an_error(played):
    played.next_time("refuse")
    with pytest.raises(EndedEarlyError, match="the part ended with code 2"), keeping(played.tell) as kept:
        kept.keep(played.part())
    assert played.lines == []


def test_part_that_cannot_be_started_again_is_tried_again(played):
    with keeping(played.tell) as kept:
        kept.keep(played.part())
        played.next_time("die")
        os.kill(played.pids[-1], signal.SIGKILL)
        played.wait_for_start(2)
        played.next_time("refuse")
        played.wait_for_start(3)
        played.next_time("serve")
        played.wait_for_lines(2)
    assert played.lines == ["the part was ended by SIGKILL; it is started again", "the part runs again"]


def test_refusal_that_is_final_ends_the_wait(played):
    with keeping(played.tell) as kept:
        kept.keep(played.part(refusal_is_final=True))
        played.next_time("refuse")
        os.kill(played.pids[-1], signal.SIGKILL)
        with pytest.raises(EndedEarlyError) as caught:
            kept.wait()
    assert (caught.value.ended_with, caught.value.log) == (2, None)
    assert all(map(is_gone, played.pids))


def test_block_that_ends_while_a_part_is_being_started_does_not_wait_for_it(played):
    with keeping(played.tell) as kept:
        kept.keep(played.part())
        played.next_time("never ready")
        os.kill(played.pids[-1], signal.SIGKILL)
        played.wait_for_start(2)
        began = time.monotonic()
    assert time.monotonic() - began < WAIT_SECONDS / 2
    assert all(map(is_gone, played.pids))


def test_delays_grow_to_a_bound_and_begin_anew_for_who_has_lived():
    delays = Delays()
    told = [delays.after(0.0) for _ in range(10)]
    assert told[:4] == [0.5, 1.0, 2.0, 4.0]
    assert told[-1] == LONGEST_DELAY_SECONDS
    assert delays.after(STEADY_SECONDS) == told[0]
    assert delays.after(1.0) == told[1]
