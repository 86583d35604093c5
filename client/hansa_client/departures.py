"""The last look at what leaves a merchant: one record of the kind that was asked for, and nothing below a floor.

A reply is a record whose fields are all that there is, so no text of an exception, no path and no row has a place in
it. This looks at the finished bytes once more, whoever made them:

- they are one whole record, the reply to this order in this merchant's name, of the kind that belongs to the order,
  and masked where the order asks for that: what is in a masked vector was looked at before it was masked;
- a score histogram is all zero or has at least `min_positives` positives; a count of the statistics or of activations
  is 0 or at least `min_count`, and beside a count that is withheld there are no sums;
- own figures leave only with `share_metrics`.

Under [privacy.dp] floors have no place, and what has no noise does not leave: a round's histogram and loss are zero, so
is a histogram of an evaluation unless noise for it was agreed on, and counts are where noise is added, nowhere else.
Where noise is shared, an update leaves in a masked vector alone.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

import numpy as np

from hansa_common import noised_histograms, noised_statistics, statistics
from hansa_common.agreement import Agreement
from hansa_common.errors import MerchantError
from hansa_common.messages import (
    CandidateOrder,
    CandidateReply,
    Delivered,
    DeliverOrder,
    EvaluateOrder,
    EvaluateReply,
    IntroduceOrder,
    Introduction,
    RangesOrder,
    RangesReply,
    Refusal,
    RoundOrder,
    RoundReply,
    StatisticsOrder,
    StatisticsReply,
    decode,
)
from hansa_common.metrics import NUM_BINS, Histogram
from hansa_common.privacy_agreement import DifferentialPrivacy
from hansa_common.record_types import MAX_ROWS, Order, Reply
from hansa_common.schema import NumericFeature
from hansa_common.secure_messages import KeysOrder, KeysReply, MaskedReply, UnmaskOrder, UnmaskReply, is_masked
from hansa_common.shared_noise import is_shared
from hansa_common.statistics import Statistics

REPLY_KINDS: Final[dict[type[Order], type[Reply]]] = {
    IntroduceOrder: Introduction,
    StatisticsOrder: StatisticsReply,
    RoundOrder: RoundReply,
    EvaluateOrder: EvaluateReply,
    RangesOrder: RangesReply,
    CandidateOrder: CandidateReply,
    DeliverOrder: Delivered,
    KeysOrder: KeysReply,
    UnmaskOrder: UnmaskReply,
}


def check_departure(message: bytes, order: Order, order_hash: str, merchant: str, agreement: Agreement) -> Reply:
    """The reply in these bytes, if it may leave.

    Raises:
        MessageError: it is not one whole record.
        MerchantError: it is not the reply to this order, or holds what is below a floor.
    """
    reply = decode(message)
    expected = MaskedReply if is_masked(order) else REPLY_KINDS[type(order)]
    if not isinstance(reply, expected | Refusal):
        raise MerchantError(f"a {reply.KIND} was to leave for a {order.KIND}; what leaves for it is a {expected.KIND}")
    if reply.ledger:
        raise MerchantError(f"a {reply.KIND} was to leave that tells of the ledger; that is for the boundary to say")
    if (reply.merchant, reply.order_hash) != (merchant, order_hash):
        raise MerchantError(f"a {reply.KIND} was to leave in the name of {reply.merchant!r}, or for another order")
    if isinstance(reply, RoundReply) and is_shared(agreement):
        raise MerchantError("an update was to leave in the clear, whose noise is only in a masked sum")
    check_contents(reply, agreement)
    return reply


def check_contents(reply: Reply, agreement: Agreement) -> None:
    """See that a reply holds nothing below a floor. Of a masked vector that is to be seen before it is masked.

    Raises:
        MerchantError: it does.
    """
    if agreement.privacy.dp is not None:
        _check_private(reply, agreement, agreement.privacy.dp)
        return
    for name, histogram in _histograms(reply):
        # A number below 0 is no count, and would hide in a sum.
        positives = int(histogram[NUM_BINS:].clip(min=0).sum())
        if (histogram < 0).any() or (histogram.any() and positives < agreement.privacy.min_positives):
            least = agreement.privacy.min_positives
            raise MerchantError(f"a {name} of {positives} positives was to leave; privacy.min_positives is {least}")
    match reply:
        case StatisticsReply():
            _check_floor(_counts(reply, agreement), agreement)
        case RangesReply():
            _check_floor(reply.histograms, agreement)
        case EvaluateReply() if reply.metrics is not None and not agreement.privacy.share_metrics:
            raise MerchantError("own figures were to leave; privacy.share_metrics is false")


def _check_private(reply: Reply, agreement: Agreement, dp: DifferentialPrivacy) -> None:
    """See that nothing leaves as it was counted."""
    try:
        match reply:
            case StatisticsReply():
                noised_statistics.check_noised(agreement, dp, reply.statistics, reply.num_train_rows)
            case EvaluateReply():
                noised_histograms.check_noised(reply.histogram, dp, MAX_ROWS)
    except ValueError as error:
        raise MerchantError(f"what has no noise was to leave under [privacy.dp]: {error}") from None
    match reply:
        case RoundReply() if reply.train_loss or reply.validation.any():
            raise MerchantError("a round's loss or histogram was to leave under [privacy.dp], and has no noise")
        case EvaluateReply() if reply.metrics is not None:
            raise MerchantError("own figures were to leave under [privacy.dp], and have no noise")
        case RangesReply() | CandidateReply():
            raise MerchantError(f"a {reply.KIND} was to leave under [privacy.dp], and has no noise")


def _histograms(reply: Reply) -> Iterator[tuple[str, Histogram]]:
    match reply:
        case RoundReply():
            yield "validation", reply.validation
        case EvaluateReply():
            yield "histogram", reply.histogram
        case CandidateReply():
            yield "histogram", reply.histogram
            yield "candidate", reply.candidate


def _counts(reply: StatisticsReply, agreement: Agreement) -> Statistics:
    """Whatever counts rows in it; sums do not."""
    counts = [reply.statistics[: statistics.NUM_ROW_COUNTS]]
    for feature, part in statistics.parts(agreement.features, reply.statistics):
        are_sums = isinstance(feature, NumericFeature) and feature.scaling != "quantile"
        # Of sums, the first is the count that they stand on.
        if are_sums and not part[0] and part.any():
            raise MerchantError(f"sums of feature {feature.name!r} were to leave beside a count that is withheld")
        counts.append(part[:1] if are_sums else part)
    return np.concatenate(counts)


def _check_floor(counts: Statistics, agreement: Agreement) -> None:
    least = agreement.privacy.min_count
    num_below = np.count_nonzero(counts[counts < least])
    if num_below:
        raise MerchantError(f"{num_below} counts below privacy.min_count = {least} were to leave")
