"""What leaves of counts over a merchant's rows: with the agreement's floors, or under [privacy.dp] with noise.

Both are given what was counted in full; what leaves is theirs to say, and departures.py looks at it once more.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from hansa_common import noised_histograms, noised_statistics
from hansa_common.agreement import Agreement
from hansa_common.metrics import HISTOGRAM_LENGTH, Histogram, withhold
from hansa_common.privacy_agreement import DifferentialPrivacy
from hansa_common.privacy_noise import PrivacyRandom
from hansa_common.statistics import Statistics

# Random numbers for one release, by what it is of: fresh ones of the operating system's, but in a simulation.
DrawNoise = Callable[[str], PrivacyRandom]


class Releases(Protocol):
    """How counts leave."""

    def statistics(self, counted: Statistics) -> Statistics:
        """What leaves of feature statistics (statistics_length,)."""
        ...

    def of_round(self, count: Callable[[], Histogram]) -> Histogram:
        """What leaves of a round's validation histogram, which is counted only where some of it does."""
        ...

    def histogram(self, histogram: Histogram, purpose: str) -> Histogram:
        """What leaves of another histogram of scores."""
        ...


@dataclass(frozen=True)
class FlooredReleases:
    """Counts as they are, none below the agreement's floors; implements Releases."""

    agreement: Agreement

    def statistics(self, counted: Statistics) -> Statistics:
        return counted  # statistics.measure has floored them.

    def of_round(self, count: Callable[[], Histogram]) -> Histogram:
        return withhold(count(), self.agreement.privacy.min_positives)

    def histogram(self, histogram: Histogram, purpose: str) -> Histogram:  # noqa: ARG002 - nothing is drawn
        return withhold(histogram, self.agreement.privacy.min_positives)


@dataclass(frozen=True)
class NoisedReleases:
    """Counts with Gaussian noise, or none; implements Releases."""

    agreement: Agreement
    dp: DifferentialPrivacy
    draw: DrawNoise

    def statistics(self, counted: Statistics) -> Statistics:
        gaussians = self.draw("statistics").gaussians(len(counted))
        return noised_statistics.noised(self.agreement, self.dp, counted, gaussians)

    def of_round(self, count: Callable[[], Histogram]) -> Histogram:  # noqa: ARG002 - so nothing is counted
        return np.zeros(HISTOGRAM_LENGTH, np.int64)

    def histogram(self, histogram: Histogram, purpose: str) -> Histogram:
        if self.dp.evaluation_noise_multiplier is None:
            return np.zeros_like(histogram)
        gaussians = self.draw(purpose).gaussians(2 * noised_histograms.NUM_GROUPS)
        return noised_histograms.noised(histogram, self.dp, gaussians)


def releases_of(agreement: Agreement, draw: DrawNoise) -> Releases:
    """How counts leave under this agreement."""
    dp = agreement.privacy.dp
    return FlooredReleases(agreement) if dp is None else NoisedReleases(agreement, dp, draw)
