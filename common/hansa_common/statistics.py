"""What a merchant releases of its training rows before the first round: one vector of integers whose length the
agreement fixes, and whose sum over merchants is all that the preprocessing is fitted to.

- Merging is addition, so that secure aggregation can carry the vectors unchanged.
- A count below the agreement's `min_count` is released as zero, and the sums that stand on it too; under [privacy.dp]
  nothing is floored here, and nothing is released as it is (noised_statistics.py).
- Texts never leave: a category is counted at its place in the declared vocabulary. What preprocessing has no use for
  is not released: nothing of hashed categories, booleans and timestamps.

part, in order    entries                                              of
rows              2: rows, positive rows                               the label
standard, log     3: present values, their sum, the sum of squares     a numeric feature, by position in its domain
quantile          `bins`: present values by equal parts of the domain  a numeric feature
vocabulary        one for each entry                                   a categorical feature

A position is 0 at `low` and 1 at `high` (for `log` on a logarithmic scale); sums of positions are in units of 1/SCALE,
each row rounded by itself, so that neither order nor splitting changes a sum. Fitting is features.py's.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from hansa_common.agreement import Agreement
from hansa_common.schema import CategoricalFeature, Feature, NumericFeature

Columns = Mapping[str, NDArray[Any]]
Statistics = NDArray[np.int64]

NUM_ROW_COUNTS: Final = 2
NUM_SUMS: Final = 3
# 2**33 rows in all still add up in 63 bits, and a mean is exact to 4e-9 of the domain.
SCALE: Final = 2**28


def statistics_length(agreement: Agreement) -> int:
    """The length of everyone's vector."""
    return NUM_ROW_COUNTS + sum(_width(feature) for feature in agreement.features)


def measure(agreement: Agreement, columns: Columns, labels: NDArray[np.uint8]) -> Statistics:
    """Count one merchant's training rows.

    columns: feature name -> (rows,) as a merchant's table parses them; labels: (rows,) 0 or 1.

    Returns:
        (statistics_length(agreement),) int64.
    """
    # Floors are no part of differential privacy: noise is, and noised_statistics.py adds it.
    floor = agreement.privacy.min_count if agreement.privacy.dp is None else 0
    rows = np.array([len(labels), np.sum(labels)], np.int64)
    parts = [_measured(feature, columns[feature.name], floor) for feature in agreement.features]
    return np.concatenate([_above_floor(rows, floor), *parts])


def merge(vectors: Sequence[Statistics]) -> Statistics:
    """The statistics of several merchants together.

    >>> merge([np.array([1, 2]), np.array([3, 4])])
    array([4, 6])

    Raises:
        ValueError: there are none, or their lengths differ.
    """
    if not vectors:
        raise ValueError("there are no statistics to merge")
    return np.asarray(np.sum(np.stack(list(vectors)), axis=0, dtype=np.int64))


def check_statistics(agreement: Agreement, vector: Statistics, num_rows: int) -> None:
    """Refuse a received vector that no merchant with that many training rows can have counted.

    Raises:
        ValueError: wrong length, a negative count, more values than rows, or sums that such values cannot have.
    """
    expected = statistics_length(agreement)
    if vector.shape != (expected,):
        raise ValueError(f"{vector.size} statistics, the agreement has {expected}")
    if vector.min() < 0:
        raise ValueError(f"the statistics hold the negative count {vector.min()}")
    rows, positives = vector[:NUM_ROW_COUNTS].tolist()
    if rows not in {0, num_rows} or positives > rows:
        raise ValueError(f"{positives} of {rows} rows positive, of {num_rows} rows")
    for feature, part in parts(agreement.features, vector):
        if isinstance(feature, NumericFeature) and feature.scaling != "quantile":
            if part[0] > num_rows or not _are_sums(*part.tolist()):
                raise ValueError(f"feature {feature.name!r}: {part.tolist()} are not sums over at most {num_rows} rows")
        # Each count first: a sum of huge counts could wrap round to something believable.
        elif part.size and (part.max() > num_rows or part.sum() > num_rows):
            raise ValueError(f"feature {feature.name!r}: counts of more than {num_rows} rows")


def parts(features: tuple[Feature, ...], vector: Statistics) -> Iterator[tuple[Feature, Statistics]]:
    """Each feature with its own part of the vector, (its width,)."""
    start = NUM_ROW_COUNTS
    for feature in features:
        stop = start + _width(feature)
        yield feature, vector[start:stop]
        start = stop


def positions(feature: NumericFeature, values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Where values (rows,) lie in the feature's domain, 0 to 1; values outside are moved to its ends, NaN stays.

    >>> positions(NumericFeature(name="x", low=0, high=10), np.array([-5.0, 2.5, np.nan]))
    array([0.  , 0.25,  nan])
    """
    above = np.clip(values, feature.low, feature.high) - feature.low
    width = feature.high - feature.low
    return np.log1p(above) / np.log1p(width) if feature.scaling == "log" else above / width


def _are_sums(count: int, total: int, squares: int) -> bool:
    """Whether `count` positions can have these sums: each is at most 1, and the variance is not below 0."""
    # Rounding keeps the order of a position and its square, and moves each by at most a half.
    least = max(total - count, 0) ** 2
    return total <= count * SCALE and squares <= total and least <= (squares + count) * count * SCALE


def _width(feature: Feature) -> int:
    match feature:
        case NumericFeature(scaling="quantile"):
            return feature.bins
        case NumericFeature():
            return NUM_SUMS
        case CategoricalFeature():
            return len(feature.vocabulary)
    return 0


def _measured(feature: Feature, values: NDArray[Any], floor: int) -> Statistics:
    match feature:
        case NumericFeature(scaling="quantile"):
            return _above_floor(_bin_counts(feature, values), floor)
        case NumericFeature():
            sums = _sums(feature, values)
            return sums if sums[0] >= floor else np.zeros_like(sums)
        case CategoricalFeature():
            return _above_floor(_entry_counts(feature, values), floor)
    return np.zeros(0, np.int64)


def _bin_counts(feature: NumericFeature, values: NDArray[np.float64]) -> Statistics:
    place = positions(feature, values[~np.isnan(values)]) * feature.bins
    return np.bincount(np.minimum(place.astype(np.int64), feature.bins - 1), minlength=feature.bins).astype(np.int64)


def _sums(feature: NumericFeature, values: NDArray[np.float64]) -> Statistics:
    place = positions(feature, values[~np.isnan(values)])
    # Integers before the sums: beyond 2**53 a sum of floats depends on its order.
    total, squares = (np.rint(powers * SCALE).astype(np.int64).sum() for powers in (place, place**2))
    return np.array([len(place), total, squares], np.int64)


def _entry_counts(feature: CategoricalFeature, values: NDArray[Any]) -> Statistics:
    times = Counter(values.tolist())
    return np.array([times[entry] for entry in feature.vocabulary], np.int64)


def _above_floor(counts: Statistics, floor: int) -> Statistics:
    return np.where(counts >= floor, counts, 0)
