"""A pruned weight is exactly zero after local training and after averaging, whatever optimizer and algorithm moved the
others; and a mask of ones is no mask, byte for byte. On TensorFlow here, on JAX in a process of its own.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from hansa_client.training_loop import LocalTraining
from hansa_common.agreement_sections import Model, Plan
from hansa_common.features import Inputs
from hansa_common.model import ModelSpec, initial_weights
from hansa_common.pruning import magnitude_mask, masked
from hansa_server.aggregation import weighted_mean
from hansa_server.algorithms import initial_state, step

SPEC = ModelSpec(
    num_dense=6, embeddings=(), hidden=(12, 8), activation="relu", dropout=0.0, l1=0.0, l2=1e-3, layer_norm=False,
    output_bias=0.0,
)  # fmt: skip
WEIGHTS = initial_weights(SPEC, 1)
MASK = magnitude_mask(SPEC, WEIGHTS, 0.7)
PLANS = {
    "sgd": Plan(optimizer="sgd", learning_rate=0.2, batch_size=16),
    "momentum": Plan(optimizer="momentum", learning_rate=0.05, batch_size=16),
    "adam": Plan(optimizer="adam", learning_rate=0.02, batch_size=16),
    "fedprox": Plan(algorithm="fedprox", optimizer="sgd", learning_rate=0.2, batch_size=16, proximal_mu=1.0),
    "scaffold": Plan(algorithm="scaffold", learning_rate=0.2, batch_size=16),
}


def rows_of(seed: int, num_rows: int = 100):
    values = np.random.default_rng(seed)
    dense = values.normal(size=(num_rows, 6)).astype(np.float32)
    return Inputs(dense, np.zeros((num_rows, 0), np.int32)), (dense[:, 0] > dense[:, 1] * dense[:, 2]).astype(np.uint8)


def trained(training: LocalTraining, weights, seed: int, mask, correction=None):
    inputs, labels = rows_of(seed)
    epochs = np.stack([np.random.default_rng(seed + 50).permutation(len(labels)) for _ in range(2)])
    return training.train(
        weights, inputs, labels, epochs, correction=correction, dropout_seed=0, should_stop=lambda: False, mask=mask
    ).weights


@pytest.fixture(scope="module", params=PLANS)
def plan(request) -> Plan:
    return PLANS[request.param]


@pytest.fixture(scope="module")
def training(plan) -> LocalTraining:
    return LocalTraining(SPEC, Model(hidden=(12, 8), l2=1e-3), plan, capacity_rows=100)


def correction_of(plan: Plan):
    if plan.algorithm != "scaffold":
        return None
    return np.random.default_rng(3).normal(0, 0.1, WEIGHTS.size).astype(np.float32)


def test_pruned_weights_are_zero_after_local_training_and_the_others_have_moved(plan, training):
    start = masked(WEIGHTS, MASK)
    after = trained(training, start, 0, MASK, correction_of(plan))
    assert np.all(after[MASK == 0] == 0)
    kernel = slice(0, 6 * 12)
    assert np.mean(after[kernel][MASK[kernel] == 1] != start[kernel][MASK[kernel] == 1]) > 0.9


def test_mask_of_ones_is_no_mask_byte_for_byte(plan, training):
    unmasked = trained(training, WEIGHTS, 0, None, correction_of(plan))
    ones = trained(training, WEIGHTS, 0, np.ones_like(WEIGHTS), correction_of(plan))
    assert unmasked.tobytes() == ones.tobytes()


def test_training_after_masked_training_remembers_no_mask(plan, training):
    before = trained(training, WEIGHTS, 0, None, correction_of(plan))
    trained(training, masked(WEIGHTS, MASK), 0, MASK, correction_of(plan))
    assert trained(training, WEIGHTS, 0, None, correction_of(plan)).tobytes() == before.tobytes()


def test_optimizer_without_a_mask_would_move_the_same_weights_off_zero(plan, training):
    start = masked(WEIGHTS, MASK)
    assert np.mean(trained(training, start, 0, None, correction_of(plan))[MASK == 0] != 0) > 0.5


def test_pruned_weights_are_zero_after_averaging(plan, training):
    start = masked(WEIGHTS, MASK)
    updates = [trained(training, start, seed, MASK, correction_of(plan)) - start for seed in (0, 1)]
    mean = weighted_mean(updates, [30, 70])
    state = initial_state(start, plan)
    weights = step(state, plan, mean, np.zeros_like(state.control)).weights
    assert np.all(weights[MASK == 0] == 0)
    assert np.any(weights[MASK == 1] != start[MASK == 1])


@pytest.mark.system
@pytest.mark.timeout(600)
def test_all_of_this_holds_on_jax():
    words = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-m", "not system", str(Path(__file__))]
    environment = {**os.environ, "KERAS_BACKEND": "jax"}
    finished = subprocess.run(words, env=environment, capture_output=True, text=True, check=False, timeout=500)
    assert finished.returncode == 0, finished.stdout[-3000:]
    assert f"{5 * len(PLANS)} passed" in finished.stdout
