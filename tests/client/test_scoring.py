"""Rows that can be read are scored, rows that cannot are told; each row is one or the other, under its own number."""

from __future__ import annotations

import csv
import gzip
import io

import numpy as np
import pandas as pd
import pytest

from hansa_client.data import feature_rows, read_frame
from hansa_client.scoring import Rejected, Scores, rejected_csv, score_table, scores_csv
from hansa_client.tables import FIRST_ROW, RaggedRow, read_even_rows
from hansa_common.bundle import open_bundle
from hansa_common.errors import DataError, UsageError
from hansa_common.scorer import Scorer


def csv_of(frame: pd.DataFrame, path):
    frame.to_csv(path, index=False)
    return path


def lines_of(content: bytes) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(content.decode())))


# --- which rows can be read -------------------------------------------------------------------------------------------


def spoiled(finished):
    """A hundred rows, and what is wrong with four of them."""
    frame = finished.rows(100, seed=1)
    frame.loc[3, "age"] = None
    frame.loc[10, "amount"] = "1,50"
    frame.loc[10, "gift"] = "perhaps"
    frame.loc[57, "clock"] = "yesterday"
    frame.loc[99, "moment"] = "2024-13-01"
    return frame, {3: {"age"}, 10: {"amount", "gift"}, 57: {"clock"}, 99: {"moment"}}


def test_rows_that_do_not_fit_are_left_out_and_the_others_are_parsed_as_without_them(unfinished):
    frame, wrong = spoiled(unfinished)
    features = unfinished.parts.agreement.features
    found = feature_rows(frame, features, "the test")
    np.testing.assert_array_equal(found.positions, [number for number in range(100) if number not in wrong])
    alone = feature_rows(frame.drop(index=list(wrong)), features, "the test")
    assert not alone.problems
    for name, values in alone.columns.items():
        np.testing.assert_array_equal(found.columns[name], values)
    told = {}
    for problem in found.problems:
        told.setdefault(problem.position, set()).add(problem.column)
    assert told == wrong


def test_table_without_rows_has_none_to_score(unfinished):
    frame = unfinished.rows(5).iloc[:0]
    found = feature_rows(frame, unfinished.parts.agreement.features, "the test")
    assert len(found.positions) == 0
    assert all(len(values) == 0 for values in found.columns.values())


def test_missing_column_is_refused_for_the_whole_table_with_the_nearest_name(unfinished):
    frame = unfinished.rows(5).rename(columns={"amount": "Amount"})
    with pytest.raises(DataError, match="no column 'amount'; did you mean 'Amount'"):
        feature_rows(frame, unfinished.parts.agreement.features, "the test")


@pytest.mark.parametrize("pack", [bytes, gzip.compress])
def test_uneven_rows_are_told_and_the_others_keep_their_numbers(tmp_path, pack):
    lines = ["a,b", "1,x", "2", "", '3,"y', 'y"', "4,z,", "5,w"]
    path = tmp_path / "table.csv"
    path.write_bytes(pack("\n".join(lines).encode()))
    frame, ragged = read_even_rows(path)
    assert ragged == [RaggedRow(3, 1, 2), RaggedRow(5, 3, 2)]
    assert frame["a"].to_dict() == {2: "1", 4: "3", 6: "5"}
    with pytest.raises(DataError, match="cannot be read as a table"):
        read_frame(path)


def test_uneven_rows_far_into_a_large_file_have_the_right_numbers(tmp_path):
    num_rows = 600_000
    lines = [f"{number},{'x' * 10}" for number in range(num_rows)]
    uneven = {0, 1, 299_999, 400_000, num_rows - 1}
    for number in uneven:
        lines[number] += ",more"
    path = tmp_path / "table.csv"
    path.write_text("a,b\n" + "\n".join(lines))
    frame, ragged = read_even_rows(path)
    assert {row.number - FIRST_ROW for row in ragged} == uneven
    np.testing.assert_array_equal(frame["a"].astype(int) + FIRST_ROW, frame.index)


def test_even_table_reads_the_same_both_ways(tmp_path, unfinished):
    path = csv_of(unfinished.rows(50), tmp_path / "table.csv")
    frame, ragged = read_even_rows(path)
    assert ragged == []
    pd.testing.assert_frame_equal(frame, read_frame(path))


# --- what is written --------------------------------------------------------------------------------------------------

SCORED = Scores(
    np.array([2, 3, 5]),
    np.array([0.25, np.nextafter(0.25, 0), 1e-300]),
    [
        Rejected(4, "amount", '1,"5\n', "is no number"),
        Rejected(4, "age", "", "is missing"),
        Rejected(6, "", "", "short"),
    ],
)


def test_written_scores_are_the_scores_to_the_last_bit():
    lines = lines_of(scores_csv(SCORED, None))
    assert [list(line) for line in lines] == [["row", "score"]] * 3
    assert [int(line["row"]) for line in lines] == SCORED.rows.tolist()
    assert [float(line["score"]) for line in lines] == SCORED.scores.tolist()


def test_decision_is_one_from_the_threshold_on_and_the_threshold_stands_beside_it():
    lines = lines_of(scores_csv(SCORED, 0.25))
    assert [list(line) for line in lines] == [["row", "score", "decision", "threshold"]] * 3
    assert [line["decision"] for line in lines] == ["1", "0", "0"]
    assert {float(line["threshold"]) for line in lines} == {0.25}


def test_rejected_cells_are_written_as_they_stood_and_rows_counted_once():
    lines = lines_of(rejected_csv(SCORED))
    assert [list(line) for line in lines] == [["row", "column", "value", "reason"]] * 3
    assert lines[0] == {"row": "4", "column": "amount", "value": '1,"5\n', "reason": "is no number"}
    assert SCORED.num_rejected_rows == 2


# --- whole tables -----------------------------------------------------------------------------------------------------


@pytest.mark.system
def test_csv_gzip_and_typed_parquet_give_the_scores_of_the_scorer_under_the_rows_numbers(tmp_path, finished):
    frame, wrong = spoiled(finished)
    bundle = open_bundle(finished.files, finished.trusted)
    columns = feature_rows(frame, bundle.preprocessing.features, "the test").columns
    expected = Scorer(bundle, finished.hash_key).score(columns)
    plain = csv_of(frame, tmp_path / "new.csv")
    packed = tmp_path / "new.csv.gz"
    packed.write_bytes(gzip.compress(plain.read_bytes()))
    text = tmp_path / "new.parquet"
    frame.to_parquet(text)
    for path in (plain, packed, text):
        scored = score_table(path, bundle, finished.hash_key)
        np.testing.assert_array_equal(scored.scores, expected)
        assert scored.rows.tolist() == [number + FIRST_ROW for number in range(100) if number not in wrong]
        assert {entry.row - FIRST_ROW for entry in scored.rejected} == set(wrong)
        assert ("amount", "1,50") in {(entry.column, entry.value) for entry in scored.rejected}


@pytest.mark.system
def test_typed_parquet_scores_as_its_text(tmp_path, finished):
    frame = finished.rows(200, seed=5)
    typed = frame.assign(
        amount=frame["amount"].astype(float),
        age=frame["age"].astype(int),
        gift=frame["gift"].map({"yes": True, "no": False}).astype("boolean"),
        moment=pd.to_datetime(frame["moment"]),
        country=frame["country"].astype("category"),
    )
    typed.to_parquet(tmp_path / "new.parquet")
    bundle = open_bundle(finished.files, finished.trusted)
    text = score_table(csv_of(frame, tmp_path / "new.csv"), bundle, finished.hash_key)
    scored = score_table(tmp_path / "new.parquet", bundle, finished.hash_key)
    np.testing.assert_array_equal(scored.scores, text.scores)
    assert not scored.rejected


@pytest.mark.system
def test_label_and_other_columns_are_not_looked_at(tmp_path, finished):
    frame = finished.rows(20, seed=6)
    bundle = open_bundle(finished.files, finished.trusted)
    bare = score_table(csv_of(frame, tmp_path / "bare.csv"), bundle, finished.hash_key)
    more = frame.assign(is_fraud="no label at all", note='a, "b"')[["note", *frame.columns[::-1], "is_fraud"]]
    scored = score_table(csv_of(more, tmp_path / "more.csv"), bundle, finished.hash_key)
    np.testing.assert_array_equal(scored.scores, bare.scores)


@pytest.mark.system
def test_table_is_not_even_read_under_another_hash_key(tmp_path, finished):
    bundle = open_bundle(finished.files, finished.trusted)
    for key in (None, b"k" * 32):
        with pytest.raises(UsageError, match="key"):
            score_table(tmp_path / "absent.csv", bundle, key)
