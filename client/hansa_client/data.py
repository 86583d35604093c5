"""A merchant's table: parsed as the agreement says, cleaned, divided, or refused with the reason.

- A table to learn from that does not fit is refused whole: a missing column, a bad or infinite value, a missing
  label, a missing value where the agreement refuses it, no rows, one class only. The message names file, row, column
  and value.
- A table to be scored (`feature_rows`) needs no labels, and loses only the rows that do not fit.
- Exact duplicates are rows equal to an earlier one in every column that the agreement names, as parsed. They are
  counted, and removed (the first stays) where the agreement says so, before the rows are divided.

What a file is and how its rows are numbered is tables.py's; what a cell of each kind may say is cells.py's; which
rows go where is splits.py's.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import pandas as pd
import pyarrow as pa
from numpy.typing import NDArray

from hansa_client import cells
from hansa_client.cells import Parsed
from hansa_client.quality import Quality, measure_quality
from hansa_client.splits import Rows, Split, stratified_split, time_split
from hansa_client.tables import read_frame
from hansa_common.agreement import Agreement
from hansa_common.errors import DataError
from hansa_common.nearest import did_you_mean
from hansa_common.randomness import generator
from hansa_common.schema import BooleanFeature, CategoricalFeature, Feature, NumericFeature, TimestampFeature

__all__ = ["MerchantTable", "load_table", "merchant_table", "read_frame"]

MAX_REPORTED: Final = 5


@dataclass(frozen=True)
class MerchantTable:
    """One merchant's rows, ready for preprocessing.

    columns: feature name -> (rows,), as common's features.py takes them. labels: (rows,) uint8, 1 is positive.
    train, validation, test: row indices, int64 ascending, together all rows; but where the agreement bounds the rows of
    a customer, those beyond are in none. entities: (rows,) whose each row is, None where the agreement does not ask.
    """

    columns: dict[str, NDArray[Any]]
    labels: NDArray[np.uint8]
    train: Rows
    validation: Rows
    test: Rows
    quality: Quality
    entities: NDArray[np.int64] | None = None


@dataclass(frozen=True)
class FeatureRows:
    """Rows of a table that need no label, to be scored.

    columns: feature name -> (rows,) of those rows that fit; positions: (rows,) int64, where they stand in the frame.
    problems: every cell for which another row was left out, in order of rows.
    """

    columns: dict[str, NDArray[Any]]
    positions: Rows
    problems: list[Problem]


@dataclass(frozen=True)
class Problem:
    """A cell that does not fit: its column, its row's position in the frame, and what the matter is."""

    column: str
    position: int
    what: str


def load_table(path: Path, agreement: Agreement, merchant: str) -> MerchantTable:
    """Read a merchant's file and parse it.

    Raises:
        UsageError: there is no such file.
        DataError: it cannot be read, or does not fit the agreement.
    """
    return merchant_table(read_frame(path), agreement, merchant, str(path))


def merchant_table(frame: pd.DataFrame, agreement: Agreement, merchant: str, source: str) -> MerchantTable:
    """Parse a raw frame as the agreement says, clean it and divide it.

    Columns that the agreement does not name are not looked at. `source` is what messages call the table; its rows
    are called by the frame's index.

    Raises:
        DataError: the frame does not fit the agreement; the message says where and what would.
    """
    _refuse_missing_columns(frame, agreement, source)
    if len(frame) == 0:
        raise DataError(f"{source} has no rows")
    parsed = {feature.name: _parse(frame, feature, source) for feature in agreement.features}
    parsed_labels = cells.labels(frame[agreement.label.column], agreement.label.positive)
    moments = _parse_moments(frame, agreement, parsed)
    parsed_entities = _parse_entities(frame, agreement)
    problems = _problems(agreement, parsed, parsed_labels, moments, parsed_entities)
    _refuse_problems(frame, list(problems), source)

    columns = {name: column.array for name, column in parsed.items()}
    labels = parsed_labels.array
    times = None if moments is None else moments.array
    is_duplicate = _is_duplicate(columns, labels, times)
    removes = agreement.data.duplicates == "remove"
    if removes:
        columns = {name: values[~is_duplicate] for name, values in columns.items()}
        labels = labels[~is_duplicate]
        times = None if times is None else times[~is_duplicate]
    _refuse_one_class(frame, labels, agreement, source)
    split = _split(labels, times, agreement, merchant, source)
    quality = measure_quality(
        columns, labels, agreement.features, duplicates=int(is_duplicate.sum()), duplicates_removed=removes
    )
    entities = None if parsed_entities is None else _numbered(parsed_entities)
    split = split if entities is None else _bounded(split, entities, agreement)
    return MerchantTable(columns, labels, split.train, split.validation, split.test, quality, entities)


def feature_rows(frame: pd.DataFrame, features: Sequence[Feature], source: str) -> FeatureRows:
    """Parse the features of a raw frame, and leave out the rows that do not fit; there may be none.

    Raises:
        DataError: a column is missing, or is something else altogether.
    """
    _refuse_absent([feature.name for feature in features], frame, source)
    parsed = {feature.name: _parse(frame, feature, source) for feature in features}
    problems = sorted(_feature_problems(features, parsed), key=lambda problem: problem.position)
    fits = np.ones(len(frame), np.bool_)
    fits[[problem.position for problem in problems]] = False
    columns = {name: column.array[fits] for name, column in parsed.items()}
    return FeatureRows(columns, np.flatnonzero(fits).astype(np.int64), problems)


def _refuse_missing_columns(frame: pd.DataFrame, agreement: Agreement, source: str) -> None:
    wanted = [feature.name for feature in agreement.features] + [agreement.label.column]
    if agreement.data.split == "time" and agreement.data.time_column is not None:
        wanted.append(agreement.data.time_column)
    if agreement.privacy.dp is not None and agreement.privacy.dp.entity_column is not None:
        wanted.append(agreement.privacy.dp.entity_column)
    _refuse_absent(wanted, frame, source)


def _refuse_absent(wanted: Sequence[str], frame: pd.DataFrame, source: str) -> None:
    present = [str(name) for name in frame.columns]
    absent = [name for name in dict.fromkeys(wanted) if name not in present]
    if absent:
        places = "; ".join(f"no column {name!r}{did_you_mean(name, present)}" for name in absent)
        raise DataError(f"{source} lacks what the agreement names: {places}")


def _parse(frame: pd.DataFrame, feature: Feature, source: str) -> Parsed:
    column = frame[feature.name]
    try:
        match feature:
            case NumericFeature():
                return cells.numbers(column)
            case BooleanFeature():
                return cells.booleans(column)
            case CategoricalFeature():
                return cells.texts(column)
            case TimestampFeature(unit="iso"):
                return cells.moments(column)
            case TimestampFeature():
                return cells.numbers(column)
    except pa.ArrowException as error:
        raise DataError(f"{source}: column {feature.name!r} is not {_allowed(feature)}: {error}") from error


def _parse_moments(frame: pd.DataFrame, agreement: Agreement, parsed: dict[str, Parsed]) -> Parsed | None:
    """The column that a split by time goes by: numbers, or else dates and times."""
    name = agreement.data.time_column
    if agreement.data.split != "time" or name is None:
        return None
    for feature in agreement.features:
        if feature.name == name and isinstance(feature, NumericFeature | TimestampFeature):
            return parsed[name]
    as_numbers = cells.numbers(frame[name])
    return as_numbers if len(as_numbers.bad) == 0 else cells.moments(frame[name])


def _parse_entities(frame: pd.DataFrame, agreement: Agreement) -> Parsed | None:
    """The column that tells whose each row is, as texts."""
    dp = agreement.privacy.dp
    return None if dp is None or dp.entity_column is None else cells.texts(frame[dp.entity_column])


def _numbered(parsed: Parsed) -> NDArray[np.int64]:
    """(rows,) a number for each text."""
    return pd.factorize(parsed.array)[0].astype(np.int64)


def _bounded(split: Split, entities: NDArray[np.int64], agreement: Agreement) -> Split:
    """Each part with the first rows of each customer, as many as agreed: which these are depends on nobody else's."""
    dp = agreement.privacy.dp
    most = 1 if dp is None else dp.max_rows_per_entity
    parts = (split.train, split.validation, split.test)
    return Split(
        *(rows[pd.Series(entities[rows]).groupby(entities[rows]).cumcount().to_numpy() < most] for rows in parts)
    )


def _problems(
    agreement: Agreement,
    parsed: dict[str, Parsed],
    labels: Parsed,
    moments: Parsed | None,
    entities: Parsed | None,
) -> Iterator[Problem]:
    yield from _feature_problems(agreement.features, parsed)
    for position in labels.bad:
        yield Problem(agreement.label.column, int(position), "is missing, and a row without a label teaches nothing")
    if moments is not None:
        name = str(agreement.data.time_column)
        for position in moments.bad:
            yield Problem(name, int(position), "is neither a number nor an ISO date or time")
        for position in _missing(moments):
            yield Problem(name, position, "is missing, and the split goes by it")
    if entities is not None and agreement.privacy.dp is not None:
        for position in _missing(entities):
            yield Problem(str(agreement.privacy.dp.entity_column), position, "is missing: whose row is it?")


def _feature_problems(features: Sequence[Feature], parsed: dict[str, Parsed]) -> Iterator[Problem]:
    for feature in features:
        column = parsed[feature.name]
        for position in column.bad:
            yield Problem(feature.name, int(position), f"is not {_allowed(feature)}")
        if feature.missing == "refuse":
            for position in _missing(column):
                yield Problem(feature.name, position, "is missing, and the agreement says missing = 'refuse'")


def _missing(column: Parsed) -> list[int]:
    is_missing = pd.isna(column.array)
    is_missing[column.bad] = False
    return [int(position) for position in np.flatnonzero(is_missing)]


def _allowed(feature: Feature) -> str:
    match feature:
        case NumericFeature():
            return "a finite number such as 1234.5 (a decimal point, no thousands separators)"
        case BooleanFeature():
            return "true or false, yes or no, 1 or 0"
        case TimestampFeature(unit="iso"):
            return "a date or time such as 2024-03-01 or 2024-03-01T17:30:00"
        case TimestampFeature():
            return "a number of seconds since 1970"
        case CategoricalFeature():
            return "text"


def _refuse_problems(frame: pd.DataFrame, problems: list[Problem], source: str) -> None:
    if not problems:
        return
    unique = sorted(dict.fromkeys(problems), key=lambda problem: problem.position)
    lines = [
        f"  row {frame.index[p.position]}, column {p.column!r}: "
        f"{cells.raw_text(frame[p.column], p.position)!r} {p.what}"
        for p in unique[:MAX_REPORTED]
    ]
    if len(unique) > MAX_REPORTED:
        lines.append(f"  and {len(unique) - MAX_REPORTED} more")
    raise DataError(f"{source} does not fit the agreement:\n" + "\n".join(lines))


def _is_duplicate(
    columns: dict[str, NDArray[Any]], labels: NDArray[np.uint8], times: NDArray[np.float64] | None
) -> NDArray[np.bool_]:
    """(rows,) whether an earlier row is equal in every column that the agreement names."""
    # Numbers as column names: a feature may have any name.
    everything = [*columns.values(), labels, *([] if times is None else [times])]
    return pd.DataFrame(dict(enumerate(everything))).duplicated().to_numpy()


def _refuse_one_class(frame: pd.DataFrame, labels: NDArray[np.uint8], agreement: Agreement, source: str) -> None:
    num_positives = int(labels.sum())
    if 0 < num_positives < len(labels):
        return
    label = agreement.label
    found = [repr(value) for value in pd.unique(cells.texts(frame[label.column]).array)[:MAX_REPORTED]]
    says = "no row" if num_positives == 0 else "every row"
    raise DataError(
        f"{source} holds one class only: {says} of {len(labels)} has {label.column!r} = {label.positive!r}; "
        f"the column holds {', '.join(found)}"
    )


def _split(
    labels: NDArray[np.uint8], times: NDArray[np.float64] | None, agreement: Agreement, merchant: str, source: str
) -> Split:
    if times is not None:
        return time_split(times, labels, agreement.data, source)
    return stratified_split(labels, agreement.data, generator(agreement.seed, "split", merchant), source)
