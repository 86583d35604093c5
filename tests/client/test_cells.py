"""A cell is read as what it says, to the last bit, in every kind of column; what it cannot be is bad by position."""

from __future__ import annotations

import math
from datetime import UTC, datetime

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hansa_client import cells


def number_of(text: str) -> float | None:
    """The slow reference: Python's own reading, less its underscores, infinities and NaN."""
    try:
        number = float(text)
    except ValueError:
        return None
    return number if math.isfinite(number) and "_" not in text else None


@given(st.lists(st.floats(allow_nan=False, allow_infinity=False), min_size=1, max_size=20))
def test_every_finite_number_is_read_to_the_last_bit(values):
    for written in ([repr(value) for value in values], [f" {value:+.17g} " for value in values]):
        parsed = cells.numbers(pd.Series(written))
        np.testing.assert_array_equal(parsed.array, values)
        assert len(parsed.bad) == 0


@given(st.lists(st.text(alphabet="0123456789+-.eE_ ,infxa", max_size=7), min_size=1, max_size=20))
def test_text_is_a_number_where_python_says_so(written):
    parsed = cells.numbers(pd.Series(written, dtype=object))
    for position, text in enumerate(written):
        expected = number_of(text)
        is_missing = text.strip() in cells.MISSING_TOKENS
        assert (position in parsed.bad) == (expected is None and not is_missing), text
        if expected is not None:
            assert parsed.array[position] == expected


@given(st.datetimes(datetime(1900, 1, 1), datetime(2200, 1, 1)), st.sampled_from(["", "Z", "+02:00", "-0530"]))  # noqa: DTZ001
def test_moment_is_the_wall_clock_as_written(moment, zone):
    expected = (moment.replace(tzinfo=UTC) - datetime(1970, 1, 1, tzinfo=UTC)).total_seconds()
    for separator in ("T", " "):
        parsed = cells.moments(pd.Series([moment.isoformat(sep=separator) + zone]))
        np.testing.assert_allclose(parsed.array, [expected], rtol=0, atol=1e-5)
        assert len(parsed.bad) == 0


@pytest.mark.parametrize("text", ["2024-13-01", "2024-02-30", "01.02.2024", "1700000000", "noon", "2024"])
def test_what_is_no_iso_moment_is_bad(text):
    assert list(cells.moments(pd.Series(["2024-01-01", text])).bad) == [1]


def test_zone_of_a_typed_moment_is_not_looked_at():
    column = pd.Series(pd.to_datetime(["2024-01-01T10:00:00"])).dt.tz_localize("Europe/Oslo")
    written = pd.Series(["2024-01-01T10:00:00"])
    np.testing.assert_array_equal(cells.moments(column).array, cells.moments(written).array)


def test_missing_tokens_are_missing_in_every_kind():
    column = pd.Series([*cells.MISSING_TOKENS, " NA ", None, float("nan")], dtype=object)
    for parse in (cells.numbers, cells.booleans, cells.moments, cells.texts):
        parsed = parse(column)
        assert pd.isna(parsed.array).all()
        assert len(parsed.bad) == 0


def test_booleans_are_read_in_any_case_and_nothing_else_is_one():
    parsed = cells.booleans(pd.Series(["True", "YES", "1", "1.0", "FALSE", "no", "0", "0.0", "2", "y", "tru"]))
    np.testing.assert_array_equal(parsed.array[:8], [1, 1, 1, 1, 0, 0, 0, 0])
    assert list(parsed.bad) == [8, 9, 10]


@pytest.mark.parametrize(
    ("positive", "positives"),
    [("1", ["1", "1.0", "TRUE", "true", " 1 "]), ("FALSE", ["False", "0", "0.0"]), ("Yes", ["Yes"]), ("10", ["1e1"])],
)
def test_label_is_positive_where_it_says_the_same(positive, positives):
    negatives = ["2", "no", "01x", "yes"]
    parsed = cells.labels(pd.Series(positives + negatives), positive)
    np.testing.assert_array_equal(parsed.array, [1] * len(positives) + [0] * len(negatives))
