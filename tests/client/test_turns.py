"""One at a time and in order, whatever else happens in the line."""

from __future__ import annotations

import threading
import time

import pytest

from hansa_client.turns import Turns
from hansa_common.errors import BusyError


class Line:
    """Threads in a line, each of which waits until it is let go."""

    def __init__(self, max_waiting: int) -> None:
        self.turns = Turns(max_waiting)
        self.had_turn: list[str] = []
        self.refused: list[str] = []
        self._let_go: dict[str, threading.Event] = {}
        self._gone: dict[str, threading.Event] = {}
        self._threads: dict[str, threading.Thread] = {}

    def join(self, name: str) -> None:
        self._let_go[name], self._gone[name] = threading.Event(), threading.Event()
        self._threads[name] = threading.Thread(target=self._stand, args=(name,), daemon=True)
        length = self.length
        self._threads[name].start()
        until(lambda: self.length == length + 1 or name in self.refused)

    def _stand(self, name: str) -> None:
        try:
            with self.turns.taken(self._gone[name].is_set):
                self.had_turn.append(name)
                assert self._let_go[name].wait(60)
        except BusyError:
            self.refused.append(name)

    def let_go(self, name: str) -> None:
        self._let_go[name].set()
        self._threads[name].join(60)

    def walk_away(self, name: str) -> None:
        self._gone[name].set()
        self._threads[name].join(60)

    @property
    def length(self) -> int:
        return len(self.turns._line)


def until(condition) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.001)


def test_each_has_its_turn_alone_and_in_the_order_they_came():
    line, names = Line(max_waiting=3), ["a", "b", "c", "d"]
    for name in names:
        line.join(name)
    for number, name in enumerate(names, 1):
        until(lambda number=number: line.had_turn == names[:number])
        line.let_go(name)
    assert line.length == 0


def test_who_finds_the_line_full_is_refused_at_once_and_the_others_go_on():
    line = Line(max_waiting=1)
    for name in ("a", "b", "c"):
        line.join(name)
    assert line.refused == ["c"]
    line.let_go("a")
    until(lambda: line.had_turn == ["a", "b"])
    line.join("d")
    assert line.refused == ["c"]
    for name in ("b", "d"):
        line.let_go(name)


def test_who_walks_away_while_waiting_leaves_its_place_to_others():
    line = Line(max_waiting=2)
    for name in ("a", "b", "c"):
        line.join(name)
    line.walk_away("b")
    assert line.refused == ["b"]
    line.let_go("a")
    until(lambda: line.had_turn == ["a", "c"])
    line.let_go("c")
    assert line.length == 0


def test_turn_ends_with_its_block_however_that_ends():
    turns = Turns(max_waiting=0)
    with pytest.raises(ZeroDivisionError), turns.taken():
        raise ZeroDivisionError
    with turns.taken():
        pass
