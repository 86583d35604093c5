"""Who may take part in a run: the merchants of the roster, each as one node, with statistics that can be."""

from __future__ import annotations

import numpy as np
import pytest

from hansa_common.errors import RunFailedError
from hansa_common.messages import (
    EvaluateOrder,
    IntroduceOrder,
    Refusal,
    RoundOrder,
    StatisticsOrder,
    encode,
    message_hash,
)
from hansa_server.introduction import SETTLE_SECONDS
from hansa_server.run_events import MerchantsIntroduced, NodeRefused, RoundFinished

ROSTER = ("alpha", "beta", "gamma")


def test_merchants_are_found_by_name_and_kept_in_roster_order(federation):
    run = federation()
    result = run.run()
    assert tuple(merchant.name for merchant in result.merchants) == ROSTER
    assert [merchant.node_id for merchant in result.merchants] == [run.nodes[name] for name in ROSTER]
    assert [merchant.num_train_rows for merchant in result.merchants] == [400] * 3
    assert run.time.waits == []


def test_introductions_go_to_everyone_and_the_rest_to_one_by_name(federation):
    run = federation()
    run.run()
    recipients = {type(order): order.recipient for order in run.shops["beta"].seen}
    assert recipients == {IntroduceOrder: "*", StatisticsOrder: "beta", RoundOrder: "beta", EvaluateOrder: "beta"}
    assert {order.run_id for order in run.shops["beta"].seen} == {"run-1"}


def test_stranger_is_refused_loudly_and_never_gets_a_model(federation, world):
    run = federation()
    stranger = world.Shop("mallory", run.agreement)
    result = run.run({"mallory": stranger})
    assert "mallory" not in result.to_json()["merchants"]
    assert [type(order) for order in stranger.seen] == [IntroduceOrder]
    assert [(event.reason, event.claimed_name) for event in run.of(NodeRefused)] == [("unknown-name", "mallory")]


def test_name_claimed_by_two_nodes_is_nobodys(federation, world):
    run = federation()
    double = world.Shop("beta", run.agreement)
    result = run.run({"double": double})
    assert tuple(merchant.name for merchant in result.merchants) == ("alpha", "gamma")
    for shop in (double, run.shops["beta"]):
        assert {type(order) for order in shop.seen} == {IntroduceOrder}
    assert ("name-claimed-twice", "beta") in [(e.reason, e.claimed_name) for e in run.of(NodeRefused)]
    assert run.time.seconds == pytest.approx(run.agreement.cohort.wait_seconds)


def test_double_that_answers_a_little_later_is_found_too(federation, world):
    run = federation()
    double = world.Shop("beta", run.agreement)
    late = lambda order: world.Delivery(double(order), after=SETTLE_SECONDS / 2)  # noqa: E731
    result = run.run({"double": late})
    assert tuple(merchant.name for merchant in result.merchants) == ("alpha", "gamma")


def test_silent_node_delays_a_full_roster_by_the_settling_time_only(federation):
    run = federation()
    result = run.run({"silent": lambda _: None})
    assert len(result.merchants) == 3
    assert run.time.seconds <= SETTLE_SECONDS + 1.0


def test_merchant_that_restarted_as_another_node_takes_part(federation, world):
    """Its old node still claims the name, until Flower no longer lists it."""
    run = federation()
    old = run.shops["beta"]

    class Leaving(world.PeerGrid):
        def get_node_ids(self):
            gone = self.time.seconds > 10
            return [node for node in self.peers if not (gone and self.peers[node] is old)]

    run.world = type("W", (), {"PeerGrid": Leaving})
    fresh = world.Shop("beta", run.agreement, num_train_rows=400)
    result = run.run({"fresh": fresh})
    assert tuple(merchant.name for merchant in result.merchants) == ROSTER
    assert result.merchants[1].node_id == run.nodes["fresh"]
    assert 10 < run.time.seconds < 15


def test_merchant_under_another_agreement_is_refused_and_the_others_train(federation, world):
    run = federation()

    def mismatched(order):
        return encode(Refusal(merchant="beta", order_hash=message_hash(order), code="agreement-mismatch"))

    result = run.run({"beta": mismatched})
    assert len(result.merchants) == 2
    (refused,) = run.of(NodeRefused)
    assert (refused.node_id, refused.reason, refused.claimed_name) == (run.nodes["beta"], "agreement-mismatch", "beta")
    assert run.of(MerchantsIntroduced)[0].missing == ("beta",)


def test_node_that_is_not_ready_is_asked_again(federation, world):
    run = federation()
    errors = iter([world.Error(code=1), None, None])
    flaky = lambda order: next(errors, None) or run.shops["beta"](order)  # noqa: E731
    result = run.run({"beta": flaky})
    assert len(result.merchants) == 3
    assert 1 < run.time.seconds < 5


def test_too_few_merchants_fail_after_the_wait_and_say_who_is_missing(federation):
    run = federation(cohort={"min_merchants": 3})
    with pytest.raises(RunFailedError, match=r"2 merchants came within 60 seconds.*missing: gamma"):
        run.run({"gamma": lambda _: None})
    assert run.time.seconds == pytest.approx(60)
    assert not run.orders("alpha", StatisticsOrder)


def test_nobody_connected_fails_after_the_wait(federation):
    run = federation()
    with pytest.raises(RunFailedError, match="0 merchants came"):
        run.run(dict.fromkeys(ROSTER))
    assert run.time.seconds == pytest.approx(60)


def test_run_starts_short_handed_when_the_wait_is_over(federation):
    run = federation()
    assert len(run.run({"gamma": lambda _: None}).merchants) == 2
    assert run.of(MerchantsIntroduced)[0].missing == ("gamma",)
    assert not run.of(RoundFinished)[0].dropped


def test_empty_roster_takes_whoever_comes_in_order_of_name(federation):
    run = federation(roster=[])
    run.shops = dict(reversed(run.shops.items()))
    assert tuple(merchant.name for merchant in run.run().merchants) == ROSTER


def test_name_that_no_agreement_could_hold_is_refused_under_an_empty_roster(federation, world):
    run = federation(roster=[])
    hostile = world.Shop("x\u202eenif lla :1 dnuor/..", run.agreement)
    result = run.run({"hostile": hostile})
    assert tuple(merchant.name for merchant in result.merchants) == ROSTER
    (refused,) = run.of(NodeRefused)
    assert refused.reason == "unknown-name"
    assert refused.line.isprintable()


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        ({"statistics": np.zeros(2, np.int64)}, "wrong-length"),
        ({"num_train_rows": 2**20 + 1}, "num-examples"),
        ({"num_train_rows": 399}, "statistics"),
    ],
)
def test_bad_statistics_keep_a_merchant_out_of_the_rounds(federation, world, values, reason):
    run = federation(cohort={"max_examples": 2**20})
    liar = world.changed(run.shops["beta"], lambda _, reply: reply.model_copy(update=values), StatisticsOrder)
    result = run.run({"beta": liar})
    assert tuple(merchant.name for merchant in result.merchants) == ("alpha", "gamma")
    assert not run.orders("beta", RoundOrder)
    assert f"statistics: beta is left out, {reason}" in "\n".join(event.line for event in run.events)


def test_too_few_valid_statistics_fail(federation, world):
    run = federation(cohort={"min_merchants": 3})
    with pytest.raises(RunFailedError, match="2 of 3 merchants sent valid statistics"):
        run.run({"beta": world.changed(run.shops["beta"], lambda _, __: None, StatisticsOrder)})
