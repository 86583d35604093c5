"""What the vector of each masked sum holds under an agreement, the same at every merchant and at the coordinator.

sum          holds
statistics   how many training rows there are, then the statistics (statistics.py)
a round      the update, the loss, how many rows, and the validation histogram (round_vector.py; short_round.py where
             an update goes in few bits)
evaluation   the score histogram (metrics.py)

Under [privacy.dp] they have noise in them, and so are below zero at times; their bounds are those of check_noised.
"""

from __future__ import annotations

import numpy as np

from hansa_common import noised_histograms, noised_statistics
from hansa_common.agreement import Agreement
from hansa_common.integer_vector import IntegerVector
from hansa_common.metrics import HISTOGRAM_LENGTH
from hansa_common.randomness import derived_seed, generator
from hansa_common.rotation import Rotation
from hansa_common.round_vector import RoundVector
from hansa_common.secure_agreement import fixed_point_of, most_in_sum
from hansa_common.short_round import ShortRoundVector
from hansa_common.short_updates import ShortUpdates
from hansa_common.statistics import SCALE, statistics_length


def statistics_layout(agreement: Agreement) -> IntegerVector:
    """Of one number more than the statistics have."""
    length, most = 1 + statistics_length(agreement), SCALE * agreement.cohort.max_examples
    dp, num_merchants = agreement.privacy.dp, len(agreement.roster)
    if dp is None:
        return IntegerVector(length, most, num_merchants)
    bound = noised_statistics.most_noised(agreement, dp, agreement.cohort.max_examples)
    return IntegerVector(length, bound, num_merchants, min_value=-bound)


def round_layout(agreement: Agreement, num_params: int, number: int) -> RoundVector | ShortRoundVector:
    """Of the round of this number, of a model with that many parameters."""
    bits, cohort = agreement.secure_aggregation.update_bits, agreement.cohort
    if bits is None:
        return RoundVector(fixed_point_of(agreement), num_params, HISTOGRAM_LENGTH, cohort.max_examples)
    # Another turn each round: what one cuts off the next does not.
    rotation = Rotation(num_params, derived_seed(agreement.seed, "rotation", number))
    most = most_in_sum(agreement.roster, agreement.robustness)
    updates = ShortUpdates(rotation, bits, cohort.max_update_norm, cohort.max_examples, most)
    return ShortRoundVector(updates, HISTOGRAM_LENGTH, cohort.max_examples)


def rounding(agreement: Agreement, merchant: str, number: int) -> np.random.Generator:
    """What draws how a merchant's update is rounded in a round. It hides nothing, and so is the agreement's to say."""
    return generator(agreement.seed, "rounding", merchant, number)


def evaluation_layout(agreement: Agreement) -> IntegerVector:
    """Of a score histogram."""
    dp, num_merchants = agreement.privacy.dp, len(agreement.roster)
    if dp is None:
        return IntegerVector(HISTOGRAM_LENGTH, agreement.cohort.max_examples, num_merchants)
    bound = noised_histograms.most_noised(dp, agreement.cohort.max_examples)
    return IntegerVector(HISTOGRAM_LENGTH, bound, num_merchants, min_value=-bound)
