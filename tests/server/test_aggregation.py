"""Row-weighted averages equal their definition, in float64, whatever the sizes."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hansa_server.aggregation import _CHUNK, WeightedSum, weighted_mean

floats = st.floats(-1e6, 1e6, width=32)
rows = st.integers(1, 2**30)


def exact_mean(column, weights):
    return sum(Fraction(float(x)) * w for x, w in zip(column, weights, strict=True)) / sum(weights)


@given(st.lists(st.tuples(floats, floats, rows), min_size=1, max_size=20))
def test_mean_equals_exact_fractions_to_float64_precision(merchants):
    updates = np.array([pair[:2] for pair in merchants], np.float32)
    weights = [pair[2] for pair in merchants]
    mean = weighted_mean(updates, weights)
    assert mean.dtype == np.float64
    for column in range(2):
        scale = max(abs(float(x)) for x in updates[:, column])
        assert math.isclose(mean[column], exact_mean(updates[:, column], weights), rel_tol=0, abs_tol=scale * 1e-14)


def test_small_merchant_beside_a_huge_one_is_not_rounded_away():
    updates = np.array([[1.0], [1.0 + 2**-20]], np.float32)
    assert weighted_mean(updates, [2**30, 1])[0] > 1.0


@pytest.mark.parametrize("num_params", [0, 1, _CHUNK - 1, _CHUNK, _CHUNK + 1, 3 * _CHUNK + 7])
def test_pieces_join_without_a_seam(num_params):
    values = np.random.default_rng(0)
    updates = values.normal(size=(3, num_params)).astype(np.float32)
    weights = [5, 1, 9]
    expected = (updates.astype(np.float64) * np.array(weights)[:, None]).sum(axis=0) / 15
    np.testing.assert_allclose(weighted_mean(updates, weights), expected, rtol=1e-15, atol=1e-15)


def test_one_merchant_alone_is_its_own_mean():
    update = np.random.default_rng(1).normal(size=50).astype(np.float32)
    np.testing.assert_allclose(weighted_mean([update], [7]), update.astype(np.float64), rtol=1e-15)


def test_sum_can_be_divided_by_the_rows_of_those_who_were_not_asked():
    total = WeightedSum(1)
    total.add(np.float32([2.0]), 3)
    assert total.divided_by(12) == [0.5]


def test_read_only_updates_as_they_come_from_a_message_are_added():
    update = np.frombuffer(np.float32([1.5]).tobytes(), np.float32)
    assert weighted_mean([update], [2]) == [1.5]


def test_mean_of_nothing_is_refused():
    with pytest.raises(ValueError, match="no vectors"):
        weighted_mean([], [])
    with pytest.raises(ValueError, match="no vectors"):
        WeightedSum(3).mean()


@pytest.mark.parametrize("weight", [0, -1, math.nan])
def test_weight_that_is_no_number_of_rows_is_refused(weight):
    with pytest.raises(ValueError, match="weight"):
        WeightedSum(1).add(np.float32([1.0]), weight)


def test_vector_of_another_length_is_refused():
    with pytest.raises(ValueError, match="shape"):
        WeightedSum(2).add(np.float32([1.0]), 1)
