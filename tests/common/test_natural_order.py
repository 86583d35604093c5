"""Numbers in names are ordered by their value, and text around them as text."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from hansa_common.natural_order import natural_key


@given(st.lists(st.integers(0, 10**30), max_size=20), st.text("0", max_size=3), st.sampled_from(["", "shop ", "a-"]))
def test_names_that_differ_in_a_number_stand_in_its_order(numbers, zeros, prefix):
    named = sorted(numbers, key=lambda number: natural_key(f"{prefix}{zeros}{number} b"))
    assert named == sorted(numbers)


def test_number_of_thousands_of_digits_is_ordered_too():
    longest = "9" * 5000
    assert sorted([longest, "10", "2"], key=natural_key) == ["2", "10", longest]


def test_digits_of_other_scripts_are_text():
    assert sorted(["²", "3", "x"], key=natural_key) == ["3", "x", "²"]
