"""Histograms of scores under [privacy.dp]: few groups of bins, noise in each, and what figures may be taken from sums.

- A row is in one group, so a unit of k rows moves the counts by k in L2: noise has `evaluation_noise_multiplier` * k
  deviations in each.
- What leaves has metrics.py's shape, a group's count in one of its bins, and may be below zero; merging is addition.
- Figures are of the groups (scores that share one count as tied) and carry the noise of every merchant: where that is
  not far below the number of positive rows, there are none.
"""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray

from hansa_common.metrics import HISTOGRAM_LENGTH, NUM_BINS, Histogram, score_bins
from hansa_common.privacy_agreement import DifferentialPrivacy

# Groups are half a logit wide; beyond the ends a score is a row's that needs no telling apart.
_EDGES: Final = np.linspace(-8.0, 8.0, 33)
NUM_GROUPS: Final = len(_EDGES) - 1
# (NUM_GROUPS,) first bin of each, and the bin in which its count is told.
_STARTS: Final = np.concatenate([[0], score_bins(_EDGES[1:-1])])
_PLACES: Final = score_bins((_EDGES[:-1] + _EDGES[1:]) / 2)
_BOTH_PLACES: Final = np.concatenate([_PLACES, NUM_BINS + _PLACES])
# A group's count that is not so many deviations of its noise above 0 is taken for none.
_SIGNIFICANT: Final = 2.0
# As many deviations of the noise in their number must all positives be, for a figure to be worth telling.
_TELLING: Final = 5.0
_MOST_DEVIATIONS: Final = 40.0


def deviation(dp: DifferentialPrivacy) -> float:
    """The standard deviation of the noise in each count; 0 where none leaves."""
    return (dp.evaluation_noise_multiplier or 0.0) * dp.max_rows_per_entity


def noised(histogram: Histogram, dp: DifferentialPrivacy, gaussians: NDArray[np.float64]) -> Histogram:
    """What leaves of a histogram, of the same shape; `gaussians` (2 * NUM_GROUPS,) are standard normal."""
    counts = np.concatenate([np.add.reduceat(part, _STARTS) for part in (histogram[:NUM_BINS], histogram[NUM_BINS:])])
    found = np.zeros(HISTOGRAM_LENGTH, np.int64)
    found[_BOTH_PLACES] = np.rint(counts + deviation(dp) * gaussians).astype(np.int64)
    return found


def check_noised(histogram: Histogram, dp: DifferentialPrivacy, max_rows: int) -> None:
    """Refuse a received histogram that no merchant with at most max_rows rows sends.

    Raises:
        ValueError: another shape, counts where none leave, or more than rows and noise make.
    """
    if histogram.dtype != np.int64 or histogram.shape != (HISTOGRAM_LENGTH,):
        raise ValueError(f"a score histogram is int64 of shape ({HISTOGRAM_LENGTH},), not {histogram.shape}")
    if not histogram.any():
        return
    told = histogram[_BOTH_PLACES]
    if dp.evaluation_noise_multiplier is None or np.count_nonzero(told) != np.count_nonzero(histogram):
        raise ValueError("a score histogram counts where under [privacy.dp] nothing leaves")
    most = most_noised(dp, max_rows)
    if told.min() < -most or told.max() > most:
        raise ValueError(f"a score histogram counts more than {max_rows} rows and noise can make")


def most_noised(dp: DifferentialPrivacy, max_rows: int) -> int:
    """What no count of so many rows is above or, below zero, beyond."""
    return int(max_rows + _MOST_DEVIATIONS * deviation(dp))


def plausible(merged: Histogram, dp: DifferentialPrivacy, num_merchants: int) -> Histogram:
    """Sums of noised histograms as counts of rows, to take figures from; all zero where they would say nothing."""
    of_a_group = deviation(dp) * num_merchants**0.5
    if merged[NUM_BINS:].sum() < _TELLING * of_a_group * NUM_GROUPS**0.5:
        return np.zeros_like(merged)
    least = _SIGNIFICANT * of_a_group
    return np.where(merged > least, merged, 0)
