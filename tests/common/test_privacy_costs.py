"""What records and runs cost, and what an agreement under [privacy.dp] must not ask."""

from __future__ import annotations

import math

import numpy as np
import pytest

from hansa_common import messages
from hansa_common.agreement import validate_agreement
from hansa_common.errors import AgreementError, PolicyError
from hansa_common.messages import (
    CandidateOrder,
    DeliverOrder,
    EvaluateOrder,
    IntroduceOrder,
    RangesOrder,
    RoundOrder,
    StatisticsOrder,
)
from hansa_common.privacy import Gaussian, SampledGaussian, epsilon
from hansa_common.privacy_costs import check_affordable, cost_of, run_cost, run_epsilon
from hansa_common.record_types import Order, Record, Reply

HEADER = {
    "run_id": "run",
    "sequence": 1,
    "recipient": "north",
    "fingerprint": "0" * 64,
    "deadline_seconds": 10.0,
}
NO_WEIGHTS = np.zeros(0, np.float32)
DP = {"epsilon": 8, "noise_multiplier": 2.0, "sampling_rate": 0.1}


def agreement_with(dp=None, **changes):
    values = {
        "task": "purchase",
        "label": {"column": "buys"},
        "features": [
            {"kind": "numeric", "name": "amount", "low": 0, "high": 100},
            {"kind": "boolean", "name": "member"},
        ],
        "training": {"algorithm": "fedavg", "rounds": 5, "plan": {"local_steps": 7}},
        "privacy": {} if dp is None else {"dp": dp},
    }
    return validate_agreement({**values, **changes}, "the test")


def round_order(**changes):
    fields = {"round": 1, "plan": 0, "cohort": ("north",), "preprocessing": "", "included": ""}
    return RoundOrder(**HEADER, **{**fields, "weights": NO_WEIGHTS, "control": NO_WEIGHTS, **changes})


def test_every_kind_of_record_declares_what_of_rows_it_is_about() -> None:
    kinds = {kind: cls for kind, cls in messages._KINDS.items() if "RELEASE" not in vars(cls)}
    assert not kinds


def test_order_of_a_kind_that_declares_no_cost_is_refused() -> None:
    class GossipOrder(Order):
        KIND = "gossip"

    for agreement in (agreement_with(), agreement_with(DP)):
        with pytest.raises(PolicyError, match="'gossip' order declares no cost"):
            cost_of(GossipOrder(**HEADER), agreement)


def test_cost_of_each_order_is_that_of_its_mechanism() -> None:
    agreement = agreement_with({**DP, "statistics_noise_multiplier": 12.0, "evaluation_noise_multiplier": 9.0})
    evaluate = EvaluateOrder(**HEADER, split="test", preprocessing="", weights=NO_WEIGHTS)
    assert cost_of(round_order(), agreement).mechanisms == (SampledGaussian(2.0, 0.1, 7),)
    assert cost_of(StatisticsOrder(**HEADER), agreement).mechanisms == (Gaussian(12.0),)
    assert cost_of(evaluate, agreement).mechanisms == (Gaussian(9.0),)
    assert cost_of(IntroduceOrder(**{**HEADER, "sequence": 0}), agreement).mechanisms == ()
    assert cost_of(DeliverOrder(**HEADER, bundle=np.zeros(0, np.uint8)), agreement).mechanisms == ()


def test_what_does_not_leave_costs_nothing() -> None:
    evaluate = EvaluateOrder(**HEADER, split="validation", preprocessing="", weights=NO_WEIGHTS)
    assert cost_of(evaluate, agreement_with(DP)).mechanisms == ()
    no_numbers = agreement_with(DP, features=[{"kind": "boolean", "name": "member"}])
    assert cost_of(StatisticsOrder(**HEADER), no_numbers).mechanisms == ()
    by_domains = agreement_with({**DP, "statistics": "domains"})
    assert cost_of(StatisticsOrder(**HEADER), by_domains).mechanisms == ()
    assert run_cost(by_domains).mechanisms == (SampledGaussian(2.0, 0.1, 7),) * 5


@pytest.mark.parametrize(
    "order",
    [
        RangesOrder(**HEADER, preprocessing="", weights=NO_WEIGHTS),
        CandidateOrder(
            **HEADER, split="test", preprocessing="", weights=NO_WEIGHTS, network=np.zeros(0, np.uint8)
        ),
    ],
)  # fmt: skip
def test_order_whose_answer_has_no_noise_is_refused_under_dp(order: Order) -> None:
    with pytest.raises(PolicyError, match="has no noise"):
        cost_of(order, agreement_with(DP))


def test_without_dp_whatever_is_about_rows_has_no_bound() -> None:
    agreement = agreement_with()
    assert math.isinf(epsilon(cost_of(round_order(), agreement).mechanisms, 1e-5))
    assert math.isinf(epsilon(cost_of(StatisticsOrder(**HEADER), agreement).mechanisms, 1e-5))


def test_a_run_costs_what_its_orders_do_together() -> None:
    agreement = agreement_with({**DP, "evaluation_noise_multiplier": 9.0})
    evaluate = EvaluateOrder(**HEADER, split="test", preprocessing="", weights=NO_WEIGHTS)
    orders = [StatisticsOrder(**HEADER), *(round_order(round=number) for number in range(1, 6)), evaluate]
    together = [mechanism for order in orders for mechanism in cost_of(order, agreement).mechanisms]
    assert epsilon(together, 1e-5) == epsilon(run_cost(agreement).mechanisms, 1e-5) == run_epsilon(agreement)


def test_run_that_costs_more_than_promised_is_refused_with_the_noise_that_would_hold() -> None:
    promised = {**DP, "epsilon": 1, "noise_multiplier": 0.8}
    with pytest.raises(AgreementError, match=r"promises epsilon 1 .* set noise_multiplier = ") as refused:
        check_affordable(agreement_with(promised))
    enough = float(str(refused.value).split("set noise_multiplier = ")[1].split(",")[0])
    check_affordable(agreement_with({**promised, "noise_multiplier": enough}))
    with pytest.raises(AgreementError):
        check_affordable(agreement_with({**promised, "noise_multiplier": enough - 0.002}))


def test_statistics_that_alone_cost_more_are_told_as_such() -> None:
    with pytest.raises(AgreementError, match="statistics and evaluation alone cost more"):
        check_affordable(agreement_with({**DP, "epsilon": 0.5, "statistics_noise_multiplier": 1.0}))


def test_agreement_without_dp_promises_nothing_and_is_affordable() -> None:
    check_affordable(agreement_with())


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"training": {"algorithm": "fedavg", "rounds": 5}}, "needs training.plan.local_steps"),
        ({"model": {"dropout": 0.2}}, "refuses model.dropout 0.2"),
        ({"model": {"precision": "mixed_bfloat16"}}, "refuses model.precision"),
        ({"compression": {"format": "int8"}}, "refuses compression.format 'int8'"),
        ({"privacy": {"dp": DP, "share_metrics": True}}, "refuses privacy.share_metrics"),
        (
            {"privacy": {"dp": {**DP, "entity_column": "card"}}, "data": {"duplicates": "remove"}},
            "refuses data.duplicates",
        ),
        ({"privacy": {"dp": {**DP, "entity_column": "buys"}}}, "is the label"),
        ({"privacy": {"dp": {**DP, "max_rows_per_entity": 3}}}, "needs entity_column"),
        (
            {
                "training": {
                    "algorithm": "auto",
                    "rounds": 8,
                    "candidates": [
                        {"local_steps": 3, "optimizer": "sgd"},
                        {"local_steps": 3, "optimizer": "sgd", "learning_rate": 0.2},
                    ],
                }
            },
            "refuses algorithm = 'auto'",
        ),
    ],
)
def test_agreement_that_could_not_keep_its_promise_is_refused_in_one_line(changes, problem: str) -> None:
    with pytest.raises(AgreementError, match=problem.replace("[", r"\[")) as refused:
        agreement_with(DP, **changes)
    assert len(str(refused.value).splitlines()) == 2


def test_dropout_is_no_default_where_it_is_refused() -> None:
    assert agreement_with().model.dropout == 0.3
    assert agreement_with(DP).model.dropout == 0.0


def test_every_record_is_an_order_or_a_reply() -> None:
    assert all(issubclass(cls, Order | Reply) and issubclass(cls, Record) for cls in messages._KINDS.values())
