"""Silos: every row in exactly one, under a name a merchant may have, in an order that a reader expects."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hansa_client.silos import SiloSpec, parse_silo, split_silos
from hansa_client.tables import read_frame
from hansa_common.agreement import Agreement, validate_agreement
from hansa_common.errors import DataError, UsageError


def frame_of(values: list[str | None], column: str = "shop") -> pd.DataFrame:
    frame = pd.DataFrame({column: pd.Series(values, dtype=object), "n": np.arange(len(values))})
    frame.index = pd.RangeIndex(2, 2 + len(values))
    return frame


def sizes(values: list[str | None], spec: str, min_rows: int = 1, column: str = "shop") -> dict[str, int]:
    return {name: len(rows) for name, rows in split_silos(frame_of(values, column), parse_silo(spec), min_rows).items()}


def agreement_for(roster: tuple[str, ...]) -> Agreement:
    return validate_agreement(
        {
            "task": "purchase",
            "label": {"column": "y"},
            "features": [{"kind": "boolean", "name": "x"}],
            "cohort": {"min_merchants": 1},
            "roster": list(roster),
        },
        "the test",
    )


@pytest.mark.parametrize(
    ("text", "spec"),
    [
        ("TrafficType", SiloSpec("TrafficType")),
        ("Amount:0,1,10", SiloSpec("Amount", (0.0, 1.0, 10.0))),
        ("a:b:-5, .5", SiloSpec("a:b", (-5.0, 0.5))),
        ("a:b", SiloSpec("a:b")),
        (":1", SiloSpec(":1")),
    ],
)
def test_specification_is_read_as_written(text, spec):
    assert parse_silo(text) == spec


@pytest.mark.parametrize("text", ["Amount:0,x", "Amount:0,,1", "Amount:10,1", "Amount:1,1", "Amount:0,1e999"])
def test_edges_that_are_no_ascending_numbers_are_refused(text):
    with pytest.raises(UsageError, match="--silo Amount"):
        parse_silo(text)


@given(
    st.lists(st.one_of(st.none(), st.text(max_size=3), st.sampled_from(["other", "unknown", "a"])), min_size=1),
    st.integers(1, 5),
)
def test_every_row_is_in_exactly_one_silo_of_a_lawful_name(values, min_rows):
    frame = frame_of(values)
    silos = split_silos(frame, SiloSpec("shop"), min_rows)
    numbers = np.concatenate([rows["n"] for rows in silos.values()])
    np.testing.assert_array_equal(np.sort(numbers), frame["n"])
    for rows in silos.values():
        assert np.all(np.diff(rows.index) > 0)
    assert agreement_for(tuple(silos)).roster == tuple(silos)
    assert all(len(rows) >= min_rows for name, rows in silos.items() if name != "other")


@given(st.lists(st.floats(-5, 200), min_size=1), st.lists(st.integers(-50, 150), min_size=1, max_size=5, unique=True))
def test_band_is_closed_below_and_open_above(values, edges):
    edges = sorted(edges)
    values = [value for value in values if value >= edges[0]] or [float(edges[0])]
    frame = pd.DataFrame({"Amount": [repr(value) for value in values]})
    silos = split_silos(frame, SiloSpec("Amount", tuple(map(float, edges))))
    for name, rows in silos.items():
        # The slow reference: the names say the bounds.
        low = next(edge for edge in edges if name.startswith((f"Amount {edge}-", f"Amount {edge}+")))
        higher = [edge for edge in edges if edge > low]
        for value in rows["Amount"].astype(float):
            assert low <= value and (not higher or value < higher[0])  # noqa: PT018 - one law
    assert sum(map(len, silos.values())) == len(values)


def test_bands_keep_the_order_of_their_edges_below_zero_too():
    values = ["-10", "-5", "0.5", "10", None, "3"]
    assert sizes(values, "Amount:-10,-5,0.5,10", column="Amount") == {
        "Amount -10--5": 1,
        "Amount -5-0.5": 1,
        "Amount 0.5-10": 2,
        "Amount 10+": 1,
        "unknown": 1,
    }


def test_numbers_in_names_sort_as_numbers_and_special_silos_last():
    values = ["10", "2", "b", "a 10", "a 9", None, "1", "10", "2", "b", "a 10", "a 9"]
    assert list(sizes(values, "shop")) == ["1", "2", "10", "a 9", "a 10", "b", "unknown"]
    assert list(sizes(values, "shop", min_rows=2)) == ["2", "10", "a 9", "a 10", "b", "other"]


def test_small_silos_are_merged_into_other_however_small():
    values = ["a"] * 5 + ["b"] * 2 + ["c"]
    assert sizes(values, "shop", min_rows=3) == {"a": 5, "other": 3}
    assert sizes(values, "shop", min_rows=2) == {"a": 5, "b": 2, "other": 1}
    assert sizes(values, "shop", min_rows=9) == {"other": 8}


def test_names_keep_what_a_merchants_name_may_hold_and_stay_apart():
    values = ["Restaurant(<20)", "Café & Co", "Cafe + Co", "Cafe - Co", "<20", "other", "unknown", None, "x" * 90]
    assert list(sizes(values, "shop")) == [
        "silo <20",
        "Cafe + Co",
        "Cafe - Co",
        "Cafe - Co (2)",
        "Restaurant(<20)",
        "other (2)",
        "unknown (2)",
        "x" * 64,
        "unknown",
    ]


def test_bands_of_a_column_with_a_long_name_stay_apart():
    silos = sizes(["1", "20"], "A" * 90 + ":0,10", column="A" * 90)
    assert list(silos.values()) == [1, 1]
    assert agreement_for(tuple(silos)).roster == tuple(silos)


@pytest.mark.parametrize(("value", "problem"), [("-0.5", "is below the first edge, 0"), ("much", "is not a number")])
def test_value_outside_every_band_is_refused_by_its_row(value, problem):
    with pytest.raises(DataError, match=f"row 4, column 'Amount': '{value}' {problem}"):
        sizes(["1", "2", value], "Amount:0,10", column="Amount")


def test_absent_column_is_a_mistake_of_the_command_line_and_no_rows_of_the_table():
    with pytest.raises(UsageError, match="no column 'Shop'; did you mean 'shop'"):
        sizes(["a"], "Shop")
    with pytest.raises(DataError, match="no rows"):
        sizes([], "shop")


@pytest.mark.data
@pytest.mark.parametrize(
    ("name", "spec", "min_rows", "expected"),
    [
        (
            "online_shoppers_intention.csv.gz",
            "TrafficType",
            300,
            {"1": 2451, "2": 3913, "3": 2052, "4": 1069, "6": 444, "8": 343, "10": 450, "13": 738, "other": 870},
        ),
        (
            "in-vehicle-coupon-recommendation.csv.gz",
            "couponType",
            1,
            {
                "Bar": 2017,
                "Carry out - Take away": 2393,
                "Coffee House": 3996,
                "Restaurant(20-50)": 1492,
                "Restaurant(<20)": 2786,
            },
        ),
    ],
)
def test_public_sets_divide_as_their_description_says(public_data, name, spec, min_rows, expected):
    silos = split_silos(read_frame(public_data / name), parse_silo(spec), min_rows)
    assert {name: len(rows) for name, rows in silos.items()} == expected
