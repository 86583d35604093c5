"""Work on an order stops at its deadline, and wherever it asks once nobody waits; stopped, it leaves nothing behind."""

from __future__ import annotations

import math
import time

import numpy as np
import pandas as pd
import pytest

from hansa_client.data import merchant_table
from hansa_client.halting import Halt
from hansa_client.programs import Programs
from hansa_client.trainer import MerchantTrainer
from hansa_client.variates import VariateStore
from hansa_common import statistics
from hansa_common.agreement import validate_agreement
from hansa_common.errors import DeadlineError
from hansa_common.features import FittedPreprocessing
from hansa_common.messages import EvaluateOrder, RoundOrder, RoundReply, decode
from hansa_common.vectors import num_params

NUM_ROWS = 200
ORDER_HASH = "0" * 64
AGREEMENT = validate_agreement(
    {
        "task": "purchase",
        "label": {"column": "buys"},
        "features": [{"kind": "numeric", "name": "amount", "low": 0, "high": 100}],
        "model": {"hidden": []},
        "training": {"algorithm": "scaffold", "rounds": 3, "plan": {"optimizer": "sgd", "batch_size": 16}},
        "privacy": {"min_count": 1, "min_positives": 1},
        "roster": ["alder", "birch"],
    },
    "the test",
)
HEADER = {
    "run_id": "run", "sequence": 1, "recipient": "alder", "fingerprint": AGREEMENT.fingerprint, "deadline_seconds": 60
}  # fmt: skip


class Watcher:
    """Goes after it was asked `patience` times whether it is still there."""

    def __init__(self, patience: float) -> None:
        self.patience, self.times = patience, 0

    def has_gone(self) -> bool:
        self.times += 1
        return self.times > self.patience


@pytest.fixture(scope="module")
def rows():
    amounts = np.random.default_rng(3).uniform(0, 100, NUM_ROWS)
    frame = pd.DataFrame({"amount": amounts.astype(str), "buys": (amounts > 50).astype(int).astype(str)})
    return merchant_table(frame, AGREEMENT, "alder", "the test")


@pytest.fixture(scope="module")
def programs() -> Programs:
    return Programs(AGREEMENT, capacity_rows=NUM_ROWS)


@pytest.fixture
def new_trainer(rows, programs):
    def new(state: VariateStore | None = None) -> MerchantTrainer:
        return MerchantTrainer(
            AGREEMENT, "alder", rows, hash_key=None, state=state or VariateStore(), programs=programs
        )

    return new


@pytest.fixture(scope="module")
def orders(rows, programs):
    columns = {name: values[rows.train] for name, values in rows.columns.items()}
    fitted = FittedPreprocessing.fit(AGREEMENT, statistics.measure(AGREEMENT, columns, rows.labels[rows.train]))
    weights = np.zeros(num_params(programs.spec.shapes), np.float32)
    asked = {**HEADER, "preprocessing": fitted.to_json(), "weights": weights}
    training = {"round": 1, "plan": 0, "cohort": AGREEMENT.roster, "control": weights, "included": ""}
    return {"round": RoundOrder(**asked, **training), "evaluate": EvaluateOrder(**asked, split="test")}


@pytest.mark.parametrize("kind", ["round", "evaluate"])
def test_work_stops_wherever_it_asks_once_nobody_waits(kind, orders, new_trainer):
    # Before the work, when the rows are prepared, before the first block is scored, before a chunk or the next block.
    for patience in range(4):
        leaving = Watcher(patience)
        with pytest.raises(DeadlineError):
            new_trainer().work(orders[kind], ORDER_HASH, Halt(math.inf, leaving.has_gone))
        assert leaving.times == patience + 1


@pytest.mark.parametrize("kind", ["round", "evaluate"])
def test_work_stops_at_its_deadline(kind, orders, new_trainer):
    with pytest.raises(DeadlineError):
        new_trainer().work(orders[kind], ORDER_HASH, Halt(time.monotonic()))


def test_work_that_was_stopped_leaves_nothing_and_is_done_anew_to_the_same_bytes(orders, new_trainer):
    undisturbed = new_trainer().work(orders["round"], ORDER_HASH, Halt(math.inf))
    state = VariateStore()
    trainer = new_trainer(state)
    for patience in (1, 3):
        with pytest.raises(DeadlineError):
            trainer.work(orders["round"], ORDER_HASH, Halt(math.inf, Watcher(patience).has_gone))
    assert trainer.work(orders["round"], ORDER_HASH, Halt(math.inf)) == undisturbed
    assert isinstance(decode(undisturbed), RoundReply)
