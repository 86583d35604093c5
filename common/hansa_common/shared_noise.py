"""`[privacy.dp] noise = "shared"`: the noise of a masked round, of which each merchant adds a share.

Only the sum of a round becomes known (secure_layouts.py), so only the sum needs noise. It is discrete Gaussian, in
steps of the grid that masked sums are computed on, and added after the update is rounded to that grid:

- *What a unit moves.* An update is -learning_rate / (sampling_rate * rows) times the sum of clipped gradients, cut to
  the length `most_norm`, and enters the sum weighted by rows / max_examples. So a unit moves the sum by at most
  scale * learning_rate * max_norm / (sampling_rate * max_examples) steps in L2, however many rows a merchant has;
  cutting brings two vectors no further apart. Rounding to whole steps adds at most one step a coordinate,
  sqrt(d) in L2, and float32, in which an update is handed on, what `_FLOAT32` says.
- *What hides it.* `noise_multiplier` times that must be in any sum that can be opened. The smallest has `smallest_sum`
  merchants, of whom `colluders` may know their own shares and take them out again. So each share has 1 / num_honest of
  the variance, with num_honest = smallest_sum - colluders. Whoever else is in a sum adds more.
- *What is accounted for* is one discrete Gaussian of the whole variance (privacy.py). Shares have a deviation of at
  least MIN_DEVIATION steps: then the probabilities of their sum are those of one discrete Gaussian but for a factor of
  1 +- 1e-200, over all coordinates, merchants and rounds there can be.
- *What fits.* An update is shortened so that `max_update_norm` holds for each coordinate with noise of up to
  _MOST_DEVIATIONS, so a sum does not wrap around, but for a chance of 1e-30 a coordinate. If it did, it would cost that
  round, and no privacy: what wraps around is made of the noised sum.

Sources: Canonne, Kamath and Steinke, "The Discrete Gaussian for Differential Privacy" (2020); Kairouz, Liu and Steinke,
"The Distributed Discrete Gaussian Mechanism for Federated Learning with Secure Aggregation" (2021), for sums of shares.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from hansa_common.agreement import Agreement
from hansa_common.discrete_gaussian import MAX_DEVIATION, discrete_gaussians
from hansa_common.errors import AgreementError
from hansa_common.masking import Ring
from hansa_common.model import ModelSpec
from hansa_common.privacy_noise import PrivacyRandom
from hansa_common.secure_agreement import fixed_point_of, honest_in_smallest_sum
from hansa_common.vectors import num_params

# In steps.
MIN_DEVIATION: Final = 8
_MOST_DEVIATIONS: Final = 12.0
# Both of two neighbours' updates, of most_norm at most, are off by half a last digit.
_FLOAT32: Final = 2.0**-23
# Norms are computed in float32 (clipped_gradients.py), sums in float64.
CLIPPING_SLACK: Final = 1.0 + 1e-3
# Far fewer deviations beyond its mean than this is the length of noise in d coordinates.
_LONGEST_NOISE: Final = 12.0
# What is proposed is so much more than what would be enough.
_ROOM: Final = 1.5


@dataclass(frozen=True)
class NoiseShare:
    """What each merchant adds to a round's vector: noise of this deviation in each coordinate. A unit moves the sum by
    at most `sensitivity` in L2; both are in steps. An update is shortened to `most_norm`, in its own units.
    """

    deviation: int
    sensitivity: float
    most_norm: float

    def drawn(self, random: PrivacyRandom, number: int) -> NDArray[np.int64]:
        """(number,) coordinates of one merchant's noise, in steps."""
        return discrete_gaussians(random, self.deviation, number)


def is_shared(agreement: Agreement) -> bool:
    """Whether merchants add shares of the noise, of which none is enough by itself."""
    dp = agreement.privacy.dp
    return dp is not None and dp.noise == "shared"


def noise_share_of(agreement: Agreement, learning_rate: float) -> NoiseShare:
    """The share of each merchant in a round of this learning rate.

    Raises:
        AgreementError: it does not fit into the sums of this agreement; the message says what would.
        ValueError: the agreement has no shared noise.
    """
    dp, fixed = agreement.privacy.dp, fixed_point_of(agreement)
    if dp is None or not is_shared(agreement):
        raise ValueError("the agreement has no shared noise")
    of_gradients = learning_rate * dp.max_norm * CLIPPING_SLACK / (dp.sampling_rate * fixed.max_examples)
    rounding = math.sqrt(num_params(ModelSpec.from_agreement(agreement).shapes))
    sensitivity = fixed.scale * (of_gradients + _FLOAT32 * fixed.max_norm) + rounding
    deviation = math.ceil(dp.noise_multiplier * sensitivity / math.sqrt(honest_in_smallest_sum(agreement)))
    most_norm = fixed.max_norm - _MOST_DEVIATIONS * deviation / fixed.scale
    # A step over an expected sample whose gradients all point in one direction, which is not to be shortened.
    longest = learning_rate * dp.max_norm
    if most_norm < longest or deviation > MAX_DEVIATION:
        enough = (longest + _MOST_DEVIATIONS * deviation / fixed.scale) * _ROOM
        raise AgreementError(
            f"[privacy.dp] noise = 'shared' takes room in masked sums: steps of up to {longest:g} and noise do not fit "
            f"into cohort.max_update_norm {fixed.max_norm:g}; agree on {enough:.2g}, or on less noise"
        )
    if deviation < MIN_DEVIATION:
        raise AgreementError(
            f"[privacy.dp] noise = 'shared' has {deviation} steps of a masked sum's grid as its deviation, at least "
            f"{MIN_DEVIATION} are needed; agree on a cohort.max_update_norm below {fixed.max_norm:g}, on the largest "
            f"merchant's training rows as max_examples, it is {fixed.max_examples}, or on more noise"
        )
    return NoiseShare(deviation, sensitivity, most_norm)


def add_noise(vector: Ring, noise: NDArray[np.int64]) -> None:
    """Add noise to the first coordinates of a round's vector, which are the update's, in place."""
    update = vector[: noise.size]
    np.add(update, noise.astype(np.uint32), out=update)


def longest_mean(agreement: Agreement, learning_rate: float, num_rows: int) -> float:
    """What the norm of a mean update of merchants with so many rows together stays within, shared noise included."""
    if not is_shared(agreement):
        return agreement.cohort.max_update_norm
    share, fixed = noise_share_of(agreement, learning_rate), fixed_point_of(agreement)
    of_a_coordinate = share.deviation * math.sqrt(fixed.max_merchants) / fixed.scale * fixed.max_examples / num_rows
    num_coordinates = num_params(ModelSpec.from_agreement(agreement).shapes)
    return share.most_norm + (math.sqrt(num_coordinates) + _LONGEST_NOISE) * of_a_coordinate


def check_shared_noise_fits(agreement: Agreement) -> None:
    """See that the shared noise of this agreement's rounds fits into their sums; whatever has none passes.

    Raises:
        AgreementError: it does not; the message says what would.
    """
    if is_shared(agreement):
        noise_share_of(agreement, agreement.training.plan.learning_rate)
