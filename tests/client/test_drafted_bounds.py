"""The domain that a draft gives a number holds its values and shows no single one of them."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from hansa_client.drafting import robust_bounds


@given(st.lists(st.floats(-1e12, 1e12, allow_subnormal=False), min_size=1, max_size=50))
def test_bounds_hold_the_middle_of_the_values_and_are_round(values):
    array = np.array(values)
    low, high = robust_bounds(array)
    assert low < high
    inner = np.quantile(array, [0.001, 0.999])
    assert low <= inner[0]
    assert high >= inner[1]
    if array.min() < array.max():
        step = (high - low) / 5
        assert low >= array.min() - step
        assert high <= array.max() + step


def test_bounds_do_not_show_an_extreme():
    values = np.append(np.random.default_rng(7).normal(100, 10, 10_000), 123_456.789)
    low, high = robust_bounds(values)
    assert (low % 1, high % 1) == (0, 0)
    assert 130 <= high <= 200
