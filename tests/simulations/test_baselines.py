"""Baselines get the better deal and never a look at test rows."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from hansa_client.programs import Programs
from hansa_common.agreement_sections import Plan
from hansa_common.errors import RunFailedError
from hansa_simulations.baselines import Baselines, baseline_plans, pooled_table
from hansa_simulations.scenario import simulated_hash_key

KEY = simulated_hash_key(0)


@pytest.fixture(scope="module")
def world(shops):
    agreement = shops.agreement()
    return agreement, shops.tables(agreement)


@pytest.fixture(scope="module")
def trained(world, tiny_programs):
    agreement, tables = world
    baselines = Baselines(agreement, tables, KEY, tiny_programs)
    return {name: baselines.local(name) for name in ("alder", "cedar")} | {"pooled": baselines.pooled}


def same(one, other):
    return one.weights.tobytes() == other.weights.tobytes() and one.to_json() == other.to_json()


def with_other_test_rows(table):
    """Other labels in the test rows, and values at the far end of their domain."""
    labels, amount = table.labels.copy(), table.columns["amount"].copy()
    labels[table.test] = 1 - labels[table.test]
    amount[table.test] = 99.0
    return replace(table, labels=labels, columns={**table.columns, "amount": amount})


def with_other_rows(table, part):
    labels = table.labels.copy()
    labels[getattr(table, part)] = 1 - labels[getattr(table, part)]
    return replace(table, labels=labels)


def test_test_rows_change_no_baseline(world, trained, tiny_programs):
    agreement, tables = world
    altered = {name: with_other_test_rows(table) for name, table in tables.items()}
    baselines = Baselines(agreement, altered, KEY, tiny_programs)
    for name in ("alder", "cedar"):
        assert same(baselines.local(name), trained[name])
    assert same(baselines.pooled, trained["pooled"])


@pytest.mark.parametrize("part", ["train", "validation"])
def test_rows_that_are_for_training_or_choosing_do_change_it(world, trained, tiny_programs, part):
    """The test above can fail: the same change in another part shows."""
    agreement, tables = world
    altered = {**tables, "alder": with_other_rows(tables["alder"], part)}
    assert not same(Baselines(agreement, altered, KEY, tiny_programs).local("alder"), trained["alder"])


def test_other_merchants_rows_change_no_local_baseline(world, trained, tiny_programs):
    agreement, tables = world
    altered = {**tables, "birch": with_other_rows(tables["birch"], "train")}
    assert same(Baselines(agreement, altered, KEY, tiny_programs).local("alder"), trained["alder"])


def test_programs_that_are_shared_change_no_byte(world, tiny_programs):
    agreement, tables = world
    fresh, shared = (Baselines(agreement, tables, KEY, p) for p in (Programs(agreement, 1000), tiny_programs))
    assert same(fresh._trained("cedar", tables["cedar"], 0), shared._trained("cedar", tables["cedar"], 0))


def test_plans_that_step_alike_share_one_program(world, tiny_programs):
    agreement, _ = world
    plans = [{"algorithm": "fedavg"}, {"algorithm": "scaffold", "local_epochs": 9}, {"algorithm": "fedadam"}]
    for plan in plans:
        training = {"algorithm": plan["algorithm"], "plan": {**agreement.training.plan.model_dump(), **plan}}
        other = tiny_programs.sharing(
            type(agreement).model_validate({**agreement.model_dump(mode="json"), "training": training})
        )
        assert other.training(0) is tiny_programs.training(0)


def test_programs_of_another_model_are_not_shared(shops, tiny_programs):
    for model in ({"hidden": [], "dropout": 0.0, "l2": 2e-3}, {"hidden": [4], "dropout": 0.0, "l2": 1e-3}):
        with pytest.raises(ValueError, match="same model"):
            tiny_programs.sharing(shops.agreement(model=model))


def test_pool_keeps_every_row_and_its_part(world):
    agreement, tables = world
    pool = pooled_table(list(tables.values()), agreement)
    for part in ("train", "validation", "test"):
        pooled_rows = getattr(pool, part)
        for values in ("amount", "member"):
            expected = [table.columns[values][getattr(table, part)] for table in tables.values()]
            np.testing.assert_array_equal(pool.columns[values][pooled_rows], np.concatenate(expected))
        expected = [table.labels[getattr(table, part)] for table in tables.values()]
        np.testing.assert_array_equal(pool.labels[pooled_rows], np.concatenate(expected))
    together = np.concatenate([pool.train, pool.validation, pool.test])
    assert sorted(together.tolist()) == list(range(sum(len(table.labels) for table in tables.values())))
    assert pool.quality.to_json()["num_rows"] == len(pool.labels)


def test_agreements_own_plan_comes_first_and_none_twice(shops):
    plans = baseline_plans(shops.agreement())
    # The agreement's own is one of the common ones here.
    assert len(plans) == 3
    assert (plans[0].optimizer, plans[0].learning_rate) == (shops.plan["optimizer"], shops.plan["learning_rate"])
    assert {(plan.batch_size, plan.local_epochs) for plan in plans} == {(16, 2)}
    assert len(set(plans)) == len(plans)


@pytest.mark.parametrize("algorithm", ["fedprox", "scaffold", "fedadam", "fedyogi", "fedavgm"])
def test_alone_there_is_nothing_to_federate(shops, algorithm):
    """No pull to a model of one's own, no server's damping: a baseline trains plainly."""
    plan = {"optimizer": "sgd", "learning_rate": 0.2, "server_learning_rate": 0.01, "proximal_mu": 5.0}
    agreement = shops.agreement(training={"algorithm": algorithm, "rounds": 3, "plan": plan})
    own = baseline_plans(agreement)[0]
    assert (own.algorithm, own.server_learning_rate) == ("fedavg", Plan().server_learning_rate)
    assert (own.optimizer, own.learning_rate) == ("sgd", 0.2)


def test_every_candidate_of_the_agreement_is_tried_and_trains_all_rounds(shops, tiny_programs):
    candidates = [{**shops.plan, "local_epochs": epochs} for epochs in (1, 2)]
    training = {"algorithm": "auto", "rounds": 4, "trial_rounds": 2, "patience": 4, "candidates": candidates}
    agreement = shops.agreement(training=training)
    assert [plan.local_epochs for plan in baseline_plans(agreement)[:2]] == [1, 2]
    rounds = []
    tables = shops.tables(agreement)
    baselines = Baselines(agreement, tables, KEY, tiny_programs.sharing(agreement), rounds.append)
    assert baselines.local("cedar").best_round in range(1, 5)
    assert rounds == ["cedar"] * len(baselines.plans)


def test_best_plan_and_round_by_validation_are_kept(world, trained, tiny_programs):
    """Each plan by itself finds nothing better on validation rows than what all of them together kept."""
    agreement, tables = world
    for index in range(len(baseline_plans(agreement))):
        baselines = Baselines(agreement, tables, KEY, tiny_programs)
        alone = baselines._trained("cedar", tables["cedar"], index)
        assert alone.validation_pr_auc <= trained["cedar"].validation_pr_auc
        if alone.plan == trained["cedar"].plan:
            assert same(alone, trained["cedar"])


def test_no_floor_of_the_federation_holds_for_a_baseline(shops, trained, tiny_programs):
    """Neither the withheld counts, nor the norm, the deadline or the rule that they agreed on for each other's sake."""
    agreement = shops.agreement(
        privacy={"min_count": 10_000, "min_positives": 10_000},
        cohort={"min_merchants": 3, "deadline_seconds": 1e-3, "max_update_norm": 1e-6},
        robustness={"rule": "median", "num_dishonest": 1},
    )
    baselines = Baselines(agreement, shops.tables(agreement), KEY, tiny_programs.sharing(agreement))
    assert same(baselines.local("cedar"), trained["cedar"])


def test_baseline_that_no_plan_trains_says_so(world, tiny_programs, caplog):
    agreement, tables = world
    no_amounts = replace(tables["cedar"], columns={"member": tables["cedar"].columns["member"]})
    baselines = Baselines(agreement, {"cedar": no_amounts}, KEY, tiny_programs)
    with pytest.raises(RunFailedError, match="no plan trained the baseline 'cedar'"):
        baselines.local("cedar")
    assert "cedar failed at order" in caplog.text
