"""Sums of clipped gradients in which a row counts for itself and nothing else, and what is made of one."""

from __future__ import annotations

import os
import subprocess
import sys

import numpy as np
import pytest

from hansa_client.gradient_sums import PIECE_ROWS, GradientSums
from hansa_client.private_training import PrivateTraining, PrivateWork
from hansa_client.shared_rounds import shortened
from hansa_common.agreement_sections import Model, Plan
from hansa_common.errors import DeadlineError
from hansa_common.features import Inputs
from hansa_common.model import LAYER_NORM_EPSILON, EmbeddingSpec, ModelSpec, initial_weights
from hansa_common.privacy_noise import PrivacyRandom
from hansa_common.vectors import unflatten

ROWS = PIECE_ROWS + 300
NORM = 0.3
SHAPES = {
    "logistic": Model(hidden=()),
    "network": Model(hidden=(16, 8), layer_norm=True, loss="focal", positive_weight=2.0),
}


class Case:
    """Rows of a merchant, and what adds up their gradients."""

    def __init__(self, model: Model = SHAPES["network"]) -> None:
        random = np.random.default_rng(1)
        table = EmbeddingSpec(feature="shop", num_ids=30, dim=3)
        kept = {name: getattr(model, name) for name in ("hidden", "activation", "dropout", "l1", "l2", "layer_norm")}
        self.spec = ModelSpec(num_dense=5, embeddings=(table,), output_bias=0.0, **kept)
        self.model = model
        dense = random.normal(size=(ROWS, 5)).astype(np.float32)
        self.inputs = Inputs(dense, random.integers(0, 30, (ROWS, 1)).astype(np.int32))
        self.labels = (dense[:, 0] > 0.3).astype(np.uint8)
        self.weights = initial_weights(self.spec, 0)
        self.sums = GradientSums(self.spec, model)

    def sum(self, is_chosen, weights=None):
        weights = self.weights if weights is None else weights
        return self.sums.chosen(weights, self.inputs, self.labels, is_chosen, NORM, lambda: False)


@pytest.fixture(scope="module", params=list(SHAPES))
def case(request):
    return Case(SHAPES[request.param])


@pytest.fixture(scope="module")
def network():
    return Case(SHAPES["network"])


def test_sum_is_that_of_a_private_step_without_noise(case) -> None:
    rate = 0.1
    plan = Plan(optimizer="sgd", learning_rate=rate)
    training = PrivateTraining(case.spec, case.model, plan, capacity_rows=ROWS)
    options = {"units": np.arange(ROWS), "correction": None, "dropout_seed": 0, "should_stop": lambda: False}
    work = PrivateWork(1, 1.0, NORM, 0.0)
    told = training.train(case.weights, case.inputs, case.labels, work, PrivacyRandom(bytes(32)), **options)
    moved = told.weights.astype(np.float64) - case.weights
    np.testing.assert_allclose(-rate * case.sum(np.ones(ROWS, np.bool_)) / ROWS, moved, atol=2e-7)


def test_row_moves_the_sum_by_its_clipped_gradient_and_nothing_else(case) -> None:
    random = np.random.default_rng(2)
    for row in (0, 5, PIECE_ROWS - 1, PIECE_ROWS, ROWS - 1):
        is_chosen = random.random(ROWS) < 0.4
        alone = np.zeros(ROWS, np.bool_)
        is_chosen[row], alone[row] = False, True
        without, with_it, own = case.sum(is_chosen), case.sum(is_chosen | alone), case.sum(alone)
        assert 0 < np.linalg.norm(own) <= NORM * (1 + 1e-3)
        np.testing.assert_allclose(with_it - without, own, atol=1e-11)


@pytest.mark.parametrize("size", [1e4, 1e18, 3e38])
def test_weights_that_were_chosen_large_let_no_row_reach_further(case, size: float) -> None:
    random = np.random.default_rng(3)
    weights = (size * random.choice([-1, 1], case.weights.size)).astype(np.float32)
    is_chosen = random.random(ROWS) < 0.5
    for row in range(0, ROWS, 97):
        alone = np.zeros(ROWS, np.bool_)
        alone[row] = True
        moved = case.sum(is_chosen | alone, weights) - case.sum(is_chosen & ~alone, weights)
        assert np.linalg.norm(moved) <= NORM * (1 + 1e-3)


@pytest.mark.parametrize("size", [1e3, 1e7, 1e11])
def test_row_whose_normalized_inputs_cancel_reaches_no_further(network, size: float) -> None:
    """A gain and an offset that leave nothing of one row but what rounding did: norm and sum have to see the same."""
    shapes = network.spec.named_shapes
    for row in range(0, ROWS, 97):
        parts = dict(zip(shapes, unflatten(network.weights.copy(), network.spec.shapes), strict=True))
        ids = network.inputs.ids[row, 0]
        given = np.concatenate([network.inputs.dense[row], parts["embedding_0.table"][ids]])
        x = given @ parts["hidden_0.kernel"] + parts["hidden_0.bias"] + np.float32(size)
        centered = x - x.mean()
        parts["hidden_0.bias"] += np.float32(size)
        parts["norm_0.gain"][:] = size
        parts["norm_0.offset"][:] = -size * centered / np.sqrt(np.mean(centered**2) + LAYER_NORM_EPSILON)
        weights = np.concatenate([part.ravel() for part in parts.values()]).astype(np.float32)
        alone = np.zeros(ROWS, np.bool_)
        alone[row] = True
        assert np.linalg.norm(network.sum(alone, weights)) <= NORM * (1 + 1e-3)


def test_nothing_is_chosen_of_nobody(case) -> None:
    assert not case.sum(np.zeros(ROWS, np.bool_)).any()


def test_work_stops_between_two_pieces(case) -> None:
    asked = iter([False, True])
    everyone = np.ones(ROWS, np.bool_)
    with pytest.raises(DeadlineError):
        case.sums.chosen(case.weights, case.inputs, case.labels, everyone, NORM, lambda: next(asked))


def test_cutting_to_a_length_brings_no_two_vectors_further_apart() -> None:
    random = np.random.default_rng(4)
    for _ in range(300):
        first, second = random.normal(size=(2, 6)) * random.choice([0.1, 1.0, 30.0], (2, 1))
        cut, other = shortened(first, 1.5), shortened(second, 1.5)
        assert max(np.linalg.norm(cut), np.linalg.norm(other)) <= 1.5 * (1 + 1e-12)
        assert np.linalg.norm(cut - other) <= np.linalg.norm(first - second) * (1 + 1e-12)


SUM = """
import sys
import numpy as np
from tests.client.test_gradient_sums import Case, ROWS
np.save(sys.argv[1], Case().sum(np.arange(ROWS) % 3 == 0))
"""


@pytest.mark.system
@pytest.mark.timeout(300)
def test_jax_and_tensorflow_give_the_same_sums(tmp_path) -> None:
    found = {}
    for backend in ("tensorflow", "jax"):
        out = tmp_path / f"{backend}.npy"
        environment = {**os.environ, "KERAS_BACKEND": backend, "TF_CPP_MIN_LOG_LEVEL": "2"}
        subprocess.run([sys.executable, "-c", SUM, str(out)], env=environment, check=True, timeout=240)
        found[backend] = np.load(out)
    np.testing.assert_allclose(found["jax"], found["tensorflow"], atol=1e-4)
