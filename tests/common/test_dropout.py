"""Dropout's masks: their rate, their independence, the mean, and the hash that makes them, written down again."""

from __future__ import annotations

import numpy as np
import pytest

ROWS, UNITS = 192, 101
SIZE = ROWS * UNITS
RATES = (0.1, 0.3, 0.5, 0.9)


def dropped(rate: float, seed: int = 12_345, step: int = 0, inputs=None):
    """What a layer in this state makes of the inputs, and its state after it."""
    from hansa_common.dropout import SeededDropout

    layer = SeededDropout(rate)
    layer.seed_state.assign(np.array([seed, step], np.uint32))
    inputs = np.ones((ROWS, UNITS), np.float32) if inputs is None else inputs
    return np.asarray(layer(inputs, training=True)), np.asarray(layer.seed_state.value).tolist()


def mask(rate: float, seed: int = 12_345, step: int = 0):
    return dropped(rate, seed, step)[0] != 0


def lowbias32(word: int) -> int:
    """Chris Wellons' hash, in Python's integers."""
    word ^= word >> 16
    word = word * 0x7FEB352D % 2**32
    word ^= word >> 15
    word = word * 0x846CA68B % 2**32
    return word ^ word >> 16


@pytest.mark.parametrize(("seed", "step"), [(0, 0), (12_345, 7), (2**32 - 1, 2**31)])
def test_masks_are_the_documented_hash_of_seed_step_and_place(seed, step):
    base = lowbias32(lowbias32(seed) ^ step)
    words = [lowbias32((place * 0x9E3779B9 + base) % 2**32) for place in range(SIZE)]
    expected = np.array(words).reshape(ROWS, UNITS) >= int(0.3 * 2**32)
    np.testing.assert_array_equal(mask(0.3, seed, step), expected)


@pytest.mark.parametrize("rate", RATES)
def test_share_that_is_kept_is_the_rate_within_binomial_bounds(rate):
    for seed in range(5):
        deviation = np.sqrt(SIZE * rate * (1 - rate))
        assert abs(mask(rate, seed).sum() - SIZE * (1 - rate)) < 5 * deviation


@pytest.mark.parametrize("rate", RATES)
def test_what_is_kept_is_scaled_so_that_the_mean_stays(rate):
    inputs = np.random.default_rng(0).normal(1, 1, (ROWS, UNITS)).astype(np.float32)
    outputs, _ = dropped(rate, inputs=inputs)
    is_kept = mask(rate)
    np.testing.assert_allclose(outputs[is_kept], inputs[is_kept] / np.float32(1 - rate), rtol=1e-6)
    assert not outputs[~is_kept].any()
    standard_error = np.sqrt((inputs.astype(np.float64) ** 2).mean() * rate / (1 - rate) / SIZE)
    assert abs(outputs.mean() - inputs.mean()) < 5 * standard_error


def chi_square(first, second) -> float:
    """Of the two by two table of two masks; one degree of freedom where they are independent."""
    observed = np.array([[(a & b).sum() for b in (second, ~second)] for a in (first, ~first)], float)
    expected = observed.sum(axis=1, keepdims=True) * observed.sum(axis=0, keepdims=True) / observed.sum()
    return float(((observed - expected) ** 2 / expected).sum())


# One chance in a million of a larger value, if independent.
BOUND = 24.0


@pytest.mark.parametrize("rate", RATES)
@pytest.mark.parametrize("step", range(3))
def test_neighbours_are_independent(rate, step):
    now = mask(rate, step=step)
    assert chi_square(now[:, :-1], now[:, 1:]) < BOUND
    assert chi_square(now[:-1], now[1:]) < BOUND
    flat = now.ravel()
    for distance in (2, 3, 64, 128, 4096):
        assert chi_square(flat[:-distance], flat[distance:]) < BOUND


@pytest.mark.parametrize("rate", RATES)
def test_masks_of_other_steps_and_seeds_are_independent(rate):
    now = mask(rate)
    others = [mask(rate, step=1), mask(rate, step=1000), mask(rate, seed=12_346), mask(rate, seed=12_345 ^ 2**31)]
    for other in others:
        assert chi_square(now, other) < BOUND
    assert chi_square(mask(rate, seed=0, step=1), mask(rate, seed=1, step=0)) < BOUND


def test_layers_have_seeds_of_their_own():
    from hansa_client.training_program import LocalStart

    nothing = np.zeros(0, np.float32)
    starts = [LocalStart(nothing, nothing, nothing, seed) for seed in (0, 1, 2**63)]
    states = {tuple(start.dropout_state(place).tolist()) for start in starts for place in range(8)}
    assert len(states) == 24
    assert {step for _, step in states} == {0}
    first, second = (mask(0.5, seed=int(starts[0].dropout_state(place)[0])) for place in (0, 1))
    assert chi_square(first, second) < BOUND


def test_each_call_in_training_is_a_step_and_scoring_is_none():
    from hansa_common.dropout import SeededDropout

    layer = SeededDropout(0.5)
    layer.seed_state.assign(np.array([9, 4], np.uint32))
    inputs = np.ones((ROWS, UNITS), np.float32)
    np.testing.assert_array_equal(np.asarray(layer(inputs, training=False)), inputs)
    first, second = (np.asarray(layer(inputs, training=True)) != 0 for _ in range(2))
    np.testing.assert_array_equal(first, mask(0.5, 9, 4))
    np.testing.assert_array_equal(second, mask(0.5, 9, 5))
    assert np.asarray(layer.seed_state.value).tolist() == [9, 6]


def test_steps_go_on_past_the_largest_word():
    _, state = dropped(0.5, seed=3, step=2**32 - 1)
    assert state == [3, 0]
