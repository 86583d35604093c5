"""One row to model inputs in microseconds: what FittedPreprocessing.transform does to a table, prepared for rows.

Equal to transform up to the last bits of a float32. Everything that does not depend on the row is computed
beforehand, and what is left costs about a tenth of a microsecond a number. A row maps feature names to values:

feature       value
numeric       a finite number; None or NaN where missing
boolean       True or False, 1 or 0; None or NaN where missing
timestamp     seconds since 1970-01-01T00:00:00 on the wall clock; None or NaN where missing
categorical   a text; None where missing

Other columns of the row are not looked at. A value of another kind, and a missing one where the agreement refuses it,
is refused by the column's name.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import islice, pairwise
from math import cos, isfinite, log1p, sin
from operator import getitem, itemgetter
from typing import Any, Final

import numpy as np

from hansa_common.errors import DataError
from hansa_common.features import (
    DAY,
    DAYS_SINCE_MONDAY,
    UNIFORM_DEVIATION,
    Fitted,
    FittedPreprocessing,
    Inputs,
    id_of_text,
)
from hansa_common.schema import (
    MISSING_ID,
    UNKNOWN_ID,
    BooleanFeature,
    CategoricalFeature,
    Feature,
    NumericFeature,
    TimestampFeature,
    embedded,
    num_dense,
)

Row = Mapping[str, Any]
# A feature, what was fitted, and where its inputs begin in the dense row.
Placed = tuple[Feature, Fitted, int]
_TRUTHS: Final = {0: -1.0, 1: 1.0}
_KINDS: Final = ("standard", "boolean", "log", "quantile", "timestamp")
_TURN: Final = 2.0 * math.pi
_WEEKDAYS: Final = tuple((sin(_TURN * day / 7.0), cos(_TURN * day / 7.0)) for day in range(7))
_NUM_CYCLIC: Final = 4
_ONE: Final = 1.0


class _UnusualError(Exception):
    """A number is missing or not finite: it is looked at by itself."""


# Of a boolean that is neither: KeyError. Of a moment that is not finite, whose day is no integer: ValueError.
_UNUSUAL: Final = (_UnusualError, KeyError, TypeError, ValueError, OverflowError)


class RowTransform:
    """The preparation for one fitted preprocessing and one key; for one thread at a time."""

    def __init__(self, preprocessing: FittedPreprocessing, hash_key: bytes | None, into: Inputs | None = None) -> None:
        """Prepare; `into` is one row of inputs to be written, the transform's own unless given.

        Raises:
            DataError: a feature is hashed and there is no key.
        """
        placed = _placed(preprocessing)
        self._numbers = _Numbers([entry for entry in placed if not isinstance(entry[0], CategoricalFeature)])
        texts = [_Text(f, fit, place, hash_key) for f, fit, place in placed if isinstance(f, CategoricalFeature)]
        self._one_hot = [text for text in texts if not text.is_embedded]
        self._embedded = [text for text in texts if text.is_embedded]
        self._texts = [*self._one_hot, *self._embedded]
        self._cells_of = _getter([*self._numbers.names, *(text.feature.name for text in self._texts)])
        # Written anew for each row: making arrays costs more than filling them, and numpy more than a plain view.
        self._row = _one_row(preprocessing) if into is None else into
        # Any, since for mypy a memoryview holds integers.
        self._dense: Any = self._row.dense.reshape(-1).data
        self._ids: Any = self._row.ids.reshape(-1).data
        self._pack_numbers = struct.Struct(_layout(self._numbers.places, len(self._dense))).pack_into
        self._pack_ids = struct.Struct(f"={len(self._ids)}i").pack_into

    def __call__(self, row: Row) -> Inputs:
        """The inputs of one row, until the next call.

        Raises:
            DataError: the row lacks a column, or holds something that is not a value of its feature.
        """
        try:
            cells = self._cells_of(row)
        except KeyError as error:
            raise DataError(f"the row has no column {error.args[0]!r}, which the preprocessing needs") from None
        try:
            self._write(cells)
        except _UNUSUAL:
            self._write_checked(cells)
        return self._row

    def _write(self, cells: Sequence[Any]) -> None:
        """Write the inputs of cells of which every number is there and finite; one of _UNUSUAL if one is not."""
        rest, dense = iter(cells), self._dense
        self._pack_numbers(dense, 0, *self._numbers.inputs(rest))
        for place in map(getitem, self._one_hot, rest):
            dense[place] = _ONE
        if self._embedded:
            self._pack_ids(self._ids, 0, *map(getitem, self._embedded, rest))

    def _write_checked(self, cells: Sequence[Any]) -> None:
        """Write the inputs of cells of which a number is missing.

        Raises:
            DataError: a cell is not a value of its feature.
        """
        numbers, missing = self._numbers.checked(cells)
        texts = cells[len(numbers) :]
        for text, cell in zip(self._texts, texts, strict=True):
            if not isinstance(cell, str):
                text.found(cell)
        self._write([*numbers, *texts])
        for feature, place in missing:
            for i in range(place, place + feature.dense_width):
                self._dense[i] = 0.0
            if feature.missing == "flag":
                self._dense[place + feature.dense_width - 1] = _ONE


class _Numbers:
    """The features whose values are numbers, in groups of those that are computed alike. Not with numpy: for a row of
    tens of numbers its calls cost more than the arithmetic.
    """

    def __init__(self, placed: list[Placed]) -> None:
        groups = [[entry for entry in placed if _kind(entry[0]) == kind] for kind in _KINDS]
        linear, booleans, logs, quantiles, moments = groups
        self._features = [(feature, place) for group in groups for feature, _, place in group]
        self.names = [feature.name for feature, _ in self._features]
        self._linear = [_scaling(feature, fitted) for feature, fitted, _ in linear]
        self._logs = [_log_scaling(feature, fitted) for feature, fitted, _ in logs]
        self._quantiles = [_bins(feature, fitted) for feature, fitted, _ in quantiles]
        self._num_booleans, self._num_moments = len(booleans), len(moments)
        sizes = [_NUM_CYCLIC if isinstance(feature, TimestampFeature) else 1 for feature, _ in self._features]
        computed = [place + i for (_, place), size in zip(self._features, sizes, strict=True) for i in range(size)]
        self.places = sorted(computed)
        self._in_place = _in_order(sorted(range(len(computed)), key=computed.__getitem__))

    def inputs(self, rest: Iterator[Any]) -> Sequence[float]:
        """The inputs in the order of `places` of the next cells, one a name, and one of _UNUSUAL if these are not all
        finite numbers. Each group takes its own cells: `zip` first looks whether the group has ended.
        """
        values: list[float] = []
        for (low, high, gain, offset), x in zip(self._linear, rest):  # noqa: B905 - strict would look at `rest` too
            values.append((x if low <= x <= high else _end(x, low, high)) * gain - offset)
        for x in islice(rest, self._num_booleans):
            values.append(_TRUTHS[x])  # noqa: PERF401 - a comprehension is slower for a few
        for (low, high, gain, offset), x in zip(self._logs, rest):  # noqa: B905
            values.append(log1p((x if low <= x <= high else _end(x, low, high)) - low) * gain - offset)
        for (low, high, gain, bins), x in zip(self._quantiles, rest):  # noqa: B905
            place = ((x if low <= x <= high else _end(x, low, high)) - low) * gain
            start, rise = bins[int(place)]
            values.append(start + place * rise)
        for second in islice(rest, self._num_moments):
            hour = _TURN * (second % DAY) / DAY
            values += (sin(hour), cos(hour), *_WEEKDAYS[int(second // DAY + DAYS_SINCE_MONDAY) % 7])
        return values if self._in_place is None else self._in_place(values)

    def checked(self, cells: Sequence[Any]) -> tuple[list[float], list[tuple[Feature, int]]]:
        """The numbers of the first cells, one a name, with 0 where they are missing, and the features of those.

        Raises:
            DataError: a cell is not a value of its feature.
        """
        found, missing = list(cells[: len(self._features)]), []
        for number, (entry, cell) in enumerate(zip(self._features, found, strict=True)):
            # A float that is finite is a number of any feature but a boolean.
            if type(cell) is float and isfinite(cell) and entry[0].kind != "boolean":
                continue
            value = _number(entry[0], cell)
            found[number] = value or 0.0
            if value is None:
                missing.append(entry)
        return found, missing


class _Text(dict[str | None, int]):
    """One categorical feature: of each text its id or, one-hot, the place of the 1. What is not in it is looked at by
    itself: texts that are hashed or not known, and what is no text.
    """

    def __init__(self, feature: CategoricalFeature, fitted: Fitted, place: int, hash_key: bytes | None) -> None:
        self.feature, self.is_embedded = feature, feature.encoding == "embedding"
        self._first = 0 if self.is_embedded else place
        self._id_of = id_of_text(feature, fitted, hash_key)
        # What is hashed has no one place for what is not known.
        self._unknown = self._first + UNKNOWN_ID if feature.vocabulary else None
        super().__init__({entry: self._first + self._id_of(entry) for entry in feature.vocabulary})
        if feature.missing != "refuse":
            self[None] = self._first + MISSING_ID

    def found(self, cell: Any) -> int:
        """What stands for any cell.

        Raises:
            DataError: it is not a value of the feature.
        """
        if isinstance(cell, str):
            return self._first + self._id_of(cell)
        if cell is not None:
            raise DataError(f"column {self.feature.name!r}: {cell!r} is not a text")
        if self.feature.missing == "refuse":
            raise _missing(self.feature.name)
        return self._first + MISSING_ID

    def __missing__(self, cell: Any) -> int:
        return self._unknown if type(cell) is str and self._unknown is not None else self.found(cell)


def _one_row(preprocessing: FittedPreprocessing) -> Inputs:
    """Room for the inputs of one row."""
    features = preprocessing.features
    return Inputs(np.zeros((1, num_dense(features)), np.float32), np.zeros((1, len(embedded(features))), np.int32))


def _kind(feature: Feature) -> str:
    """Which of _KINDS the feature is computed as."""
    return feature.scaling if isinstance(feature, NumericFeature) else feature.kind


def _placed(preprocessing: FittedPreprocessing) -> list[Placed]:
    """Each feature with what was fitted and where its inputs begin in the dense row."""
    place, entries = 0, []
    for feature, fitted in zip(preprocessing.features, preprocessing.fitted, strict=True):
        entries.append((feature, fitted, place))
        place += feature.dense_width
    return entries


def _layout(places: list[int], width: int) -> str:
    """The struct of a row of float32 with a number at each place, and zeros elsewhere.

    >>> _layout([0, 2, 3], 5)
    '=f4xff4x'
    """
    words, next_place = ["="], 0
    for place in [*places, width]:
        gap = place - next_place
        words += [f"{4 * gap}x"] if gap else []
        words += ["f"] if place < width else []
        next_place = place + 1
    return "".join(words)


def _scaling(feature: Feature, fitted: Fitted) -> tuple[float, float, float, float]:
    """Low, high, gain and offset: an input is the value, clipped, * gain - offset."""
    if not isinstance(feature, NumericFeature) or fitted.scale is None:
        raise TypeError(f"feature {feature.name!r} has no scale")
    gain = 1.0 / ((feature.high - feature.low) * fitted.scale.deviation)
    # `low` goes into the offset: what that rounds is less than the last bit of a value near it.
    return feature.low, feature.high, gain, feature.low * gain + fitted.scale.mean / fitted.scale.deviation


def _log_scaling(feature: Feature, fitted: Fitted) -> tuple[float, float, float, float]:
    """The same of the logarithm of what a value, clipped, is above low."""
    if not isinstance(feature, NumericFeature) or fitted.scale is None:
        raise TypeError(f"feature {feature.name!r} has no logarithmic scale")
    gain = 1.0 / (log1p(feature.high - feature.low) * fitted.scale.deviation)
    return feature.low, feature.high, gain, fitted.scale.mean / fitted.scale.deviation


def _bins(feature: Feature, fitted: Fitted) -> tuple[float, float, float, list[tuple[float, float]]]:
    """Low, high, bins a unit; of each bin the line that its inputs are on, at bin 0 and how much it rises in a bin."""
    if not isinstance(feature, NumericFeature):
        raise TypeError(f"feature {feature.name!r} has no quantiles")
    ends = [(share - 0.5) / UNIFORM_DEVIATION for share in fitted.shares]
    bins = [(before - i * (after - before), after - before) for i, (before, after) in enumerate(pairwise(ends))]
    # The end of the domain is a bin of its own.
    bins.append((ends[-1], 0.0))
    return feature.low, feature.high, feature.bins / (feature.high - feature.low), bins


def _in_order(order: list[int]) -> Callable[[Sequence[float]], Sequence[float]] | None:
    """The function that puts a sequence in this order; None where it has it."""
    return None if order == sorted(order) else itemgetter(*order)


def _getter(names: list[str]) -> Callable[[Row], tuple[Any, ...]]:
    """The function from a row to the values of these columns."""
    if not names:
        return lambda _row: ()
    if len(names) == 1:
        return lambda row: (row[names[0]],)
    return itemgetter(*names)


def _number(feature: Feature, cell: Any) -> float | None:
    """One cell as a number, None where missing.

    Raises:
        DataError: it is not a value of the feature.
    """
    if cell is None:
        value = math.nan
    elif isinstance(cell, str | bytes) or not hasattr(cell, "__float__"):
        raise DataError(f"column {feature.name!r}: {cell!r} is not a number")
    else:
        value = _float(cell)
    if math.isnan(value):
        if feature.missing == "refuse":
            raise _missing(feature.name)
        return None
    if math.isinf(value):
        raise DataError(f"column {feature.name!r}: {cell!r} is not a finite number")
    if isinstance(feature, BooleanFeature) and value not in _TRUTHS:
        raise DataError(f"column {feature.name!r}: {cell!r} is neither true (1) nor false (0)")
    return value


def _float(cell: Any) -> float:
    try:
        return float(cell)
    except OverflowError:
        # An integer of hundreds of digits.
        return math.inf


def _missing(name: str) -> DataError:
    return DataError(f"column {name!r} is missing, and the agreement says missing = 'refuse'")


def _end(value: float, low: float, high: float) -> float:
    """The end of the domain that a value outside it is moved to."""
    if not isfinite(value):
        raise _UnusualError
    return low if value < low else high
