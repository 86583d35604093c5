"""Private steps against plain ones where clipping and noise do nothing, and against what they promise where they do."""

from __future__ import annotations

import os
import subprocess
import sys

import numpy as np
import pytest
from scipy import stats

from hansa_client.private_training import PrivateTraining, PrivateWork
from hansa_client.training_loop import LocalTraining
from hansa_common.agreement_sections import Model, Plan
from hansa_common.errors import DeadlineError
from hansa_common.features import Inputs
from hansa_common.model import EmbeddingSpec, ModelSpec, initial_weights
from hansa_common.privacy_noise import PrivacyRandom

ROWS = 600
KEY = bytes(range(32))
NO_CLIPPING = 1e9
MODEL = Model(hidden=(8, 4), l2=1e-2, l1=1e-3)


def spec_of(model: Model, *, tables: bool = True) -> ModelSpec:
    embeddings = (EmbeddingSpec(feature="shop", num_ids=30, dim=3),) if tables else ()
    return ModelSpec(
        num_dense=5,
        embeddings=embeddings,
        hidden=model.hidden,
        activation=model.activation,
        dropout=model.dropout,
        l1=model.l1,
        l2=model.l2,
        layer_norm=model.layer_norm,
        output_bias=0.0,
    )


class Case:
    """Rows of a merchant, and a network to train on them."""

    def __init__(self, model: Model = MODEL, plan: Plan | None = None, *, capacity: int = ROWS, tables: bool = True):
        random = np.random.default_rng(1)
        self.spec = spec_of(model, tables=tables)
        self.model, self.plan = model, plan or Plan(optimizer="sgd", learning_rate=0.1, batch_size=ROWS)
        dense = random.normal(size=(ROWS, 5)).astype(np.float32)
        ids = random.integers(0, 30, (ROWS, 1)).astype(np.int32) if tables else np.zeros((ROWS, 0), np.int32)
        self.inputs, self.labels = Inputs(dense, ids), (dense[:, 0] > 0.3).astype(np.uint8)
        self.start = initial_weights(self.spec, 0)
        self.training = PrivateTraining(self.spec, model, self.plan, capacity_rows=capacity)

    def trained(self, work: PrivateWork, key: bytes = KEY, **changes):
        options = {
            "units": np.arange(ROWS),
            "correction": None,
            "dropout_seed": 3,
            "should_stop": lambda: False,
            **changes,
        }
        return self.training.train(self.start, self.inputs, self.labels, work, PrivacyRandom(key), **options).weights


@pytest.mark.parametrize(
    "plan",
    [
        Plan(optimizer="sgd", learning_rate=0.3, batch_size=ROWS),
        Plan(optimizer="momentum", learning_rate=0.1, batch_size=ROWS),
        Plan(optimizer="adam", learning_rate=0.01, batch_size=ROWS),
        Plan(algorithm="fedprox", proximal_mu=0.5, learning_rate=0.3, batch_size=ROWS),
    ],
    ids=lambda plan: f"{plan.algorithm}-{plan.optimizer}",
)
def test_without_clipping_noise_and_sampling_steps_are_plain_steps_on_all_rows(plan):
    case = Case(plan=plan)
    plain = LocalTraining(case.spec, case.model, plan, capacity_rows=ROWS)
    correction = np.random.default_rng(2).normal(0, 1e-2, case.start.size).astype(np.float32)
    mask = (np.random.default_rng(3).random(case.start.size) < 0.7).astype(np.float32)
    options = {"correction": correction, "mask": mask, "dropout_seed": 3, "should_stop": lambda: False}
    epochs = np.tile(np.arange(ROWS), (7, 1))
    expected = plain.train(case.start, case.inputs, case.labels, epochs, **options).weights
    found = case.trained(PrivateWork(7, 1.0, NO_CLIPPING, 0.0), correction=correction, mask=mask)
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_noise_has_the_deviation_that_is_accounted_for():
    case = Case(Model(hidden=(64, 32)))
    work = PrivateWork(1, 0.5, max_norm=0.7, noise_multiplier=3.0)
    moved = case.trained(work) - case.trained(PrivateWork(1, 0.5, 0.7, 0.0))
    deviation = case.plan.learning_rate * 3.0 * 0.7 / (0.5 * ROWS)
    assert stats.kstest(moved / deviation, "norm").pvalue > 1e-3


@pytest.mark.parametrize("layer_norm", [False, True])
def test_no_row_moves_a_step_by_more_than_its_share(layer_norm):
    model = Model(hidden=(8, 4), layer_norm=layer_norm)
    work = PrivateWork(1, 1.0, max_norm=0.2, noise_multiplier=0.0)
    case, other = Case(model), Case(model)
    # The most extreme row that a table can have, of the other class.
    other.inputs.dense[7] = 50 * other.inputs.dense[7]
    other.labels[7] = 1 - other.labels[7]
    moved = np.linalg.norm(case.trained(work).astype(np.float64) - other.trained(work))
    # Two rows differ: one is taken away, another one added.
    assert 0 < moved <= 2 * 0.2 * case.plan.learning_rate / ROWS * (1 + 1e-3)


def test_row_reaches_no_further_where_the_square_of_what_comes_back_is_too_small_for_float32():
    """Weights of a coordinator that knows of it: units of 5e18, and behind them what comes back is some 2e-20."""
    case = Case(Model(hidden=(8, 64), l1=0, l2=0), tables=False)
    parts = [np.zeros(shape, np.float32) for shape in case.spec.shapes]
    parts[1][:], parts[3][:], parts[4][:] = 5e18, 1e-3, 5e-20
    case.start = np.concatenate([part.ravel() for part in parts])
    moved = case.trained(PrivateWork(1, 1.0, max_norm=0.2, noise_multiplier=0.0)).astype(np.float64) - case.start
    # All rows reach in one direction.
    assert 0 < np.linalg.norm(moved) <= 0.2 * case.plan.learning_rate * (1 + 1e-3)


def test_a_customers_rows_are_in_or_out_together_and_clipped_together():
    case = Case(Model(hidden=(8, 4)))
    units = np.arange(ROWS) // 5
    work = PrivateWork(1, 1.0, max_norm=0.2, noise_multiplier=0.0, max_rows_per_unit=5)
    before = case.trained(work, units=units)
    case.inputs.dense[10:15] *= 50
    case.labels[10:15] = 1 - case.labels[10:15]
    moved = np.linalg.norm(case.trained(work, units=units).astype(np.float64) - before)
    assert 0 < moved <= 2 * 0.2 * case.plan.learning_rate / ROWS * (1 + 1e-3)


def test_a_sampled_customer_brings_every_row_and_no_other():
    case = Case(Model(hidden=()), tables=False)
    # Rows of one unit have one column each: which columns' weights move says which units were in.
    units = np.random.default_rng(5).permutation(ROWS) % 5
    case.inputs.dense[:] = np.eye(5, dtype=np.float32)[units]
    work = PrivateWork(1, 0.5, NO_CLIPPING, 0.0, max_rows_per_unit=ROWS)
    moved = case.trained(work, units=units) - case.start
    is_in = moved[:5] != 0
    assert 0 < is_in.sum() < 5
    rows_of = np.array([[(case.labels[units == unit] == label).sum() for label in (0, 1)] for unit in range(5)])
    logits = case.start[:5] + case.start[5]
    gradients = rows_of[:, 0] / (1 + np.exp(-logits)) - rows_of[:, 1] / (1 + np.exp(logits))
    np.testing.assert_allclose(moved[:5], np.where(is_in, -0.1 * gradients / (0.5 * ROWS), 0), atol=1e-6)


def test_a_customer_with_more_rows_than_the_noise_is_for_is_refused():
    with pytest.raises(ValueError, match="a unit has 3 rows, 2 are what its noise is for"):
        Case().trained(PrivateWork(1, 1.0, 1.0, 1.0, max_rows_per_unit=2), units=np.arange(ROWS) // 3)


def test_a_step_that_nobody_is_in_is_noise_alone():
    case = Case(Model(hidden=(8,)))
    work = PrivateWork(1, 1e-12, 1.0, 1e-12)
    assert np.abs(case.trained(work) - case.start).max() < 1.0
    assert np.array_equal(case.trained(PrivateWork(1, 1e-12, 1.0, 0.0)), case.start)


def test_same_key_same_bytes_whatever_the_capacity_and_the_chunks():
    work = PrivateWork(9, 0.3, 0.5, 1.0)
    case, roomy = Case(), Case(capacity=5 * ROWS)
    once = case.trained(work)
    assert np.array_equal(case.trained(work), once)
    assert np.array_equal(roomy.trained(work), once)
    roomy.training._chunk_steps = 1
    assert np.array_equal(roomy.trained(work), once)
    assert not np.array_equal(case.trained(work, key=bytes(32)), once)


def test_every_step_has_noise_of_its_own():
    case = Case(Model(hidden=(64, 32)))
    # Nobody is in a step, so that all that moves is noise.
    moved = case.trained(PrivateWork(4, 1e-12, 1.0, 1e-12)) - case.start
    deviation = case.plan.learning_rate / ROWS
    # The same noise four times would be twice as wide.
    assert stats.kstest(moved / deviation / 2, "norm").pvalue > 1e-3


def test_another_learning_rate_is_that_of_a_plan_with_it():
    work = PrivateWork(4, 0.5, 0.5, 1.0)
    one, other = (Case(plan=Plan(optimizer="adam", learning_rate=rate, batch_size=ROWS)) for rate in (0.01, 0.3))
    assert np.array_equal(one.trained(work, learning_rate=0.3), other.trained(work))
    assert not np.array_equal(one.trained(work), other.trained(work))


def test_it_stops_between_chunks():
    with pytest.raises(DeadlineError):
        Case().trained(PrivateWork(2, 0.3, 0.5, 1.0), should_stop=lambda: True)


TRAIN = """
import sys
import numpy as np
from tests.client.test_private_training import Case
from hansa_client.private_training import PrivateWork
from hansa_common.agreement_sections import Model, Plan
case = Case(Model(hidden=(16, 8), layer_norm=True, dropout=0.3, l2=1e-3, activation="gelu"),
            Plan(optimizer="momentum", learning_rate=0.05, batch_size=32))
np.save(sys.argv[1], case.trained(PrivateWork(6, 0.4, 0.5, 0.8), learning_rate=0.03))
"""


@pytest.mark.system
@pytest.mark.timeout(300)
def test_jax_and_tensorflow_take_the_same_private_steps(tmp_path):
    found = {}
    for backend in ("tensorflow", "jax"):
        out = tmp_path / f"{backend}.npy"
        environment = {**os.environ, "KERAS_BACKEND": backend, "TF_CPP_MIN_LOG_LEVEL": "2"}
        subprocess.run([sys.executable, "-c", TRAIN, str(out)], env=environment, check=True, timeout=240)
        found[backend] = np.load(out)
    np.testing.assert_allclose(found["jax"], found["tensorflow"], atol=1e-5)
