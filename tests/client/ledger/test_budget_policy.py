"""max_epsilon and delta of merchant.toml: what they refuse, and what is told of that at the start."""

from __future__ import annotations

from datetime import time

import numpy as np
import pytest

from hansa_client.ledger_account import Limit
from hansa_client.merchant_policy import parse_policy
from hansa_common.agreement import validate_agreement
from hansa_common.errors import PolicyError, UsageError
from hansa_common.messages import DeliverOrder, EvaluateOrder, IntroduceOrder, RoundOrder, StatisticsOrder
from hansa_common.privacy import epsilon
from hansa_common.privacy_costs import run_cost

NOON = time(12)
FLOATS = np.zeros(0, np.float32)
HEADER = {"run_id": "r", "sequence": 1, "recipient": "a", "fingerprint": "0" * 64, "deadline_seconds": 5}
SCORED = {"preprocessing": "", "weights": FLOATS}
ABOUT_ROWS = [
    StatisticsOrder(**HEADER),
    RoundOrder(**HEADER, **SCORED, round=1, plan=0, cohort=("a", "b"), control=FLOATS, included=""),
    EvaluateOrder(**HEADER, **SCORED, split="test"),
]
OTHERS = [IntroduceOrder(**{**HEADER, "sequence": 0}), DeliverOrder(**HEADER, bundle=np.zeros(0, np.uint8))]


def agreement(dp=None):
    plan = {"optimizer": "sgd", **({} if dp is None else {"local_steps": 10})}
    return validate_agreement(
        {
            "task": "fraud",
            "label": {"column": "fraud"},
            "features": [{"kind": "numeric", "name": "amount", "low": 0, "high": 1}],
            "training": {"algorithm": "fedavg", "rounds": 5, "plan": plan},
            "privacy": {"dp": dp},
        },
        "the test",
    )


PRIVATE = agreement({"epsilon": 50, "delta": 1e-5, "noise_multiplier": 1.0, "sampling_rate": 0.1})
RUN = epsilon(run_cost(PRIVATE).mechanisms, 1e-6)


def policy(toml: str = "max_epsilon = 4\ndelta = 1e-6"):
    return parse_policy(toml.encode(), "the test")


def test_both_keys_make_a_limit_at_that_delta():
    assert policy().limit == Limit(4.0, 1e-6, "merchant.toml has max_epsilon = 4.0")
    assert policy("").limit is None


@pytest.mark.parametrize("order", ABOUT_ROWS, ids=lambda order: order.KIND)
def test_budget_refuses_whatever_is_about_rows_and_has_no_noise(order):
    with pytest.raises(PolicyError, match=rf"the order asks for .* {order.KIND}, merchant\.toml has max_epsilon = 4"):
        policy().verify(order, agreement(), NOON)
    policy().verify(order, PRIVATE, NOON)
    policy("").verify(order, agreement(), NOON)


@pytest.mark.parametrize("order", OTHERS, ids=lambda order: order.KIND)
def test_budget_lets_through_what_tells_nothing_of_rows(order):
    policy().verify(order, agreement(), NOON)


def test_agreement_that_the_budget_cannot_hold_is_told_at_the_start():
    (told,) = policy().conflicts(PRIVATE)
    assert (
        told == f"the agreement asks for epsilon {RUN:g} at delta 1e-06 in a run, merchant.toml has max_epsilon = 4.0"
    )
    (told,) = policy().conflicts(agreement())
    assert told.startswith("the agreement asks for what has no noise, and so no epsilon, merchant.toml has max_epsilon")
    assert policy(f"max_epsilon = {RUN}\ndelta = 1e-6").conflicts(PRIVATE) == []
    assert policy("").conflicts(agreement()) == []


@pytest.mark.parametrize(
    ("toml", "told"),
    [
        ("max_epsilon = 4.0", "max_epsilon and delta belong together"),
        ("delta = 1e-5", "max_epsilon and delta belong together"),
        ("max_epsilon = 0.0\ndelta = 1e-5", "max_epsilon: Input should be greater than 0"),
        ("max_epsilon = inf\ndelta = 1e-5", "max_epsilon"),
        ("max_epsilon = 4.0\ndelta = 1.0", "delta: Input should be less than 1"),
        ("max_epsilom = 4.0", "did you mean 'max_epsilon'"),
    ],
)
def test_budget_that_is_none_is_refused_with_its_key(toml, told):
    with pytest.raises(UsageError, match=f"the test does not hold: .*{told}"):
        policy(toml)
