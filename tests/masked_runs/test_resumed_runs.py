"""A run whose vectors are masked, of the whole roster or of groups, goes on after its coordinator was killed: from its
checkpoint on disk, with merchants that are still there and hold what they were asked last."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from hansa_client.guarded_trainer import Boundary, GuardedTrainer
from hansa_client.order_log import OrderLog
from hansa_common.messages import EvaluateOrder, Refusal, RoundOrder, StatisticsOrder
from hansa_common.secure_messages import KeysOrder, UnmaskOrder
from hansa_server import checkpoint, run_folder
from hansa_server.run_state import RunState

GROUPS = {"rule": "median", "num_dishonest": 1, "groups": 3}
ROSTERS = {
    "the whole roster": {},
    "three groups of four": {"roster": [f"shop {number:02}" for number in range(12)], "robustness": GROUPS},
}
# More than a sum can do without, and more than half of no group.
NUM_ANSWERED = 2


class Killed(BaseException):
    """The coordinator's process ends here."""


def boundary_of(agreement, name, folder):
    """One whose answers outlast the coordinator, as in a merchant's own process."""
    return replace(Boundary.in_process(agreement, name), log=OrderLog(folder))


class Federation:
    """Merchants that outlive the coordinator, and a folder; each `run` is a process of the coordinator's."""

    def __init__(self, five, agreement, folder):
        self.five, self.agreement, self.folder = five, agreement, folder / "run"
        self.trainers = {
            name: GuardedTrainer(worker, boundary_of(agreement, name, folder / name))
            for name, worker in five.workers(agreement).items()
        }
        run_folder.create(self.folder, agreement)
        checkpoint.prepare(self.folder)

    @property
    def last(self):
        return checkpoint.load(self.folder, self.agreement) or RunState("run-1")

    def run(self, fault=None):
        def keep(state):
            checkpoint.save(self.folder, self.agreement, state)

        return self.five.run(self.agreement, fault, trainers=self.trainers, begun=self.last, keep=keep)

    def killed(self, ends_at):
        """Run until that many merchants have answered such orders; the next one's kills the coordinator."""
        reached = []

        def dies(order):
            reached.append(ends_at(order))
            if sum(reached) > NUM_ANSWERED:
                raise Killed
            return False

        with pytest.raises(Killed):
            self.run(self.five.fault(dies, is_before=True))


def agreement_of(five, roster, rounds):
    return five.agreement(**ROSTERS[roster], training={"algorithm": "fedavg", "rounds": rounds, "plan": five.plan})


@pytest.fixture(params=ROSTERS)
def federation(five, tmp_path, request):
    return Federation(five, agreement_of(five, request.param, 3), tmp_path)


@pytest.fixture(scope="module", params=ROSTERS)
def whole(five, tmp_path_factory, request):
    """A short run that nothing broke off."""
    return Federation(five, agreement_of(five, request.param, 1), tmp_path_factory.mktemp("whole")).run()


def in_round_2(order):
    return isinstance(order, RoundOrder) and order.round == 2


def openings_after(vectors):
    """The orders that open a sum for which such vectors were asked."""
    numbers = set()

    def hits(order):
        if vectors(order):
            numbers.add(order.masking.sum)
        return isinstance(order, UnmaskOrder) and order.sum in numbers

    return hits


# Which orders of a sum the coordinator is killed among, by what it asks vectors for.
MOMENTS = {"while vectors come": lambda vectors: vectors, "while shares come": openings_after}


@pytest.mark.parametrize("moment", MOMENTS)
def test_run_that_goes_on_begins_its_sums_anew_with_numbers_that_nobody_has_seen(federation, moment):
    federation.killed(MOMENTS[moment](in_round_2))
    last = federation.last
    ran = federation.run()
    num_groups = federation.agreement.robustness.groups or 1
    numbers = [order.sum for order in ran.grid.orders if isinstance(order, KeysOrder)]
    # Of the sums that were under way, and of those after them.
    assert min(numbers) > last.last_sum + 2 * num_groups
    rounds = ran.result.rounds
    assert [entry.round for entry in rounds] == [1, 2, 3]
    # The round that was under way may have left its mark at merchants, who take no round twice.
    assert [entry.abandoned for entry in rounds] == ["", "interrupted", ""]
    assert [entry.aggregated for entry in rounds] == [True, False, True]
    assert all(entry.dropped == {} for entry in rounds if entry.aggregated)
    assert not [reply for reply in ran.grid.replies if isinstance(reply, Refusal)]
    assert ran.result.test is not None


def test_who_has_told_of_a_model_before_the_coordinator_was_killed_does_not_tell_of_it_again(federation):
    federation.killed(lambda order: isinstance(order, EvaluateOrder))
    ran = federation.run()
    assert len([reply for reply in ran.grid.replies if isinstance(reply, Refusal)]) == NUM_ANSWERED
    assert all(entry.aggregated and not entry.dropped for entry in ran.result.rounds)


@pytest.mark.parametrize("moment", MOMENTS)
def test_run_that_was_broken_off_at_its_statistics_asks_the_same_again_and_comes_to_the_same_model(
    five, whole, tmp_path, moment
):
    federation = Federation(five, whole.result.agreement, tmp_path)
    federation.killed(MOMENTS[moment](lambda order: isinstance(order, StatisticsOrder)))
    assert federation.last.merchants == ()
    ran = federation.run()
    np.testing.assert_array_equal(ran.result.weights, whole.result.weights)
    assert ran.result.test == whole.result.test
    assert all(entry.aggregated and not entry.dropped for entry in ran.result.rounds)
