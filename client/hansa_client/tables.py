"""A table as its file holds it, before anyone says what its columns mean.

- What a file is, its first bytes say: Parquet, gzip CSV, else CSV (commas, a header, UTF-8).
- Text is kept as it stands in a CSV file, so that an error can show it; Parquet keeps its types.
- The frame's index is the number that messages call a row by. It counts records as an editor shows them, the
  header being row 1; empty lines and line breaks inside quotes do not count. Rows of Parquet are numbered as if
  they stood in a CSV file.
"""

from __future__ import annotations

import csv
import gzip
import io
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.csv as arrow_csv
import pyarrow.parquet as arrow_parquet
from numpy.typing import NDArray

from hansa_client import cells
from hansa_common.errors import DataError, UsageError

FIRST_ROW: Final = 2
_BLOCK_BYTES: Final = 1 << 22
_PARQUET_MAGIC: Final = b"PAR1"
_GZIP_MAGIC: Final = b"\x1f\x8b"


@dataclass(frozen=True)
class RaggedRow:
    """A row of a CSV file with more or fewer cells than its header names; `number` is what messages call it by."""

    number: int
    num_cells: int
    num_columns: int


def read_frame(path: Path) -> pd.DataFrame:
    """Read CSV, gzip CSV or Parquet into raw columns. Cells of CSV that are one of MISSING_TOKENS are null.

    Raises:
        UsageError: there is no such file, or it may not be read.
        DataError: it is not a table, or a row of it has more or fewer cells than there are columns.
    """
    table = _read_table(path, None)
    return _frame(table, np.arange(FIRST_ROW, FIRST_ROW + len(table)))


def read_even_rows(path: Path) -> tuple[pd.DataFrame, list[RaggedRow]]:
    """The same, but rows with more or fewer cells than there are columns are left out, and told.

    Raises:
        UsageError: there is no such file, or it may not be read.
        DataError: it is not a table.
    """
    ragged: list[RaggedRow] = []
    table = _read_table(path, ragged)
    numbers = np.arange(FIRST_ROW, FIRST_ROW + len(table) + len(ragged))
    return _frame(table, np.setdiff1d(numbers, [row.number for row in ragged])), ragged


def _read_table(path: Path, ragged: list[RaggedRow] | None) -> pa.Table:
    """The table; uneven rows are added to the list, or refused where there is none."""
    try:
        with path.open("rb") as file:
            magic = file.read(len(_PARQUET_MAGIC))
    except OSError as error:
        raise UsageError(f"the table {path} cannot be read: {error.strerror}") from error
    try:
        if magic == _PARQUET_MAGIC:
            return arrow_parquet.read_table(path)
        return _read_csv(path, ragged, is_gzip=magic.startswith(_GZIP_MAGIC))
    except (pa.ArrowException, OSError, EOFError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{path} cannot be read as a table: {error}") from error


def _frame(table: pa.Table, numbers: NDArray[np.int64]) -> pd.DataFrame:
    frame: pd.DataFrame = table.to_pandas(types_mapper=pd.ArrowDtype, ignore_metadata=True)
    frame.index = pd.Index(numbers, name="row")
    return frame


def _read_csv(path: Path, ragged: list[RaggedRow] | None, *, is_gzip: bool) -> pa.Table:
    names = _header(path, is_gzip=is_gzip)
    try:
        return _csv_table(path, names, None, is_gzip=is_gzip, use_threads=True)
    except pa.ArrowInvalid:
        # Read in one thread it is known which row it is.
        return _csv_table(path, names, ragged, is_gzip=is_gzip, use_threads=False)


def _csv_table(
    path: Path, names: list[str], ragged: list[RaggedRow] | None, *, is_gzip: bool, use_threads: bool
) -> pa.Table:
    def leave_out(row: Any) -> Literal["skip", "error"]:
        if ragged is None:
            return "error"
        ragged.append(RaggedRow(row.number, row.actual_columns, row.expected_columns))
        return "skip"

    # As text: parsing numbers later costs what parsing them here would, and a bad cell can be shown as written.
    with pa.input_stream(path, compression="gzip" if is_gzip else None) as stream:
        return arrow_csv.read_csv(
            stream,
            read_options=arrow_csv.ReadOptions(use_threads=use_threads, block_size=_BLOCK_BYTES),
            parse_options=arrow_csv.ParseOptions(newlines_in_values=True, invalid_row_handler=leave_out),
            convert_options=arrow_csv.ConvertOptions(
                column_types=dict.fromkeys(names, pa.string()),
                null_values=list(cells.MISSING_TOKENS),
                strings_can_be_null=True,
            ),
        )


def _header(path: Path, *, is_gzip: bool) -> list[str]:
    """The column names of a CSV file, each of them once.

    Raises:
        DataError: there is no header, a name stands in it twice, or the file is separated by something else.
    """
    with (
        gzip.open(path) if is_gzip else path.open("rb") as binary,
        io.TextIOWrapper(binary, encoding="utf-8-sig", newline="") as text,
    ):
        names = next(csv.reader(text), [])
    if not names:
        raise DataError(f"{path} is empty; its first line must name the columns")
    if len(names) == 1 and (mark := next((mark for mark in ";\t|" if mark in names[0]), None)) is not None:
        raise DataError(f"{path} seems to be separated by {mark!r}; save it with commas, and decimal points in numbers")
    for name in names:
        if names.count(name) > 1:
            raise DataError(f"{path} names the column {name!r} twice; rename one of them")
    return names
