"""A round's one vector: what a sum of several says, and what never becomes one."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hansa_common.masking import MAX_EXAMPLES, FixedPoint
from hansa_common.round_vector import MAX_LOSS, RoundVector


def ring_sum(vectors):
    return np.sum(np.stack(vectors), axis=0, dtype=np.uint32)


@settings(max_examples=40, deadline=None)
@given(
    num_merchants=st.integers(1, 60),
    max_norm=st.floats(1e-3, 1e3),
    max_examples=st.integers(1, MAX_EXAMPLES),
    max_count=st.integers(0, 2**30 - 1),
    seed=st.integers(0, 2**32),
)
def test_a_sum_gives_the_means_and_the_totals(num_merchants, max_norm, max_examples, max_count, seed):
    rng = np.random.default_rng(seed)
    layout = RoundVector(FixedPoint(max_norm, max_examples, num_merchants), 11, 6, max_count)
    updates = (rng.uniform(-0.999, 0.999, (num_merchants, 11)) * max_norm).astype(np.float32)
    losses = rng.uniform(0, MAX_LOSS, num_merchants)
    rows = rng.integers(1, max_examples, num_merchants, endpoint=True)
    counts = rng.integers(0, max_count, (num_merchants, 6), endpoint=True)
    counts[:, 0] = max_count
    encoded = [layout.encode(*parts) for parts in zip(updates, losses, rows.tolist(), counts, strict=True)]
    assert all(vector.shape == (layout.num_elements,) for vector in encoded)
    found = layout.decode(ring_sum(encoded), num_merchants)
    assert found.num_examples == rows.sum()
    np.testing.assert_array_equal(found.counts, counts.sum(axis=0))
    error = layout.fixed.mean_error(num_merchants, found.num_examples)
    expected = np.average(updates.astype(np.float64), axis=0, weights=rows)
    assert np.abs(found.mean_update - expected).max() <= error + 1e-12 * max_norm
    expected_loss = np.average(losses, weights=rows)
    assert abs(found.mean_loss - expected_loss) <= (error / max_norm + 1e-6) * MAX_LOSS


def layout_of(max_count=100, num_merchants=3):
    return RoundVector(FixedPoint(1.0, 10, num_merchants), 2, 3, max_count)


def encoded(layout, **changes):
    values = {"update": np.zeros(2, np.float32), "loss": 0.5, "num_examples": 5, "counts": np.array([1, 2, 3])}
    return layout.encode(**{**values, **changes})


@pytest.mark.parametrize(
    ("loss", "told"), [(0.0, 0.0), (MAX_LOSS, 64), (1e9, 64), (np.inf, 64), (np.nan, 64), (-1, 64)]
)
def test_a_loss_out_of_bounds_is_told_as_the_largest_and_moves_nothing_else(loss, told):
    found = layout_of().decode(encoded(layout_of(), loss=loss), 1)
    assert found.mean_loss == pytest.approx(told, abs=1e-5)
    assert (found.num_examples, found.counts.tolist()) == (5, [1, 2, 3])
    assert not found.mean_update.any()


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"counts": np.array([1, 2, 101])}, "allowed are 0 to 100"),
        ({"counts": np.array([-1, 2, 3])}, "allowed are 0 to 100"),
        ({"counts": np.array([1, 2])}, "do not fit 2 and 3"),
        ({"update": np.zeros(3, np.float32)}, "do not fit 2 and 3"),
        ({"update": np.float32([0, 1.5])}, "a coordinate of the update is 1.5"),
        ({"update": np.float32([0, np.nan])}, "a coordinate of the update"),
        ({"num_examples": 11}, "allowed are 1 to 10"),
    ],
)
def test_what_is_out_of_bounds_is_never_encoded(changes, said):
    with pytest.raises(ValueError, match=said):
        encoded(layout_of(), **changes)


def test_counts_take_a_second_element_only_where_a_sum_would_not_fit_in_one():
    assert layout_of(max_count=2**30 - 1, num_merchants=4).num_elements == 2 + 1 + 2 + 3
    assert layout_of(max_count=2**30 - 1, num_merchants=5).num_elements == 2 + 1 + 2 + 6


def test_a_sum_that_is_none_of_these_vectors_is_not_decoded():
    layout = layout_of()
    vector = encoded(layout)
    with pytest.raises(ValueError, match="a sum of 7 elements, this layout has 8"):
        layout.decode(vector[:-1], 3)
    vector[-1] = 301
    with pytest.raises(ValueError, match="the sum has a count of 301"):
        layout.decode(vector, 3)


@pytest.mark.parametrize("values", [(-1, 0, 0), (0, -1, 0), (0, 0, -1), (0, 0, 2**30)])
def test_a_layout_that_cannot_be_is_refused(values):
    with pytest.raises(ValueError, match="no layout for"):
        RoundVector(FixedPoint(1.0, 10, 3), *values)
