"""Orders wait for their turn at the boundary round a trainer, and work stops when its time is over or nobody waits."""

from __future__ import annotations

import subprocess
import sys
import threading
import time

from hansa_client.audit import Audit, entries
from hansa_client.guarded_trainer import MAX_WAITING
from hansa_client.order_log import OrderLog
from hansa_client.watchdog import HUNG_EXIT_CODE
from hansa_common.messages import RoundOrder, RoundReply, StatisticsReply, decode


class Slow:
    """Works on each order until it is let go, and notes the order in which it got them."""

    def __init__(self, clerk) -> None:
        self.clerk = clerk
        self.sequences = []
        self.let_go = threading.Semaphore(0)

    def work(self, order, order_hash, halt):
        self.sequences.append(order.sequence)
        while not self.let_go.acquire(timeout=0.01):
            halt.check()
        return self.clerk.work(order, order_hash, halt)


class Callers:
    """Ask a trainer, each in a thread of its own."""

    def __init__(self, trainer) -> None:
        self.trainer = trainer
        self.replies = {}
        self._threads = []

    def ask(self, order: bytes, has_gone=lambda: False) -> None:
        number = len(self.trainer._turns._line) + 1
        thread = threading.Thread(target=lambda: self.replies.update({order: self.trainer.answer(order, has_gone)}))
        thread.start()
        self._threads.append(thread)
        until(lambda: len(self.trainer._turns._line) == number)

    def finish(self) -> None:
        for thread in self._threads:
            thread.join(60)


def until(condition) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.001)


# One at a time


def test_orders_wait_in_the_order_they_came_and_one_too_many_is_refused_as_busy(
    clerk, tmp_path, ordered, guarded, code_of
):
    slow = Slow(clerk)
    trainer = guarded()
    trainer._worker = slow
    callers, orders = Callers(trainer), [ordered(number) for number in range(1, MAX_WAITING + 2)]
    for order in orders:
        callers.ask(order)
    assert code_of(trainer, ordered(9)) == "busy"
    for _ in orders:
        slow.let_go.release()
    callers.finish()
    assert slow.sequences == [1, 2, 3]
    assert [type(decode(callers.replies[order])) for order in orders] == [StatisticsReply] * 3
    assert [e.code for e in entries(tmp_path / "audit.jsonl")].count("busy") == 1


# Stopped


def test_order_whose_caller_has_gone_is_stopped_and_obeyed_when_it_is_asked_again(clerk, tmp_path, ordered, guarded):
    slow, gone = Slow(clerk), threading.Event()
    trainer = guarded()
    trainer._worker = slow
    callers = Callers(trainer)
    callers.ask(ordered(1, RoundOrder), gone.is_set)
    until(lambda: slow.sequences == [1])
    gone.set()
    callers.finish()
    assert clerk.orders == []
    slow.let_go.release()
    assert isinstance(decode(trainer.answer(ordered(1, RoundOrder))), RoundReply)
    decisions = [e.decision for e in entries(tmp_path / "audit.jsonl") if e.what == "answered"]
    assert decisions == ["answered", "refused", "answered"]


def test_order_whose_deadline_is_over_is_stopped_and_stays_refused(clerk, ordered, guarded, code_of):
    slow = Slow(clerk)
    trainer = guarded()
    trainer._worker = slow
    assert code_of(trainer, ordered(deadline_seconds=0.05)) == "deadline"
    slow.let_go.release()
    assert code_of(trainer, ordered(deadline_seconds=0.05)) == "deadline"
    assert clerk.orders == []


HANGING = """
import sys, threading
from pathlib import Path
from hansa_client.guarded_trainer import Boundary, GuardedTrainer
from hansa_client.audit import Audit
from hansa_client.order_log import OrderLog
from hansa_client.policy import Policy
from hansa_client.watchdog import Watchdog
from hansa_common.agreement import validate_agreement

class Hanging:
    def work(self, order, order_hash, halt):
        threading.Event().wait()

folder, agreement = Path(sys.argv[1]), validate_agreement({agreement}, "the test")
kept = {{"log": OrderLog(folder / "orders"), "audit": Audit(folder / "audit.jsonl")}}
watching = Watchdog(folder / "hung.txt", grace_seconds=0.1).watching
trainer = GuardedTrainer(Hanging(), Boundary(Policy(agreement, "alder"), watching=watching, **kept))
trainer.answer(bytes.fromhex(sys.argv[2]))
"""


def test_order_that_hangs_ends_the_process_and_is_refused_by_the_next(
    clerk, tmp_path, agreed, ordered, guarded, code_of
):
    guarded()
    program = HANGING.format(agreement=agreed.model_dump(mode="json", exclude_unset=True))
    order = ordered(1, RoundOrder, deadline_seconds=0.1)
    command = [sys.executable, "-c", program, tmp_path, order.hex()]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert ended.returncode == HUNG_EXIT_CODE, ended.stderr
    restarted = guarded(introduced=False, log=OrderLog(tmp_path / "orders"), audit=Audit(tmp_path / "audit.jsonl"))
    assert code_of(restarted, order) == "failed"
    assert clerk.orders == []
    assert isinstance(decode(restarted.answer(ordered(2, RoundOrder))), RoundReply)
    noted = list(entries(tmp_path / "audit.jsonl"))
    assert [(e.decision, e.code) for e in noted if e.round == 1 and e.what == "answered"] == [
        ("refused", "failed"), ("stored", ""),
    ]  # fmt: skip
