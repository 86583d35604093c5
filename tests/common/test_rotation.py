"""The turn before rounding: it keeps lengths, turns back, and lets no coordinate stand out."""

import hashlib
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hansa_common.rotation import Rotation


def matrix_of(rotation):
    """Each unit vector turned: (num_params, num_turned)."""
    return np.stack([rotation.turn(unit) for unit in np.eye(rotation.num_params)])


@settings(max_examples=60, deadline=None)
@given(num_params=st.integers(1, 3000), seed=st.integers(0, 2**64 - 1))
def test_a_turned_vector_is_as_long_and_turns_back(num_params, seed):
    rotation, vector = Rotation(num_params, seed), np.random.default_rng(7).normal(size=num_params)
    turned = rotation.turn(vector)
    assert turned.shape == (rotation.num_turned,)
    assert rotation.num_turned - num_params <= 1.5 * math.sqrt(num_params)
    assert np.linalg.norm(turned) == pytest.approx(np.linalg.norm(vector), rel=1e-12)
    np.testing.assert_allclose(rotation.turn_back(turned), vector, atol=1e-12)


@pytest.mark.parametrize("num_params", [1, 2, 3, 7, 17, 100, 250])
def test_a_turned_coordinate_is_a_sum_under_signs_that_are_alike_in_size(num_params):
    """What the bound on its size stands on."""
    rotation = Rotation(num_params, 1)
    matrix = matrix_of(rotation)
    np.testing.assert_allclose(matrix @ matrix.T, np.eye(num_params), atol=1e-12)
    entries = np.abs(matrix[np.nonzero(matrix)])
    np.testing.assert_allclose(entries, rotation.spread, rtol=1e-12)
    assert 1 - 1e-12 <= rotation.spread * math.sqrt(rotation.num_turned) <= math.sqrt(2) + 1e-12
    # Each under a sign of its own: where that turns, the coordinate's part of it turns, and nothing else.
    signs = [np.sign(matrix_of(Rotation(num_params, seed))) for seed in range(40)]
    assert {-1.0, 0.0, 1.0} >= set(np.unique(signs))
    shares = np.mean(np.stack(signs) > 0, axis=0)[matrix != 0]
    assert np.abs(shares - 0.5).max() < 0.5


VECTORS = {
    "one number": lambda draw, size: np.eye(1, size, int(draw.integers(size)))[0],
    "one in a hundred": lambda draw, size: draw.normal(size=size) * (draw.random(size) < 0.01),
    "all alike": lambda _, size: np.ones(size),
    "heavy tails": lambda draw, size: draw.standard_t(2, size=size),
    "one layer": lambda draw, size: draw.normal(size=size) * (np.arange(size) < 400),
}


@pytest.mark.parametrize("of", VECTORS)
@pytest.mark.parametrize("num_params", [5000, 8191, 26_000])
def test_hardly_a_coordinate_stands_out_whatever_the_vector_was(of, num_params):
    draw, beyond = np.random.default_rng(3), []
    for seed in range(20):
        vector = VECTORS[of](draw, num_params)
        rotation = Rotation(num_params, seed)
        sizes = np.abs(rotation.turn(vector)) / (np.linalg.norm(vector) * rotation.spread)
        beyond.append([np.mean(sizes > reach) for reach in (1, 2, 3, 4)])
    allowed = [math.erfc(reach / math.sqrt(2)) for reach in (1, 2, 3, 4)]
    assert np.all(np.mean(beyond, axis=0) <= 1.2 * np.array(allowed) + 1e-6)


def test_seeds_turn_otherwise_and_each_the_same_everywhere():
    vector = np.linspace(-1, 1, 1000, dtype=np.float32)
    turned = Rotation(1000, 5).turn(vector)
    assert turned.dtype == np.float32
    assert abs(turned @ Rotation(1000, 6).turn(vector)) < 0.2 * (turned @ turned)
    assert hashlib.sha256(turned.astype("<f4").tobytes()).hexdigest()[:32] == PINNED


PINNED = "ffb32c9912ef3c304e33dc601eab4fd6"


def test_what_cannot_be_turned_is_refused():
    with pytest.raises(ValueError, match="a vector of 0 numbers cannot be turned"):
        Rotation(0, 1)
    with pytest.raises(ValueError, match="3 numbers are turned here"):
        Rotation(3, 1).turn(np.zeros(4))
