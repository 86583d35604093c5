"""The boundary round a trainer: what comes in is permitted, obeyed once and noted, and what leaves was asked for."""

from __future__ import annotations

import logging
import subprocess
import sys
import threading
import time
from datetime import datetime

import numpy as np
import pytest

from hansa_client import guarded_trainer
from hansa_client.approvals import Approvals
from hansa_client.audit import Audit, entries
from hansa_client.guarded_trainer import MAX_WAITING, Boundary, GuardedTrainer
from hansa_client.merchant_policy import MerchantPolicy
from hansa_client.order_log import OrderLog
from hansa_client.policy import Policy
from hansa_client.seals import Sealed
from hansa_client.watchdog import HUNG_EXIT_CODE
from hansa_common.agreement import validate_agreement
from hansa_common.errors import DataError, UsageError
from hansa_common.keys import public_key_of
from hansa_common.messages import (
    IntroduceOrder,
    Introduction,
    Refusal,
    RoundOrder,
    RoundReply,
    StatisticsOrder,
    StatisticsReply,
    decode,
    encode,
    message_hash,
)
from hansa_common.metrics import HISTOGRAM_LENGTH
from hansa_common.sealing import open_seal, seal

AGREED = validate_agreement(
    {
        "task": "fraud",
        "label": {"column": "fraud"},
        "features": [{"kind": "boolean", "name": "gift"}],
        "model": {"hidden": []},
        "training": {"algorithm": "fedavg", "rounds": 9, "plan": {"optimizer": "sgd"}},
        "roster": ["alder", "birch"],
    },
    "the test",
)
COORDINATOR, ALDER = bytes(range(32)), bytes(range(32, 64))
NONE = np.zeros(0, np.float32)
SAID = "Ada Lovelace, row 12"


class Clerk:
    """Answers by rote, and counts; fails with an error that is put into its hands."""

    def __init__(self) -> None:
        self.orders = []
        self.error = None
        self.update = np.ones(2, np.float32)
        self.name = "alder"

    def work(self, order, order_hash, halt):  # noqa: ARG002 - a worker's arguments
        self.orders.append(order)
        if self.error is not None:
            raise self.error
        head = {"merchant": self.name, "order_hash": order_hash}
        match order:
            case IntroduceOrder():
                return encode(Introduction(**head, hansa_version="1", backend="paper", device="pencil"))
            case StatisticsOrder():
                return encode(StatisticsReply(**head, statistics=np.array([90, 40]), num_train_rows=90))
            case RoundOrder():
                # Its number tells two answers to one order apart.
                update = self.update * len(self.orders)
                return encode(
                    RoundReply(
                        **head, round=order.round, num_examples=90, update=update, control_delta=NONE,
                        validation=np.zeros(HISTOGRAM_LENGTH, np.int64), train_loss=0.5,
                    )
                )  # fmt: skip
        raise AssertionError(order)


def introduction(**changes) -> bytes:
    values = {"run_id": "run", "recipient": "*", "fingerprint": AGREED.fingerprint, "deadline_seconds": 5.0}
    return encode(IntroduceOrder(**{**values, **changes}))


def ordered(sequence=1, kind=StatisticsOrder, **changes) -> bytes:
    values = {"run_id": "run", "sequence": sequence, "recipient": "alder", "fingerprint": AGREED.fingerprint}
    if kind is RoundOrder:
        values |= {"round": sequence, "plan": 0, "cohort": ("alder", "birch"), "preprocessing": "", "weights": NONE}
        values |= {"control": NONE, "included": ""}
    return encode(kind(**{**values, "deadline_seconds": 5.0, **changes}))


@pytest.fixture
def clerk() -> Clerk:
    return Clerk()


@pytest.fixture
def kept(tmp_path) -> dict:
    return {"log": OrderLog(tmp_path / "orders"), "audit": Audit(tmp_path / "audit.jsonl")}


def guarded(clerk, introduced: bool = True, **changes) -> GuardedTrainer:
    trainer = GuardedTrainer(clerk, Boundary(Policy(AGREED, "alder"), **changes))
    if introduced:
        assert isinstance(decode(trainer.answer(introduction())), Introduction)
        clerk.orders.clear()
    return trainer


def code_of(trainer, order: bytes) -> str:
    reply = decode(trainer.answer(order))
    assert isinstance(reply, Refusal), reply
    assert (reply.merchant, reply.order_hash) == ("alder", message_hash(order))
    return reply.code


# Obeyed once


def test_permitted_order_is_obeyed_and_its_reply_leaves(clerk, kept):
    trainer = guarded(clerk, **kept)
    assert isinstance(decode(trainer.answer(ordered())), StatisticsReply)
    assert isinstance(decode(trainer.answer(ordered(2, RoundOrder))), RoundReply)


def test_order_asked_again_is_computed_once_and_answered_alike(clerk, kept, tmp_path):
    first = guarded(clerk, **kept).answer(ordered(1, RoundOrder))
    restarted = guarded(clerk, introduced=False, log=OrderLog(tmp_path / "orders"))
    assert restarted.answer(ordered(1, RoundOrder)) == first
    assert len(clerk.orders) == 1


def test_refusal_is_the_answer_also_when_it_is_asked_again(clerk, kept):
    trainer = guarded(clerk, **kept)
    clerk.error = DataError(SAID)
    assert code_of(trainer, ordered()) == "data-invalid"
    clerk.error = None
    assert code_of(trainer, ordered()) == "data-invalid"
    assert len(clerk.orders) == 1


def test_what_is_refused_because_this_process_ends_is_obeyed_by_the_next(clerk, kept, tmp_path):
    trainer = guarded(clerk, **kept, is_stopping=lambda: True)
    clerk.error = DataError(SAID)
    code_of(trainer, ordered())
    clerk.error = None
    restarted = guarded(clerk, introduced=False, log=OrderLog(tmp_path / "orders"))
    assert isinstance(decode(restarted.answer(ordered())), StatisticsReply)


def test_order_that_is_not_permitted_takes_no_number(clerk, kept):
    trainer = guarded(clerk, **kept)
    assert code_of(trainer, ordered(recipient="birch")) == "not-permitted"
    assert code_of(trainer, ordered(5, RoundOrder, cohort=("alder",))) == "not-permitted"
    assert isinstance(decode(trainer.answer(ordered(1))), StatisticsReply)


def test_simulated_merchant_obeys_the_same_rules(clerk):
    trainer = guarded_trainer.in_process(AGREED, {"alder": clerk})["alder"]
    assert code_of(trainer, ordered()) == "replayed"
    trainer.answer(introduction())
    trainer.answer(ordered(2))
    assert code_of(trainer, ordered(1)) == "replayed"


# Permitted


def test_own_policy_is_asked_for_every_order_and_its_refusal_takes_no_number(clerk, kept):
    policies = [MerchantPolicy()]
    noon = datetime(2026, 3, 1, 12, 0)  # noqa: DTZ001 - the time of day where the merchant is
    trainer = guarded(clerk, own=lambda: policies[-1], clock=lambda: noon, **kept)
    for policy, code in (
        (MerchantPolicy(paused=True), "not-now"),
        (MerchantPolicy(allowed_hours="22:00-06:00"), "not-now"),
        (MerchantPolicy(min_cohort=3), "not-permitted"),
        (MerchantPolicy(secure_aggregation_required=True), "not-permitted"),
    ):
        policies.append(policy)
        assert code_of(trainer, ordered(1, RoundOrder)) == code
    assert clerk.orders == []
    policies.append(MerchantPolicy(min_cohort=2))
    assert isinstance(decode(trainer.answer(ordered(1, RoundOrder))), RoundReply)


def test_update_longer_than_permitted_does_not_leave(clerk, kept):
    trainer = guarded(clerk, own=lambda: MerchantPolicy(max_update_norm=1.0), **kept)
    assert code_of(trainer, ordered(1, RoundOrder)) == "not-permitted"
    assert code_of(trainer, ordered(1, RoundOrder)) == "not-permitted"


def test_policy_that_cannot_be_read_permits_nothing(clerk, kept):
    def unreadable():
        raise UsageError("merchant.toml does not hold")

    trainer = guarded(clerk, introduced=False, own=unreadable, **kept)
    assert code_of(trainer, introduction()) == "not-permitted"


def test_approval_that_was_taken_back_stops_the_next_order(clerk, kept, tmp_path):
    approvals = Approvals(tmp_path)
    approvals.approve(AGREED)
    trainer = guarded(clerk, approvals=approvals, **kept)
    (tmp_path / "approved" / f"{AGREED.fingerprint}.json").unlink()
    assert code_of(trainer, ordered()) == "agreement-mismatch"
    assert clerk.orders == []


# What leaves


def test_what_was_asked_and_answered_is_noted_in_order(clerk, kept, tmp_path):
    trainer = guarded(clerk, **kept)
    reply = trainer.answer(ordered(1, RoundOrder))
    trainer.answer(ordered(1, RoundOrder))
    code_of(trainer, ordered(2, RoundOrder, cohort=("alder",)))
    code_of(trainer, b"nonsense")
    noted = list(entries(tmp_path / "audit.jsonl"))[2:]
    assert [(e.what, e.kind, e.decision, e.code) for e in noted] == [
        ("asked", "round", None, ""), ("answered", "", "answered", ""),
        ("asked", "round", None, ""), ("answered", "", "stored", ""),
        ("asked", "round", None, ""), ("answered", "", "refused", "not-permitted"),
        ("asked", "", None, ""), ("answered", "", "refused", "message-invalid"),
    ]  # fmt: skip
    assert {e.order for e in noted[:4]} == {message_hash(ordered(1, RoundOrder))}
    assert {e.reply for e in noted[:4]} == {None, message_hash(reply)}
    assert all((e.run, e.sequence, e.round) == ("run", 1, 1) for e in noted[:4])
    assert "the agreement asks for at least 2" in noted[5].reason


@pytest.mark.parametrize("error", [DataError(SAID), ZeroDivisionError(SAID), OSError(13, SAID)])
def test_text_of_a_failure_is_in_the_log_alone(clerk, kept, tmp_path, caplog, error):
    trainer = guarded(clerk, **kept)
    clerk.error = error
    with caplog.at_level(logging.ERROR):
        left = trainer.answer(ordered())
    assert SAID in caplog.text
    assert b"Lovelace" not in left
    assert "Lovelace" not in (tmp_path / "audit.jsonl").read_text()


def test_nothing_but_a_refusal_leaves_that_cannot_be_noted(clerk, kept, tmp_path, caplog):
    trainer = guarded(clerk, **kept)
    whole = (tmp_path / "audit.jsonl").read_bytes()
    (tmp_path / "audit.jsonl").write_bytes(whole[:-5])
    assert code_of(trainer, ordered()) == "failed"
    assert clerk.orders == []
    (tmp_path / "audit.jsonl").write_bytes(whole)
    assert isinstance(decode(trainer.answer(ordered())), StatisticsReply)


def test_reply_in_another_name_or_of_another_kind_does_not_leave(clerk, kept):
    trainer = guarded(clerk, **kept)
    clerk.name = "birch"
    assert code_of(trainer, ordered()) == "failed"


# Signed


def test_under_trust_only_signed_orders_are_opened_and_every_reply_is_signed(clerk, kept):
    trainer = guarded(clerk, False, seals=Sealed(public_key_of(COORDINATOR), ALDER), **kept)
    public = public_key_of(ALDER)
    for order, kind in ((introduction(), Introduction), (ordered(), StatisticsReply)):
        refused = decode(open_seal(trainer.answer(order), public, "reply"))
        assert (refused.code, refused.order_hash) == ("not-signed", message_hash(order))
        reply = decode(open_seal(trainer.answer(seal(order, COORDINATOR, "order")), public, "reply"))
        assert isinstance(reply, kind)
        assert reply.order_hash == message_hash(order)


def test_stored_reply_leaves_under_the_same_seal(clerk, kept):
    trainer = guarded(clerk, False, seals=Sealed(public_key_of(COORDINATOR), ALDER), **kept)
    trainer.answer(seal(introduction(), COORDINATOR, "order"))
    order = seal(ordered(1, RoundOrder), COORDINATOR, "order")
    assert trainer.answer(order) == trainer.answer(order)


# One at a time


class Slow:
    """Works on each order until it is let go, and notes the order in which it got them."""

    def __init__(self, clerk: Clerk) -> None:
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

    def __init__(self, trainer: GuardedTrainer) -> None:
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


def test_orders_wait_in_the_order_they_came_and_one_too_many_is_refused_as_busy(clerk, kept, tmp_path):
    slow = Slow(clerk)
    trainer = guarded(clerk, **kept)
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


def test_order_whose_caller_has_gone_is_stopped_and_obeyed_when_it_is_asked_again(clerk, kept, tmp_path):
    slow, gone = Slow(clerk), threading.Event()
    trainer = guarded(clerk, **kept)
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


def test_order_whose_deadline_is_over_is_stopped_and_stays_refused(clerk, kept):
    slow = Slow(clerk)
    trainer = guarded(clerk, **kept)
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


def test_order_that_hangs_ends_the_process_and_is_refused_by_the_next(clerk, kept, tmp_path):
    guarded(clerk, **kept)
    program = HANGING.format(agreement=AGREED.model_dump(mode="json", exclude_unset=True))
    order = ordered(1, RoundOrder, deadline_seconds=0.1)
    command = [sys.executable, "-c", program, tmp_path, order.hex()]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert ended.returncode == HUNG_EXIT_CODE, ended.stderr
    restarted = guarded(
        clerk, introduced=False, log=OrderLog(tmp_path / "orders"), audit=Audit(tmp_path / "audit.jsonl")
    )
    assert code_of(restarted, order) == "failed"
    assert clerk.orders == []
    assert isinstance(decode(restarted.answer(ordered(2, RoundOrder))), RoundReply)
    noted = list(entries(tmp_path / "audit.jsonl"))
    assert [(e.decision, e.code) for e in noted if e.round == 1 and e.what == "answered"] == [
        ("refused", "failed"), ("stored", ""),
    ]  # fmt: skip
