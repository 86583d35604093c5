"""What merchants count: it adds up, keeps its length, hides what is rare, holds no text, and is checked on arrival."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from hansa_common import statistics
from hansa_common.agreement import Agreement, validate_agreement
from hansa_common.schema import NumericFeature
from hansa_common.statistics import SCALE, check_statistics, measure, merge, parts, positions, statistics_length

BINS = 8
CHANNELS = ("web", "shop", "phone")
FEATURES = [
    {"kind": "numeric", "name": "amount", "low": -50, "high": 100},
    {"kind": "numeric", "name": "price", "low": 1, "high": 1e6, "scaling": "log"},
    {"kind": "numeric", "name": "age", "low": 0, "high": 120, "scaling": "quantile", "bins": BINS},
    {"kind": "categorical", "name": "channel", "vocabulary": list(CHANNELS)},
    {"kind": "categorical", "name": "article", "hash_buckets": 16, "encoding": "embedding"},
    {"kind": "boolean", "name": "gift"},
    {"kind": "timestamp", "name": "when"},
]
# rows and positives; sums of amount and price; bins of age; entries of channel.
ROWS, AMOUNT, PRICE, AGE, CHANNEL = slice(0, 2), slice(2, 5), slice(5, 8), slice(8, 16), slice(16, 19)
LENGTH = 19


def agreement_with_floor(min_count: int) -> Agreement:
    values = {"task": "fraud", "label": {"column": "label"}, "features": FEATURES, "privacy": {"min_count": min_count}}
    return validate_agreement(values, "the test")


AGREEMENT = agreement_with_floor(1)

number = st.one_of(st.just(np.nan), st.floats(-1e30, 1e30), st.floats(-60, 130))
text = st.one_of(st.none(), st.sampled_from(CHANNELS), st.text(max_size=4))
row = st.tuples(number, number, number, text, text, st.sampled_from([0.0, 1.0, np.nan]), number, st.booleans())
rows = st.lists(row, min_size=1, max_size=40)


def columns_of(drawn):
    """Drawn rows as the columns and labels of a merchant's table."""
    fields = list(zip(*drawn, strict=True))
    kinds = {"channel": object, "article": object}
    names = [feature["name"] for feature in FEATURES]
    columns = {
        name: np.array(field, kinds.get(name, float)) for name, field in zip(names, fields[: len(names)], strict=True)
    }
    return columns, np.array(fields[-1], np.uint8)


def measured(drawn, agreement=AGREEMENT):
    return measure(agreement, *columns_of(drawn))


@given(rows, st.randoms(use_true_random=False), st.integers(1, 5))
def test_statistics_of_parts_in_any_order_sum_to_statistics_of_the_whole(drawn, random, num_parts):
    shuffled = random.sample(drawn, len(drawn))
    found = [measured(part) for part in (shuffled[i::num_parts] for i in range(num_parts)) if part]
    np.testing.assert_array_equal(merge(found), measured(drawn))


def test_sums_beyond_the_precision_of_a_double_do_not_depend_on_the_order_either(monkeypatch):
    monkeypatch.setattr(statistics, "SCALE", 2**55)
    values = np.random.default_rng(0)
    drawn = [(values.uniform(-50, 100), 5.0, 5.0, None, None, 0.0, 0.0, False) for _ in range(60)]
    assert measured(drawn)[AMOUNT][1] > 2**53
    np.testing.assert_array_equal(merge([measured([one]) for one in drawn]), measured(drawn))


@given(rows, st.integers(1, 20))
def test_length_is_the_agreements_whatever_the_rows(drawn, floor):
    agreement = agreement_with_floor(floor)
    assert measured(drawn, agreement).shape == (LENGTH,) == (statistics_length(agreement),)


@given(rows)
def test_counts_and_sums_agree_with_numpy(drawn):
    columns, labels = columns_of(drawn)
    vector = measured(drawn)
    assert vector[ROWS].tolist() == [len(drawn), labels.sum()]
    amount = columns["amount"][~np.isnan(columns["amount"])]
    place = (np.clip(amount, -50, 100) + 50) / 150
    assert vector[AMOUNT][0] == len(place)
    np.testing.assert_allclose(
        vector[AMOUNT][1:] / SCALE, [place.sum(), (place**2).sum()], atol=0.5 * len(drawn) / SCALE + 1e-12
    )
    age = np.clip(columns["age"][~np.isnan(columns["age"])], 0, 120)
    # Nearer to the end of a bin than a double tells, either side is right.
    assume(((age == 15 * np.rint(age / 15)) | (np.abs(age / 15 - np.rint(age / 15)) > 1e-9)).all())
    np.testing.assert_array_equal(vector[AGE], np.histogram(age, BINS, (0, 120))[0])
    assert vector[CHANNEL].tolist() == [(columns["channel"] == entry).sum() for entry in CHANNELS]


@given(rows, st.integers(2, 30))
def test_count_below_the_floor_is_zero_and_the_sums_that_stand_on_it(drawn, floor):
    whole, released = measured(drawn), measured(drawn, agreement_with_floor(floor))
    for part in (ROWS, AGE, CHANNEL):
        np.testing.assert_array_equal(released[part], np.where(whole[part] >= floor, whole[part], 0))
    for part in (AMOUNT, PRICE):
        np.testing.assert_array_equal(released[part], whole[part] if whole[part][0] >= floor else np.zeros(3))


def test_nothing_is_released_of_texts_outside_the_vocabulary_hashed_categories_booleans_and_moments():
    common = (20.0, 30.0, 40.0)
    told = [(*common, "web", "article 1", 1.0, 0.0, True), (*common, "fax", "article 2", 0.0, 1e9, False)]
    other = [(*common, "web", None, np.nan, 5.0, True), (*common, "pigeon", "article 3", 1.0, np.nan, False)]
    np.testing.assert_array_equal(measured(told), measured(other))
    widths = {feature.name: len(part) for feature, part in parts(AGREEMENT.features, measured(told))}
    assert (widths["article"], widths["gift"], widths["when"]) == (0, 0, 0)


@given(rows)
def test_what_leaves_is_integers_and_nothing_else(drawn):
    vector = measured(drawn)
    assert vector.dtype == np.int64
    assert all(type(value) is int for value in json.loads(json.dumps(vector.tolist())))


@given(st.lists(st.lists(st.integers(0, 2**40), min_size=3, max_size=3), min_size=1, max_size=5))
def test_merging_is_addition(vectors):
    merged = merge([np.array(vector, np.int64) for vector in vectors])
    assert merged.dtype == np.int64
    assert merged.tolist() == [sum(entries) for entries in zip(*vectors, strict=True)]


def test_merging_nothing_or_different_lengths_is_refused():
    with pytest.raises(ValueError, match="no statistics"):
        merge([])
    with pytest.raises(ValueError, match="shape"):
        merge([np.zeros(3, np.int64), np.zeros(4, np.int64)])


@given(st.lists(st.floats(allow_nan=False, allow_infinity=False), min_size=1), st.sampled_from(["standard", "log"]))
def test_positions_keep_order_and_stay_between_zero_and_one(values, scaling):
    feature = NumericFeature(name="x", low=-3.0, high=1e9, scaling=scaling)
    place = positions(feature, np.sort(np.array(values)))
    assert place.min() >= 0
    assert place.max() <= 1
    assert (np.diff(place) >= 0).all()
    np.testing.assert_allclose(positions(feature, np.array([-np.inf, -3.0, 1e9, np.inf])), [0, 0, 1, 1])


# --- what arrives -----------------------------------------------------------------------------------------------------


@given(rows, st.integers(1, 20))
def test_what_a_merchant_measures_is_believed(drawn, floor):
    agreement = agreement_with_floor(floor)
    check_statistics(agreement, measured(drawn, agreement), len(drawn))


NUM_ROWS = 40


@pytest.fixture
def honest():
    values = np.random.default_rng(1)
    drawn = [
        (values.uniform(-50, 100), values.uniform(1, 1e6), values.uniform(0, 120), "web", None, 1.0, 0.0, i % 2 == 0)
        for i in range(NUM_ROWS)
    ]
    vector = measured(drawn)
    check_statistics(AGREEMENT, vector, NUM_ROWS)
    return vector


@pytest.mark.parametrize(
    ("place", "value", "told"),
    [
        (0, NUM_ROWS - 1, "rows positive"),
        (0, NUM_ROWS + 1, "rows positive"),
        (1, NUM_ROWS + 1, "rows positive"),
        (1, -1, "negative"),
        (2, NUM_ROWS + 1, "'amount'"),
        (2, 1, "'amount'"),  # forty rows' sum of one value
        (3, NUM_ROWS * SCALE + 1, "'amount'"),
        (3, 0, "'amount'"),  # squares without values
        (4, NUM_ROWS * SCALE, "'amount'"),  # larger than the values
        (4, 0, "'amount'"),  # a variance below zero, by which a fitted deviation would vanish
        (7, 2**62, "'price'"),
        (8, NUM_ROWS + 1, "'age'"),
        (9, 2**63 - 1, "'age'"),
        (17, 1, "'channel'"),  # with forty on the web, one too many
        (18, 2**63 - 1, "'channel'"),
    ],
)
def test_statistics_that_no_rows_can_have_are_refused(honest, place, value, told):
    honest[place] = value
    with pytest.raises(ValueError, match=told):
        check_statistics(AGREEMENT, honest, NUM_ROWS)


def test_positives_without_rows_are_refused(honest):
    honest[0], honest[1] = 0, 5
    with pytest.raises(ValueError, match="rows positive"):
        check_statistics(AGREEMENT, honest, NUM_ROWS)


def test_counts_that_wrap_round_to_a_believable_sum_are_refused(honest):
    honest[AGE] = [2**63 - 1, 2**63 - 1, 2, 0, 0, 0, 0, 0]
    with pytest.raises(ValueError, match="'age'"):
        check_statistics(AGREEMENT, honest, NUM_ROWS)


@pytest.mark.parametrize("shape", [LENGTH - 1, LENGTH + 1, 0, (1, LENGTH)])
def test_another_shape_is_refused(shape):
    with pytest.raises(ValueError, match="statistics, the agreement has"):
        check_statistics(AGREEMENT, np.zeros(shape, np.int64), NUM_ROWS)


@given(st.integers(0, 3), *[st.one_of(st.integers(0, 3 * SCALE), st.integers(0, 12).map(lambda n: n * SCALE // 4))] * 2)
def test_sums_are_believed_where_and_only_where_values_can_have_them(count, total, squares):
    """Values between 0 and 1 have these sums where their squares are below them and their variance is not below 0."""
    vector = np.zeros(LENGTH, np.int64)
    vector[AMOUNT] = count, total, squares
    variance = squares * count * SCALE - total**2
    try:
        check_statistics(AGREEMENT, vector, 3)
    except ValueError:
        # Of a variance of exactly 0, rounding alone can make less.
        assert count * SCALE < total or total < squares or variance < 0
    else:
        assert 0 <= squares <= total <= count * SCALE
        assert variance >= -2 * count**2 * SCALE
