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
_TRUTH_VALUES: Final = frozenset({0, 1})
_TURN: Final = 2.0 * math.pi
_NUM_CYCLIC: Final = 4


class RowTransform:
    """The preparation for one fitted preprocessing and one key; any number of threads may use it."""

    def __init__(self, preprocessing: FittedPreprocessing, hash_key: bytes | None) -> None:
        """Prepare.

        Raises:
            DataError: a feature is hashed and there is no key.
        """
        placed = _placed(preprocessing)
        self._numbers = _Numbers(placed, num_dense(preprocessing.features))
        self._moments = [_Moment(f, place) for f, _, place in placed if isinstance(f, TimestampFeature)]
        texts = [_Text(f, fit, place, hash_key) for f, fit, place in placed if isinstance(f, CategoricalFeature)]
        self._one_hot = [text for text in texts if text.feature.encoding == "one_hot"]
        self._embedded = [text for text in texts if text.feature.encoding == "embedding"]
        self._no_ids = np.zeros((1, len(embedded(preprocessing.features))), np.int32)

    def __call__(self, row: Row) -> tuple[NDArray[np.float32], NDArray[np.int32]]:
        """Dense (1, num_dense) float32 and ids (1, num_embedded) int32 of one row.

        Raises:
            DataError: the row lacks a column, or holds something that is not a value of its feature.
        """
        ids = self._no_ids
        try:
            dense = self._numbers.inputs(row)
            for moment in self._moments:
                moment.write(row, dense[0])
            for text in self._one_hot:
                dense[0, text.place + text.id_in(row)] = 1.0
            if self._embedded:
                ids = np.array([[text.id_in(row) for text in self._embedded]], np.int32)
        except KeyError as error:
            raise DataError(f"the row has no column {error.args[0]!r}, which the preprocessing needs") from None
        return dense, ids


class _Numbers:
    """The numeric and boolean features: each value is clipped, bent where its scaling is not linear, and scaled."""

    def __init__(self, placed: list[tuple[Feature, Fitted, int]], width: int) -> None:
        entries = [(f, fit, place) for f, fit, place in placed if isinstance(f, NumericFeature | BooleanFeature)]
        self._features = [(feature, place) for feature, _, place in entries]
        self._values_of = _getter([feature.name for feature, _, _ in entries])
        self._truths_of = _getter([feature.name for feature, _, _ in entries if isinstance(feature, BooleanFeature)])
        bends = [_bend(feature, fitted) for feature, fitted, _ in entries]
        self._bends = [(number, bend) for number, bend in enumerate(bends) if bend is not None]
        self._scalings = [_scaling(feature, fitted) for feature, fitted, _ in entries]
        # Laid out as the dense row is, zeros between the values.
        self._layout = struct.Struct(_layout([place for _, _, place in entries], width))
        self._shape = (1, width)

    def inputs(self, row: Row) -> NDArray[np.float32]:
        """(1, num_dense), zero where other features have their place."""
        cells = self._values_of(row)
        try:
            # NaN or infinite if one value is; a TypeError if one is no number.
            if math.isfinite(sum(cells)) and _TRUTH_VALUES.issuperset(self._truths_of(row)):
                return self._scaled(cells)
        except (TypeError, OverflowError):
            pass
        return self._unusual(cells)

    def _scaled(self, cells: Sequence[Any]) -> NDArray[np.float32]:
        if self._bends:
            cells = list(cells)
            for number, bend in self._bends:
                cells[number] = bend(cells[number])
        # Not numpy: for a row of tens of numbers its calls cost more than the arithmetic.
        values = [
            (x if low <= x <= high else min(max(x, low), high)) * gain - offset
            for x, (low, high, gain, offset) in zip(cells, self._scalings, strict=True)
        ]
        return np.ndarray(self._shape, np.float32, bytearray(self._layout.pack(*values)))

    def _unusual(self, cells: tuple[Any, ...]) -> NDArray[np.float32]:
        """The same for a row in which something is missing, or is to be refused."""
        found = [_number(feature, cell) for (feature, _), cell in zip(self._features, cells, strict=True)]
        dense = self._scaled([value or 0.0 for value in found])
        for value, (feature, place) in zip(found, self._features, strict=True):
            if value is None:
                dense[0, place] = 0.0
                if feature.missing == "flag":
                    dense[0, place + 1] = 1.0
        return dense


class _Moment:
    """One timestamp and its place in the dense row."""

    def __init__(self, feature: TimestampFeature, place: int) -> None:
        self._feature, self._place = feature, place

    def write(self, row: Row, dense: NDArray[np.float32]) -> None:
        cell = row[self._feature.name]
        second = cell if type(cell) is float and math.isfinite(cell) else _number(self._feature, cell)
        if second is not None:
            dense[self._place : self._place + _NUM_CYCLIC] = _cyclic(second)
        elif self._feature.missing == "flag":
            dense[self._place + _NUM_CYCLIC] = 1.0


class _Text:
    """One categorical feature and its place in the dense row."""

    def __init__(self, feature: CategoricalFeature, fitted: Fitted, place: int, hash_key: bytes | None) -> None:
        self.feature, self.place = feature, place
        self._name = feature.name
        self._id_of = id_of_text(feature, fitted, hash_key)

    def id_in(self, row: Row) -> int:
        value = row[self._name]
        if type(value) is str:
            return self._id_of(value)
        if value is not None:
            raise DataError(f"column {self._name!r}: {value!r} is not a text")
        if self.feature.missing == "refuse":
            raise _missing(self._name)
        return MISSING_ID


def _placed(preprocessing: FittedPreprocessing) -> list[tuple[Feature, Fitted, int]]:
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


def _bend(feature: Feature, fitted: Fitted) -> Callable[[float], float] | None:
    """What comes before the linear scaling: a logarithm, or the share of values below."""
    if not isinstance(feature, NumericFeature) or feature.scaling == "standard":
        return None
    low, high = feature.low, feature.high

    def log(value: float) -> float:
        return math.log1p((low if value < low else min(value, high)) - low)

    last, bins_by_width = feature.bins - 1, feature.bins / (high - low)
    below = fitted.shares
    rises = [after - before for before, after in itertools.pairwise(below)]

    def share_below(value: float) -> float:
        place = ((low if value < low else min(value, high)) - low) * bins_by_width
        number = min(int(place), last)
        return below[number] + (place - number) * rises[number]

    return log if feature.scaling == "log" else share_below


def _scaling(feature: Feature, fitted: Fitted) -> tuple[float, float, float, float]:
    """Low, high, gain and offset: an input is the bent value, clipped, * gain - offset."""
    if not isinstance(feature, NumericFeature):
        return 0.0, 1.0, 2.0, 1.0
    if fitted.scale is None:
        return 0.0, 1.0, 1.0 / UNIFORM_DEVIATION, 0.5 / UNIFORM_DEVIATION
    width, scale = feature.high - feature.low, fitted.scale
    if feature.scaling == "log":
        reach = math.log1p(width)
        return 0.0, reach, 1.0 / (reach * scale.deviation), scale.mean / scale.deviation
    gain = 1.0 / (width * scale.deviation)
    # `low` goes into the offset: what that rounds is less than the last bit of a value near it.
    return feature.low, feature.high, gain, feature.low * gain + scale.mean / scale.deviation


def _getter(names: list[str]) -> Callable[[Row], tuple[Any, ...]]:
    """The function from a row to the values of these columns."""
    if len(names) > 1:
        return itemgetter(*names)
    return lambda row: tuple(row[name] for name in names)


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


def _cyclic(seconds: float) -> tuple[float, float, float, float]:
    """Sine and cosine of the hour of day and of the day of the week."""
    day, second = divmod(seconds, DAY)
    hour = _TURN * second / DAY
    weekday = _TURN * ((day + DAYS_SINCE_MONDAY) % 7.0) / 7.0
    return math.sin(hour), math.cos(hour), math.sin(weekday), math.cos(weekday)
