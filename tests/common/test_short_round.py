"""A round's vector in few bits: what a sum of several says, to the byte."""

import hashlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hansa_common.rotation import Rotation
from hansa_common.round_vector import MAX_LOSS
from hansa_common.short_round import ShortRoundVector
from hansa_common.short_updates import ShortUpdates


def ring_sum(vectors):
    return np.sum(np.stack(vectors), axis=0, dtype=np.uint32)


def layout_of(num_params=300, bits=8, num_merchants=3, max_examples=10):
    updates = ShortUpdates(Rotation(num_params, 4), bits, 1.0, max_examples, num_merchants)
    return ShortRoundVector(updates, 6, max_examples)


def encoded(layout, seed=0, **changes):
    values = {
        "update": np.linspace(-0.05, 0.05, 300, dtype=np.float32), "loss": 0.5, "num_examples": 5,
        "counts": np.array([1, 2, 3, 4, 5, 6]),
    }  # fmt: skip
    return layout.encode(**{**values, **changes}, rounding=np.random.default_rng(seed))


@settings(max_examples=40, deadline=None)
@given(
    num_merchants=st.integers(1, 60),
    bits=st.integers(2, 8),
    max_examples=st.integers(1, 2**26),
    seed=st.integers(0, 2**32),
)
def test_a_sum_gives_the_mean_the_loss_and_the_totals(num_merchants, bits, max_examples, seed):
    draw = np.random.default_rng(seed)
    layout = layout_of(50, bits, num_merchants, max_examples)
    updates = (draw.uniform(-1, 1, (num_merchants, 50)) / 8).astype(np.float32)
    losses, rows = (
        draw.uniform(0, MAX_LOSS, num_merchants),
        draw.integers(1, max_examples, num_merchants, endpoint=True),
    )
    counts = draw.integers(0, max_examples, (num_merchants, 6), endpoint=True)
    counts[:, 0] = max_examples
    vectors = [layout.encode(*parts, draw) for parts in zip(updates, losses, rows.tolist(), counts, strict=True)]
    assert all(vector.shape == (layout.num_elements,) for vector in vectors)
    found = layout.decode(ring_sum(vectors), num_merchants)
    assert found.num_examples == rows.sum()
    np.testing.assert_array_equal(found.counts, counts.sum(axis=0))
    expected = np.average(updates.astype(np.float64), axis=0, weights=rows)
    assert np.linalg.norm(found.mean_update - expected) <= found.most_error * (1 + 1e-6)
    rounding = layout.updates.max_examples * num_merchants**2 / rows.sum() * 2**-31
    assert abs(found.mean_loss - np.average(losses, weights=rows)) <= (rounding + 1e-6) * MAX_LOSS


def test_a_rounds_vector_in_few_bits_is_pinned_to_the_byte():
    """Who changes one of them makes another agreement of the same words, and other versions could not be added."""
    found = {
        bits: hashlib.sha256(encoded(layout_of(bits=bits)).astype("<u4").tobytes()).hexdigest()[:32] for bits in (8, 4)
    }
    assert found == PINNED


PINNED = {8: "4e58e06ac0805ea7aa719a91eb71b398", 4: "51708c7c7fa4a182173cd9c7571f55d8"}


def test_rounding_is_by_what_is_drawn_and_by_nothing_else():
    layout = layout_of()
    np.testing.assert_array_equal(encoded(layout), encoded(layout))
    parts = layout.updates.num_elements
    assert np.mean(encoded(layout)[:parts] != encoded(layout, seed=1)[:parts]) > 0.5
    np.testing.assert_array_equal(encoded(layout)[parts:], encoded(layout, seed=1)[parts:])


@pytest.mark.parametrize(("bits", "num_merchants", "per_element"), [(8, 5, 3), (8, 10, 2), (4, 10, 4), (2, 10, 7)])
def test_update_takes_a_part_of_the_elements_that_it_takes_without(bits, num_merchants, per_element):
    layout = layout_of(10_000, bits, num_merchants)
    # The counts of ten examples at ten merchants take seven bits.
    assert layout.num_elements - 3 - 2 == pytest.approx(10_000 / per_element, rel=0.02)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"counts": np.array([1, 2, 3, 4, 5, 11])}, "allowed are 0 to 10"),
        ({"counts": np.array([-1, 2, 3, 4, 5, 6])}, "allowed are 0 to 10"),
        ({"counts": np.array([1, 2])}, "2 numbers, this layout has 6"),
        ({"num_examples": 11}, "allowed are 1 to 10"),
    ],
)
def test_what_is_out_of_bounds_is_never_encoded(changes, said):
    with pytest.raises(ValueError, match=said):
        encoded(layout_of(), **changes)


def test_a_sum_that_is_none_of_these_vectors_is_not_decoded():
    layout = layout_of()
    vector = encoded(layout)
    with pytest.raises(ValueError, match=f"a sum of {vector.size - 1} elements, this layout has {vector.size}"):
        layout.decode(vector[:-1], 1)
    for place in (0, -1):
        changed = vector.copy()
        changed[place] = 2**32 - 1
        with pytest.raises(ValueError, match="it is not one of this cohort's vectors"):
            layout.decode(changed, 1)
    # Of two merchants there is more in an element than of one.
    with pytest.raises(ValueError, match="it is not one of this cohort's vectors"):
        layout.decode(ring_sum([vector, vector]), 1)
