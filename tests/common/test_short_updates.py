"""Updates in few bits: how far rounding and cutting off move a mean, and that no sum wraps around."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hansa_common.masking import MAX_EXAMPLES
from hansa_common.packing import Packing
from hansa_common.rotation import Rotation
from hansa_common.short_updates import REACH, ShortUpdates, relative_error, top_level


def ring_sum(vectors):
    return np.sum(np.stack(vectors), axis=0, dtype=np.uint32)


def updates_of(num_merchants, num_params, norms, draw):
    found = draw.standard_t(3, (num_merchants, num_params)) + draw.normal(size=num_params)
    return (found / np.linalg.norm(found, axis=1, keepdims=True) * np.reshape(norms, (-1, 1))).astype(np.float32)


def layout_of(num_params=500, bits=8, num_merchants=5, **changes):
    values = {"max_norm": 2.0, "max_examples": 100, "max_merchants": num_merchants}
    return ShortUpdates(Rotation(num_params, 11), bits, **{**values, **changes})


def decoded(layout, updates, rows, draw):
    vectors = [layout.encode(*parts, draw) for parts in zip(updates, rows, strict=True)]
    return layout.decode_mean(ring_sum(vectors), len(rows), sum(rows))


@settings(max_examples=60, deadline=None)
@given(
    num_merchants=st.integers(1, 60),
    bits=st.integers(2, 8),
    num_params=st.integers(1, 400),
    max_norm=st.floats(1e-3, 1e3),
    max_examples=st.integers(1, MAX_EXAMPLES),
    seed=st.integers(0, 2**32),
)
def test_a_mean_is_never_further_off_than_the_most_error(num_merchants, bits, num_params, max_norm, max_examples, seed):
    draw = np.random.default_rng(seed)
    layout = ShortUpdates(Rotation(num_params, seed), bits, max_norm, max_examples, num_merchants)
    # No longer than what is never cut off.
    longest = min(1.0, REACH / math.sqrt(layout.rotation.num_turned)) * max_norm * 0.999
    updates = updates_of(num_merchants, num_params, draw.uniform(0, longest, num_merchants), draw)
    rows = draw.integers(1, max_examples, num_merchants, endpoint=True).tolist()
    mean = decoded(layout, updates, rows, draw)
    expected = np.average(updates.astype(np.float64), axis=0, weights=rows)
    assert np.linalg.norm(mean - expected) <= layout.most_error(num_merchants, sum(rows)) * (1 + 1e-6)


@settings(max_examples=60, deadline=None)
@given(num_merchants=st.integers(1, 60), bits=st.integers(2, 8), sign=st.sampled_from([-1, 1]))
def test_a_sum_does_not_wrap_though_everyone_is_at_the_bound_in_one_coordinate(num_merchants, bits, sign):
    """Turned back from one coordinate, so that the levels are cut off there and nothing is anywhere else."""
    layout = layout_of(64, bits, num_merchants)
    update = layout.rotation.turn_back(np.eye(1, 64, 9)[0] * sign * 1.999).astype(np.float32)
    draw = np.random.default_rng(0)
    mean = decoded(layout, [update] * num_merchants, [100] * num_merchants, draw)
    cut_off = REACH * 2.0 / math.sqrt(64)
    turned = layout.rotation.turn(mean)
    assert turned[9] == pytest.approx(sign * cut_off)
    # What is left in the others is float32's.
    assert np.abs(np.delete(turned, 9)).max() <= cut_off / top_level(bits, num_merchants) + 1e-9


@pytest.mark.parametrize("bits", range(2, 9))
def test_rounding_moves_a_mean_by_nothing_on_average_and_by_the_expected_error_at_most(bits):
    draw, rows = np.random.default_rng(bits), [100, 60, 30, 7, 100]
    layout = layout_of(bits=bits)
    updates = updates_of(5, 500, [1.3, 1.0, 0.7, 0.3, 0.0], draw)
    expected = np.average(updates.astype(np.float64), axis=0, weights=rows)
    errors = np.stack([decoded(layout, updates, rows, draw) - expected for _ in range(400)])
    root_mean_square = math.sqrt(np.mean(np.sum(np.square(errors), axis=1)))
    bound = layout.expected_error(5, sum(rows))
    assert root_mean_square <= bound
    assert root_mean_square == pytest.approx(formula(layout, updates, rows), rel=0.03)
    # A mean of 400 has a twentieth of the error of one.
    assert np.linalg.norm(errors.mean(axis=0)) <= 1.25 * root_mean_square / 20
    share = sum(rows) / (5 * 100)
    top = top_level(bits, 5)
    assert bound == pytest.approx(2.0 * relative_error(top, 5, share))
    assert bound == pytest.approx(2.0 * REACH / top / (2 * math.sqrt(5) * share))


def formula(layout, updates, rows):
    """A coordinate between two levels is moved by a variance of p (1 - p) steps squared: p is how far up it is."""
    step = (
        REACH * layout.max_norm / math.sqrt(layout.rotation.num_turned) / top_level(layout.bits, layout.max_merchants)
    )
    variance = 0.0
    for update, num_examples in zip(updates, rows, strict=True):
        up = np.mod(layout.rotation.turn(update.astype(np.float64)) * num_examples / layout.max_examples / step, 1)
        variance += float(np.sum(up * (1 - up))) * step**2
    return math.sqrt(variance) * layout.max_examples / sum(rows)


@pytest.mark.parametrize("share_of_norm", [1.0, 2 / 3])
def test_cutting_off_shortens_a_mean_by_what_is_beyond_three_deviations(share_of_norm):
    draw = np.random.default_rng(4)
    update = updates_of(1, 4096, [2.0 * share_of_norm * 0.9999], draw)[0]
    lengths = []
    for seed in range(60):
        layout = ShortUpdates(Rotation(4096, seed), 8, 2.0, 100, 1)
        lengths.append(decoded(layout, [update], [100], draw) @ update / (update @ update))
    kept = math.erf(REACH / share_of_norm / math.sqrt(2))
    assert np.mean(lengths) == pytest.approx(kept, abs=3e-4)


def test_levels_are_those_of_the_paper_drawn_one_by_one():
    """Stochastic k-level quantization, section 2.2, over the agreed range instead of each vector's own."""
    layout, update = layout_of(40, bits=3, num_merchants=1), updates_of(1, 40, [1.5], np.random.default_rng(1))[0]
    ring = layout.encode(update, 80, np.random.default_rng(6))
    found = layout.packing.unpack(ring, 1)
    drawn = np.random.default_rng(6).random(layout.rotation.num_turned, dtype=np.float32)
    half = REACH * 2.0 / math.sqrt(layout.rotation.num_turned)
    expected = []
    for coordinate, chance in zip(layout.rotation.turn(update) * np.float32(0.8), drawn, strict=True):
        cut = min(max(float(coordinate), -half), half)
        place = (cut + half) / (2 * half) * 2 * top_level(3, 1)
        lower = math.floor(place)
        expected.append(lower + (chance >= 1 - (place - lower)))
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize(
    ("update", "num_examples", "said"),
    [
        (np.full(500, 0.1, np.float32), 50, "the update has norm 2.23.*, allowed is 2.0"),
        (np.full(500, np.nan, np.float32), 50, "the update has norm nan"),
        (np.zeros(499, np.float32), 50, "500 numbers are turned here"),
        (np.zeros(500, np.float32), 101, "101 examples; allowed are 1 to 100"),
        (np.zeros(500, np.float32), 0, "0 examples; allowed are 1 to 100"),
    ],
)
def test_what_is_out_of_bounds_is_never_encoded(update, num_examples, said):
    with pytest.raises(ValueError, match=said):
        layout_of().encode(update, num_examples, np.random.default_rng(0))


@pytest.mark.parametrize(("bits", "num_merchants"), [(8, 3), (8, 10), (7, 10), (4, 10), (4, 50), (2, 50), (8, 400)])
def test_there_are_at_least_as_many_levels_as_agreed_and_more_only_where_they_take_no_more_bytes(bits, num_merchants):
    layout, least = layout_of(1000, bits, num_merchants), 2 ** (bits - 1) - 1
    top = top_level(bits, num_merchants)
    assert top >= least
    assert layout.packing == Packing(layout.rotation.num_turned, 2 * top, num_merchants)
    assert layout.num_elements == Packing(layout.rotation.num_turned, 2 * least, num_merchants).num_elements
    assert (2 * (top + 1) * num_merchants + 1) ** layout.packing.per_element > 2**32


@pytest.mark.parametrize("changes", [{"bits": 1}, {"bits": 9}, {"max_norm": 0.0}, {"max_examples": 0}])
def test_levels_that_cannot_be_are_refused(changes):
    with pytest.raises(ValueError, match="no levels"):
        layout_of(**changes)
