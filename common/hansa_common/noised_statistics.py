"""Feature statistics under [privacy.dp]: how far one row moves them, the noise that hides it, and what is made of sums
that are noise in part. The layout of the vector is statistics.py's.

- What nothing is fitted to is zero: how many rows are positive, and entries of a vocabulary, all of which are known.
- The number of rows is not hidden (privacy_agreement.py), so neither is that of present values where none may be
  missing.
- Noise goes on counts and on sums about the middle of the domain, which a row moves least, each as far as
  `row_bound` says; a unit of k rows moves all k times as far. No count is floored: a floor is a jump.
- Merging stays addition, and values may be below zero; only what is fitted is brought back to what rows can have.

entry, of a numeric feature     most that one row moves it     share of the noise, in deviations
present values                  1 (missing = "flag")           COUNT_COARSENESS
sum of (position - 1/2)         1/2                            1
sum of (position - 1/2)^2       1/4                            1
a part of the domain            1, in one part                 1
"""

from __future__ import annotations

import math
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from hansa_common import statistics
from hansa_common.agreement import Agreement
from hansa_common.privacy_agreement import DifferentialPrivacy
from hansa_common.schema import Feature, NumericFeature
from hansa_common.statistics import NUM_ROW_COUNTS, SCALE, Statistics

# A count says how many values are missing, and noise in it moves a mean the less, the nearer that is to the middle.
COUNT_COARSENESS: Final = 4.0
# Each row's position is rounded to 1/SCALE.
_ROUNDING: Final = 1.0 + 1e-6
# A sum of Gaussians of one deviation each stays within this, whatever is added of one row's three.
_MOST_DEVIATIONS: Final = 100.0
# Of 2**7 merchants at this bound the sum still fits in 63 bits.
_MOST: Final = 2**56
# What is not so many deviations of its noise from 0 is taken for noise.
_SIGNIFICANT: Final = 2.0


def is_needed(agreement: Agreement) -> bool:
    """Whether preprocessing is fitted to anything but the agreed domains; if not, nothing of a row leaves."""
    dp = agreement.privacy.dp
    if dp is not None and dp.statistics == "domains":
        return False
    return any(isinstance(feature, NumericFeature) for feature in agreement.features)


def row_bound(agreement: Agreement) -> float:
    """The L2 distance by which one row moves all entries that get noise, each in units of its share of the noise."""
    return math.sqrt(sum(_squared_bound(feature) for feature in agreement.features)) * _ROUNDING


def deviation(agreement: Agreement, dp: DifferentialPrivacy) -> float:
    """The standard deviation of noise of share 1: counts in it are rows, sums of positions are positions."""
    return dp.statistics_noise_multiplier * dp.max_rows_per_entity * row_bound(agreement)


def noised(
    agreement: Agreement, dp: DifferentialPrivacy, counted: Statistics, gaussians: NDArray[np.float64]
) -> Statistics:
    """What leaves of statistics without floors, (statistics_length,) int64; `gaussians` are as many."""
    found, sigma = np.zeros_like(counted), deviation(agreement, dp)
    found[0] = counted[0]
    if not is_needed(agreement):
        return found
    pieces = zip(_numeric(agreement, found), _numeric(agreement, counted), _numeric(agreement, gaussians), strict=True)
    for (feature, target), (_, exact), (_, normal) in pieces:
        noise = sigma * (normal if feature.scaling == "quantile" else _noise_of_sums(feature, normal))
        target[:] = np.clip(np.rint(exact + noise), -_MOST, _MOST).astype(np.int64)
    return found


def check_noised(agreement: Agreement, dp: DifferentialPrivacy, vector: Statistics, num_rows: int) -> None:
    """Refuse a received vector that no merchant with that many training rows sends.

    Raises:
        ValueError: wrong length, another number of rows, what nothing is fitted to, or more than rows and noise make.
    """
    expected = statistics.statistics_length(agreement)
    if vector.shape != (expected,):
        raise ValueError(f"{vector.size} statistics, the agreement has {expected}")
    if vector[0] != num_rows:
        raise ValueError(f"statistics of {vector[0]} rows, of {num_rows} rows")
    unused = vector.copy()
    unused[0] = 0
    most = most_noised(agreement, dp, num_rows) if is_needed(agreement) else 0
    for feature, part in _numeric(agreement, unused):
        if part.min() < -most or part.max() > most:
            raise ValueError(f"feature {feature.name!r}: more than {num_rows} rows and noise can make")
        part[:] = 0
    if unused.any():
        raise ValueError("statistics that nothing is fitted to")


def most_noised(agreement: Agreement, dp: DifferentialPrivacy, num_rows: int) -> int:
    """What no entry of so many rows is above or, below zero, beyond."""
    return min(_MOST, int((num_rows + _MOST_DEVIATIONS * deviation(agreement, dp)) * SCALE))


def plausible(agreement: Agreement, dp: DifferentialPrivacy, merged: Statistics) -> Statistics:
    """Merged statistics as such rows can have, to fit preprocessing to: a scale is never finer than the noise in it."""
    found, sigma = np.ones_like(merged), deviation(agreement, dp)
    found[:NUM_ROW_COUNTS] = merged[:NUM_ROW_COUNTS]
    num_rows = max(int(merged[0]), 0)
    for (feature, target), (_, part) in zip(_numeric(agreement, found), _numeric(agreement, merged), strict=True):
        if feature.scaling == "quantile":
            ascending = np.maximum.accumulate(np.cumsum(part).clip(0, max(num_rows, 1)))
            target[:] = np.diff(ascending, prepend=0)
        else:
            target[:] = _plausible_sums(*part.tolist(), num_rows=num_rows, sigma=sigma)
    return found


def _plausible_sums(count: int, total: int, squares: int, *, num_rows: int, sigma: float) -> tuple[int, int, int]:
    # Back to sums about the middle before the count is mended, since its noise is in the others too.
    centred, spread = total / SCALE - count / 2, (squares - total) / SCALE + count / 4
    count = min(max(count, 0), num_rows)
    if count <= _SIGNIFICANT * sigma:
        return 0, 0, 0
    away = min(max(centred / count, -0.5), 0.5)
    variance = min(max(spread / count - away**2, _SIGNIFICANT * sigma / count), 1.0)
    mean = 0.5 + away
    return count, round(mean * count * SCALE), round((variance + mean**2) * count * SCALE)


def _squared_bound(feature: Feature) -> float:
    match feature:
        case NumericFeature(scaling="quantile"):
            return 1.0
        case NumericFeature():
            present = COUNT_COARSENESS**-2 if feature.missing == "flag" else 0.0
            return present + (1 / 2) ** 2 + (1 / 4) ** 2
    return 0.0


def _noise_of_sums(feature: NumericFeature, normal: NDArray[np.float64]) -> NDArray[np.float64]:
    """Noise of (present values, sum, sum of squares) that has its shares about the middle, as the sums about 0."""
    count = COUNT_COARSENESS * normal[0] if feature.missing == "flag" else 0.0
    total = normal[1] + count / 2
    return np.array([count, total * SCALE, (normal[2] + total - count / 4) * SCALE])


def _numeric(agreement: Agreement, vector: NDArray[Any]) -> list[tuple[NumericFeature, NDArray[Any]]]:
    """The numeric features with their own parts of a vector."""
    parts = statistics.parts(agreement.features, vector)
    return [(feature, part) for feature, part in parts if isinstance(feature, NumericFeature)]
