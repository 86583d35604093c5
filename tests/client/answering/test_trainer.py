"""A merchant's answers: equal to the arithmetic they promise, bound to the agreement, silent about everything else."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import numpy as np
import pytest

from hansa_client.data import MerchantTable
from hansa_client.own_figures import OWN_METRICS_NAME
from hansa_client.programs import Programs
from hansa_common import statistics
from hansa_common.features import FittedPreprocessing
from hansa_common.messages import (
    EvaluateReply,
    IntroduceOrder,
    Introduction,
    RoundReply,
    StatisticsOrder,
    StatisticsReply,
    decode,
    encode,
    message_hash,
)
from hansa_common.metrics import decision_threshold, score_histogram

FEDAVG, SCAFFOLD, SCAFFOLD_IN_STEPS = 0, 1, 2
LEARNING_RATE = 0.5


def inputs_of(rows: MerchantTable, preprocessing: str, indices) -> tuple[np.ndarray, np.ndarray]:
    dense = FittedPreprocessing.from_json(preprocessing).transform(rows.columns, None).dense
    return dense[indices].astype(np.float64), rows.labels[indices].astype(np.float64)


def gradient(weights: np.ndarray, dense: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Mean binary cross-entropy of logistic regression, in closed form: X'(p - y) / n and mean(p - y)."""
    logits = dense @ weights[:-1] + weights[-1]
    error = 1 / (1 + np.exp(-logits)) - labels
    return np.concatenate([dense.T @ error / len(labels), [error.mean()]])


# --- what leaves ------------------------------------------------------------------------------------------------------


def test_introduction_names_the_merchant_and_its_device(trainer, header, reply_to):
    reply = reply_to(trainer, encode(IntroduceOrder(**header(recipient="*", sequence=0))), Introduction)
    assert reply.backend == "tensorflow"
    assert reply.device


def test_statistics_are_of_training_rows_alone(agreement, table, columns_of, new_trainer, header, reply_to):
    rows = table("alpha")
    order = encode(StatisticsOrder(**header()))
    reply = reply_to(new_trainer(table=rows), order, StatisticsReply)
    expected = statistics.measure(agreement, columns_of(rows, rows.train), rows.labels[rows.train])
    np.testing.assert_array_equal(reply.statistics, expected)
    assert reply.num_train_rows == len(rows.train)
    held_out = np.concatenate([rows.validation, rows.test])
    columns = {name: values.copy() for name, values in rows.columns.items()}
    columns["amount"][held_out] = 99.0
    changed = reply_to(new_trainer(table=replace(rows, columns=columns)), order, StatisticsReply)
    np.testing.assert_array_equal(changed.statistics, expected)


def test_one_full_batch_is_one_step_down_the_closed_form_gradient(
    trainer, round_order, weights, preprocessing, table, reply_to
):
    reply = reply_to(trainer, round_order(), RoundReply)
    rows = table("alpha")
    expected = -LEARNING_RATE * gradient(weights, *inputs_of(rows, preprocessing, rows.train))
    np.testing.assert_allclose(reply.update, expected, atol=1e-6)
    assert reply.num_examples == len(rows.train)
    assert len(reply.control_delta) == 0


def test_scaffold_step_is_corrected_and_its_new_variate_is_the_gradient(
    trainer, round_order, weights, preprocessing, table, answer, reply_to
):
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


def test_dropped_reply_leaves_the_variate_as_it_was(trainer, round_order, answer):
    first = decode(answer(trainer, round_order(SCAFFOLD_IN_STEPS)))
    second = decode(answer(trainer, round_order(SCAFFOLD_IN_STEPS, included="")))
    np.testing.assert_array_equal(first.update, second.update)
    np.testing.assert_array_equal(first.control_delta, second.control_delta)


def test_several_steps_move_the_variate_by_their_mean_corrected_gradient(trainer, round_order, weights, reply_to):
    control = np.full_like(weights, 0.1)
    reply = reply_to(trainer, round_order(SCAFFOLD_IN_STEPS, control=control), RoundReply)
    num_steps = 3 * math.ceil(reply.num_examples / 64)
    mean_gradient = -reply.update / (num_steps * LEARNING_RATE) - control
    np.testing.assert_allclose(reply.control_delta, mean_gradient, atol=1e-6)


def test_round_evaluates_the_incoming_weights_on_validation_rows(
    round_order, weights, preprocessing, table, new_trainer, reply_to
):
    rows = table("alpha")
    labels = rows.labels.copy()
    labels[rows.validation] = np.arange(len(rows.validation)) % 2
    reply = reply_to(new_trainer(table=replace(rows, labels=labels)), round_order(SCAFFOLD_IN_STEPS), RoundReply)
    dense, _ = inputs_of(rows, preprocessing, rows.validation)
    logits = dense @ weights[:-1].astype(np.float64) + weights[-1]
    reference = score_histogram(logits, labels[rows.validation])
    # Equal but for scores that rounding moves over the edge of a bin.
    assert np.abs(np.cumsum(reply.validation - reference)).max() <= 1
    assert reply.validation.sum() == len(rows.validation)


@pytest.mark.parametrize("num_positives", [4, 5])
def test_histogram_below_the_floor_of_positives_is_withheld(
    round_order, evaluate_order, num_positives, table, new_trainer, reply_to
):
    rows = table("alpha")
    labels = rows.labels.copy()
    labels[rows.validation] = np.arange(len(rows.validation)) < num_positives
    trainer = new_trainer(table=replace(rows, labels=labels))
    in_round = reply_to(trainer, round_order(), RoundReply).validation
    alone = reply_to(trainer, evaluate_order("validation"), EvaluateReply).histogram
    np.testing.assert_array_equal(in_round, alone)
    assert in_round.sum() == (0 if num_positives == 4 else len(rows.validation))


# --- whose figures ----------------------------------------------------------------------------------------------------


def test_own_figures_stay_at_the_merchant(trainer, evaluate_order, tmp_path, agreement, reply_to):
    reply = reply_to(trainer, evaluate_order("test"), EvaluateReply)
    assert reply.metrics is None
    kept = json.loads((tmp_path / OWN_METRICS_NAME).read_text())
    assert kept["test"]["roc_auc"] == trainer.own_figures.test.roc_auc
    assert kept["agreement_fingerprint"] == agreement.fingerprint


def test_threshold_is_of_validation_rows(trainer, evaluate_order, reply_to):
    validation = reply_to(trainer, evaluate_order("validation"), EvaluateReply).histogram
    reply_to(trainer, evaluate_order("test"), EvaluateReply)
    assert trainer.own_figures.threshold == decision_threshold(validation)


def test_validation_computes_no_own_figures(trainer, evaluate_order, tmp_path, reply_to):
    reply_to(trainer, evaluate_order("validation"), EvaluateReply)
    assert trainer.own_figures is None
    assert not (tmp_path / OWN_METRICS_NAME).exists()


@pytest.mark.parametrize("min_positives", [1, 10_000])
def test_figures_are_shared_where_the_agreement_says_so_and_the_floor_allows(
    evaluate_order, min_positives, agreement_with, new_trainer, reply_to
):
    sharing = agreement_with(privacy={"min_count": 1, "min_positives": min_positives, "share_metrics": True})
    trainer = new_trainer(agreement=sharing)
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


def test_answer_depends_on_no_run_process_or_neighbour(round_order, agreement, new_trainer, answer):
    alone = answer(new_trainer(programs=Programs(agreement, capacity_rows=240)), round_order(SCAFFOLD_IN_STEPS))
    beta = new_trainer("beta")
    assert isinstance(decode(answer(beta, round_order(SCAFFOLD_IN_STEPS, recipient="beta"))), RoundReply)
    crowded = answer(new_trainer(), round_order(SCAFFOLD_IN_STEPS, run_id="another"))
    assert without_names(alone) == without_names(crowded)


def test_rows_are_shuffled_anew_each_round(trainer, round_order, answer):
    first = decode(answer(trainer, round_order(SCAFFOLD_IN_STEPS)))
    second = decode(answer(trainer, round_order(SCAFFOLD_IN_STEPS, round=2)))
    assert not np.array_equal(first.update, second.update)
