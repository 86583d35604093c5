"""Arrays as one flat vector and back, and the norm of it."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from hansa_common.vectors import flatten, l2_norm, num_params, unflatten

# Also scalars and arrays with no element at all; any bits, NaN too.
shapes = st.lists(hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=4), max_size=5).map(tuple)


def arrays_of(shapes, rng):
    return [rng.integers(0, 2**32, shape, dtype=np.uint32).view(np.float32) for shape in shapes]


def bits(array):
    return array.dtype, array.shape, array.tobytes()


@given(shapes, st.integers(0, 2**32))
def test_unflatten_undoes_flatten(shapes, seed):
    arrays = arrays_of(shapes, np.random.default_rng(seed))
    vector = flatten(arrays)
    assert vector.shape == (num_params(shapes),)
    assert vector.dtype == np.float32
    assert [bits(array) for array in unflatten(vector, shapes)] == [bits(array) for array in arrays]


@given(shapes, st.integers(0, 2**32))
def test_flatten_undoes_unflatten(shapes, seed):
    vector = np.random.default_rng(seed).normal(size=num_params(shapes)).astype(np.float32)
    assert bits(flatten(unflatten(vector, shapes))) == bits(vector)


def test_arrays_are_read_in_c_order_whatever_their_own():
    rows = np.arange(6, dtype=np.float32).reshape(2, 3)
    expected = [0, 1, 2, 3, 4, 5]
    for array in (rows, np.asfortranarray(rows), np.repeat(rows, 2, axis=1)[:, ::2]):
        assert flatten([array]).tolist() == expected
    assert flatten([rows.T]).tolist() == [0, 3, 1, 4, 2, 5]


def test_flat_vector_is_a_copy_and_its_parts_are_views():
    array = np.zeros((2, 2), np.float32)
    vector = flatten([array])
    array[0, 0] = 5
    assert vector[0] == 0
    part, other = unflatten(vector, ((2,), (2,)))
    part[:] = 7
    assert vector.tolist() == [7, 7, 0, 0]
    assert np.shares_memory(other, vector)


@settings(max_examples=30)
@given(shapes, st.integers(-2, 2).filter(bool))
def test_vector_of_another_length_is_refused(shapes, more):
    length = max(num_params(shapes) + more, 0)
    if length != num_params(shapes):
        with pytest.raises(ValueError, match="does not fill"):
            unflatten(np.zeros(length, np.float32), shapes)


def test_vector_that_is_not_flat_is_refused():
    with pytest.raises(ValueError, match="does not fill 4 parameters"):
        unflatten(np.zeros((2, 2), np.float32), ((4,),))


def test_nothing_flattens_to_nothing():
    assert bits(flatten([])) == bits(np.zeros(0, np.float32))
    assert unflatten(np.zeros(0, np.float32), ()) == []


@settings(max_examples=40)
@given(hnp.arrays(np.float32, st.integers(0, 50), elements=st.floats(width=32, allow_nan=False, allow_infinity=False)))
def test_norm_is_the_root_of_the_exact_sum_of_squares(vector):
    exact = math.sqrt(math.fsum(float(x) ** 2 for x in vector))
    assert l2_norm(vector) == pytest.approx(exact, rel=1e-12)


def test_norm_of_numbers_whose_squares_float32_cannot_hold():
    assert l2_norm(np.full(4, 1e30, np.float32)) == pytest.approx(2e30, rel=1e-6)
    assert l2_norm(np.full(4, 1e-30, np.float32)) == pytest.approx(2e-30, rel=1e-6)
    assert l2_norm(np.full(2**20, 3.0, np.float32)) == 3 * 2**10


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_norm_of_a_diverged_vector_is_not_finite(bad):
    assert not math.isfinite(l2_norm(np.array([1.0, bad], np.float32)))
