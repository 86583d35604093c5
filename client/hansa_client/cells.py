"""The cells of one raw column as values of one kind: numbers, booleans, moments, texts or labels.

Reading never stops at a bad cell: the positions of all of them come back with the values, and data.py says
where they stand. Whole columns are read at once; a cell is looked at alone only where the column has a bad one.

| cell                            | is                                                                     |
|---------------------------------|------------------------------------------------------------------------|
| one of MISSING_TOKENS           | missing, in every kind                                                 |
| spaces before and after         | not part of the value                                                  |
| 12, -3.5, +4, .5, 6.02e23       | a number; no thousands separators, no decimal comma, no inf            |
| true/false, yes/no, 1/0         | a boolean, in any case (1.0 and 0.0 too: tables with gaps export them) |
| 2024-03-01, 2024-03-01T17:30:00 | a moment: the wall clock as written, its time zone is not looked at    |
| anything                        | a text; a whole number that a typed file holds as 3.0 is the text "3"  |
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

MISSING_TOKENS: Final = ("", "NA", "N/A", "NaN", "nan", "<NA>", "NaT", "null", "NULL", "None")
TRUE_TOKENS: Final = ("true", "yes", "1", "1.0")
FALSE_TOKENS: Final = ("false", "no", "0", "0.0")

# RE2, which arrow matches whole columns with.
_NUMBER: Final = r"^[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?$"
_MOMENT: Final = r"^(\d{4}-\d{2}-\d{2}([T ]\d{2}:\d{2}(:\d{2}(\.\d+)?)?)?)(Z|[+-]\d{2}(:?\d{2})?)?$"


@dataclass(frozen=True)
class Parsed:
    """array: (rows,), NaN or None where missing or bad; bad: (bad cells,) int64 positions, ascending."""

    array: NDArray[Any]
    bad: NDArray[np.int64]


def numbers(column: pd.Series[Any]) -> Parsed:
    """Read numbers into float64.

    >>> numbers(pd.Series(["1", " 2.50 ", "NA", "1,5", "inf"]))
    Parsed(array=array([1. , 2.5, nan, nan, nan]), bad=array([3, 4]))
    """
    cells = _arrow(column)
    if not (pa.types.is_string(cells.type) or _is_number(cells.type)):
        cells = _text(cells)
    if pa.types.is_string(cells.type):
        fast = _plain_numbers(cells)
        return _number_texts(_text(cells)) if fast is None else fast
    values = _float64(cells)
    return _without_bad(values, np.isinf(values))


def booleans(column: pd.Series[Any]) -> Parsed:
    """Read booleans into float64: 1 for true, 0 for false.

    >>> booleans(pd.Series(["TRUE", "no", None, "maybe"]))
    Parsed(array=array([ 1.,  0., nan, nan]), bad=array([3]))
    """
    text = pc.utf8_lower(_text(_arrow(column)))
    true, false = _mask(_is_one_of(text, TRUE_TOKENS)), _mask(_is_one_of(text, FALSE_TOKENS))
    values = np.where(true, 1.0, np.where(false, 0.0, np.nan))
    return _without_bad(values, _mask(pc.is_valid(text)) & ~true & ~false)


def moments(column: pd.Series[Any]) -> Parsed:
    """Read ISO dates and times into float64 seconds since 1970-01-01T00:00:00 of the same wall clock.

    >>> moments(pd.Series(["1970-01-02", "1970-01-01T01:00:00+05:00", "1970-13-01"]))
    Parsed(array=array([86400.,  3600.,    nan]), bad=array([2]))
    """
    cells = _arrow(column)
    if pa.types.is_timestamp(cells.type) or pa.types.is_date(cells.type):
        return _without_bad(_float64(_wall_clock_seconds(cells)), np.zeros(len(cells), bool))
    text = _text(cells)
    wall_clock = pc.if_else(
        pc.match_substring_regex(text, _MOMENT), pc.replace_substring_regex(text, _MOMENT, r"\1"), None
    )
    parsed = pd.to_datetime(pd.Series(_objects(wall_clock)), format="ISO8601", errors="coerce")
    microseconds = parsed.to_numpy().astype("datetime64[us]")
    values = np.where(np.isnat(microseconds), np.nan, microseconds.astype(np.int64) / 1e6)
    return _without_bad(values, _mask(pc.is_valid(text)) & np.isnan(values))


def texts(column: pd.Series[Any]) -> Parsed:
    """Read texts into an object array of str and None; no text is bad.

    >>> texts(pd.Series([" a", "NULL", 3.0])).array
    array(['a', None, '3'], dtype=object)
    """
    return Parsed(_objects(_text(_arrow(column))), np.zeros(0, np.int64))


def labels(column: pd.Series[Any], positive: str) -> Parsed:
    """Read labels into uint8: 1 where the cell says the same as `positive`, else 0; a missing label is bad.

    Cells say the same where their texts, their numbers or their truth values (1/true, 0/false) are equal.

    >>> labels(pd.Series(["TRUE", "False", "1.0", "2", ""]), "1")
    Parsed(array=array([1, 0, 1, 0, 0], dtype=uint8), bad=array([4]))
    """
    text = _text(_arrow(column))
    spellings = [value for value in pc.unique(text).to_pylist() if value is not None]
    meant = tuple(value for value in spellings if _meaning(value) == _meaning(positive.strip()))
    values = _mask(_is_one_of(text, meant)).astype(np.uint8)
    return Parsed(values, np.flatnonzero(~_mask(pc.is_valid(text))))


def raw_text(column: pd.Series[Any], position: int) -> str:
    """Show one cell as it stands in the table."""
    value = column.iloc[position]
    return "" if pd.isna(value) else str(value)


def _meaning(value: str) -> str:
    lowered = value.lower()
    if lowered in {"true", "false"}:
        return str(float(lowered == "true"))
    return str(float(value)) if pc.match_substring_regex(pa.scalar(value), _NUMBER).as_py() else value


def _arrow(column: pd.Series[Any]) -> pa.ChunkedArray:
    try:
        cells = pa.array(column, from_pandas=True)
    except (pa.ArrowInvalid, pa.ArrowTypeError):
        # Objects of several types: a frame made by hand.
        cells = pa.array([None if pd.isna(value) else _one_text(value) for value in column], pa.string())
    cells = cells if isinstance(cells, pa.ChunkedArray) else pa.chunked_array([cells])
    if pa.types.is_dictionary(cells.type):
        cells = cells.cast(cells.type.value_type)
    return cells.cast(pa.string()) if pa.types.is_large_string(cells.type) else cells


def _one_text(value: object) -> str:
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)


def _text(cells: pa.ChunkedArray) -> pa.ChunkedArray:
    """The cells as trimmed text, null where missing."""
    if pa.types.is_floating(cells.type):
        cells = pc.if_else(pc.is_nan(cells), None, cells)
        whole = pc.and_(pc.equal(pc.floor(cells), cells), pc.less(pc.abs(cells), 1e15))
        integers = pc.if_else(whole, cells, None).cast(pa.int64()).cast(pa.string())
        return pc.coalesce(integers, cells.cast(pa.string()))
    text = pc.utf8_trim_whitespace(cells.cast(pa.string()))
    return pc.if_else(_is_one_of(text, MISSING_TOKENS), None, text)


def _plain_numbers(cells: pa.ChunkedArray) -> Parsed | None:
    """The numbers of a text column whose cells all are plain finite numbers or null; None if one is not."""
    try:
        values = _float64(cells.cast(pa.float64()))
    except pa.ArrowInvalid:
        return None
    if np.isfinite(values).sum() != len(cells) - cells.null_count:
        return None
    return Parsed(values, np.zeros(0, np.int64))


def _number_texts(text: pa.ChunkedArray) -> Parsed:
    is_number = pc.match_substring_regex(text, _NUMBER)
    unsigned = pc.utf8_ltrim(pc.if_else(is_number, text, None), "+")
    values = _float64(unsigned.cast(pa.float64()))
    return _without_bad(values, (_mask(pc.is_valid(text)) & ~_mask(is_number)) | np.isinf(values))


def _wall_clock_seconds(cells: pa.ChunkedArray) -> pa.ChunkedArray:
    if pa.types.is_timestamp(cells.type) and cells.type.tz is not None:
        cells = pc.local_timestamp(cells)
    return pc.divide(cells.cast(pa.timestamp("us")).cast(pa.int64()).cast(pa.float64()), 1e6)


def _without_bad(values: NDArray[np.float64], is_bad: NDArray[np.bool_]) -> Parsed:
    return Parsed(np.where(is_bad, np.nan, values), np.flatnonzero(is_bad))


def _is_number(kind: pa.DataType) -> bool:
    types = pa.types
    return bool(types.is_integer(kind) or types.is_floating(kind) or types.is_decimal(kind) or types.is_boolean(kind))


def _is_one_of(text: pa.ChunkedArray, tokens: tuple[str, ...]) -> pa.ChunkedArray:
    return pc.is_in(text, value_set=pa.array(tokens, pa.string()))


def _mask(flags: pa.ChunkedArray) -> NDArray[np.bool_]:
    return np.asarray(pc.fill_null(flags, fill_value=False).to_numpy(), dtype=np.bool_)


def _float64(cells: pa.ChunkedArray) -> NDArray[np.float64]:
    return np.asarray(pc.fill_null(cells.cast(pa.float64()), np.nan).to_numpy(), dtype=np.float64)


def _objects(text: pa.ChunkedArray) -> NDArray[Any]:
    return np.asarray(text.to_numpy(), dtype=object)
