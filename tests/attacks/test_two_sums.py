"""Two weighted sums over the same merchants, as SCAFFOLD would need them under masking, tell single updates."""

import numpy as np
import pytest

from hansa_client.variates import control_delta
from hansa_server.algorithms import control_step_from_mean

LEARNING_RATE = 0.05
NUM_PARAMS = 40


def merchants(num_steps):
    """Updates, rows and changes of variates after these many steps; the last merchant colludes."""
    rng = np.random.default_rng(11)
    control = rng.normal(size=NUM_PARAMS).astype(np.float32)
    updates = rng.normal(size=(len(num_steps), NUM_PARAMS)).astype(np.float32)
    rows = rng.integers(100, 1000, len(num_steps))
    deltas = [control_delta(control, update, k, LEARNING_RATE) for update, k in zip(updates, num_steps, strict=True)]
    return control, updates, rows, np.stack(deltas)


def two_sums(num_steps):
    """What the coordinator and its colluder have: for each of two honest merchants its weight in either sum, and both
    sums less what is the colluder's.
    """
    control, updates, rows, deltas = merchants(num_steps)
    sum_of_updates = rows @ updates.astype(np.float64) - rows[2] * updates[2].astype(np.float64)
    sum_of_deltas = rows @ deltas.astype(np.float64) - rows[2] * deltas[2].astype(np.float64)
    scaled = -(sum_of_deltas + rows[:2].sum() * control.astype(np.float64)) * LEARNING_RATE
    weights = np.array([rows[:2], rows[:2] / np.array(num_steps[:2])], np.float64)
    return weights, np.stack([sum_of_updates, scaled]), updates[:2]


def test_two_sums_and_a_colluder_of_three_give_the_other_two_updates_away():
    weights, sums, updates = two_sums([20, 55, 30])
    np.testing.assert_allclose(np.linalg.solve(weights, sums), updates, atol=1e-4)


def test_with_the_same_steps_the_second_sum_says_nothing_that_the_first_does_not():
    weights, sums, _ = two_sums([20, 20, 20])
    assert np.linalg.matrix_rank(weights) == 1
    np.testing.assert_allclose(sums[1], sums[0] / 20, atol=1e-3)


@pytest.mark.parametrize("share_of_rows", [1.0, 0.4])
def test_with_the_same_steps_the_variates_follow_from_the_one_sum(share_of_rows):
    control, updates, rows, deltas = merchants([20, 20, 20])
    mean_update = np.average(updates.astype(np.float64), axis=0, weights=rows)
    expected = share_of_rows * np.average(deltas.astype(np.float64), axis=0, weights=rows)
    found = control_step_from_mean(control.astype(np.float64), mean_update, 20, LEARNING_RATE, share_of_rows)
    np.testing.assert_allclose(found, expected, atol=1e-6)


def test_with_other_steps_they_do_not_follow():
    # So it is refused under masking, not approximated.
    control, updates, rows, deltas = merchants([20, 55, 30])
    mean_update = np.average(updates.astype(np.float64), axis=0, weights=rows)
    found = control_step_from_mean(control.astype(np.float64), mean_update, 35, LEARNING_RATE, 1.0)
    assert np.abs(found - np.average(deltas, axis=0, weights=rows)).max() > 0.01
