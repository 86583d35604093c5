"""Sums of whole numbers through the ring are exact, and what is no such sum is refused."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hansa_common.integer_vector import IntegerVector

MAX_VALUE = 2**40 + 5


@given(st.lists(st.lists(st.integers(0, MAX_VALUE), min_size=3, max_size=3), min_size=1, max_size=9))
def test_decoded_sum_is_the_sum(rows):
    layout = IntegerVector(3, MAX_VALUE, max_merchants=9)
    total = np.sum([layout.encode(np.array(row, np.int64)) for row in rows], axis=0, dtype=np.uint32)
    assert layout.decode(total, len(rows)).tolist() == np.array(rows, np.int64).sum(axis=0).tolist()


@given(st.lists(st.lists(st.integers(-MAX_VALUE, 7), min_size=2, max_size=2), min_size=1, max_size=9))
def test_sums_of_numbers_below_zero_are_exact_too(rows):
    layout = IntegerVector(2, 7, max_merchants=9, min_value=-MAX_VALUE)
    total = np.sum([layout.encode(np.array(row, np.int64)) for row in rows], axis=0, dtype=np.uint32)
    assert layout.decode(total, len(rows)).tolist() == np.array(rows, np.int64).sum(axis=0).tolist()


@pytest.mark.parametrize("max_value", [0, 1, 2**16 - 1, 2**16, 2**32, 2**47 - 1])
def test_the_largest_numbers_of_the_most_merchants_do_not_wrap_around(max_value):
    layout = IntegerVector(2, max_value, max_merchants=2**16)
    largest = layout.encode(np.array([max_value, 0], np.int64)).astype(np.uint64)
    total = largest * 2**16
    assert total.max() < 2**32
    assert layout.decode(total.astype(np.uint32), 2**16).tolist() == [max_value * 2**16, 0]


@pytest.mark.parametrize("values", [[-1, 0], [0, MAX_VALUE + 1], [0], [0, 0, 0]])
def test_numbers_out_of_bounds_are_not_encoded(values):
    with pytest.raises(ValueError, match=r"allowed are 0 to|this layout has 2"):
        IntegerVector(2, MAX_VALUE, max_merchants=3).encode(np.array(values, np.int64))


def test_what_is_no_sum_of_such_vectors_is_refused():
    layout = IntegerVector(2, 1000, max_merchants=3)
    for ring_sum in ([3001, 0], [2**32 - 1, 0], [1]):
        with pytest.raises(ValueError, match=r"sum|adds up"):
            layout.decode(np.array(ring_sum, np.uint32), 3)
    assert layout.decode(np.array([3000, 7], np.uint32), 3).tolist() == [3000, 7]
    with pytest.raises(ValueError, match="63 bits"):
        IntegerVector(1, 2**62, max_merchants=2)
