"""What the coordinator believes: the checks that a reply's content passes before any of it is used.

A check returns None or raises ReplyError with a short reason; the round goes on without that reply. That the
reply answers its order, in its merchant's name, is exchange.py's. What no check here can find: an update within
all bounds that was made up.

reason              the reply
wrong-kind          is of another kind than the order asks for
wrong-round         is for another round
num-examples        counts other training rows than the merchant registered, or more than agreed
wrong-length        has a vector of another length than the model's, the statistics' or the histogram's
not-finite          holds NaN or infinity
norm                is longer than agreed, or changes a variate by more than such an update can
statistics          holds statistics that no rows can have
histogram           holds a histogram that no rows of that merchant can have
metrics             holds own figures that are no figures
ledger-went-back    is of a merchant that is left out for its privacy ledger (participants.py)
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal

import numpy as np

from hansa_common import noised_histograms
from hansa_common.agreement import Agreement
from hansa_common.agreement_sections import Data
from hansa_common.errors import ReplyError
from hansa_common.messages import EvaluateReply, RoundReply, StatisticsReply
from hansa_common.metrics import Histogram, check_histogram
from hansa_common.noised_statistics import check_noised
from hansa_common.privacy_agreement import DifferentialPrivacy
from hansa_common.record_types import Reply
from hansa_common.statistics import check_statistics, statistics_length
from hansa_common.vectors import Vector, l2_norm

Split = Literal["validation", "test"]

# A float32 norm, computed at another place in another order, may differ in its last digits.
_ROUNDING: Final = 1.0 + 1e-4


@dataclass(frozen=True)
class RoundBounds:
    """What a reply of one merchant in one round may be. Empty control: the algorithm has no variates."""

    round: int
    num_train_rows: int
    max_validation_rows: int
    max_update_norm: float
    num_params: int
    num_control_params: int
    max_control_norm: float


def check_round_reply(reply: Reply, bounds: RoundBounds) -> RoundReply:
    """Take a reply to a RoundOrder.

    Raises:
        ReplyError: wrong-kind, wrong-round, num-examples, wrong-length, not-finite, norm, histogram.
    """
    if not isinstance(reply, RoundReply):
        raise ReplyError("wrong-kind", f"a round was asked for, {reply.KIND} came")
    if reply.round != bounds.round:
        raise ReplyError("wrong-round", f"round {bounds.round} was asked for, {reply.round} came")
    if reply.num_examples != bounds.num_train_rows:
        raise ReplyError("num-examples", f"{reply.num_examples} training rows, {bounds.num_train_rows} were registered")
    _check_vector("update", reply.update, bounds.num_params, bounds.max_update_norm)
    _check_vector("control_delta", reply.control_delta, bounds.num_control_params, bounds.max_control_norm)
    check_histogram_of(reply.validation, bounds.max_validation_rows)
    return reply


def check_statistics_reply(reply: Reply, agreement: Agreement) -> StatisticsReply:
    """Take a reply to a StatisticsOrder.

    Raises:
        ReplyError: wrong-kind, num-examples, wrong-length, statistics.
    """
    if not isinstance(reply, StatisticsReply):
        raise ReplyError("wrong-kind", f"statistics were asked for, {reply.KIND} came")
    if reply.num_train_rows > agreement.cohort.max_examples:
        raise ReplyError(
            "num-examples", f"{reply.num_train_rows} training rows, allowed are {agreement.cohort.max_examples}"
        )
    expected = statistics_length(agreement)
    if len(reply.statistics) != expected:
        raise ReplyError("wrong-length", f"{len(reply.statistics)} statistics, the agreement has {expected}")
    try:
        if agreement.privacy.dp is None:
            check_statistics(agreement, reply.statistics, reply.num_train_rows)
        else:
            check_noised(agreement, agreement.privacy.dp, reply.statistics, reply.num_train_rows)
    except ValueError as error:
        raise ReplyError("statistics", str(error)) from None
    return reply


def check_evaluate_reply(reply: Reply, max_rows: int, dp: DifferentialPrivacy | None = None) -> EvaluateReply:
    """Take a reply to an EvaluateOrder; max_rows is how many rows the merchant can have in that part.

    Raises:
        ReplyError: wrong-kind, wrong-length, histogram, metrics.
    """
    if not isinstance(reply, EvaluateReply):
        raise ReplyError("wrong-kind", f"an evaluation was asked for, {reply.KIND} came")
    if dp is None:
        check_histogram_of(reply.histogram, max_rows)
    else:
        _check_noised_histogram(reply.histogram, dp, max_rows)
    own = reply.metrics
    if own is not None and not (1 <= own.num_test_rows <= max_rows and 0 <= own.roc_auc <= 1 and 0 <= own.pr_auc <= 1):
        raise ReplyError("metrics", f"own figures {own!r} are not possible with at most {max_rows} rows")
    return reply


def max_control_norm(control_norm: float, max_update_norm: float, learning_rate: float) -> float:
    """The longest change of a SCAFFOLD variate that an update within its bound can make.

    By option II of Karimireddy et al. (2020) it is -c - update / (K * learning_rate) with K >= 1 local steps.

    >>> max_control_norm(control_norm=2.0, max_update_norm=1.0, learning_rate=0.1)
    12.0
    """
    return control_norm + max_update_norm / learning_rate


def max_split_rows(data: Data, split: Split, num_train_rows: int, max_examples: int) -> int:
    """The most rows of a part that a merchant with that many training rows can have under the agreed split.

    Shares leave no more than this to the part, rounding and the one row that each class has everywhere included;
    a split at fixed moments leaves what it leaves, so that only max_examples bounds it.

    >>> max_split_rows(Data(test_share=0.2, validation_share=0.1), "test", num_train_rows=700, max_examples=10**6)
    203
    """
    if data.test_from is not None:
        return max_examples
    share = data.test_share if split == "test" else data.validation_share
    # Each class's parts are rounded by themselves: two rows of each may be missing from the training rows.
    num_rows = (num_train_rows + 4) / (1.0 - data.test_share - data.validation_share)
    return min(max_examples, int(num_rows * share) + 2)


def _check_vector(name: str, vector: Vector, num_params: int, max_norm: float) -> None:
    if len(vector) != num_params:
        raise ReplyError("wrong-length", f"{name} has {len(vector)} numbers, expected are {num_params}")
    norm = l2_norm(vector)
    # float32 numbers have a finite norm in float64, so this finds each that is not finite.
    if not np.isfinite(norm):
        raise ReplyError("not-finite", f"{name} holds a number that is not finite")
    if norm > max_norm * _ROUNDING:
        raise ReplyError("norm", f"{name} has norm {norm:.4g}, allowed is {max_norm:.4g}")


def _check_noised_histogram(histogram: Histogram, dp: DifferentialPrivacy, max_rows: int) -> None:
    try:
        noised_histograms.check_noised(histogram, dp, max_rows)
    except ValueError as error:
        raise ReplyError("histogram", str(error)) from None


def check_histogram_of(histogram: Histogram, max_rows: int) -> None:
    """See that a score histogram is one of at most max_rows rows.

    Raises:
        ReplyError: histogram.
    """
    try:
        check_histogram(histogram, max_rows)
    except ValueError as error:
        raise ReplyError("histogram", str(error)) from None
