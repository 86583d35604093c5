"""Whoever drops out in whichever exchange, over several sums of groups or of the whole roster: each sum is that of the
vectors in it, or is abandoned, as a count of who answered says; and no more exchanges are taken than are needed.

Vectors are histograms without rows behind them; all else is the product's: merchants' part and boundary, messages, the
coordinator's driver.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hansa_client.guarded_trainer import in_process
from hansa_common.features import FittedPreprocessing
from hansa_common.messages import EvaluateOrder, EvaluateReply, IntroduceOrder, Introduction, encode
from hansa_common.metrics import HISTOGRAM_LENGTH
from hansa_common.model import ModelSpec, initial_weights
from hansa_common.secure_groups import num_groups_of, session_of
from hansa_common.secure_layouts import evaluation_layout
from hansa_common.secure_messages import KeysOrder, UnmaskOrder
from hansa_common.statistics import statistics_length
from hansa_server.exchange import Exchange
from hansa_server.federation import SYSTEM_CLOCK, UNSEALED
from hansa_server.introduction import introduce
from hansa_server.masked_batches import Batch
from hansa_server.masked_rounds import resumed
from hansa_server.masked_sums import masked_sums
from hansa_server.participants import Run
from hansa_server.run_state import RunState
from hansa_simulations.grid import server_identity

NUM_SUMS = 4
SHOPS = [f"shop {number:02}" for number in range(20)]
ROSTERS = {
    "the whole roster": {"roster": SHOPS[:6]},
    "five groups of four": {"roster": SHOPS, "robustness": {"rule": "median", "num_dishonest": 1, "groups": 5}},
}


class Told:
    """A merchant with one score each time, another one for each merchant, and no rows."""

    def __init__(self, name, sums):
        self.name, self.sums = name, sums
        self.histogram = np.zeros(HISTOGRAM_LENGTH, np.int64)
        self.histogram[[SHOPS.index(name), -1]] = 2

    def work(self, order, order_hash, halt):
        halt.check()
        head = {"merchant": self.name, "order_hash": order_hash}
        if isinstance(order, IntroduceOrder):
            return encode(Introduction(**head, hansa_version="1", backend="none", device="none"))
        if isinstance(order, KeysOrder | UnmaskOrder):
            return encode(self.sums.answer(order, order_hash))
        self.sums.check_under_way(order)
        return encode(self.sums.masked(order, EvaluateReply(**head, histogram=self.histogram, metrics=None)))


@dataclass
class Counted:
    """What must come of it, by counting who answered in which exchange: a group's members in its sum, or a reason."""

    agreement: object
    lost: set
    num_exchanges: int = 0
    batch: int = -1
    sums: list = field(default_factory=list)

    def __post_init__(self):
        self.least_groups = 1 if num_groups_of(self.agreement) == 1 else self.agreement.robustness.least_units

    def groups(self, batch):
        first, number = batch * num_groups_of(self.agreement) + 1, num_groups_of(self.agreement)
        return [session_of(self.agreement, "", "run", first + group) for group in range(number)]

    def answered(self, names):
        self.num_exchanges += bool(names)
        return {name for name in names if (self.num_exchanges, name) not in self.lost}

    def enough(self, batch, names):
        """Those who are left where groups of too few have ended."""
        kept = [names & set(session.cohort) for session in self.groups(batch)]
        return set().union(
            *(
                own
                for own, session in zip(kept, self.groups(batch), strict=True)
                if len(own) >= session.thresholds.least
            )
        )

    def num_groups_with(self, batch, names):
        return sum(not names.isdisjoint(session.cohort) for session in self.groups(batch))

    def all_sums(self):
        roster, sharing = set(self.agreement.roster), set()
        for number in range(NUM_SUMS):
            if not sharing or self.num_groups_with(self.batch, sharing) < self.least_groups:
                self.batch += 1
                keyed = self.enough(self.batch, self.answered(roster))
                sharing = self.enough(self.batch, self.answered(keyed))
            if not sharing:
                self.sums.append([set() for _ in self.groups(self.batch)])
                continue
            is_last = number == NUM_SUMS - 1
            sent = self.answered(sharing if is_last else roster)
            in_sum = self.enough(self.batch, sharing & sent)
            keyed = set() if is_last else self.enough(self.batch + 1, sent)
            opening = self.answered(in_sum | keyed)
            self.sums.append([self.opened(session, in_sum, opening) for session in self.groups(self.batch)])
            if not is_last:
                self.batch += 1
                sharing = self.enough(self.batch, keyed & opening)
        return self.sums

    def opened(self, session, in_sum, opening):
        own = in_sum & set(session.cohort)
        return own if len(own & opening) >= session.thresholds.threshold else set()


@dataclass
class Made:
    """What came of it: each group's sum, all orders, and the run's count of exchanges."""

    sums: list
    orders: list
    num_exchanges: int


def made(five, agreement, lost, *, is_before):
    workers = {name: Told(name, five.sums(agreement, name)) for name in agreement.roster}
    fault = five.fault(lambda order: (order.sequence, order.recipient) in lost, is_before)
    grid, weights = (
        five.grid(in_process(agreement, workers), fault),
        initial_weights(ModelSpec.from_agreement(agreement), 0),
    )
    nothing = np.zeros(statistics_length(agreement), np.int64)
    fields = {"split": "validation", "preprocessing": FittedPreprocessing.fit(agreement, nothing).to_json()}
    run = Run(Exchange(grid, SYSTEM_CLOCK, UNSEALED), agreement, agreement.fingerprint, "run", lambda _: None)
    sums = []
    with server_identity():
        merchants = introduce(run)
        for number in range(NUM_SUMS):
            # The scores of one model are told once.
            fields["weights"] = weights + np.float32(number)
            length, is_last = evaluation_layout(agreement).num_elements, number == NUM_SUMS - 1
            found = masked_sums(
                run,
                merchants,
                f"sum {number}",
                lambda _, header: EvaluateOrder(**header, **fields),
                length,
                is_last=is_last,
            )
            sums.append(found.of_groups)
    return Made(sums, grid.orders, run.numbers.last)


@st.composite
def losses(draw, roster):
    """In which exchange whose order is lost; now and then those of many at once."""
    exchange, name = st.integers(1, 2 * NUM_SUMS + 4), st.sampled_from(roster)
    few = draw(st.sets(st.tuples(exchange, name), max_size=8))
    many = draw(st.sets(name, min_size=len(roster) // 4)) if draw(st.booleans()) else set()
    at = draw(exchange)
    return few | {(at, lost) for lost in many}


def assert_as_counted(found, agreement, lost):
    counted = Counted(agreement, lost)
    for groups, expected in zip(found.sums, counted.all_sums(), strict=True):
        for summed, names in zip(groups, expected, strict=True):
            assert set(summed.in_sum) == names
            assert (summed.total is None) == (not names) == bool(summed.abandoned)
            assert names.isdisjoint(summed.dropped)
            if names:
                histogram = evaluation_layout(agreement).decode(summed.total, len(names))
                assert {SHOPS[place] for place in np.flatnonzero(histogram[:-1])} == names
                assert histogram[-1] == 2 * len(names)
    assert found.num_exchanges == counted.num_exchanges


@pytest.mark.parametrize("roster", ROSTERS)
def test_each_sum_is_of_those_who_answered_or_none_whoever_drops_out_and_when(five, roster):
    agreement = five.agreement(**ROSTERS[roster])

    @settings(max_examples=8, deadline=None)
    @given(lost=losses(agreement.roster), is_before=st.booleans())
    def holds(lost, is_before):
        assert_as_counted(made(five, agreement, lost, is_before=is_before), agreement, lost)

    holds()


@pytest.mark.parametrize("roster", ROSTERS)
def test_sums_take_two_exchanges_each_and_two_more_go_before_the_first(five, roster):
    agreement = five.agreement(**ROSTERS[roster])
    found = made(five, agreement, set(), is_before=True)
    assert_as_counted(found, agreement, set())
    assert found.num_exchanges == 2 + 2 * NUM_SUMS


def test_group_that_is_abandoned_keeps_nobody_from_the_next_sum_and_begins_nothing_anew(five):
    """Too few of one group mask; those who did open nothing, and share for their next groups with everyone else."""
    agreement = five.agreement(**ROSTERS["five groups of four"])
    first = session_of(agreement, agreement.fingerprint, "run", 1).cohort
    # The vectors are asked for in the third exchange.
    lost = {(3, name) for name in first[:2]}
    found = made(five, agreement, lost, is_before=True)
    assert [summed.abandoned for summed in found.sums[0]] == ["too-few-vectors", "", "", "", ""]
    openings = {
        order.recipient: order for order in found.orders if isinstance(order, UnmaskOrder) and order.sequence == 4
    }
    for name in first[2:]:
        assert (openings[name].sum, openings[name].in_sum) == (0, ())
        assert openings[name].next_sum > 5
        assert any(name in summed.in_sum for summed in found.sums[1])
    assert_as_counted(found, agreement, lost)
    assert found.num_exchanges == 2 + 2 * NUM_SUMS


def test_next_group_with_too_few_keys_is_abandoned_alone_and_its_merchants_are_in_the_sum_after(five):
    agreement = five.agreement(**ROSTERS["five groups of four"])
    second = session_of(agreement, agreement.fingerprint, "run", 6).cohort
    lost = {(4, name) for name in second[:2]}
    found = made(five, agreement, lost, is_before=True)
    assert [summed.abandoned for summed in found.sums[1]] == ["too-few-shares", "", "", "", ""]
    assert set(found.sums[1][0].dropped.values()) == {"joining"}
    for groups in (found.sums[0], found.sums[2]):
        assert sorted(name for summed in groups for name in summed.in_sum) == SHOPS
    assert_as_counted(found, agreement, lost)
    assert found.num_exchanges == 2 + 2 * NUM_SUMS


def test_run_of_many_groups_goes_on_with_numbers_beyond_those_of_all_sums_that_were_under_way(five):
    """Between two states that are kept a round takes two batches at most: one that is begun, and one for the next."""
    roster = [f"shop {number}" for number in range(120)]
    agreement = five.agreement(roster=roster, robustness={"rule": "median", "num_dishonest": 1, "groups": 40})
    run = Run(Exchange(None, SYSTEM_CLOCK, UNSEALED), agreement, agreement.fingerprint, "run", lambda _: None)
    run.sums.last = 40
    state = resumed(run, RunState("run", 9, last_sum=40))
    assert state.last_sum > 40 + 2 * 40
    assert Batch.after(state.last_sum, agreement, agreement.fingerprint, "run").sessions[0].round > state.last_sum


def test_where_fewer_groups_have_shares_than_the_rule_needs_all_begin_anew(five):
    agreement = five.agreement(**ROSTERS["five groups of four"])
    few = [session_of(agreement, agreement.fingerprint, "run", number).cohort[:2] for number in (6, 7, 8)]
    lost = {(4, name) for names in few for name in names}
    found = made(five, agreement, lost, is_before=True)
    # Nobody is joining, as in a group that is left out of one sum.
    for groups in found.sums[1:]:
        assert sorted(name for summed in groups for name in summed.in_sum) == SHOPS
    assert_as_counted(found, agreement, lost)
    assert found.num_exchanges == 2 + 2 + 2 * NUM_SUMS
