"""A merchant's table: what is read is what the file says, what does not fit is refused by place, no row is lost."""

from __future__ import annotations

import gzip

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hansa_client.data import load_table, merchant_table, read_frame
from hansa_common.agreement import Agreement, validate_agreement
from hansa_common.errors import AgreementError, DataError, UsageError

NUM_ROWS = 60
FEATURES = [
    {"kind": "numeric", "name": "amount", "low": 0, "high": 100},
    {"kind": "categorical", "name": "country", "vocabulary": ["NO", "DE"]},
    {"kind": "boolean", "name": "member"},
    {"kind": "timestamp", "name": "moment"},
    {"kind": "timestamp", "name": "clock", "unit": "seconds"},
]


def agreement(**changes) -> Agreement:
    values = {"task": "purchase", "label": {"column": "buys"}, "features": FEATURES}
    return validate_agreement({**values, **changes}, "the test")


def rows(num_rows: int = NUM_ROWS) -> pd.DataFrame:
    """Every third row buys; every row is another; what a merchant might hold, as text."""
    return pd.DataFrame(
        {
            "amount": [str(i + 0.25) for i in range(num_rows)],
            "country": [("NO", "DE", "SE")[i % 3] for i in range(num_rows)],
            "member": [("true", "false")[i % 2] for i in range(num_rows)],
            "moment": [f"2024-01-{1 + i % 28:02d}T{i % 24:02d}:30:00" for i in range(num_rows)],
            "clock": [str(1_700_000_000 + i) for i in range(num_rows)],
            "buys": [str(int(i % 3 == 0)) for i in range(num_rows)],
        }
    )


def csv_of(frame: pd.DataFrame, folder, name: str = "table.csv"):
    path = folder / name
    frame.to_csv(path, index=False)
    return path


def refusal(frame: pd.DataFrame, folder, **changes) -> str:
    with pytest.raises(DataError) as caught:
        load_table(csv_of(frame, folder), agreement(**changes), "alpha")
    return str(caught.value)


def with_cell(column: str, position: int, value: str | None) -> pd.DataFrame:
    frame = rows()
    frame.loc[position, column] = value
    return frame


# What a file holds


def test_csv_gzip_and_typed_parquet_of_the_same_rows_give_the_same_table(tmp_path):
    text = rows()
    text.loc[5, ["amount", "country", "member", "moment", "clock"]] = None
    typed = text.assign(
        amount=text["amount"].astype(float),
        country=text["country"].astype("category"),
        member=text["member"].map({"true": True, "false": False}).astype("boolean"),
        moment=pd.to_datetime(text["moment"]),
        clock=text["clock"].astype(float),
        buys=text["buys"] == "1",
    )
    typed.to_parquet(tmp_path / "table.parquet")
    paths = [csv_of(text, tmp_path), csv_of(text, tmp_path, "table.csv.gz"), tmp_path / "table.parquet"]
    plain, *others = (load_table(path, agreement(), "alpha") for path in paths)
    for other in others:
        for name, values in plain.columns.items():
            np.testing.assert_array_equal(other.columns[name], values)
        np.testing.assert_array_equal(other.labels, plain.labels)
        np.testing.assert_array_equal(other.test, plain.test)
        assert other.quality == plain.quality
    assert plain.quality.missing == dict.fromkeys(("amount", "country", "member", "moment", "clock"), 1)


def test_what_a_file_is_is_read_from_it_and_not_from_its_name(tmp_path):
    rows().to_parquet(tmp_path / "table.csv")
    (tmp_path / "table.dat").write_bytes(gzip.compress(rows().to_csv(index=False).encode()))
    for name in ("table.csv", "table.dat"):
        assert len(read_frame(tmp_path / name)) == NUM_ROWS


def test_byte_order_mark_windows_lines_and_quoted_line_breaks_are_read(tmp_path):
    path = tmp_path / "table.csv"
    path.write_bytes(b'\xef\xbb\xbfamount,note\r\n1,"two\r\nlines, and a comma"\r\n2,b\r\n')
    frame = read_frame(path)
    assert list(frame.columns) == ["amount", "note"]
    assert list(frame["note"]) == ["two\r\nlines, and a comma", "b"]


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "is empty"),
        (b"a,b\n1,2\n3\n", "Row #3: Expected 2 columns, got 1"),
        (b"a;b\n1;2\n", "separated by ';'"),
        (b"a,b,a\n1,2,3\n", "the column 'a' twice"),
        (b"a,b\n1,\xff\xfe\n", "(?i)utf-?8"),
        (b"a,b\n" + b"1,2\n" * 99_999 + b"1,\xff\xfe\n", "(?i)utf-?8"),
        (b"a,b\n" + b"1,2\n" * 99_999 + b"1,2,3\n", "Row #100001: Expected 2 columns, got 3"),
        (b"PAR1 is not enough", "cannot be read as a table"),
        (gzip.compress(b"a,b\n" + bytes(range(48, 58)) * 9999)[:-30], "cannot be read as a table"),
        (b"\x1f\x8bnot gzip at all", "cannot be read as a table"),
    ],
    ids=[
        "empty",
        "ragged",
        "semicolons",
        "name-twice",
        "not-utf-8",
        "not-utf-8-later",
        "ragged-later",
        "parquet",
        "cut-gzip",
        "gzip",
    ],
)
def test_what_is_no_table_is_refused_with_the_reason(tmp_path, content, reason):
    path = tmp_path / "table"
    path.write_bytes(content)
    with pytest.raises(DataError, match=reason):
        read_frame(path)


def test_file_that_is_not_there_is_a_mistake_of_the_command_line(tmp_path):
    for path in (tmp_path / "nowhere.csv", tmp_path):
        with pytest.raises(UsageError, match=path.name):
            read_frame(path)


# What is refused


@pytest.mark.parametrize(
    ("column", "value", "allowed"),
    [
        ("amount", "12,50", "a decimal point, no thousands separators"),
        ("amount", "inf", "a finite number"),
        ("amount", "1e999", "a finite number"),
        ("member", "perhaps", "true or false, yes or no, 1 or 0"),
        ("moment", "01.02.2024", "a date or time such as 2024-03-01"),
        ("clock", "noon", "a number of seconds since 1970"),
    ],
)
def test_bad_value_names_file_row_column_value_and_what_is_allowed(tmp_path, column, value, allowed):
    message = refusal(with_cell(column, 7, value), tmp_path)
    # Row 1 is the header, so the eighth row of data stands in line 9.
    line = (tmp_path / "table.csv").read_text().splitlines()[9 - 1]
    assert value in line
    for expected in ("table.csv", f"row 9, column {column!r}: {value!r}", allowed):
        assert expected in message


def test_five_bad_values_are_shown_and_the_rest_counted(tmp_path):
    frame = rows()
    frame.loc[10:18, "amount"] = "much"
    message = refusal(frame, tmp_path)
    assert [f"row {row}," in message for row in range(12, 18)] == [True] * 5 + [False]
    assert "and 4 more" in message


def test_missing_value_is_refused_by_place_where_the_agreement_refuses_it(tmp_path):
    strict = [{**feature, "missing": "refuse"} for feature in FEATURES]
    for column in ("amount", "country", "member", "moment", "clock"):
        message = refusal(with_cell(column, 3, None), tmp_path, features=strict)
        assert f"row 5, column {column!r}: '' is missing" in message


def test_missing_label_is_refused(tmp_path):
    assert "row 6, column 'buys': '' is missing" in refusal(with_cell("buys", 4, "NA"), tmp_path)


def test_missing_columns_are_refused_with_the_nearest_name(tmp_path):
    message = refusal(rows().rename(columns={"amount": "Amnt", "buys": "purchased"}), tmp_path)
    assert "no column 'amount'; did you mean 'Amnt'?" in message
    assert "no column 'buys'; there are: Amnt, country, member" in message


def test_table_without_rows_or_with_one_class_is_refused(tmp_path):
    assert "has no rows" in refusal(rows(0), tmp_path)
    assert "one class only: no row of 60 has 'buys' = '1'; the column holds '0'" in refusal(
        rows().assign(buys="0"), tmp_path
    )
    assert "one class only: every row" in refusal(rows().assign(buys="1"), tmp_path)


def test_columns_outside_the_agreement_are_not_looked_at(tmp_path):
    frame = rows()
    plain = merchant_table(frame, agreement(), "alpha", "t")
    wider = merchant_table(frame.assign(note="x"), agreement(), "alpha", "t")
    assert set(wider.columns) == set(plain.columns) == {feature["name"] for feature in FEATURES}


# Duplicates and quality


def test_exact_duplicates_are_counted_and_removed_only_where_agreed():
    frame = rows()
    # Equal as parsed; equal but for a column of no concern; equal but for the label.
    again = frame.iloc[[0, 1, 2]].assign(amount=["0.250", "1.25", "2.25"], note=["a", "b", "c"])
    other_label = frame.iloc[[3]].assign(buys="0")
    table = pd.concat([frame.assign(note="-"), again, other_label], ignore_index=True)
    kept = merchant_table(table, agreement(), "alpha", "t")
    assert (kept.quality.duplicates, len(kept.labels)) == (3, NUM_ROWS + 4)
    removed = merchant_table(table, agreement(data={"duplicates": "remove"}), "alpha", "t")
    assert (removed.quality.duplicates, len(removed.labels)) == (3, NUM_ROWS + 1)
    expected = [*(i + 0.25 for i in range(NUM_ROWS)), 3.25]
    np.testing.assert_array_equal(removed.columns["amount"], expected)


def test_quality_counts_what_was_put_in():
    frame = rows().assign(clock="1700000000")
    frame.loc[[0, 1, 2], "amount"] = ["-1", "100.5", None]
    frame.loc[[4, 5], "country"] = ["FI", None]
    quality = merchant_table(frame, agreement(), "alpha", "t").quality
    num_swedes = sum(country == "SE" for country in frame["country"])
    assert quality.to_json() == {
        "num_rows": NUM_ROWS,
        "num_positives": 20,
        "duplicates": 0,
        "duplicates_removed": False,
        "missing": {"amount": 1, "country": 1},
        "clipped": {"amount": 2},
        "unseen_categories": {"country": num_swedes + 1},
        "constant": ["clock"],
    }


# Splits


@given(
    num_positives=st.integers(3, 40),
    num_negatives=st.integers(3, 300),
    test_share=st.floats(0.01, 0.6),
    validation_share=st.floats(0.01, 0.3),
)
def test_stratified_split_divides_all_rows_and_every_part_holds_both_classes(
    num_positives, num_negatives, test_share, validation_share
):
    num_rows = num_positives + num_negatives
    frame = rows(num_rows).assign(buys=["1"] * num_positives + ["0"] * num_negatives)
    agreed = agreement(data={"test_share": test_share, "validation_share": validation_share})
    table = merchant_table(frame, agreed, "alpha", "t")
    parts = (table.train, table.validation, table.test)
    np.testing.assert_array_equal(np.sort(np.concatenate(parts)), np.arange(num_rows))
    for part in parts:
        assert set(table.labels[part]) == {0, 1}
        assert np.all(np.diff(part) > 0)
    if min(num_positives, num_negatives) * min(test_share, validation_share) >= 1:
        assert abs(len(table.test) - num_rows * test_share) <= 2
        assert abs(len(table.validation) - num_rows * validation_share) <= 2


def test_split_depends_on_seed_and_merchant_and_on_nothing_else():
    def test_rows(merchant: str, seed: int, frame: pd.DataFrame) -> list[int]:
        return list(merchant_table(frame, agreement(seed=seed), merchant, "t").test)

    first = test_rows("alpha", 0, rows())
    assert first == test_rows("alpha", 0, rows().assign(amount="1"))
    assert first != test_rows("beta", 0, rows())
    assert first != test_rows("alpha", 1, rows())


@pytest.mark.parametrize("few", [1, 2])
def test_too_few_of_a_class_for_three_parts_is_refused(tmp_path, few):
    frame = rows().assign(buys=["1"] * few + ["0"] * (NUM_ROWS - few))
    assert f"too few positive rows: {few}" in refusal(frame, tmp_path)
    frame = rows().assign(buys=["0"] * few + ["1"] * (NUM_ROWS - few))
    assert f"too few negative rows: {few}" in refusal(frame, tmp_path)


@pytest.mark.parametrize("time_column", ["clock", "moment", "amount", "outside"])
def test_time_split_by_shares_trains_on_the_past_only(time_column):
    shuffled = rows().assign(outside=[f"2024-01-01 00:{i:02d}" for i in range(NUM_ROWS)])
    shuffled = shuffled.sample(frac=1, random_state=3).reset_index(drop=True)
    agreed = agreement(data={"split": "time", "time_column": time_column})
    table = merchant_table(shuffled, agreed, "alpha", "t")
    assert [len(part) for part in (table.train, table.validation, table.test)] == [42, 6, 12]
    written = shuffled[time_column]
    moments = written.astype(float) if time_column in {"clock", "amount"} else pd.to_datetime(written)
    assert moments[table.train].max() <= moments[table.validation].min()
    assert moments[table.validation].max() <= moments[table.test].min()


def test_time_split_by_boundaries_is_at_the_boundaries():
    data = {"split": "time", "time_column": "amount", "validation_from": 30.25, "test_from": 50}
    table = merchant_table(rows(), agreement(data=data), "alpha", "t")
    np.testing.assert_array_equal(table.train, np.arange(30))
    np.testing.assert_array_equal(table.validation, np.arange(30, 50))
    np.testing.assert_array_equal(table.test, np.arange(50, NUM_ROWS))


def test_equal_times_are_divided_in_the_order_of_the_table():
    agreed = agreement(data={"split": "time", "time_column": "clock"})
    table = merchant_table(rows().assign(clock="1700000000"), agreed, "alpha", "t")
    np.testing.assert_array_equal(np.concatenate([table.train, table.validation, table.test]), np.arange(NUM_ROWS))


def test_time_split_refuses_an_empty_part_an_unread_time_and_training_on_one_class(tmp_path):
    late = {"split": "time", "time_column": "amount", "validation_from": 90, "test_from": 95}
    assert "the validation part has no rows: 60 rows from 0.25 to 59.25 in 'amount'" in refusal(
        rows(), tmp_path, data=late
    )
    by_note = {"split": "time", "time_column": "note"}
    noted = rows().assign(note="2024-01-01")
    noted.loc[8, "note"] = "later"
    noted.loc[9, "note"] = None
    message = refusal(noted, tmp_path, data=by_note)
    assert "row 10, column 'note': 'later' is neither a number nor an ISO date or time" in message
    assert "row 11, column 'note': '' is missing, and the split goes by it" in message
    only_late_buyers = rows().assign(buys=["0"] * 50 + ["1"] * 10)
    by_clock = {"split": "time", "time_column": "clock"}
    assert "every one of the 42 training rows, by 'clock', is negative" in refusal(
        only_late_buyers, tmp_path, data=by_clock
    )


def test_agreement_refuses_a_time_split_without_its_column():
    with pytest.raises(AgreementError, match="time_column"):
        agreement(data={"split": "time"})


# The public sets


@pytest.mark.data
@pytest.mark.parametrize(
    ("name", "label", "positive", "num_rows", "num_positives", "duplicates"),
    [
        ("online_shoppers_intention.csv.gz", "Revenue", "TRUE", 12_330, 1_908, 125),
        ("in-vehicle-coupon-recommendation.csv.gz", "Y", "1", 12_684, 7_210, 74),
        ("creditcard.csv.gz", "Class", "1", 284_807, 492, 1_081),
    ],
)
def test_public_sets_are_read_whole(public_data, name, label, positive, num_rows, num_positives, duplicates):
    frame = read_frame(public_data / name)
    features = [
        {"kind": "categorical", "name": column, "hash_buckets": 8} for column in frame.columns if column != label
    ]
    if name.startswith("creditcard"):
        features = [{"kind": "numeric", "name": f["name"], "low": -200, "high": 200_000} for f in features]
    agreed = agreement(label={"column": label, "positive": positive}, features=features)
    quality = merchant_table(frame, agreed, "alpha", name).quality
    assert (quality.num_rows, quality.num_positives, quality.duplicates) == (num_rows, num_positives, duplicates)
