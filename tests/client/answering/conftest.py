"""A trainer of a small table, the orders that it gets and what it answers; its model's gradient has a closed form."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from hansa_client.data import MerchantTable, merchant_table
from hansa_client.guarded_trainer import Boundary, GuardedTrainer
from hansa_client.programs import Programs
from hansa_client.trainer import MerchantTrainer
from hansa_client.variates import VariateStore
from hansa_common import statistics
from hansa_common.agreement import Agreement, validate_agreement
from hansa_common.errors import MessageError
from hansa_common.features import FittedPreprocessing
from hansa_common.messages import (
    EvaluateOrder,
    IntroduceOrder,
    Refusal,
    RoundOrder,
    decode,
    encode,
    message_hash,
)
from hansa_common.model import ModelSpec
from hansa_common.record_types import Order
from hansa_common.vectors import num_params

LEARNING_RATE = 0.5
FEDAVG, SCAFFOLD, SCAFFOLD_IN_STEPS = 0, 1, 2
ROSTER = ("alpha", "beta")
NONE = np.zeros(0, np.float32)


def agreement_with(**changes) -> Agreement:
    plan = {"optimizer": "sgd", "learning_rate": LEARNING_RATE, "batch_size": 4096}
    values = {
        "task": "purchase",
        "label": {"column": "buys"},
        "features": [
            {"kind": "numeric", "name": "amount", "low": 0, "high": 100, "missing": "refuse"},
            {"kind": "boolean", "name": "member", "missing": "refuse"},
        ],
        # Logistic regression: its gradient is known in closed form.
        "model": {"hidden": [], "dropout": 0.0},
        "training": {
            "algorithm": "auto",
            "rounds": 12,
            "candidates": [
                {"algorithm": "fedavg", **plan, "local_epochs": 1},
                {"algorithm": "scaffold", **plan, "local_epochs": 1},
                {"algorithm": "scaffold", **plan, "local_epochs": 3, "batch_size": 64},
            ],
        },
        "privacy": {"min_count": 1, "min_positives": 5},
        "roster": list(ROSTER),
    }
    return validate_agreement({**values, **changes}, "the test")


AGREEMENT = agreement_with()


def frame(seed: int, num_rows: int = 240) -> pd.DataFrame:
    values = np.random.default_rng(seed)
    amount = values.uniform(0, 100, num_rows)
    member = values.integers(0, 2, num_rows)
    buys = values.uniform(size=num_rows) < 1 / (1 + np.exp(2 - amount / 30 - member))
    return pd.DataFrame(
        {"amount": amount.astype(str), "member": member.astype(str), "buys": buys.astype(int).astype(str)}
    )


def table(merchant: str, seed: int = 0) -> MerchantTable:
    return merchant_table(frame(seed), AGREEMENT, merchant, "the test")


@pytest.fixture(scope="session")
def programs() -> Programs:
    return Programs(AGREEMENT, capacity_rows=512)


@pytest.fixture(scope="session")
def preprocessing() -> str:
    merged = statistics.merge(
        [
            statistics.measure(AGREEMENT, columns_of(rows, rows.train), rows.labels[rows.train])
            for rows in (table("alpha"), table("beta", seed=1))
        ]
    )
    return FittedPreprocessing.fit(AGREEMENT, merged).to_json()


def columns_of(rows: MerchantTable, indices) -> dict:
    return {name: values[indices] for name, values in rows.columns.items()}


@pytest.fixture(name="new_trainer")
def trainer_with(programs):
    def with_changes(merchant: str = "alpha", **changes) -> MerchantTrainer:
        settings = {"agreement": AGREEMENT, "state": VariateStore(), "hash_key": None, "programs": programs, **changes}
        rows = settings.pop("table", None) or table(merchant, seed=ROSTER.index(merchant))
        return MerchantTrainer(merchant=merchant, table=rows, **settings)

    return with_changes


@pytest.fixture
def trainer(new_trainer, tmp_path) -> MerchantTrainer:
    return new_trainer(out=tmp_path)


def header(**changes) -> dict:
    values = {"run_id": "run", "recipient": "alpha", "fingerprint": AGREEMENT.fingerprint, "deadline_seconds": 60}
    return {**values, "sequence": 1, **changes}


@pytest.fixture(scope="session")
def weights() -> np.ndarray:
    size = num_params(ModelSpec.from_agreement(AGREEMENT).shapes)
    return np.random.default_rng(7).normal(0, 0.3, size).astype(np.float32)


@pytest.fixture
def round_order(preprocessing, weights):
    def order(plan: int = FEDAVG, **changes) -> bytes:
        control = NONE if plan == FEDAVG else np.zeros_like(weights)
        values = {"round": 1, "plan": plan, "cohort": ROSTER, "preprocessing": preprocessing, "weights": weights}
        return encode(RoundOrder.model_validate({**header(), **values, "control": control, "included": "", **changes}))

    return order


@pytest.fixture
def evaluate_order(preprocessing, weights):
    def order(split: str, **changes) -> bytes:
        values = {"split": split, "preprocessing": preprocessing, "weights": weights}
        return encode(EvaluateOrder.model_validate({**header(), **values, **changes}))

    return order


def answer(trainer: MerchantTrainer, order: bytes) -> bytes:
    """What leaves for an order, through a boundary that has seen no order before."""
    guarded = GuardedTrainer(trainer, Boundary.in_process(trainer._agreement, trainer._merchant))
    try:
        asked = decode(order)
    except MessageError:
        return guarded.answer(order)
    if isinstance(asked, Order):
        header = {"run_id": asked.run_id, "recipient": "*", "fingerprint": trainer._agreement.fingerprint}
        guarded.answer(encode(IntroduceOrder(**header, deadline_seconds=60)))
    return guarded.answer(order)


@pytest.fixture
def agreement() -> Agreement:
    return AGREEMENT


@pytest.fixture
def reply_to():
    def reply_of(trainer: MerchantTrainer, order: bytes, kind: type):
        reply = decode(answer(trainer, order))
        assert isinstance(reply, kind), reply
        assert reply.merchant == "alpha"
        assert reply.order_hash == message_hash(order)
        return reply

    return reply_of


@pytest.fixture
def refusal_code(reply_to):
    return lambda trainer, order: reply_to(trainer, order, Refusal).code


@pytest.fixture(name="agreement_with")
def agreement_changed():
    return agreement_with


@pytest.fixture(name="table")
def table_of_merchant():
    return table


@pytest.fixture(name="columns_of")
def columns_of_rows():
    return columns_of


@pytest.fixture(name="header")
def header_of_order():
    return header


@pytest.fixture(name="answer")
def answer_to_order():
    return answer
