"""What a merchant lets a coordinator prune: only what was agreed, held where it trains, with variates kept apart."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from hansa_client.data import merchant_table
from hansa_client.guarded_trainer import Boundary, GuardedTrainer
from hansa_client.programs import Programs
from hansa_client.trainer import MerchantTrainer
from hansa_client.variates import VariateStore
from hansa_common import statistics
from hansa_common.agreement import validate_agreement
from hansa_common.features import FittedPreprocessing
from hansa_common.messages import (
    EvaluateOrder,
    EvaluateReply,
    IntroduceOrder,
    Refusal,
    RoundOrder,
    RoundReply,
    decode,
    encode,
    message_hash,
)
from hansa_common.model import ModelSpec, initial_weights
from hansa_common.pruning import magnitude_mask, masked, pack_mask

NONE = np.zeros(0, np.float32)
VALUES = {
    "task": "purchase",
    "label": {"column": "buys"},
    "features": [
        {"kind": "numeric", "name": "amount", "low": 0, "high": 100, "missing": "refuse"},
        {"kind": "boolean", "name": "member", "missing": "refuse"},
    ],
    "model": {"hidden": [8, 6], "dropout": 0.0},
    "training": {"algorithm": "scaffold", "plan": {"optimizer": "sgd", "learning_rate": 0.2, "batch_size": 32}},
    "privacy": {"min_count": 1, "min_positives": 1},
    "roster": ["alpha", "beta"],
}
AGREED = validate_agreement({**VALUES, "compression": {"format": "int8", "sparsity": 0.5}}, "the test")
UNPRUNED = validate_agreement({**VALUES, "compression": {"format": "int8"}}, "the test")
SPEC = ModelSpec.from_agreement(AGREED)
WEIGHTS = initial_weights(SPEC, 4)
MASK = magnitude_mask(SPEC, WEIGHTS, 0.5)


def new_trainer(agreement=AGREED):
    values = np.random.default_rng(0)
    amount, member = values.uniform(0, 100, 200), values.integers(0, 2, 200)
    buys = values.uniform(size=200) < 1 / (1 + np.exp(2 - amount / 30 - member))
    frame = pd.DataFrame(
        {"amount": amount.astype(str), "member": member.astype(str), "buys": buys.astype(int).astype(str)}
    )
    table = merchant_table(frame, agreement, "alpha", "the test")
    columns = {name: column[table.train] for name, column in table.columns.items()}
    measured = statistics.measure(agreement, columns, table.labels[table.train])
    trainer = MerchantTrainer(
        agreement, "alpha", table, hash_key=None, state=VariateStore(), programs=Programs.for_tables(agreement, table)
    )
    return trainer, FittedPreprocessing.fit(agreement, measured).to_json()


@pytest.fixture(scope="module")
def merchant():
    return new_trainer()


def order_of(preprocessing, agreement=AGREED, **changes):
    values = {
        "run_id": "run", "sequence": 1, "recipient": "alpha", "fingerprint": agreement.fingerprint,
        "deadline_seconds": 60, "round": 3, "plan": 0, "cohort": ("alpha", "beta"), "preprocessing": preprocessing,
        "weights": masked(WEIGHTS, MASK), "control": np.zeros_like(WEIGHTS), "included": "",
        "stage": "prune", "masks": pack_mask(SPEC, MASK),
    }  # fmt: skip
    return RoundOrder(**{**values, **changes})


def sent(trainer, order):
    """What leaves for an order, through a boundary that has seen no order before."""
    guarded = GuardedTrainer(trainer, Boundary.in_process(trainer._agreement, "alpha"))
    header = {"run_id": order.run_id, "recipient": "*", "fingerprint": order.fingerprint, "deadline_seconds": 60}
    guarded.answer(encode(IntroduceOrder(**header)))
    return guarded.answer(encode(order))


def answer(merchant, **changes):
    trainer, preprocessing = merchant
    return decode(sent(trainer, order_of(preprocessing, **changes)))


def test_update_of_a_pruned_weight_is_zero_and_training_goes_on_around_it(merchant):
    control = np.full_like(WEIGHTS, 0.1)
    reply = answer(merchant, control=control)
    assert isinstance(reply, RoundReply)
    assert np.all(reply.update[MASK == 0] == 0)
    assert np.count_nonzero(reply.update[MASK == 1]) > 0.9 * np.count_nonzero(MASK)


def beyond(mask):
    pruned = mask.copy()
    pruned[np.flatnonzero(pruned)[0]] = 0
    return pruned


HOSTILE = {
    "one weight more than agreed": {
        "masks": pack_mask(SPEC, beyond(MASK)), "weights": masked(WEIGHTS, beyond(MASK)), "code": "not-permitted",
    },
    "everything": {
        "masks": np.zeros_like(pack_mask(SPEC, MASK)), "weights": np.zeros_like(WEIGHTS), "code": "not-permitted",
    },
    "a mask too short": {"masks": pack_mask(SPEC, MASK)[:-1], "code": "message-invalid"},
    "no mask": {"masks": np.zeros(0, np.uint8), "code": "message-invalid"},
    "weights that the mask prunes": {"weights": WEIGHTS, "code": "message-invalid"},
    "masks in the training": {"stage": "train", "code": "not-permitted"},
    "masks in the control": {"stage": "control", "code": "not-permitted"},
}  # fmt: skip


@pytest.mark.parametrize("attack", HOSTILE)
def test_order_that_prunes_otherwise_than_agreed_is_refused(merchant, attack):
    changes = {**HOSTILE[attack]}
    code = changes.pop("code")
    reply = answer(merchant, **changes)
    assert isinstance(reply, Refusal)
    assert reply.code == code


@pytest.mark.parametrize("stage", ["prune", "control"])
def test_no_stage_but_training_where_nothing_is_to_be_pruned(stage):
    trainer, preprocessing = new_trainer(UNPRUNED)
    order = order_of(preprocessing, UNPRUNED, stage=stage, masks=np.zeros(0, np.uint8), weights=WEIGHTS)
    reply = decode(sent(trainer, order))
    assert (type(reply), reply.code) == (Refusal, "not-permitted")


def test_variates_of_one_stage_are_not_those_of_another():
    merchant = trainer, preprocessing = new_trainer()
    plain = {"stage": "train", "masks": np.zeros(0, np.uint8), "weights": WEIGHTS}
    first = sent(trainer, order_of(preprocessing, **plain))
    assert isinstance(decode(first), RoundReply)
    included = message_hash(first)
    # The stage knows nothing of the training's reply, and begins with no variate.
    assert isinstance(answer(merchant, included=included), Refusal)
    fresh = answer(merchant, **{**plain, "stage": "control"})
    assert fresh.update.tobytes() == decode(first).update.tobytes()
    # Nor did either touch the training's own.
    assert isinstance(answer(merchant, **plain, included=included), RoundReply)


def evaluation(merchant, stage, split="test", agreement=AGREED):
    trainer, preprocessing = merchant
    order = EvaluateOrder(
        run_id="run", sequence=1, recipient="alpha", fingerprint=agreement.fingerprint, deadline_seconds=60,
        split=split, preprocessing=preprocessing, weights=WEIGHTS, stage=stage,
    )  # fmt: skip
    return decode(sent(trainer, order))


@pytest.mark.parametrize("stage", ["prune", "control"])
def test_models_beside_the_kept_one_leave_nothing_of_a_merchants_own_figures(stage):
    sharing = validate_agreement({**AGREED.model_dump(), "privacy": {"share_metrics": True}}, "the test")
    merchant = trainer, _ = new_trainer(sharing)
    kept = evaluation(merchant, "train", agreement=sharing)
    figures = trainer.own_figures
    assert figures is not None
    beside = evaluation(merchant, stage, agreement=sharing)
    assert trainer.own_figures is figures
    assert isinstance(beside, EvaluateReply)
    # The federation gets its sum all the same.
    assert beside.histogram.tobytes() == kept.histogram.tobytes()
    assert kept.metrics is not None
    assert beside.metrics is None


@pytest.mark.parametrize("stage", ["prune", "control"])
@pytest.mark.parametrize("split", ["validation", "test"])
def test_no_model_of_another_stage_is_looked_at_where_nothing_is_to_be_pruned(stage, split):
    reply = evaluation(new_trainer(UNPRUNED), stage, split, UNPRUNED)
    assert (type(reply), reply.code) == (Refusal, "not-permitted")
