"""One table divided into silos, as if each were a merchant's own.

`COLUMN` makes a silo of each of its values; `COLUMN:0,1,10` makes bands of a number, [0, 1), [1, 10) and 10 or more.
Names are the values, in characters that a merchant's name may have; the order is numeric where names hold numbers
(2 before 10), "unknown" and "other" last. The same table and specification always give the same silos.

| case                                          | outcome                                              |
|-----------------------------------------------|------------------------------------------------------|
| a value is missing                            | silo "unknown"                                       |
| a silo has fewer rows than asked              | merged with all such into "other", however small     |
| a number below the first edge, or no number   | DataError with the row                               |
| two values give the same name                 | the later in order gets " (2)", and so on            |
| a colon, but no number or minus sign after it | part of the column's name                            |
"""

from __future__ import annotations

import itertools
import re
import unicodedata
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from hansa_client import cells
from hansa_common.errors import DataError, UsageError
from hansa_common.natural_order import natural_key
from hansa_common.nearest import did_you_mean

UNKNOWN: Final = "unknown"
OTHER: Final = "other"
MAX_NAME_LENGTH: Final = 64
_MAX_SUFFIX_LENGTH: Final = 8
_NOT_IN_NAMES: Final = re.compile(r"[^A-Za-z0-9 ._()<>=+-]")


@dataclass(frozen=True)
class SiloSpec:
    """The column that divides the rows and, for bands of a number, the edges, ascending; the last band is open."""

    column: str
    edges: tuple[float, ...] = ()


def parse_silo(text: str) -> SiloSpec:
    """Read what stands after --silo.

    Raises:
        UsageError: the edges are not ascending numbers.

    >>> parse_silo("TrafficType"), parse_silo("Amount:0,1,10")
    (SiloSpec(column='TrafficType', edges=()), SiloSpec(column='Amount', edges=(0.0, 1.0, 10.0)))
    """
    column, colon, edges_text = text.rpartition(":")
    if not column or not colon or not re.match(r"\s*[-.\d]", edges_text):
        return SiloSpec(text)
    edges = tuple(_edge(edge, text) for edge in edges_text.split(","))
    if any(low >= high for low, high in itertools.pairwise(edges)):
        raise UsageError(f"--silo {text}: the edges must ascend, each above the one before it")
    return SiloSpec(column, edges)


def split_silos(frame: pd.DataFrame, spec: SiloSpec, min_rows: int = 1) -> dict[str, pd.DataFrame]:
    """Divide the rows; every row is in exactly one silo, with its index and in its order.

    Raises:
        UsageError: there is no such column.
        DataError: there are no rows, or a band's value is no number or below the first edge.
    """
    if len(frame) == 0:
        raise DataError("--silo: the table has no rows to divide")
    present = [str(name) for name in frame.columns]
    if spec.column not in present:
        raise UsageError(f"--silo: no column {spec.column!r}{did_you_mean(spec.column, present)}")
    names, in_order = _bands(frame, spec) if spec.edges else _values(frame, spec)
    groups = pd.Series(np.arange(len(frame))).groupby(names, sort=False).indices
    rows_by_name = {str(name): np.asarray(rows) for name, rows in groups.items()}
    merged = _with_small_ones_merged(rows_by_name, min_rows)
    return {name: frame.iloc[merged[name]] for name in (*in_order, UNKNOWN, OTHER) if name in merged}


def _edge(edge: str, text: str) -> float:
    try:
        number = float(edge)
    except ValueError:
        number = np.nan
    if not np.isfinite(number):
        raise UsageError(f"--silo {text}: {edge!r} is not a number; edges look like COLUMN:0,1,10")
    return number


def _values(frame: pd.DataFrame, spec: SiloSpec) -> tuple[NDArray[Any], list[str]]:
    """(rows,) the name of each row's silo, and the names in order."""
    values = cells.texts(frame[spec.column]).array
    name_of = _distinct_names(sorted({value for value in values if value is not None}, key=natural_key))
    names = np.array([UNKNOWN if value is None else name_of[value] for value in values], dtype=object)
    return names, list(name_of.values())


def _distinct_names(values: Iterable[str]) -> dict[str, str]:
    """Value -> a merchant's name; no two values have the same, and none is called as the special silos are."""
    name_of: dict[str, str] = {}
    taken = {UNKNOWN, OTHER}
    for value in values:
        name = plain = _plain_name(value)
        number = 2
        while name in taken:
            name, number = f"{plain[: MAX_NAME_LENGTH - _MAX_SUFFIX_LENGTH]} ({number})", number + 1
        taken.add(name)
        name_of[value] = name
    return name_of


def _plain_name(value: str) -> str:
    """A value in the characters that a merchant's name may have.

    >>> _plain_name("Café & Co"), _plain_name("<20"), _plain_name("東京")
    ('Cafe - Co', 'silo <20', 'silo --')
    """
    decomposed = unicodedata.normalize("NFKD", value)
    base = "".join(letter for letter in decomposed if not unicodedata.combining(letter))
    name = _NOT_IN_NAMES.sub("-", base)
    if not re.match(r"[A-Za-z0-9]", name):
        name = f"silo {name}"
    return name[:MAX_NAME_LENGTH]


def _bands(frame: pd.DataFrame, spec: SiloSpec) -> tuple[NDArray[Any], list[str]]:
    """(rows,) the name of each row's band, and the names in order."""
    parsed = cells.numbers(frame[spec.column])
    below = np.flatnonzero(parsed.array < spec.edges[0])
    for positions, problem in (
        (parsed.bad, "is not a number"),
        (below, f"is below the first edge, {spec.edges[0]:g}; start the bands lower"),
    ):
        if len(positions) > 0:
            first = int(positions[0])
            shown = cells.raw_text(frame[spec.column], first)
            raise DataError(f"--silo: row {frame.index[first]}, column {spec.column!r}: {shown!r} {problem}")
    bands = np.searchsorted(spec.edges, parsed.array, side="right") - 1
    in_order = _band_names(spec)
    names = np.array(in_order, dtype=object)[bands]
    names[np.isnan(parsed.array)] = UNKNOWN
    return names, in_order


def _band_names(spec: SiloSpec) -> list[str]:
    lows = [f"{edge:.15g}" for edge in spec.edges]
    bands = [f"{low}-{high}" for low, high in itertools.pairwise(lows)] + [f"{lows[-1]}+"]
    # The bands tell silos apart: a long column name gives way.
    room = MAX_NAME_LENGTH - max(len(band) for band in bands) - 1
    return [f"{_plain_name(spec.column)[:room]} {band}" for band in bands]


def _with_small_ones_merged(rows_by_name: Mapping[str, NDArray[np.int64]], min_rows: int) -> dict[str, NDArray[Any]]:
    large = {name: rows for name, rows in rows_by_name.items() if len(rows) >= min_rows}
    small = [rows for name, rows in rows_by_name.items() if name not in large]
    return {**large, OTHER: np.sort(np.concatenate(small))} if small else large
