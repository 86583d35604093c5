"""Each rule against its paper's definition, written out slowly, and against the dishonest merchants it is for."""

import itertools
import math
import statistics

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hansa_server.robust import clipped_mean, geometric_median, krum, median, mixed_mean, multi_krum, trimmed_mean


def drawn(num_merchants: int, num_params: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(num_merchants, num_params)).astype(np.float32)


cohorts = st.tuples(st.integers(3, 12), st.integers(1, 6), st.integers(0, 2**32))


@settings(max_examples=40, deadline=None)
@given(cohorts)
def test_median_is_the_median_of_each_coordinate(cohort):
    updates = drawn(*cohort)
    expected = [statistics.median(float(v) for v in column) for column in updates.T]
    np.testing.assert_allclose(median(updates), expected, rtol=1e-12)


@settings(max_examples=40, deadline=None)
@given(cohorts, st.data())
def test_trimmed_mean_leaves_out_the_ends_of_each_coordinate(cohort, data):
    updates = drawn(*cohort)
    num_trimmed = data.draw(st.integers(0, (len(updates) - 1) // 2))
    expected = []
    for column in updates.T:
        kept = sorted(float(v) for v in column)[num_trimmed : len(updates) - num_trimmed]
        expected.append(math.fsum(kept) / len(kept))
    np.testing.assert_allclose(trimmed_mean(updates, num_trimmed), expected, rtol=1e-9, atol=1e-12)


def krum_scores(updates: np.ndarray, num_dishonest: int) -> list[float]:
    num_merchants, scores = len(updates), []
    for i in range(num_merchants):
        distances = sorted(
            math.fsum((float(a) - float(b)) ** 2 for a, b in zip(updates[i], updates[j], strict=True))
            for j in range(num_merchants)
            if j != i
        )
        scores.append(math.fsum(distances[: num_merchants - num_dishonest - 2]))
    return scores


@settings(max_examples=40, deadline=None)
@given(cohorts, st.data())
def test_krum_is_the_update_nearest_to_its_neighbours_and_multi_krum_the_mean_of_all_but_the_farthest(cohort, data):
    updates = drawn(*cohort)
    num_merchants = len(updates)
    num_dishonest = data.draw(st.integers(0, (num_merchants - 3) // 2))
    scores = krum_scores(updates, num_dishonest)
    chosen = krum(updates, num_dishonest)
    found = next(i for i in range(num_merchants) if np.array_equal(chosen, updates[i]))
    assert scores[found] <= min(scores) * (1 + 1e-9)
    # Of three merchants each is nearest to the same one other: scores can be equal to the last digit but one.
    means = [
        np.mean(updates[list(places)], axis=0, dtype=np.float64)
        for places in itertools.combinations(range(num_merchants), num_merchants - num_dishonest)
        if max(scores[place] for place in places) <= sorted(scores)[-num_dishonest - 1] * (1 + 1e-9)
    ]
    assert any(np.allclose(multi_krum(updates, num_dishonest), mean, rtol=1e-9, atol=1e-12) for mean in means)


@settings(max_examples=25, deadline=None)
@given(cohorts)
def test_no_point_nearby_has_less_distance_to_all_updates_than_the_geometric_median(cohort):
    updates = drawn(*cohort).astype(np.float64)

    def total(point):
        return sum(math.dist(point, update) for update in updates)

    center = geometric_median(updates.astype(np.float32))
    least = total(center)
    for axis, step in itertools.product(range(center.size), (-1e-2, 1e-2)):
        moved = center.copy()
        moved[axis] += step
        assert total(moved) >= least - 1e-5


@settings(max_examples=40, deadline=None)
@given(cohorts, st.data())
def test_mixed_mean_trims_the_means_of_each_ones_nearest(cohort, data):
    updates = drawn(*cohort)
    num_merchants = len(updates)
    num_dishonest = data.draw(st.integers(0, (num_merchants - 1) // 2))
    mixtures = []
    for own in updates:
        by_distance = sorted(range(num_merchants), key=lambda j: (math.dist(own, updates[j]), j))
        nearest = [updates[j] for j in by_distance[: num_merchants - num_dishonest]]
        mixtures.append([math.fsum(float(v) for v in column) / len(nearest) for column in np.transpose(nearest)])
    expected = []
    for column in np.transpose(mixtures):
        kept = sorted(column)[num_dishonest : num_merchants - num_dishonest]
        expected.append(math.fsum(kept) / len(kept))
    np.testing.assert_allclose(mixed_mean(updates, num_dishonest), expected, rtol=1e-9, atol=1e-12)


def test_what_is_far_from_everyone_has_no_part_in_a_mixed_mean():
    """With one liar, whose own mixture is trimmed away, the honest ones' mean is what is left, however they differ."""
    honest = drawn(4, 30, 8)
    attacked = np.vstack([honest, np.full((1, 30), 500, np.float32)])
    np.testing.assert_allclose(mixed_mean(attacked, 1), honest.astype(np.float64).mean(axis=0), rtol=1e-9)


def test_mixtures_of_too_few_are_refused():
    with pytest.raises(ValueError, match="2 dishonest of 4 merchants promise nothing"):
        mixed_mean(drawn(4, 2, 0), 2)


def test_clipped_mean_scales_only_what_is_too_long():
    updates = np.float32([[3, 4], [0.3, 0.4], [0, 0]])
    np.testing.assert_allclose(clipped_mean(updates, 1.0), [(0.6 + 0.3) / 3, (0.8 + 0.4) / 3], rtol=1e-6)


HONEST = drawn(7, 50, 0)
RULES = {
    "median": median,
    "trimmed_mean": lambda updates: trimmed_mean(updates, 2),
    "mixed_mean": lambda updates: mixed_mean(updates, 2),
    "krum": lambda updates: krum(updates, 2),
    "multi_krum": lambda updates: multi_krum(updates, 2),
    "geometric_median": geometric_median,
    "clipped_mean": lambda updates: clipped_mean(updates, float(np.linalg.norm(HONEST[0]))),
}


@pytest.mark.parametrize("rule", RULES.values(), ids=RULES)
@pytest.mark.parametrize("size", [1e3, 1e6, -1e9])
def test_two_of_nine_dishonest_merchants_move_the_result_no_further_than_honest_ones_differ(rule, size):
    attacked = np.vstack([HONEST, np.full((2, 50), size, np.float32)])
    distance = np.linalg.norm(rule(attacked) - HONEST.mean(axis=0))
    farthest = max(np.linalg.norm(update - HONEST.mean(axis=0)) for update in HONEST)
    assert distance <= farthest
    assert np.linalg.norm(attacked.mean(axis=0) - HONEST.mean(axis=0)) > 100 * farthest


@pytest.mark.parametrize("rule", RULES.values(), ids=RULES)
def test_the_order_of_merchants_changes_nothing(rule):
    updates = drawn(9, 20, 3)
    shuffled = updates[np.random.default_rng(1).permutation(9)]
    np.testing.assert_allclose(rule(updates), rule(shuffled), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("rule", RULES.values(), ids=RULES)
def test_merchants_who_agree_get_what_they_agree_on(rule):
    update = drawn(1, 20, 4)[0] / 10
    np.testing.assert_allclose(rule(np.stack([update] * 9)), update, rtol=1e-6)


def test_pieces_do_not_show_in_a_long_vector():
    updates = drawn(3, 70_000, 5)
    np.testing.assert_allclose(median(updates), np.median(updates.astype(np.float64), axis=0), rtol=0)


def test_krum_is_refused_where_its_paper_promises_nothing():
    with pytest.raises(ValueError, match="Krum against 2 dishonest merchants needs at least 7, there are 6"):
        krum(drawn(6, 2, 0), 2)
    with pytest.raises(ValueError, match="needs at least 7"):
        multi_krum(drawn(6, 2, 0), 2)


@pytest.mark.parametrize("num_trimmed", [-1, 2, 3])
def test_trimming_that_leaves_nothing_is_refused(num_trimmed):
    with pytest.raises(ValueError, match="leaves nothing of 4 updates"):
        trimmed_mean(drawn(4, 2, 0), num_trimmed)


@pytest.mark.parametrize("max_norm", [0.0, -1.0, math.nan])
def test_a_norm_that_nothing_can_have_is_refused(max_norm):
    with pytest.raises(ValueError, match="cannot be scaled"):
        clipped_mean(drawn(2, 2, 0), max_norm)
