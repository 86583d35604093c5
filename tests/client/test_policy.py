"""A merchant answers orders under the agreement it approved, addressed to it, and no others."""

from __future__ import annotations

import numpy as np
import pytest

from hansa_client.policy import Policy
from hansa_common.agreement import Agreement, validate_agreement
from hansa_common.errors import AgreementMismatchError, PolicyError
from hansa_common.messages import EvaluateOrder, IntroduceOrder, RoundOrder, StatisticsOrder
from hansa_common.record_types import Order

WEIGHTS = np.zeros(3, np.float32)
ROSTER = ("alpha", "beta", "gamma")


def agreement(**changes) -> Agreement:
    values = {
        "task": "fraud",
        "label": {"column": "fraud"},
        "features": [{"kind": "numeric", "name": "amount", "low": 0, "high": 1}],
        "cohort": {"min_merchants": 2},
        "roster": list(ROSTER),
    }
    return validate_agreement({**values, **changes}, "the test")


APPROVED = agreement()


def order(kind: type[Order], **changes) -> Order:
    values = {"run_id": "r", "recipient": "alpha", "fingerprint": APPROVED.fingerprint, "deadline_seconds": 5}
    if kind is not IntroduceOrder:
        values |= {"sequence": 1}
    if kind is RoundOrder:
        values |= {"round": 1, "plan": 0, "cohort": ROSTER, "control": WEIGHTS[:0], "included": ""}
    if kind is EvaluateOrder:
        values |= {"split": "test"}
    if kind in (RoundOrder, EvaluateOrder):
        values |= {"weights": WEIGHTS, "preprocessing": ""}
    return kind.model_validate({**values, **changes})


KINDS = (IntroduceOrder, StatisticsOrder, RoundOrder, EvaluateOrder)
policy = Policy(APPROVED, "alpha")


@pytest.mark.parametrize("kind", KINDS)
def test_approved_order_to_this_merchant_is_permitted(kind):
    policy.verify(order(kind))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("other", [agreement(seed=1), agreement(privacy={"min_count": 1}), agreement(roster=[])])
def test_order_under_any_other_agreement_is_refused(kind, other):
    with pytest.raises(AgreementMismatchError, match=APPROVED.fingerprint):
        policy.verify(order(kind, fingerprint=other.fingerprint))


@pytest.mark.parametrize("kind", KINDS)
def test_order_for_another_merchant_is_refused(kind):
    with pytest.raises(PolicyError, match="'beta'"):
        policy.verify(order(kind, recipient="beta"))


def test_only_an_introduction_is_for_everyone():
    policy.verify(order(IntroduceOrder, recipient="*"))
    for kind in KINDS[1:]:
        with pytest.raises(PolicyError, match="is for"):
            policy.verify(order(kind, recipient="*"))


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"plan": 1}, "plan 1"),
        ({"cohort": ("alpha",)}, "at least 2"),
        ({"cohort": ()}, "must name"),
        ({"cohort": ("beta", "gamma")}, "must name"),
        ({"cohort": ("alpha", "alpha")}, "once"),
        ({"cohort": ("alpha", "mallory")}, "mallory"),
    ],
)
def test_round_outside_the_agreement_is_refused(changes, reason):
    with pytest.raises(PolicyError, match=reason):
        policy.verify(order(RoundOrder, **changes))


def test_agreement_without_a_roster_lets_any_cohort_of_its_size_be():
    approved = agreement(roster=[])
    Policy(approved, "alpha").verify(order(RoundOrder, fingerprint=approved.fingerprint, cohort=("alpha", "zeta")))
