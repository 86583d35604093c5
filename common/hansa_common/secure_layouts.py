"""What the vector of each masked sum holds under an agreement, the same at every merchant and at the coordinator.

sum          holds
statistics   how many training rows there are, then the statistics (statistics.py)
a round      the update, the loss, how many rows, and the validation histogram (round_vector.py)
evaluation   the score histogram (metrics.py)

Under [privacy.dp] they have noise in them, and so are below zero at times; their bounds are those of check_noised.
"""

from __future__ import annotations

from hansa_common import noised_histograms, noised_statistics
from hansa_common.agreement import Agreement
from hansa_common.integer_vector import IntegerVector
from hansa_common.metrics import HISTOGRAM_LENGTH
from hansa_common.round_vector import RoundVector
from hansa_common.secure_agreement import fixed_point_of
from hansa_common.statistics import SCALE, statistics_length


def statistics_layout(agreement: Agreement) -> IntegerVector:
    """Of one number more than the statistics have."""
    length, most = 1 + statistics_length(agreement), SCALE * agreement.cohort.max_examples
    dp, num_merchants = agreement.privacy.dp, len(agreement.roster)
    if dp is None:
        return IntegerVector(length, most, num_merchants)
    bound = noised_statistics.most_noised(agreement, dp, agreement.cohort.max_examples)
    return IntegerVector(length, bound, num_merchants, min_value=-bound)


def round_layout(agreement: Agreement, num_params: int) -> RoundVector:
    """Of a round of a model with that many parameters."""
    return RoundVector(fixed_point_of(agreement), num_params, HISTOGRAM_LENGTH, agreement.cohort.max_examples)


def evaluation_layout(agreement: Agreement) -> IntegerVector:
    """Of a score histogram."""
    dp, num_merchants = agreement.privacy.dp, len(agreement.roster)
    if dp is None:
        return IntegerVector(HISTOGRAM_LENGTH, agreement.cohort.max_examples, num_merchants)
    bound = noised_histograms.most_noised(dp, agreement.cohort.max_examples)
    return IntegerVector(HISTOGRAM_LENGTH, bound, num_merchants, min_value=-bound)
