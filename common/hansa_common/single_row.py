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

import itertools
import math
import struct
from collections.abc import Callable, Mapping, Sequence
from math import isfinite, log1p
from operator import itemgetter
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from hansa_common.errors import DataError
from hansa_common.features import DAY, DAYS_SINCE_MONDAY, UNIFORM_DEVIATION, Fitted, FittedPreprocessing, id_of_text
from hansa_common.schema import (
    MISSING_ID,
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
_TRUTH_VALUES: Final = frozenset({0, 1})
_TURN: Final = 2.0 * math.pi
_NUM_CYCLIC: Final = 4
_ONE: Final = 1.0


class _UnusualError(Exception):
    """A number is missing or not finite: it is looked at by itself."""


class RowTransform:
    """The preparation for one fitted preprocessing and one key; for one thread at a time."""

    def __init__(self, preprocessing: FittedPreprocessing, hash_key: bytes | None) -> None:
        """Prepare.

        Raises:
            DataError: a feature is hashed and there is no key.
        """
        placed = _placed(preprocessing)
        self._numbers = _Numbers([entry for entry in placed if not isinstance(entry[0], CategoricalFeature)])
        texts = [_Text(f, fit, place, hash_key) for f, fit, place in placed if isinstance(f, CategoricalFeature)]
        # The embedded ones last, in the order of their ids.
        self._texts = sorted(texts, key=lambda text: text.is_embedded)
        self._texts_of = _getter([text.feature.name for text in self._texts])
        self._num_one_hot = sum(not text.is_embedded for text in texts)
        # Written anew for each row: making arrays costs more than filling them.
        self._dense_bytes = bytearray(4 * num_dense(preprocessing.features))
        self._ids_bytes = bytearray(4 * len(embedded(preprocessing.features)))
        self._flat = np.frombuffer(self._dense_bytes, np.float32)
        self._dense = self._flat.reshape(1, -1)
        self._ids = np.frombuffer(self._ids_bytes, np.int32).reshape(1, -1)
        self._pack_numbers = struct.Struct(_layout(self._numbers.places, len(self._flat))).pack_into
        self._pack_ids = struct.Struct(f"={len(texts) - self._num_one_hot}i").pack_into

    def __call__(self, row: Row) -> tuple[NDArray[np.float32], NDArray[np.int32]]:
        """Dense (1, num_dense) float32 and ids (1, num_embedded) int32 of one row, until the next call.

        Raises:
            DataError: the row lacks a column, or holds something that is not a value of its feature.
        """
        try:
            values, missing = self._numbers.inputs(row)
            found = self._found(self._texts_of(row)) if self._texts else ()
        except KeyError as error:
            raise DataError(f"the row has no column {error.args[0]!r}, which the preprocessing needs") from None
        flat, num_one_hot = self._flat, self._num_one_hot
        self._pack_numbers(self._dense_bytes, 0, *values)
        if found:
            for place in found[:num_one_hot]:
                flat[place] = _ONE
            self._pack_ids(self._ids_bytes, 0, *found[num_one_hot:])
        for feature, place in missing:
            flat[place : place + feature.dense_width] = 0.0
            if feature.missing == "flag":
                flat[place + feature.dense_width - 1] = _ONE
        return self._dense, self._ids

    def _found(self, cells: tuple[Any, ...]) -> Sequence[int]:
        try:
            return [index[cell] for index, cell in zip(self._texts, cells)]  # noqa: B905 - strict costs a third more
        except TypeError:
            # What cannot be looked up is no text; this says which.
            return [index.found(cell) for index, cell in zip(self._texts, cells, strict=True)]


class _Numbers:
    """The features whose values are numbers, in groups of those that are computed alike. Not with numpy: for a row of
    tens of numbers its calls cost more than the arithmetic.
    """

    def __init__(self, placed: list[Placed]) -> None:
        entries = sorted(placed, key=lambda entry: _group(entry[0]))
        self._features = [(feature, place) for feature, _, place in entries]
        self._values_of = _getter([feature.name for feature, _ in self._features])
        groups = [_group(feature) for feature, _ in self._features]
        self._num_booleans = groups.count(0)
        self._first_log, self._first_quantile, self._first_moment = (sum(g < k for g in groups) for k in (2, 3, 4))
        linear, logs, quantiles = self._first_log, self._first_quantile, self._first_moment
        self._linear = [_scaling(feature, fitted) for feature, fitted, _ in entries[:linear]]
        self._logs = [_log_scaling(feature, fitted) for feature, fitted, _ in entries[linear:logs]]
        self._quantiles = [_pieces(feature, fitted) for feature, fitted, _ in entries[logs:quantiles]]
        sizes = [_NUM_CYCLIC if isinstance(feature, TimestampFeature) else 1 for feature, _ in self._features]
        computed = [place + i for (_, place), size in zip(self._features, sizes, strict=True) for i in range(size)]
        self.places = sorted(computed)
        self._in_place = _in_order(sorted(range(len(computed)), key=computed.__getitem__))

    def inputs(self, row: Row) -> tuple[Sequence[float], list[tuple[Feature, int]]]:
        """Inputs in the order of `places`, and the features that are missing, for which they mean nothing."""
        cells: Sequence[Any] = self._values_of(row)
        try:
            return self._computed(cells), []
        except (_UnusualError, TypeError, OverflowError):
            # Something is missing, or is to be refused.
            plain, missing = self._checked(cells)
            return self._computed(plain), missing

    def _computed(self, cells: Sequence[Any]) -> Sequence[float]:
        """The inputs of cells that are all finite numbers, and an error if one is not."""
        if self._num_booleans and not _TRUTH_VALUES.issuperset(cells[: self._num_booleans]):
            raise _UnusualError
        logs, quantiles, moments = self._first_log, self._first_quantile, self._first_moment
        values = [
            (x if low <= x <= high else _end(x, low, high)) * gain - offset
            for x, (low, high, gain, offset) in zip(cells, self._linear)  # noqa: B905 - ends with the shorter
        ]
        if self._logs:
            values += [
                log1p((x if low <= x <= high else _end(x, low, high)) - low) * gain - offset
                for x, (low, high, gain, offset) in zip(cells[logs:], self._logs)  # noqa: B905
            ]
        if self._quantiles:
            values += [
                below[(part := int(place := ((x if low <= x <= high else _end(x, low, high)) - low) * gain))]
                + (place - part) * rises[part]
                for x, (low, high, gain, below, rises) in zip(cells[quantiles:], self._quantiles)  # noqa: B905
            ]
        for second in cells[moments:]:
            values += _cyclic(second)
        return values if self._in_place is None else self._in_place(values)

    def _checked(self, cells: Sequence[Any]) -> tuple[list[float], list[tuple[Feature, int]]]:
        """The numbers, with 0 where they are missing, and the features of those.

        Raises:
            DataError: a cell is not a value of its feature.
        """
        values, missing = list(cells), []
        # A float that is finite needs no second look, unless it should be a boolean.
        odd = [number for number, cell in enumerate(cells) if type(cell) is not float or not isfinite(cell)]
        for number in {*range(self._num_booleans), *odd}:
            entry = self._features[number]
            value = _number(entry[0], cells[number])
            values[number] = value or 0.0
            if value is None:
                missing.append(entry)
        return values, missing


class _Text(dict[str | None, int]):
    """One categorical feature: of each text its id or, one-hot, the place of the 1. What is not in it is looked at by
    itself: texts that are hashed or not known, and what is no text.
    """

    def __init__(self, feature: CategoricalFeature, fitted: Fitted, place: int, hash_key: bytes | None) -> None:
        self.feature, self.is_embedded = feature, feature.encoding == "embedding"
        self._first = 0 if self.is_embedded else place
        self._id_of = id_of_text(feature, fitted, hash_key)
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

    __missing__ = found


def _group(feature: Feature) -> int:
    """0 boolean, 1 scaled linearly, 2 logarithmic, 3 by quantiles, 4 a moment."""
    match feature:
        case BooleanFeature():
            return 0
        case NumericFeature():
            return {"standard": 1, "log": 2, "quantile": 3}[feature.scaling]
    return 4


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
        return 0.0, 1.0, 2.0, 1.0
    gain = 1.0 / ((feature.high - feature.low) * fitted.scale.deviation)
    # `low` goes into the offset: what that rounds is less than the last bit of a value near it.
    return feature.low, feature.high, gain, feature.low * gain + fitted.scale.mean / fitted.scale.deviation


def _log_scaling(feature: Feature, fitted: Fitted) -> tuple[float, float, float, float]:
    """The same of the logarithm of what a value, clipped, is above low."""
    if not isinstance(feature, NumericFeature) or fitted.scale is None:
        raise TypeError(f"feature {feature.name!r} has no logarithmic scale")
    gain = 1.0 / (log1p(feature.high - feature.low) * fitted.scale.deviation)
    return feature.low, feature.high, gain, fitted.scale.mean / fitted.scale.deviation


def _pieces(feature: Feature, fitted: Fitted) -> tuple[float, float, float, tuple[float, ...], tuple[float, ...]]:
    """Low, high, bins a unit; what the input is at the beginning of each bin and how much it rises in it."""
    if not isinstance(feature, NumericFeature):
        raise TypeError(f"feature {feature.name!r} has no quantiles")
    below = tuple((share - 0.5) / UNIFORM_DEVIATION for share in fitted.shares)
    # The end of the domain is a bin of its own.
    rises = (*(after - before for before, after in itertools.pairwise(below)), 0.0)
    return feature.low, feature.high, feature.bins / (feature.high - feature.low), below, rises


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
    if isinstance(feature, BooleanFeature) and value not in _TRUTH_VALUES:
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


def _cyclic(seconds: float) -> tuple[float, float, float, float]:
    """Sine and cosine of the hour of day and of the day of the week."""
    if not isfinite(seconds):
        raise _UnusualError
    day, second = divmod(seconds, DAY)
    hour = _TURN * second / DAY
    weekday = _TURN * ((day + DAYS_SINCE_MONDAY) % 7.0) / 7.0
    return math.sin(hour), math.cos(hour), math.sin(weekday), math.cos(weekday)
