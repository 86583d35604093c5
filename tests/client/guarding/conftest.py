"""The boundary round a trainer who answers by rote, and the orders that knock at it."""

from __future__ import annotations

import numpy as np
import pytest

from hansa_client.audit import Audit
from hansa_client.guarded_trainer import Boundary, GuardedTrainer
from hansa_client.order_log import OrderLog
from hansa_client.policy import Policy
from hansa_common.agreement import Agreement, validate_agreement
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
from hansa_common.sealing import unopened_hash

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
NONE = np.zeros(0, np.float32)


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
def agreed() -> Agreement:
    return AGREED


@pytest.fixture(name="introduction")
def introduction_of_a_run():
    return introduction


@pytest.fixture(name="ordered")
def order_of_a_run():
    return ordered


@pytest.fixture
def clerk() -> Clerk:
    return Clerk()


@pytest.fixture
def guarded(clerk, tmp_path):
    """The clerk behind a boundary, which keeps in the test's folder what it takes and notes."""
    kept = {"log": OrderLog(tmp_path / "orders"), "audit": Audit(tmp_path / "audit.jsonl")}

    def guard(introduced: bool = True, **changes) -> GuardedTrainer:
        trainer = GuardedTrainer(clerk, Boundary(Policy(AGREED, "alder"), **{**kept, **changes}))
        if introduced:
            assert isinstance(decode(trainer.answer(introduction())), Introduction)
            clerk.orders.clear()
        return trainer

    return guard


@pytest.fixture
def code_of():
    """The code of the refusal that an order gets."""

    def refused(trainer, order: bytes) -> str:
        reply = decode(trainer.answer(order))
        assert isinstance(reply, Refusal), reply
        # Where too many wait, it is refused unopened.
        named = unopened_hash(order) if reply.code == "busy" else message_hash(order)
        assert (reply.merchant, reply.order_hash) == ("alder", named)
        return reply.code

    return refused
