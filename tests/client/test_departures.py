"""The last look: one record of the kind that was asked for leaves, and nothing below a floor."""

from __future__ import annotations

from typing import get_args

import numpy as np
import pytest

from hansa_client.departures import REPLY_KINDS, check_departure
from hansa_common import messages
from hansa_common.agreement import validate_agreement
from hansa_common.errors import HansaError, MerchantError, MessageError
from hansa_common.messages import (
    CandidateOrder,
    CandidateReply,
    EvaluateOrder,
    EvaluateReply,
    Introduction,
    RangesOrder,
    RangesReply,
    Refusal,
    RoundOrder,
    RoundReply,
    SharedMetrics,
    StatisticsOrder,
    StatisticsReply,
    encode,
)
from hansa_common.metrics import HISTOGRAM_LENGTH
from hansa_common.record_types import Order, Reply
from hansa_common.secure_messages import MaskedReply, Masking

AGREED = validate_agreement(
    {
        "task": "fraud",
        "label": {"column": "fraud"},
        "features": [
            {"kind": "numeric", "name": "amount", "low": 0, "high": 1},
            {"kind": "numeric", "name": "age", "low": 0, "high": 9, "scaling": "quantile", "bins": 8},
            {"kind": "categorical", "name": "country", "vocabulary": ["NO", "DE"]},
        ],
        "privacy": {"min_count": 5, "min_positives": 3},
        "roster": ["alder", "birch"],
    },
    "the test",
)
HEAD = {"merchant": "alder", "order_hash": "a" * 64}
NONE = np.zeros(0, np.float32)
STATISTICS = [90, 40, 80, 2**27, 2**26, *[10] * 8, 60, 5]


SUMMED = 2
NO_SUMS = StatisticsReply(**HEAD, statistics=np.array([90, 40, 0, 0, 0, *[10] * 8, 60, 5]), num_train_rows=90)


def histogram(negatives: int, positives: int):
    counts = np.zeros(HISTOGRAM_LENGTH, np.int64)
    counts[0], counts[-1] = negatives, positives
    return counts


def checked(kind: type[Order], reply) -> Reply:
    message = reply if isinstance(reply, bytes) else encode(reply)
    return check_departure(message, kind.model_construct(), "a" * 64, "alder", AGREED)


def statistics_with(place: int, count: int) -> StatisticsReply:
    vector = np.array(STATISTICS)
    vector[place] = count
    return StatisticsReply(**HEAD, statistics=vector, num_train_rows=90)


def test_every_order_has_one_kind_of_reply_and_every_reply_an_order():
    kinds = messages._KINDS.values()
    assert set(REPLY_KINDS) == {kind for kind in kinds if issubclass(kind, Order)}
    assert {*REPLY_KINDS.values(), MaskedReply, Refusal} == {kind for kind in kinds if issubclass(kind, Reply)}


@pytest.mark.parametrize("kind", [RoundOrder, EvaluateOrder, StatisticsOrder])
def test_what_leaves_for_a_masked_order_is_masked_and_for_another_is_not(kind):
    masked = MaskedReply(**HEAD, vector=np.zeros(2, np.uint32), keys=np.zeros(0, np.uint8))
    asked = kind.model_construct(masking=Masking(sum=1, next_sum=0))
    assert isinstance(check_departure(encode(masked), asked, "a" * 64, "alder", AGREED), MaskedReply)
    with pytest.raises(MerchantError, match=r"what leaves for it is a masked-reply"):
        check_departure(encode(statistics_with(0, 90)), asked, "a" * 64, "alder", AGREED)
    with pytest.raises(MerchantError, match=r"a masked-reply was to leave"):
        checked(kind, masked)


def test_no_reply_has_a_place_for_free_text():
    """Numbers, hashes, words from a list, and in an introduction the names of versions and devices: no more leaves."""
    free = {
        (kind.KIND, name)
        for kind in (*REPLY_KINDS.values(), Refusal)
        for name, info in kind.model_fields.items()
        if info.annotation is str and not any(getattr(m, "pattern", "").endswith("{64}$") for m in info.metadata)
    }
    introduced = {("introduction", name) for name in ("hansa_version", "backend", "device")}
    assert free - introduced == {(kind.KIND, "merchant") for kind in (*REPLY_KINDS.values(), Refusal)}
    assert all(code.islower() and code.replace("-", "").isalpha() for code in get_args(
        Refusal.model_fields["code"].annotation
    ))  # fmt: skip


def test_right_reply_and_a_refusal_may_leave():
    reply = statistics_with(0, 90)
    assert isinstance(checked(StatisticsOrder, reply), StatisticsReply)
    refusal = Refusal(**HEAD, code="deadline")
    assert checked(StatisticsOrder, refusal) == refusal


@pytest.mark.parametrize("kind", [RoundOrder, EvaluateOrder])
def test_reply_of_another_kind_does_not_leave(kind):
    with pytest.raises(MerchantError, match=r"statistics-reply was to leave for a"):
        checked(kind, statistics_with(0, 90))


@pytest.mark.parametrize("changes", [{"merchant": "birch"}, {"order_hash": "b" * 64}])
def test_reply_in_another_name_or_to_another_order_does_not_leave(changes):
    introduction = Introduction(**{**HEAD, **changes}, hansa_version="1", backend="b", device="d")
    with pytest.raises(MerchantError, match="in the name of"):
        checked(messages.IntroduceOrder, introduction)


@pytest.mark.parametrize("message", [b"", b"Traceback", encode(statistics_with(0, 90)) + b"row"])
def test_bytes_that_are_not_one_whole_record_do_not_leave(message):
    with pytest.raises(MessageError):
        checked(StatisticsOrder, message)


def scored(field: str, counts):
    nothing = histogram(0, 0)
    match field:
        case "round":
            head = {**HEAD, "round": 1, "num_examples": 9, "update": NONE, "control_delta": NONE, "train_loss": 0.1}
            return RoundOrder, RoundReply(**head, validation=counts)
        case "evaluation":
            return EvaluateOrder, EvaluateReply(**HEAD, histogram=counts, metrics=None)
        case "original":
            return CandidateOrder, CandidateReply(**HEAD, histogram=counts, candidate=nothing, acceptable=True)
    return CandidateOrder, CandidateReply(**HEAD, histogram=nothing, candidate=counts, acceptable=True)


@pytest.mark.parametrize("field", ["round", "evaluation", "original", "candidate"])
def test_histogram_of_fewer_positives_than_the_floor_does_not_leave(field):
    for allowed in (histogram(0, 0), histogram(50, 3), histogram(0, 3)):
        checked(*scored(field, allowed))
    for counts in (histogram(50, 2), histogram(50, 0), histogram(0, 1), histogram(-50, 3)):
        with pytest.raises(MerchantError, match="min_positives is 3"):
            checked(*scored(field, counts))


@pytest.mark.parametrize("place", [0, 1, 2, 5, 12, 13, 14])
def test_count_below_the_floor_does_not_leave(place):
    for allowed in (0, 5):
        checked(StatisticsOrder, statistics_with(place, allowed) if place != SUMMED or allowed else NO_SUMS)
    for count in (1, 4, -7):
        with pytest.raises(HansaError, match=r"1 counts below privacy\.min_count = 5"):
            checked(StatisticsOrder, statistics_with(place, count))


@pytest.mark.parametrize("place", [3, 4])
def test_sums_are_no_counts(place):
    checked(StatisticsOrder, statistics_with(place, 3))


def test_sums_beside_a_count_that_is_withheld_do_not_leave():
    checked(StatisticsOrder, NO_SUMS)
    with pytest.raises(MerchantError, match="sums of feature 'amount'"):
        checked(StatisticsOrder, statistics_with(SUMMED, 0))


def test_activations_that_fewer_rows_than_the_floor_reach_do_not_leave():
    checked(RangesOrder, RangesReply(**HEAD, histograms=np.array([0, 5, 900])))
    for count in (1, 4, -7):
        with pytest.raises(MerchantError, match=r"1 counts below privacy\.min_count = 5"):
            checked(RangesOrder, RangesReply(**HEAD, histograms=np.array([0, count, 900])))


def test_own_figures_do_not_leave_unless_the_agreement_shares_them():
    figures = SharedMetrics(num_test_rows=53, roc_auc=0.5, pr_auc=0.5)
    with pytest.raises(MerchantError, match="share_metrics is false"):
        checked(EvaluateOrder, EvaluateReply(**HEAD, histogram=histogram(50, 3), metrics=figures))
