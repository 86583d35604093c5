"""Preprocessing fitted to merchants of whom some may lie: to the median of what each one's statistics would fit alone.

A sum belongs to whoever states the largest counts. Here each merchant has one voice for each feature, whatever it
counts, so that fewer than half of those who have values cannot move a scale beyond the others' own.

numeric, standard or log   the median of means and that of deviations, of the merchants who have values
numeric, quantile          the median share below each end of a bin, of the merchants who have values
                           (either: as if nothing were known, where no more have values than twice the dishonest)
vocabulary                 an entry is known where more merchants hold it than may be dishonest: else a liar alone could
                           have a column of its own in everyone's model, whose weights no honest row ever corrects
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from hansa_common import statistics
from hansa_common.agreement import Agreement
from hansa_common.features import Fitted, FittedPreprocessing, Scale
from hansa_common.schema import NumericFeature
from hansa_common.statistics import Statistics


def fitted_preprocessing(agreement: Agreement, vectors: Sequence[Statistics]) -> FittedPreprocessing:
    """What is fitted to the merchants' statistics, each (statistics_length,) int64, under the agreed rule."""
    merged = FittedPreprocessing.fit(agreement, statistics.merge(vectors))
    if agreement.robustness.is_mean:
        return merged
    has_values = [[bool(part.any()) for _, part in statistics.parts(agreement.features, vector)] for vector in vectors]
    alone = [FittedPreprocessing.fit(agreement, vector).fitted for vector in vectors]
    nothing = FittedPreprocessing.fit(agreement, np.zeros_like(vectors[0])).fitted
    num_dishonest, found = agreement.robustness.num_dishonest, []
    for place, feature in enumerate(agreement.features):
        own = [fitted[place] for fitted, has in zip(alone, has_values, strict=True) if has[place]]
        if len(own) <= num_dishonest * (2 if isinstance(feature, NumericFeature) else 1):
            found.append(nothing[place])
        else:
            found.append(_median(own) if isinstance(feature, NumericFeature) else _held(own, num_dishonest))
    return FittedPreprocessing(features=agreement.features, fitted=tuple(found))


def _held(fitted: Sequence[Fitted], num_dishonest: int) -> Fitted:
    """Which entries of a vocabulary, if there is one, more merchants hold than may be dishonest."""
    times = np.asarray([one.known for one in fitted], np.int64).sum(axis=0)
    return Fitted(known=tuple(bool(number > num_dishonest) for number in times))


def _median(fitted: Sequence[Fitted]) -> Fitted:
    scales = [one.scale for one in fitted if one.scale is not None]
    if scales:
        mean, deviation = (
            float(np.median([getattr(scale, name) for scale in scales])) for name in ("mean", "deviation")
        )
        return Fitted(scale=Scale(mean=mean, deviation=deviation))
    # Medians of ascending shares ascend.
    return Fitted(shares=tuple(np.median([one.shares for one in fitted], axis=0).tolist()))
