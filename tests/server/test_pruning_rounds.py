"""Pruning over merchants: the masks are the schedule's of the weights of that moment, pruned weights stay zero whatever
a merchant does, the control is the same rounds without them, and either keeps its best model on validation rows.
"""

from __future__ import annotations

import numpy as np
import pytest

from hansa_common.messages import EvaluateOrder, RoundOrder
from hansa_common.metrics import metrics_from_histogram
from hansa_common.model import ModelSpec, initial_weights
from hansa_common.pruning import magnitude_mask, masked, num_pruned, scheduled_sparsity, unpack_mask
from hansa_server.algorithms import initial_state, step
from hansa_server.exchange import Exchange
from hansa_server.participants import Merchant, Run
from hansa_server.pruning_rounds import Pruning
from hansa_server.run_events import ModelPruned, RoundFinished
from hansa_server.seals import Unsealed

ROWS = {"alpha": 400, "beta": 700, "gamma": 500}
NUM_ROUNDS, SPARSITY, ROUNDS_BEFORE = 3, 0.8, 7


class Pruner:
    """The pruning of one model over shops, some of them changed. Shops know nothing of masks, and move every weight."""

    def __init__(self, world, manual_clock, agreement):
        self.world, self.time, self.agreement = world, manual_clock, agreement
        self.spec = ModelSpec.from_agreement(agreement)
        self.weights = initial_weights(self.spec, 5)
        self.shops = {name: world.Shop(name, agreement, num_train_rows=n) for name, n in ROWS.items()}
        self.events = []

    def pruned(self, peers=None):
        names = {**self.shops, **(peers or {})}
        merchants = tuple(Merchant(name, i, "b", "d", rows) for i, (name, rows) in enumerate(ROWS.items()))
        grid = self.world.PeerGrid(dict(enumerate(names.values())), self.time)
        exchange = Exchange(grid, self.time.clock, Unsealed())
        run = Run(exchange, self.agreement, self.agreement.fingerprint, "run", self.events.append)
        return Pruning(run, merchants, self.spec, "preprocessing", 0, ROUNDS_BEFORE).pruned(self.weights)

    def silent_in(self, *stages):
        def change(order, reply):
            return None if order.stage in stages else reply

        return {name: self.world.changed(shop, change) for name, shop in self.shops.items()}

    def orders(self, stage):
        return [o for o in self.shops["alpha"].seen if isinstance(o, RoundOrder) and o.stage == stage]

    def evaluated(self, split):
        """Stage -> weights that were evaluated apart from the rounds on one part of the rows."""
        seen = [o for o in self.shops["alpha"].seen if isinstance(o, EvaluateOrder) and o.split == split]
        assert len({order.stage for order in seen}) == len(seen)
        return {order.stage: order.weights for order in seen}

    def candidates(self, stage):
        """The models of a stage that are validated once the sparsity is reached, in order."""
        incoming = [order.weights for order in self.orders(stage)[NUM_ROUNDS:]]
        return [*incoming, self.evaluated("validation")[stage]]

    def pr_auc(self, weights, split="validation"):
        """What the shops' rows say, outside of any message."""
        return metrics_from_histogram(sum(shop.histogram(split, weights) for shop in self.shops.values())).pr_auc


@pytest.fixture
def pruner(world, manual_clock):
    def new(**sections):
        compression = {"format": "int8", "sparsity": SPARSITY, "pruning_rounds": NUM_ROUNDS}
        return Pruner(
            world, manual_clock, world.agreement(model={"hidden": [8, 4]}, compression=compression, **sections)
        )

    return new


PLANS = {
    name: {"algorithm": name, "plan": {"optimizer": "sgd", "learning_rate": 0.5}}
    for name in ("fedavg", "scaffold", "fedavgm", "fedadam", "fedyogi")
}


def kernel_zeros(spec, weights):
    """(weights, zeros) of each hidden kernel."""
    start, found = 0, []
    for name, shape in spec.named_shapes.items():
        part, start = weights[start : start + np.prod(shape)], start + np.prod(shape)
        if name.startswith("hidden") and name.endswith("kernel"):
            found.append((part.size, np.count_nonzero(part == 0)))
    return found


def holds_the_agreed_zeros(spec, weights):
    return [zeros for _, zeros in kernel_zeros(spec, weights)] == [
        num_pruned(size, SPARSITY) for size, _ in kernel_zeros(spec, weights)
    ]


@pytest.mark.parametrize("algorithm", PLANS)
def test_pruned_model_has_the_agreed_share_of_zeros_though_merchants_move_every_weight(pruner, algorithm):
    ready = pruner(training=PLANS[algorithm])
    pruned = ready.pruned()
    assert holds_the_agreed_zeros(ready.spec, pruned.weights)
    assert all(holds_the_agreed_zeros(ready.spec, weights) for weights in ready.candidates("prune"))


@pytest.mark.parametrize("algorithm", PLANS)
def test_control_has_no_zeros_and_is_the_same_rounds_from_the_same_start(pruner, algorithm):
    ready = pruner(training=PLANS[algorithm])
    pruned = ready.pruned()
    control, prune = ready.orders("control"), ready.orders("prune")
    numbers = [ROUNDS_BEFORE + place for place in range(1, 2 * NUM_ROUNDS + 1)]
    assert [order.round for order in control] == [order.round for order in prune] == numbers
    assert [order.cohort for order in control] == [order.cohort for order in prune]
    assert all(order.masks.size == 0 for order in control)
    assert control[0].weights.tobytes() == ready.weights.tobytes()
    assert all(zeros == 0 for _, zeros in kernel_zeros(ready.spec, pruned.control.weights))


@pytest.mark.parametrize("algorithm", PLANS)
def test_each_stage_keeps_its_best_model_on_validation_rows_of_those_at_full_sparsity(pruner, algorithm):
    ready = pruner(training=PLANS[algorithm])
    pruned = ready.pruned()
    for stage, kept in (("prune", pruned.model), ("control", pruned.control)):
        candidates = ready.candidates(stage)
        assert len(candidates) == NUM_ROUNDS + 1
        figures = [ready.pr_auc(weights) for weights in candidates]
        best = figures.index(max(figures))
        assert kept.weights.tobytes() == candidates[best].tobytes()
        assert kept.round == ROUNDS_BEFORE + NUM_ROUNDS + best
        assert kept.validation.pr_auc == pytest.approx(max(figures))


def test_test_rows_are_asked_once_for_what_each_stage_kept_and_choose_nothing(pruner):
    ready = pruner()
    pruned = ready.pruned()
    for stage, name, kept in (("prune", "pruned", pruned.model), ("control", "control", pruned.control)):
        assert ready.evaluated("test")[stage].tobytes() == kept.weights.tobytes()
        assert pruned.to_json()["test"][name]["pr_auc"] == pytest.approx(ready.pr_auc(kept.weights, "test"))
    seen = [order for order in ready.shops["alpha"].seen if isinstance(order, RoundOrder | EvaluateOrder)]
    assert [getattr(order, "split", None) for order in seen[-2:]] == ["test", "test"]


def withheld(_, reply):
    return reply.model_copy(update={"validation": np.zeros_like(reply.validation)})


def nothing_told(_, reply):
    return reply.model_copy(update={"histogram": np.zeros_like(reply.histogram)})


def test_last_model_is_kept_where_every_figure_is_withheld(pruner, world):
    ready = pruner()
    peers = {
        name: world.changed(world.changed(shop, withheld), nothing_told, EvaluateOrder)
        for name, shop in ready.shops.items()
    }
    pruned = ready.pruned(peers)
    assert pruned.model.round == pruned.control.round == ROUNDS_BEFORE + 2 * NUM_ROUNDS
    assert pruned.to_json()["validation"] == pruned.to_json()["test"] == {"pruned": None, "control": None}


def test_every_round_prunes_by_the_schedule_what_is_smallest_at_that_moment(pruner):
    """The slow reference: FedAvg over the shops' updates, one round after the other."""
    ready = pruner(training=PLANS["fedavg"])
    ready.pruned()
    plan, weights = ready.agreement.training.plans[0], ready.weights
    for place, order in enumerate(ready.orders("prune"), start=1):
        mask = magnitude_mask(ready.spec, weights, scheduled_sparsity(SPARSITY, min(place, NUM_ROUNDS), NUM_ROUNDS))
        np.testing.assert_array_equal(unpack_mask(ready.spec, order.masks), mask)
        assert order.weights.tobytes() == masked(weights, mask).tobytes()
        updates = [shop.update(order).astype(float) * ROWS[name] for name, shop in ready.shops.items()]
        stepped = step(initial_state(order.weights, plan), plan, sum(updates) / sum(ROWS.values())).weights
        weights = masked(stepped, mask)
    np.testing.assert_allclose(ready.evaluated("validation")["prune"], weights, rtol=0, atol=1e-7)


def test_scaffold_begins_each_stage_without_variates(pruner):
    ready = pruner(training=PLANS["scaffold"])
    ready.pruned()
    for stage in ("prune", "control"):
        first, second, *_ = ready.orders(stage)
        assert (first.included, first.control.any()) == ("", False)
        assert second.included
        assert second.control.any()


def test_same_agreement_same_bytes(pruner):
    assert pruner().pruned().weights.tobytes() == pruner().pruned().weights.tobytes()


@pytest.mark.parametrize("stage", ["prune", "control"])
def test_stage_in_which_nothing_was_averaged_prunes_nothing_and_says_so(pruner, stage):
    ready = pruner()
    pruned = ready.pruned(ready.silent_in(stage))
    assert pruned.weights is None
    assert f"none of 6 rounds of stage '{stage}'" in pruned.reason
    assert not pruned.to_json()["pruned"]
    (event,) = [event for event in ready.events if isinstance(event, ModelPruned)]
    assert event.line == f"the model is not pruned: {pruned.reason}"


@pytest.mark.parametrize("lost", [{NUM_ROUNDS}, {2 * NUM_ROUNDS}, set(range(2, 2 * NUM_ROUNDS + 1))])
def test_lost_rounds_leave_the_agreed_zeros(pruner, world, lost):
    ready = pruner()

    def change(order, reply):
        return None if order.round - ROUNDS_BEFORE in lost else reply

    pruned = ready.pruned({name: world.changed(shop, change) for name, shop in ready.shops.items()})
    assert holds_the_agreed_zeros(ready.spec, pruned.weights)


def test_rounds_tell_their_stage(pruner):
    ready = pruner()
    ready.pruned()
    told = [event for event in ready.events if isinstance(event, RoundFinished)]
    assert [event.to_json()["stage"] for event in told] == ["prune"] * 2 * NUM_ROUNDS + ["control"] * 2 * NUM_ROUNDS
    assert told[0].line.startswith("prune, round 8: 3 of 3 merchants")
