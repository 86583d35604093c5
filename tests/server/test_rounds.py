"""A round believes nothing: each attack is dropped with its reason, the honest rest is averaged as if it were not
there, and the bytes do not depend on who was first."""

from __future__ import annotations

import itertools
import logging
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hansa_common.agreement_sections import Data
from hansa_common.messages import EvaluateReply, Refusal, encode, message_hash
from hansa_common.metrics import HISTOGRAM_LENGTH, metrics_from_histogram
from hansa_server.algorithms import initial_state
from hansa_server.exchange import Exchange
from hansa_server.participants import Merchant, Run
from hansa_server.replies import max_split_rows
from hansa_server.rounds import PlanState, Round, draw_cohort, run_round
from hansa_server.seals import Unsealed

NUM_PARAMS = 5
ROWS = {"alpha": 60, "beta": 110, "gamma": 70}
ATTACKED = "beta"


def start():
    return np.linspace(-0.2, 0.2, NUM_PARAMS).astype(np.float32)


class Bench:
    """Runs single rounds with shops, some of them changed."""

    def __init__(self, world, manual_clock, agreement, rows=None):
        self.world, self.time, self.agreement = world, manual_clock, agreement
        rows = ROWS if rows is None else rows
        self.shops = {name: world.Shop(name, agreement, num_train_rows=number) for name, number in rows.items()}
        self.merchants = tuple(Merchant(name, i, "b", "d", number) for i, (name, number) in enumerate(rows.items()))
        self.events = []

    def run(self, peers=None, state=None, number=1, plan_index=0, merchants=None):
        """Run round `number` with the shops, `peers` instead of some of them; a merchant of None is silent."""
        plan = self.agreement.training.plans[plan_index]
        state = PlanState(initial_state(start(), plan)) if state is None else state
        names = [merchant.name for merchant in self.merchants]
        answering = {**self.shops, **(peers or {})}
        self.grid = self.world.PeerGrid({i: answering[name] for i, name in enumerate(names)}, self.time)
        exchange = Exchange(self.grid, self.time.clock, Unsealed())
        run = Run(exchange, self.agreement, self.agreement.fingerprint, "run", self.events.append)
        asked = Round(number, plan_index, plan, "preprocessing", state)
        return run_round(run, self.merchants if merchants is None else merchants, asked)

    def with_attack(self, change):
        """One round in which the attacked merchant's reply goes through change(order, honest reply)."""
        return self.run({ATTACKED: self.world.changed(self.shops[ATTACKED], change)})


@pytest.fixture
def bench(world, manual_clock):
    return lambda rows=None, **sections: Bench(world, manual_clock, world.agreement(**sections), rows)


def without_attacked(bench):
    """The state after a round of the honest alone; beta registered its rows but is silent."""
    return bench.run({ATTACKED: lambda _: None})[0]


def test_fedavg_is_the_mean_by_rows_in_closed_form(bench):
    ready = bench()
    state, finished = ready.run()
    updates = {name: shop.update(shop.seen[0]) for name, shop in ready.shops.items()}
    mean = sum(ROWS[name] * updates[name].astype(np.float64) for name in ROWS) / sum(ROWS.values())
    np.testing.assert_array_equal(state.server.weights, (start().astype(np.float64) + mean).astype(np.float32))
    assert (finished.dropped, finished.aggregated, finished.cohort) == ({}, True, tuple(ROWS))
    assert finished.train_loss == 0.5


def test_validation_is_that_of_the_pooled_rows_for_the_incoming_model(bench):
    ready = bench()
    _, finished = ready.run()
    pooled = sum(shop.histogram("validation", start()) for shop in ready.shops.values())
    assert finished.validation == metrics_from_histogram(pooled)


def test_order_says_cohort_plan_weights_and_bytes_are_counted(bench):
    ready = bench()
    _, finished = ready.run(number=4)
    order = ready.shops["gamma"].seen[0]
    assert (order.round, order.plan, order.cohort, order.recipient) == (4, 0, tuple(ROWS), "gamma")
    assert (order.fingerprint, order.included, order.control.size) == (ready.agreement.fingerprint, "", 0)
    assert order.weights.tobytes() == start().tobytes()
    assert finished.bytes_sent == sum(len(sent) for _, sent in ready.grid.orders)
    assert finished.bytes_received == sum(len(shop.replies[0]) for shop in ready.shops.values())


def test_bytes_do_not_depend_on_arrival(bench, world, manual_clock):
    rows = {"alpha": 60, "beta": 110, "gamma": 70, "delta": 41}
    states = set()
    for delays in itertools.permutations([0, 1, 2, 3]):
        ready = bench(rows)
        slow = {
            name: lambda order, shop=shop, delay=delay: world.Delivery(shop(order), after=delay)
            for (name, shop), delay in zip(ready.shops.items(), delays, strict=True)
        }
        state, finished = ready.run(slow)
        assert not finished.dropped
        states.add(state.server.weights.tobytes())
    assert len(states) == 1


def update_with(value):
    def change(_, reply):
        update = reply.update.copy()
        update[2] = value
        return reply.model_copy(update={"update": update})

    return change


def field(**values):
    return lambda _, reply: reply.model_copy(update=values)


def histogram_of(count, size=HISTOGRAM_LENGTH):
    histogram = np.zeros(size, np.int64)
    histogram[:1] = count
    return histogram


ATTACKS = {
    "update with NaN": (update_with(np.nan), "not-finite"),
    "update with infinity": (update_with(-np.inf), "not-finite"),
    "largest float32": (update_with(np.finfo(np.float32).max), "norm"),
    "huge norm": (update_with(2e4), "norm"),
    "short update": (field(update=np.zeros(NUM_PARAMS - 1, np.float32)), "wrong-length"),
    "long update": (field(update=np.zeros(NUM_PARAMS + 1, np.float32)), "wrong-length"),
    "empty update": (field(update=np.zeros(0, np.float32)), "wrong-length"),
    "control where there is none": (field(control_delta=np.zeros(NUM_PARAMS, np.float32)), "wrong-length"),
    "a billion examples": (field(num_examples=10**9), "num-examples"),
    "one example more than registered": (field(num_examples=ROWS[ATTACKED] + 1), "num-examples"),
    "one example less than registered": (field(num_examples=ROWS[ATTACKED] - 1), "num-examples"),
    "another round": (field(round=2), "wrong-round"),
    "another order's hash": (field(order_hash="0" * 64), "wrong-order"),
    "another merchant's name": (field(merchant="alpha"), "wrong-merchant"),
    "short histogram": (field(validation=histogram_of(1, HISTOGRAM_LENGTH - 1)), "histogram"),
    "negative count": (field(validation=histogram_of(-1)), "histogram"),
    "more validation rows than the split leaves": (field(validation=histogram_of(ROWS[ATTACKED])), "histogram"),
    "counts whose sum wraps round": (field(validation=np.full(HISTOGRAM_LENGTH, 2**62)), "histogram"),
    "refusal": (
        lambda _, reply: Refusal(merchant=ATTACKED, order_hash=reply.order_hash, code="deadline"),
        "deadline",
    ),
    "order sent back": (lambda order, _: order, "wrong-kind"),
    "reply of another kind": (
        lambda _, reply: EvaluateReply(
            merchant=ATTACKED, order_hash=reply.order_hash, histogram=reply.validation, metrics=None
        ),
        "wrong-kind",
    ),
    "half a message": (lambda _, reply: encode(reply)[:-1], "message-invalid"),
    "silence": (lambda _, __: None, "deadline"),
}


@pytest.mark.parametrize("attack", ATTACKS)
def test_attack_is_dropped_with_its_reason_and_leaves_no_trace(bench, attack):
    change, reason = ATTACKS[attack]
    ready = bench()
    state, finished = ready.with_attack(change)
    assert finished.dropped == {ATTACKED: reason}
    assert finished.aggregated
    assert state.server.weights.tobytes() == without_attacked(bench()).server.weights.tobytes()
    assert ATTACKED not in state.included


def test_error_of_flower_is_dropped_and_the_next_round_asks_again(bench, world):
    ready = bench()
    state, finished = ready.run({ATTACKED: lambda _: world.Error(code=2, reason="secret")})
    assert finished.dropped == {ATTACKED: "client-error"}
    _, again = ready.run(state=state, number=2)
    assert (again.dropped, again.cohort) == ({}, tuple(ROWS))


def test_stale_reply_to_the_same_round_number_is_dropped(bench):
    """A reply recorded in round 1 and sent again in round 2, and one whose round number was edited."""
    ready = bench()
    state, _ = ready.run()
    recorded = ready.shops[ATTACKED].replies[0]
    _, finished = ready.run({ATTACKED: lambda _: recorded}, state, number=2)
    assert finished.dropped == {ATTACKED: "wrong-order"}
    edited = ready.world.changed(
        ready.shops[ATTACKED], lambda _, reply: reply.model_copy(update={"order_hash": message_hash(recorded)})
    )
    _, finished = ready.run({ATTACKED: edited}, state, number=3)
    assert finished.dropped == {ATTACKED: "wrong-order"}


def test_copy_of_another_merchants_reply_is_dropped(bench):
    ready = bench()
    thief = lambda _: ready.shops["alpha"].replies[-1]  # noqa: E731 - alpha is asked first
    _, finished = ready.run({ATTACKED: thief})
    assert finished.dropped == {ATTACKED: "wrong-order"}


def test_update_at_the_agreed_norm_is_taken_and_beyond_it_is_not(bench):
    for norm, dropped in ((10.0, {}), (10.01, {ATTACKED: "norm"})):
        ready = bench(cohort={"max_update_norm": 10.0})
        update = np.zeros(NUM_PARAMS, np.float32)
        update[0] = norm
        assert ready.with_attack(field(update=update))[1].dropped == dropped


def test_below_min_merchants_the_model_stays_and_the_log_says_so(bench, caplog):
    ready = bench(cohort={"min_merchants": 3})
    with caplog.at_level(logging.INFO, "hansa_server"):
        state, finished = ready.with_attack(update_with(np.nan))
    assert state.server.weights.tobytes() == start().tobytes()
    assert state.included == {}
    assert (finished.aggregated, finished.validation, finished.train_loss) == (False, None, None)
    (line,) = [r for r in caplog.records if r.message.startswith("round 1:") and "stays" in r.message]
    assert line.levelno == logging.WARNING


def test_log_has_one_info_line_a_round_and_no_numbers_of_an_update(bench, caplog):
    ready = bench()
    with caplog.at_level(logging.INFO, "hansa_server"):
        ready.run()
    assert [r.message.split(":")[0] for r in caplog.records] == ["round 1"]


def test_train_losses_that_add_up_to_no_number_are_no_loss(bench):
    ready = bench()
    assert ready.with_attack(field(train_loss=1.7e308))[1].train_loss is None


def test_withheld_histograms_leave_no_validation(bench):
    ready = bench()
    withheld = {
        name: ready.world.changed(shop, field(validation=np.zeros(HISTOGRAM_LENGTH, np.int64)))
        for name, shop in ready.shops.items()
    }
    state, finished = ready.run(withheld)
    assert (finished.validation, finished.aggregated) == (None, True)
    assert state.server.weights.tobytes() != start().tobytes()


SCAFFOLD = {
    "training": {"algorithm": "scaffold", "plan": {"optimizer": "sgd", "learning_rate": 0.5}},
    "cohort": {"size": 2},
}


def test_scaffold_counts_only_the_cohort_but_divides_by_everyones_rows(bench):
    ready = bench(**SCAFFOLD)
    plan = ready.agreement.training.plan
    control = np.linspace(0.01, 0.05, NUM_PARAMS)
    before = PlanState(replace(initial_state(start(), plan), control=control))
    state, finished = ready.run(state=before)
    assert len(finished.cohort) == 2
    deltas = {name: ready.shops[name].control_delta(ready.shops[name].seen[0]) for name in finished.cohort}
    step = sum(ROWS[name] * delta.astype(np.float64) for name, delta in deltas.items()) / sum(ROWS.values())
    np.testing.assert_allclose(state.server.control, control + step, rtol=1e-12)
    assert ready.shops[finished.cohort[0]].seen[0].control.tobytes() == control.astype(np.float32).tobytes()


def test_scaffold_names_the_last_reply_that_entered_an_average(bench):
    ready = bench(**{**SCAFFOLD, "cohort": {}})
    shop = ready.shops[ATTACKED]
    state, _ = ready.run(number=1)
    first = message_hash(shop.replies[-1])
    # Round 2's reply never arrives, round 3's is refused: only round 1's counts in round 4.
    state, _ = ready.run({ATTACKED: ready.world.changed(shop, lambda _, __: None)}, state, 2)
    state, _ = ready.run({ATTACKED: ready.world.changed(shop, update_with(np.nan))}, state, 3)
    state, _ = ready.run(state=state, number=4)
    assert [order.included for order in shop.seen] == ["", first, first, first]
    assert state.included[ATTACKED] == message_hash(shop.replies[-1])


def test_scaffold_reply_of_a_round_below_the_minimum_is_not_included(bench):
    ready = bench(**{**SCAFFOLD, "cohort": {"min_merchants": 3}})
    state, finished = ready.with_attack(update_with(np.nan))
    assert not finished.aggregated
    ready.run(state=state, number=2)
    assert [order.included for order in ready.shops["alpha"].seen] == ["", ""]


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda delta: np.full_like(delta, np.nan), "not-finite"),
        (lambda delta: delta[:-1], "wrong-length"),
        (lambda delta: delta[:0], "wrong-length"),
        # An update of norm 1e4 at learning rate 0.5 can change a variate by 2e4.
        (lambda delta: np.full_like(delta, 1e4), "norm"),
    ],
    ids=["NaN", "short", "missing", "longer than any update makes it"],
)
def test_scaffold_poisoned_variate_is_dropped_with_its_update(bench, change, reason):
    ready = bench(**{**SCAFFOLD, "cohort": {}})
    _, finished = ready.with_attack(
        lambda _, reply: reply.model_copy(update={"control_delta": change(reply.control_delta)})
    )
    assert finished.dropped == {ATTACKED: reason}


MERCHANTS = tuple(Merchant(f"m{i}", i, "b", "d", 10) for i in range(7))


@given(st.integers(1, 7), st.integers(0, 2**62), st.integers(1, 1000))
def test_cohort_has_its_size_keeps_roster_order_and_is_the_same_again(size, seed, number):
    cohort = draw_cohort(MERCHANTS, size, seed, number)
    assert len(cohort) == size
    assert sorted(cohort, key=MERCHANTS.index) == list(cohort)
    assert cohort == draw_cohort(MERCHANTS, size, seed, number)


def test_every_merchant_is_drawn_about_equally_often():
    times = dict.fromkeys(MERCHANTS, 0)
    for number in range(700):
        for merchant in draw_cohort(MERCHANTS, 3, 0, number):
            times[merchant] += 1
    # 700 draws of 3 of 7: 300 each, standard deviation 13.
    assert all(240 < count < 360 for count in times.values())


@pytest.mark.parametrize("size", [None, 7, 8])
def test_cohort_is_everyone_where_the_size_does_not_bind(size):
    assert draw_cohort(MERCHANTS, size, 0, 1) == MERCHANTS


@given(
    st.integers(3, 3000),
    st.integers(3, 3000),
    st.floats(0.01, 0.6),
    st.floats(0.01, 0.3),
    st.sampled_from(["validation", "test"]),
)
def test_honest_split_never_exceeds_the_bound_on_its_rows(negatives, positives, test_share, validation_share, split):
    """The stratified split as docs and client do it: each class rounded by itself, at least one row everywhere."""
    data = Data(test_share=test_share, validation_share=validation_share)
    sizes = {"test": 0, "validation": 0}
    for num_rows in (negatives, positives):
        num_test = min(max(1, round(num_rows * test_share)), num_rows - 2)
        sizes["test"] += num_test
        sizes["validation"] += min(max(1, round(num_rows * validation_share)), num_rows - 1 - num_test)
    num_train = negatives + positives - sum(sizes.values())
    assert sizes[split] <= max_split_rows(data, split, num_train, 2**30)
