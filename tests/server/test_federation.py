"""A whole run at the level of messages: which plan goes on, which model is kept, what is told, and that nothing
depends on chance."""

from __future__ import annotations

import json

import numpy as np
import pytest

from hansa_common.errors import RunFailedError
from hansa_common.messages import (
    EvaluateOrder,
    EvaluateReply,
    RoundOrder,
    decode,
    encode,
    message_hash,
)
from hansa_common.metrics import NUM_BINS, metrics_from_histogram
from hansa_server.run_events import (
    PlanChosen,
    StoppedEarly,
)

ROSTER = ("alpha", "beta", "gamma")


def histogram_with(pr_auc_level, num_rows=10):
    """Ten positives and ten negatives, `pr_auc_level` of the positives above all negatives: PR-AUC rises with it."""
    histogram = np.zeros(2 * NUM_BINS, np.int64)
    histogram[NUM_BINS // 2] = num_rows
    histogram[NUM_BINS + NUM_BINS // 2 + 9] = pr_auc_level
    histogram[NUM_BINS + NUM_BINS // 2 - 9] = num_rows - pr_auc_level
    return histogram


class Scripted:
    """Makes shops report validation by a script from the model's origin, (plan, rounds trained), to a level 0..10."""

    def __init__(self, world, level):
        self.world, self.level = world, level
        self.origins = {}

    def shop(self, shop):
        def update(order):
            plan, trained = self.origins.get(order.weights.tobytes(), (order.plan, 0))
            # What fedavg makes of equal updates, so that the next weights are known.
            change = np.full(order.weights.size, 2.0 ** -(4 + 5 * order.plan), np.float32)
            moved = (order.weights.astype(np.float64) + change).astype(np.float32)
            self.origins[moved.tobytes()] = (order.plan, 1 if plan != order.plan else trained + 1)
            return change

        def histogram(split, weights):
            return histogram_with(
                self.level(*self.origins.get(weights.tobytes(), (None, 0))) if split == "validation" else 5
            )

        shop.update, shop.histogram = update, histogram
        return shop


def scripted(federation, level):
    script = Scripted(federation.world, level)
    for shop in federation.shops.values():
        script.shop(shop)
    return federation


def test_run_that_averaged_nothing_fails_and_says_who_was_left_out(federation, world):
    run = federation()
    silent = {name: world.changed(run.shops[name], lambda _, __: world.Error(code=2), RoundOrder) for name in ROSTER}
    with pytest.raises(RunFailedError, match=r"none of 3 rounds.*alpha \(client-error\)"):
        run.run(silent)


def test_merchant_that_failed_in_a_round_is_asked_again(federation, world):
    run = federation()
    once = world.changed(run.shops["beta"], lambda order, reply: None if order.round == 1 else reply)
    result = run.run({"beta": once})
    assert [entry.dropped for entry in result.rounds] == [{"beta": "deadline"}, {}, {}]


def test_same_seed_gives_same_bytes_and_another_seed_others(federation):
    weights = [federation(seed=seed).run(run_id=f"run-{i}").weights.tobytes() for i, seed in enumerate((3, 3, 4))]
    assert weights[0] == weights[1] != weights[2]


def test_cohort_size_draws_that_many_each_round_and_not_always_the_same(federation):
    run = federation(cohort={"size": 2}, training={"rounds": 12, "patience": 12})
    cohorts = [entry.cohort for entry in run.run().rounds]
    assert {len(cohort) for cohort in cohorts} == {2}
    assert len(set(cohorts)) == 3


def test_training_improves_the_validation_it_reports(federation):
    result = federation(training={"rounds": 8, "patience": 8}).run()
    figures = [entry.validation.pr_auc for entry in result.rounds]
    assert figures[-1] > figures[0] + 0.1


def test_every_exchange_of_a_run_has_the_next_number_and_all_its_orders_have_it(federation):
    run = federation(cohort={"size": 2})
    run.run()
    sent = [[(order.KIND, order.sequence) for order in shop.seen] for shop in run.shops.values()]
    numbers = sorted({number for orders in sent for _, number in orders})
    assert numbers == list(range(len(numbers)))
    by_number = {number: {kind for orders in sent for kind, n in orders if n == number} for number in numbers}
    assert by_number[0] == {"introduce"}
    assert [kind for number in numbers[1:] for kind in by_number[number]] == [
        "statistics", "round", "round", "round", "evaluate", "evaluate",
    ]  # fmt: skip
    for orders in sent:
        assert [number for _, number in orders] == sorted({number for _, number in orders})


# Which model is kept


def test_early_stopping_keeps_the_best_round(federation):
    levels = [1, 3, 8, 5, 6, 4, 9, 9, 9]
    run = scripted(federation(training={"rounds": 8, "patience": 3}), lambda _, trained: levels[trained])
    result = run.run()
    # The model after round 2 is the best; those after 3, 4 and 5 are not better, and round 6 finds that out.
    assert (result.model.round, len(result.rounds)) == (2, 6)
    assert result.weights.tobytes() == run.orders("alpha", RoundOrder)[2].weights.tobytes()
    assert result.model.validation == metrics_from_histogram(3 * histogram_with(8))
    assert run.of(StoppedEarly)[0].best_round == 2


def test_equal_figures_keep_the_first(federation):
    run = scripted(federation(training={"rounds": 4, "patience": 9}), lambda *_: 5)
    assert run.run().model.round == 1


def test_untrained_model_is_never_kept_however_well_it_does(federation):
    run = scripted(federation(), lambda _, trained: 10 if trained == 0 else 1)
    assert run.run().model.round == 1


def test_last_round_is_a_candidate_though_no_round_follows_it(federation):
    run = scripted(federation(), lambda _, trained: trained)
    result = run.run()
    assert result.model.round == 3
    assert [order.split for order in run.orders("beta", EvaluateOrder)] == ["validation", "test"]


def test_without_any_validation_figure_the_last_model_is_kept(federation, world):
    run = federation(training={"rounds": 5, "patience": 1})
    for shop in run.shops.values():
        shop.histogram = lambda *_: np.zeros(2 * NUM_BINS, np.int64)
        shop.answer = _without_metrics(shop, shop.answer)
    result = run.run()
    assert (result.model.round, len(result.rounds), result.test) == (5, 5, None)
    assert result.to_json()["federated"] == {"roc_auc": None, "pr_auc": None}


def _without_metrics(shop, answer):
    def answered(order, header):
        if isinstance(order, EvaluateOrder):
            return EvaluateReply(**header, histogram=shop.histogram(), metrics=None)
        return answer(order, header)

    return answered


def test_round_below_the_minimum_keeps_the_model_and_is_no_candidate(federation, world):
    run = federation(cohort={"min_merchants": 3}, training={"rounds": 4, "patience": 4})
    failing = world.changed(run.shops["gamma"], lambda order, reply: None if order.round == 2 else reply)
    result = run.run({"gamma": failing})
    weights = [order.weights.tobytes() for order in run.orders("alpha", RoundOrder)]
    assert weights[0] != weights[1] == weights[2] != weights[3]
    assert [entry.aggregated for entry in result.rounds] == [True, False, True, True]
    assert result.model.round in {1, 3, 4}


def test_test_rows_are_asked_once_at_the_end_for_the_kept_model(federation):
    levels = [1, 9, 2, 3]
    run = scripted(federation(), lambda _, trained: levels[trained])
    result = run.run()
    tests = [order for order in run.orders("gamma", EvaluateOrder) if order.split == "test"]
    assert len(tests) == 1
    assert run.shops["gamma"].seen[-1] is tests[0]
    assert tests[0].weights.tobytes() == result.weights.tobytes()
    assert result.test == metrics_from_histogram(3 * histogram_with(5))


# Choosing a plan

CANDIDATES = {
    "training": {
        "algorithm": "auto",
        "rounds": 7,
        "patience": 7,
        "trial_rounds": 2,
        "plan": {},
        "candidates": [{"algorithm": "fedavg", "learning_rate": 0.5}, {"algorithm": "fedprox", "learning_rate": 0.1}],
    }
}


def plans_of(result):
    return [entry.plan for entry in result.rounds]


@pytest.mark.parametrize("better", [0, 1])
def test_auto_goes_on_with_the_plan_of_better_validation_from_its_own_state(federation, better):
    run = scripted(federation(**CANDIDATES), lambda plan, trained: trained + (3 if plan == better else 0))
    result = run.run()
    assert plans_of(result) == [0, 0, 1, 1, *[better] * 3]
    assert [entry.round for entry in result.rounds] == list(range(1, 8))
    assert (result.plan_index, result.model.round) == (better, 7)
    assert result.to_json()["plan"]["algorithm"] == ("fedavg", "fedprox")[better]
    assert run.of(PlanChosen)[0].plan == better
    rounds = run.orders("alpha", RoundOrder)
    # Both start from the same weights, and the winner goes on from what its own trial ended with.
    assert rounds[0].weights.tobytes() == rounds[2].weights.tobytes()
    trial_ends = [order.weights for order in run.orders("alpha", EvaluateOrder)[:2]]
    assert rounds[4].weights.tobytes() == trial_ends[better].tobytes()


def test_auto_breaks_a_tie_for_the_first_candidate(federation):
    run = scripted(federation(**CANDIDATES), lambda _, trained: trained)
    assert run.run().plan_index == 0


def test_auto_judges_a_trial_by_its_best_model_not_its_last(federation):
    run = scripted(
        federation(**CANDIDATES), lambda plan, trained: [[0, 3, 4, 4, 4, 4], [0, 8, 1, 1, 1, 1]][plan or 0][trained]
    )
    result = run.run()
    assert (result.plan_index, result.model.round) == (1, 3)


def test_auto_never_looks_at_test_rows_to_choose(federation):
    run = scripted(federation(**CANDIDATES), lambda plan, trained: trained + (plan or 0))
    run.run()
    splits = [order.split for order in run.orders("alpha", EvaluateOrder)]
    assert splits == ["validation", "validation", "validation", "test"]


def test_auto_spends_no_round_on_a_winner_whose_patience_is_over(federation):
    training = {**CANDIDATES["training"], "rounds": 20, "patience": 2, "trial_rounds": 4}
    levels = [0, 9, 5, 5, 5, 5, 5, 5, 5]
    run = scripted(federation(training=training), lambda plan, trained: levels[trained] if plan == 0 else 1)
    result = run.run()
    assert plans_of(result) == [0] * 4 + [1] * 4
    assert result.model.round == 1


def test_auto_does_not_count_a_model_twice_that_is_validated_twice(federation):
    """The last model of a trial is validated at the trial's end and as the incoming model of the next round."""
    training = {**CANDIDATES["training"], "patience": 1}
    run = scripted(federation(training=training), lambda plan, trained: trained + (3 if plan == 0 else 0))
    assert run.run().model.round == 7


def test_auto_without_any_figure_takes_the_first_candidate_that_has_a_model(federation, world):
    run = federation(**CANDIDATES)
    for shop in run.shops.values():
        shop.histogram = lambda *_: np.zeros(2 * NUM_BINS, np.int64)
        shop.answer = _without_metrics(shop, shop.answer)
    failing = {
        name: world.changed(run.shops[name], lambda order, reply: None if order.round in {1, 2} else reply)
        for name in ROSTER
    }
    result = run.run(failing)
    assert (result.plan_index, result.model.round) == (1, 7)


def test_auto_with_one_failing_candidate_takes_the_other(federation, world):
    run = federation(**CANDIDATES)
    failing = {
        name: world.changed(run.shops[name], lambda order, reply: None if order.plan == 0 else reply) for name in ROSTER
    }
    result = run.run(failing)
    assert result.plan_index == 1
    assert plans_of(result) == [0, 0, 1, 1, 1, 1, 1]


def test_scaffold_variates_of_two_plans_are_told_apart(federation):
    candidates = [{"algorithm": "scaffold", "learning_rate": 0.5}, {"algorithm": "scaffold", "learning_rate": 0.1}]
    run = federation(training={**CANDIDATES["training"], "candidates": candidates})
    run.run()
    shop = run.shops["beta"]
    hashes = [message_hash(reply) for reply in shop.replies]
    rounds = [(order, reply) for order, reply in zip(shop.seen, hashes, strict=True) if isinstance(order, RoundOrder)]
    for plan in (0, 1):
        own = [(order.included, reply) for order, reply in rounds if order.plan == plan]
        assert own[0][0] == ""
        assert [included for included, _ in own[1:]] == [reply for _, reply in own[:-1]]


# What is told


def test_figures_of_merchants_are_told_only_where_the_agreement_shares_them(federation):
    kept = federation().run().to_json()["merchants"]["alpha"]
    assert kept == {"num_train_rows": 400, "backend": "numpy", "device": "pencil"}
    shared = federation(privacy={"share_metrics": True, "min_positives": 1}).run().to_json()["merchants"]["alpha"]
    assert shared["num_test_rows"] == 40
    assert set(shared["federated"]) == {"roc_auc", "pr_auc"}


@pytest.mark.parametrize("figures", [{"roc_auc": 1.5}, {"pr_auc": -0.1}, {"num_test_rows": 10**9}])
def test_impossible_own_figures_are_left_out(federation, world, figures):
    run = federation(privacy={"share_metrics": True, "min_positives": 1})

    def boast(_, reply):
        if reply.metrics is None:
            return reply
        return reply.model_copy(update={"metrics": reply.metrics.model_copy(update=figures)})

    result = run.run({"beta": world.changed(run.shops["beta"], boast, EvaluateOrder)})
    assert set(result.shared) == {"alpha", "gamma"}


def test_test_figures_of_fewer_than_min_merchants_are_not_told(federation, world):
    run = federation(cohort={"min_merchants": 3})
    silent = world.changed(
        run.shops["beta"], lambda order, reply: None if order.split == "test" else reply, EvaluateOrder
    )
    assert run.run({"beta": silent}).test is None


def test_json_has_the_agreed_keys_and_no_number_that_json_cannot_hold(federation):
    values = federation().run().to_json()
    assert json.loads(json.dumps(values, allow_nan=False)) == values
    assert set(values) >= {
        "agreement_fingerprint", "agreement_name", "task", "label", "features", "model", "seed",
        "hansa_version", "run_id", "best_round", "plan", "rounds", "federated", "merchants",
    }  # fmt: skip
    assert set(values["rounds"][0]) >= {
        "round", "plan", "seconds", "cohort", "dropped", "validation", "train_loss", "bytes_received", "bytes_sent",
    }  # fmt: skip
    assert set(values["federated"]) >= {"roc_auc", "pr_auc", "num_rows", "reliability", "pr_curve"}


def test_orders_are_canonical_messages(federation):
    run = federation()
    run.run()
    for _, order in run.grid.orders:
        assert encode(decode(order)) == order
