"""Numbers several to an element: sums come out as they are, and what does not fit is refused."""

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from hansa_common.packing import Packing


def ring_sum(vectors):
    return np.sum(np.stack(vectors), axis=0, dtype=np.uint32)


@st.composite
def layouts(draw):
    num_merchants = draw(st.integers(1, 60))
    return Packing(draw(st.integers(0, 40)), draw(st.integers(1, (2**32 - 2) // num_merchants)), num_merchants)


@settings(max_examples=150, deadline=None)
@given(layout=layouts(), num_merchants=st.integers(1, 60), seed=st.integers(0, 2**32))
@example(layout=Packing(9, 254, 10), num_merchants=10, seed=0)
@example(layout=Packing(9, 2, 3), num_merchants=3, seed=0)
@example(layout=Packing(9, 2**32 - 2, 1), num_merchants=1, seed=0)
def test_sum_of_packed_numbers_is_the_numbers_sum_at_their_largest_too(layout, num_merchants, seed):
    present = min(num_merchants, layout.max_merchants)
    draw = np.random.default_rng(seed)
    values = draw.integers(0, layout.max_value, (present, layout.length), endpoint=True).astype(np.uint32)
    values[:, : layout.length // 2] = layout.max_value
    packed = [layout.pack(each) for each in values]
    assert all(vector.shape == (layout.num_elements,) for vector in packed)
    assert layout.num_elements == -(-layout.length // layout.per_element)
    np.testing.assert_array_equal(layout.unpack(ring_sum(packed), present), values.astype(np.int64).sum(axis=0))


@pytest.mark.parametrize(
    ("bits", "num_merchants", "per_element"), [(8, 5, 3), (8, 10, 2), (7, 10, 3), (4, 10, 4), (4, 50, 3), (2, 3, 11)]
)
def test_as_many_numbers_are_in_an_element_as_their_largest_sums_leave_room_for(bits, num_merchants, per_element):
    layout = Packing(1000, 2 * (2 ** (bits - 1) - 1), num_merchants)
    assert layout.per_element == per_element
    largest = layout.max_value * num_merchants + 1
    assert largest**per_element <= 2**32 < largest ** (per_element + 1)


def test_what_is_out_of_bounds_is_never_packed():
    layout = Packing(3, 10, 4)
    with pytest.raises(ValueError, match="a number is 11; allowed are 0 to 10"):
        layout.pack(np.uint32([1, 11, 2]))
    with pytest.raises(ValueError, match="2 numbers, this layout has 3"):
        layout.pack(np.uint32([1, 1]))


def test_a_sum_that_is_none_of_these_numbers_is_not_unpacked():
    layout = Packing(5, 10, 4)
    packed = layout.pack(np.uint32([10] * 5))
    with pytest.raises(ValueError, match="a sum of 2 elements, this layout has 1"):
        layout.unpack(np.append(packed, packed), 1)
    with pytest.raises(ValueError, match="a number of the sum is above 10"):
        layout.unpack(packed + np.uint32(1), 1)
    # Beyond the last digit, and in a digit that nothing stands in.
    for element in (2**32 - 1, 41**5):
        with pytest.raises(ValueError, match="it is not one of this cohort's vectors"):
            layout.unpack(np.uint32([element]), 4)


@pytest.mark.parametrize("values", [(-1, 1, 1), (1, 0, 1), (1, 1, 0), (1, 2**32 - 1, 1), (1, 2**31, 2)])
def test_a_layout_that_cannot_be_is_refused(values):
    with pytest.raises(ValueError, match="no layout for"):
        Packing(*values)
