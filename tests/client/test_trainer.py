"""A merchant's answers: equal to the arithmetic they promise, bound to the agreement, silent about everything else."""

from __future__ import annotations

import json
import logging
import math
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from hansa_client.data import MerchantTable, merchant_table
from hansa_client.guarded_trainer import Boundary, GuardedTrainer
from hansa_client.own_figures import OWN_METRICS_NAME
from hansa_client.programs import Programs
from hansa_client.trainer import MerchantTrainer
from hansa_client.variates import VariateStore
from hansa_common import statistics
from hansa_common.agreement import Agreement, validate_agreement
from hansa_common.errors import MessageError
from hansa_common.features import FittedPreprocessing
from hansa_common.messages import (
    EvaluateOrder,
    EvaluateReply,
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
from hansa_common.metrics import decision_threshold, score_histogram
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


@pytest.fixture(scope="module")
def programs() -> Programs:
    return Programs(AGREEMENT, capacity_rows=512)


@pytest.fixture(scope="module")
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


@pytest.fixture
def trainer(programs, tmp_path) -> MerchantTrainer:
    return new_trainer(programs, out=tmp_path)


def new_trainer(programs: Programs, merchant: str = "alpha", **changes) -> MerchantTrainer:
    settings = {"agreement": AGREEMENT, "state": VariateStore(), "hash_key": None, **changes}
    rows = settings.pop("table", None) or table(merchant, seed=ROSTER.index(merchant))
    return MerchantTrainer(merchant=merchant, table=rows, programs=programs, **settings)


def header(**changes) -> dict:
    values = {"run_id": "run", "recipient": "alpha", "fingerprint": AGREEMENT.fingerprint, "deadline_seconds": 60}
    return {**values, "sequence": 1, **changes}


@pytest.fixture(scope="module")
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


def reply_to(trainer: MerchantTrainer, order: bytes, kind: type):
    reply = decode(answer(trainer, order))
    assert isinstance(reply, kind), reply
    assert reply.merchant == "alpha"
    assert reply.order_hash == message_hash(order)
    return reply


def refusal_code(trainer: MerchantTrainer, order: bytes) -> str:
    return reply_to(trainer, order, Refusal).code


def inputs_of(rows: MerchantTable, preprocessing: str, indices) -> tuple[np.ndarray, np.ndarray]:
    dense = FittedPreprocessing.from_json(preprocessing).transform(rows.columns, None).dense
    return dense[indices].astype(np.float64), rows.labels[indices].astype(np.float64)


def gradient(weights: np.ndarray, dense: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Mean binary cross-entropy of logistic regression, in closed form: X'(p - y) / n and mean(p - y)."""
    logits = dense @ weights[:-1] + weights[-1]
    error = 1 / (1 + np.exp(-logits)) - labels
    return np.concatenate([dense.T @ error / len(labels), [error.mean()]])


# --- what leaves ------------------------------------------------------------------------------------------------------


def test_introduction_names_the_merchant_and_its_device(trainer):
    reply = reply_to(trainer, encode(IntroduceOrder(**header(recipient="*", sequence=0))), Introduction)
    assert reply.backend == "tensorflow"
    assert reply.device


def test_statistics_are_of_training_rows_alone(programs):
    rows = table("alpha")
    order = encode(StatisticsOrder(**header()))
    reply = reply_to(new_trainer(programs, table=rows), order, StatisticsReply)
    expected = statistics.measure(AGREEMENT, columns_of(rows, rows.train), rows.labels[rows.train])
    np.testing.assert_array_equal(reply.statistics, expected)
    assert reply.num_train_rows == len(rows.train)
    held_out = np.concatenate([rows.validation, rows.test])
    columns = {name: values.copy() for name, values in rows.columns.items()}
    columns["amount"][held_out] = 99.0
    changed = reply_to(new_trainer(programs, table=replace(rows, columns=columns)), order, StatisticsReply)
    np.testing.assert_array_equal(changed.statistics, expected)


def test_one_full_batch_is_one_step_down_the_closed_form_gradient(trainer, round_order, weights, preprocessing):
    reply = reply_to(trainer, round_order(), RoundReply)
    rows = table("alpha")
    expected = -LEARNING_RATE * gradient(weights, *inputs_of(rows, preprocessing, rows.train))
    np.testing.assert_allclose(reply.update, expected, atol=1e-6)
    assert reply.num_examples == len(rows.train)
    assert len(reply.control_delta) == 0


def test_scaffold_step_is_corrected_and_its_new_variate_is_the_gradient(trainer, round_order, weights, preprocessing):
    """K = 1 by option II: y = x - lr (g + c - c_i), and c_i+ = c_i - c + (x - y) / lr = g."""
    rows = table("alpha")
    g = gradient(weights, *inputs_of(rows, preprocessing, rows.train))
    control = np.linspace(-0.2, 0.3, len(weights)).astype(np.float32)
    first_message = answer(trainer, round_order(SCAFFOLD, control=control))
    first = decode(first_message)
    np.testing.assert_allclose(first.update, -LEARNING_RATE * (g + control), atol=1e-6)
    np.testing.assert_allclose(first.control_delta, g, atol=1e-5)
    order = round_order(SCAFFOLD, round=2, control=control, included=message_hash(first_message))
    second = reply_to(trainer, order, RoundReply)
    np.testing.assert_allclose(second.update, -LEARNING_RATE * control, atol=1e-5)
    np.testing.assert_allclose(second.control_delta, np.zeros_like(weights), atol=1e-5)


def test_dropped_reply_leaves_the_variate_as_it_was(trainer, round_order):
    first = decode(answer(trainer, round_order(SCAFFOLD_IN_STEPS)))
    second = decode(answer(trainer, round_order(SCAFFOLD_IN_STEPS, included="")))
    np.testing.assert_array_equal(first.update, second.update)
    np.testing.assert_array_equal(first.control_delta, second.control_delta)


def test_several_steps_move_the_variate_by_their_mean_corrected_gradient(trainer, round_order, weights):
    control = np.full_like(weights, 0.1)
    reply = reply_to(trainer, round_order(SCAFFOLD_IN_STEPS, control=control), RoundReply)
    num_steps = 3 * math.ceil(reply.num_examples / 64)
    mean_gradient = -reply.update / (num_steps * LEARNING_RATE) - control
    np.testing.assert_allclose(reply.control_delta, mean_gradient, atol=1e-6)


def test_round_evaluates_the_incoming_weights_on_validation_rows(programs, round_order, weights, preprocessing):
    rows = table("alpha")
    labels = rows.labels.copy()
    labels[rows.validation] = np.arange(len(rows.validation)) % 2
    reply = reply_to(
        new_trainer(programs, table=replace(rows, labels=labels)), round_order(SCAFFOLD_IN_STEPS), RoundReply
    )
    dense, _ = inputs_of(rows, preprocessing, rows.validation)
    logits = dense @ weights[:-1].astype(np.float64) + weights[-1]
    reference = score_histogram(logits, labels[rows.validation])
    # Equal but for scores that rounding moves over the edge of a bin.
    assert np.abs(np.cumsum(reply.validation - reference)).max() <= 1
    assert reply.validation.sum() == len(rows.validation)


@pytest.mark.parametrize("num_positives", [4, 5])
def test_histogram_below_the_floor_of_positives_is_withheld(programs, round_order, evaluate_order, num_positives):
    rows = table("alpha")
    labels = rows.labels.copy()
    labels[rows.validation] = np.arange(len(rows.validation)) < num_positives
    trainer = new_trainer(programs, table=replace(rows, labels=labels))
    in_round = reply_to(trainer, round_order(), RoundReply).validation
    alone = reply_to(trainer, evaluate_order("validation"), EvaluateReply).histogram
    np.testing.assert_array_equal(in_round, alone)
    assert in_round.sum() == (0 if num_positives == 4 else len(rows.validation))


# --- whose figures ----------------------------------------------------------------------------------------------------


def test_own_figures_stay_at_the_merchant(trainer, evaluate_order, tmp_path):
    reply = reply_to(trainer, evaluate_order("test"), EvaluateReply)
    assert reply.metrics is None
    kept = json.loads((tmp_path / OWN_METRICS_NAME).read_text())
    assert kept["test"]["roc_auc"] == trainer.own_figures.test.roc_auc
    assert kept["agreement_fingerprint"] == AGREEMENT.fingerprint


def test_threshold_is_of_validation_rows(trainer, evaluate_order):
    validation = reply_to(trainer, evaluate_order("validation"), EvaluateReply).histogram
    reply_to(trainer, evaluate_order("test"), EvaluateReply)
    assert trainer.own_figures.threshold == decision_threshold(validation)


def test_validation_computes_no_own_figures(trainer, evaluate_order, tmp_path):
    reply_to(trainer, evaluate_order("validation"), EvaluateReply)
    assert trainer.own_figures is None
    assert not (tmp_path / OWN_METRICS_NAME).exists()


@pytest.mark.parametrize("min_positives", [1, 10_000])
def test_figures_are_shared_where_the_agreement_says_so_and_the_floor_allows(programs, evaluate_order, min_positives):
    sharing = agreement_with(privacy={"min_count": 1, "min_positives": min_positives, "share_metrics": True})
    trainer = new_trainer(programs, agreement=sharing)
    metrics = reply_to(trainer, evaluate_order("test", fingerprint=sharing.fingerprint), EvaluateReply).metrics
    if min_positives > 1:
        assert metrics is None
    else:
        own = trainer.own_figures.test
        assert (metrics.roc_auc, metrics.pr_auc) == (own.roc_auc, own.pr_auc)
        assert metrics.num_test_rows == len(trainer.table.test)


# --- what an answer depends on ----------------------------------------------------------------------------------------


def without_names(message: bytes) -> dict:
    reply = decode(message).model_dump()
    reply.pop("order_hash")
    return {name: value.tobytes() if isinstance(value, np.ndarray) else value for name, value in reply.items()}


def test_answer_depends_on_no_run_process_or_neighbour(programs, round_order):
    alone = answer(new_trainer(Programs(AGREEMENT, capacity_rows=240)), round_order(SCAFFOLD_IN_STEPS))
    beta = new_trainer(programs, "beta")
    assert isinstance(decode(answer(beta, round_order(SCAFFOLD_IN_STEPS, recipient="beta"))), RoundReply)
    crowded = answer(new_trainer(programs), round_order(SCAFFOLD_IN_STEPS, run_id="another"))
    assert without_names(alone) == without_names(crowded)


def test_rows_are_shuffled_anew_each_round(trainer, round_order):
    first = decode(answer(trainer, round_order(SCAFFOLD_IN_STEPS)))
    second = decode(answer(trainer, round_order(SCAFFOLD_IN_STEPS, round=2)))
    assert not np.array_equal(first.update, second.update)


# --- what is refused --------------------------------------------------------------------------------------------------


def test_bytes_that_are_no_order_are_refused(trainer):
    reply = encode(Refusal(merchant="alpha", order_hash="0" * 64, code="failed"))
    for message in (b"", b"HANSA", b"\x80\x04.", reply, encode(StatisticsOrder(**header()))[:-1]):
        assert refusal_code(trainer, message) == "message-invalid"


def test_orders_of_another_agreement_or_for_another_merchant_are_refused(trainer):
    assert refusal_code(trainer, encode(StatisticsOrder(**header(fingerprint="0" * 64)))) == "agreement-mismatch"
    assert refusal_code(trainer, encode(StatisticsOrder(**header(recipient="beta")))) == "not-permitted"


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"weights": np.zeros(3000, np.float32)}, "message-invalid"),
        ({"weights": NONE}, "message-invalid"),
        ({"control": NONE}, "message-invalid"),
        ({"cohort": ("alpha",)}, "not-permitted"),
        ({"plan": 3}, "not-permitted"),
        ({"preprocessing": "{}"}, "message-invalid"),
        ({"included": "1" * 64}, "failed"),
    ],
)
def test_round_that_does_not_fit_is_refused_before_training(trainer, round_order, changes, code):
    assert refusal_code(trainer, round_order(**{"plan": SCAFFOLD, **changes})) == code


def test_control_variate_for_a_plan_without_one_is_refused(trainer, round_order, weights):
    assert refusal_code(trainer, round_order(FEDAVG, control=weights)) == "not-permitted"


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("name", ["weights", "control"])
def test_numbers_that_are_not_finite_are_refused(trainer, round_order, weights, name, value):
    poisoned = weights.copy()
    poisoned[1] = value
    assert refusal_code(trainer, round_order(SCAFFOLD, **{name: poisoned})) == "message-invalid"


def test_preprocessing_for_other_features_is_refused(trainer, round_order):
    other = agreement_with(
        features=[
            {"kind": "numeric", "name": "amount", "low": 0, "high": 50, "missing": "refuse"},
            {"kind": "boolean", "name": "member", "missing": "refuse"},
        ]
    )
    rows = table("alpha")
    measured = statistics.measure(other, columns_of(rows, rows.train), rows.labels[rows.train])
    foreign = FittedPreprocessing.fit(other, measured).to_json()
    assert refusal_code(trainer, round_order(preprocessing=foreign)) == "not-permitted"


def test_deadline_stops_work(programs, round_order, evaluate_order):
    for order in (round_order(deadline_seconds=1e-6), evaluate_order("test", deadline_seconds=1e-6)):
        assert refusal_code(new_trainer(programs), order) == "deadline"


def test_stopped_training_proposes_nothing(programs, round_order):
    store = VariateStore()
    assert refusal_code(new_trainer(programs, state=store), round_order(SCAFFOLD, deadline_seconds=1e-6)) == "deadline"
    assert decode(answer(new_trainer(programs, state=store), round_order(SCAFFOLD))).KIND == "round-reply"


def test_text_of_a_failure_stays_in_the_merchants_log(programs, caplog):
    rows = table("alpha")
    broken = replace(rows, columns={"amount": rows.columns["amount"]})
    with caplog.at_level(logging.ERROR):
        message = answer(new_trainer(programs, table=broken), encode(StatisticsOrder(**header())))
    refusal = decode(message)
    assert refusal == Refusal(merchant="alpha", order_hash=refusal.order_hash, code=refusal.code)
    assert b"member" not in message
    assert "member" in caplog.text
