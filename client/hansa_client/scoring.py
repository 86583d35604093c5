"""Scores of a merchant's table with a bundle, row by row: what can be read is scored, what cannot is told.

- Rows are called by the number that tables.py gives them; each stands in the scores or among the rejected, never both.
- No label is needed, and columns that the model does not read are not looked at.
- The network runs in a process of its own (candidate.py): a signature says whose the file is, not what it does.

What a cell of each kind may say is cells.py's; which rows fit, data.py's.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.csv as arrow_csv
from numpy.typing import NDArray

from hansa_client import cells
from hansa_client.candidate import candidate_logits
from hansa_client.data import Problem, feature_rows
from hansa_client.tables import RaggedRow, read_even_rows
from hansa_common.bundle import Bundle
from hansa_common.features import Inputs
from hansa_common.metrics import scores_of
from hansa_common.scorer import check_hash_key


@dataclass(frozen=True)
class Rejected:
    """A cell for which a row was not scored; without a column the whole row cannot be read."""

    row: int
    column: str
    value: str
    reason: str


@dataclass(frozen=True)
class Scores:
    """rows: (scored,) int64, the rows' numbers, ascending. scores: (scored,) float64, probabilities."""

    rows: NDArray[np.int64]
    scores: NDArray[np.float64]
    rejected: list[Rejected]

    @property
    def num_rejected_rows(self) -> int:
        """Rows that were not scored; one can be rejected for several cells."""
        return len({entry.row for entry in self.rejected})

    def decisions(self, threshold: float) -> NDArray[np.int8]:
        """(scored,) 1 where the score is at least the threshold, else 0."""
        return (self.scores >= threshold).astype(np.int8)


def score_table(path: Path, bundle: Bundle, hash_key: bytes | None) -> Scores:
    """Score a file: CSV, gzip CSV or Parquet.

    Raises:
        UsageError: there is no such file, or the hash key is missing or another than the merchants'.
        DataError: it is not a table, or a column that the model reads is not there.
        MerchantError: the bundle's network does not do what a network does.
    """
    check_hash_key(bundle, hash_key)
    frame, ragged = read_even_rows(path)
    fitting = feature_rows(frame, bundle.preprocessing.features, str(path))
    inputs = bundle.preprocessing.transform(fitting.columns, hash_key)
    rejected = [*_rejected_cells(frame, fitting.problems), *_rejected_rows(ragged)]
    rows = frame.index.to_numpy()[fitting.positions].astype(np.int64)
    return Scores(rows, _scores(bundle, inputs), sorted(rejected, key=lambda entry: entry.row))


def scores_csv(scored: Scores, threshold: float | None) -> bytes:
    """The columns row, score and, with a threshold, decision and threshold."""
    columns = {"row": pa.array(scored.rows), "score": pa.array(scored.scores)}
    if threshold is not None:
        columns["decision"] = pa.array(scored.decisions(threshold))
        columns["threshold"] = pa.array(np.full(len(scored.rows), threshold))
    text = io.BytesIO()
    arrow_csv.write_csv(pa.table(columns), text, arrow_csv.WriteOptions(include_header=False))
    return f"{','.join(columns)}\n".encode() + text.getvalue()


def rejected_csv(scored: Scores) -> bytes:
    """The columns row, column, value and reason; a line for each cell that does not fit."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["row", "column", "value", "reason"])
    writer.writerows([entry.row, entry.column, entry.value, entry.reason] for entry in scored.rejected)
    return text.getvalue().encode(errors="replace")


def _scores(bundle: Bundle, inputs: Inputs) -> NDArray[np.float64]:
    name = bundle.network_name
    return scores_of(candidate_logits(bundle.networks[name], inputs, name=name))


def _rejected_cells(frame: pd.DataFrame, problems: list[Problem]) -> Iterator[Rejected]:
    for problem in problems:
        value = cells.raw_text(frame[problem.column], problem.position)
        yield Rejected(int(frame.index[problem.position]), problem.column, value, problem.what)


def _rejected_rows(ragged: list[RaggedRow]) -> Iterator[Rejected]:
    for row in ragged:
        yield Rejected(row.number, "", "", f"has {row.num_cells} cells, the header names {row.num_columns} columns")
