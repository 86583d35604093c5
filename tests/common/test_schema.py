"""Features: how wide they are, which ids they have, and what an unknown key is told."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import TypeAdapter

from hansa_common.schema import (
    MISSING_ID,
    NUM_SPECIAL_IDS,
    UNKNOWN_ID,
    BooleanFeature,
    CategoricalFeature,
    Feature,
    NumericFeature,
    TimestampFeature,
    embedded,
    num_dense,
    unknown_key,
)

AMOUNT = {"name": "amount", "low": 0.0, "high": 9.0}
WIDTHS = [
    (NumericFeature(**AMOUNT), 2),
    (NumericFeature(**AMOUNT, missing="refuse"), 1),
    (NumericFeature(**AMOUNT, scaling="quantile", bins=8), 2),
    (BooleanFeature(name="gift"), 2),
    (BooleanFeature(name="gift", missing="refuse"), 1),
    # Hour and weekday as sine and cosine, and the flag.
    (TimestampFeature(name="at"), 5),
    (TimestampFeature(name="at", missing="refuse"), 4),
    # A column for each entry or bucket, and two for missing and unknown.
    (CategoricalFeature(name="c", vocabulary=("a", "b", "c")), 5),
    (CategoricalFeature(name="c", vocabulary=("a", "b", "c"), missing="refuse"), 5),
    (CategoricalFeature(name="c", hash_buckets=16), 18),
    # An embedding is no dense input.
    (CategoricalFeature(name="c", hash_buckets=16, encoding="embedding"), 0),
]


@pytest.mark.parametrize(("feature", "width"), WIDTHS)
def test_width_of_a_feature_is_as_documented(feature, width):
    assert feature.dense_width == width
    assert num_dense((feature,)) == width


def test_widths_add_up():
    for some in itertools.combinations(WIDTHS, 3):
        assert num_dense(tuple(feature for feature, _ in some)) == sum(width for _, width in some)
    assert num_dense(()) == 0


def test_embedded_features_keep_their_order_and_no_other_is_among_them():
    one, two = (CategoricalFeature(name=name, vocabulary=("a",), encoding="embedding") for name in ("one", "two"))
    dense = [feature for feature, width in WIDTHS if width > 0]
    assert embedded((two, *dense, one)) == (two, one)


def test_ids_of_a_category_leave_room_for_missing_and_unknown():
    assert {MISSING_ID, UNKNOWN_ID} == set(range(NUM_SPECIAL_IDS))
    assert CategoricalFeature(name="c", vocabulary=("a", "b")).num_ids == 4
    assert CategoricalFeature(name="c", hash_buckets=7).num_ids == 9


@pytest.mark.parametrize("feature", [feature for feature, _ in WIDTHS])
def test_feature_is_read_back_by_its_kind(feature):
    assert TypeAdapter(Feature).validate_python(feature.model_dump(mode="json")) == feature


@pytest.mark.parametrize("name", ["", "x" * 121, "a\nb", "a\tb", "\0", "\x1b[2J", 5, None])
def test_name_that_is_no_column_of_a_table_is_refused(name):
    with pytest.raises(ValueError, match="name"):
        BooleanFeature(name=name)


allowed_keys = st.lists(st.text(min_size=1, max_size=10), min_size=1, max_size=8, unique=True)


@settings(max_examples=30)
@given(allowed_keys, st.text(max_size=12))
def test_unknown_key_is_told_with_one_of_the_right_ones_or_all(allowed, key):
    message = unknown_key(key, allowed)
    assert message.startswith(f"unknown key {key!r}; ")
    nearest = [right for right in allowed if message.endswith(f"did you mean {right!r}?")]
    assert nearest or message.endswith("allowed: " + ", ".join(sorted(allowed)))


@pytest.mark.parametrize("key", ["round", "Rounds", "ruonds", "rounds_", "roundss"])
def test_slip_of_the_pen_is_told_the_right_key(key):
    assert unknown_key(key, ["seed", "rounds", "roster"]) == f"unknown key {key!r}; did you mean 'rounds'?"
