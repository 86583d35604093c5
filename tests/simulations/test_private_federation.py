"""A federation under [privacy.dp]: the run as everyone sees it, and what it costs in the end."""

from __future__ import annotations

import numpy as np
import pytest

from hansa_client.guarded_trainer import in_process
from hansa_client.programs import Programs
from hansa_common.errors import AgreementError
from hansa_common.messages import decode, encode
from hansa_common.privacy import epsilon
from hansa_common.privacy_costs import cost_of, run_epsilon
from hansa_common.record_types import Order
from hansa_server import run_folder
from hansa_server.app import app as server_app
from hansa_simulations.grid import LocalGrid, run_server_app
from hansa_simulations.scenario import run_scenario, simulated_merchants

DP = {"epsilon": 8, "noise_multiplier": 3.0, "sampling_rate": 0.2}
ROUNDS = 3


@pytest.fixture
def private(shops):
    def scenario(dp=DP, **changes):
        plan = {"optimizer": "sgd", "learning_rate": 0.5, "local_steps": 5}
        training = {"algorithm": "fedavg", "rounds": ROUNDS, "patience": 1, "plan": plan}
        return shops.scenario(training=training, privacy={"dp": dp}, **changes)

    return scenario


def test_same_scenario_leaves_the_same_bytes_and_another_seed_others(private, tmp_path) -> None:
    first, again, other = (
        run_scenario(private(seed=seed), tmp_path / name).weights for name, seed in (("a", 3), ("b", 3), ("c", 4))
    )
    assert (first == again).all()
    assert (first != other).any()


def test_all_rounds_are_done_and_the_last_model_is_kept_since_none_is_validated(private, tmp_path) -> None:
    metrics = run_scenario(private(), tmp_path / "run").metrics
    assert metrics["best_round"] == len(metrics["rounds"]) == ROUNDS
    assert metrics["validation"] is None
    assert all(entry["validation"] is None and entry["train_loss"] is None for entry in metrics["rounds"])
    # A simulation has the rows, so it knows the figures that no merchant sends.
    assert metrics["federated"]["pr_auc"] > 0.4
    assert run_folder.read_outcome(tmp_path / "run")["privacy"]["epsilon"] <= DP["epsilon"]


def test_learning_is_private_and_still_learning(private, shops, tmp_path) -> None:
    little_noise = {**DP, "epsilon": 100, "noise_multiplier": 0.5, "statistics_noise_multiplier": 3.0}
    plan = {"optimizer": "sgd", "learning_rate": 0.5, "local_steps": 60}
    training = {"algorithm": "fedavg", "rounds": 1, "plan": plan}
    private_one = shops.scenario(training=training, privacy={"dp": little_noise})
    plain_one = shops.scenario(training=training)
    found, plain = (
        run_scenario(s, tmp_path / n).metrics["federated"] for s, n in ((private_one, "a"), (plain_one, "b"))
    )
    assert found["roc_auc"] > plain["roc_auc"] - 0.05


def test_orders_of_a_run_cost_what_the_agreement_says_a_run_costs(private, tmp_path) -> None:
    scenario = private({**DP, "evaluation_noise_multiplier": 6.0})
    agreement = scenario.agreement
    seen: dict[str, list[Order]] = {name: [] for name in agreement.roster}

    class Listening:
        def __init__(self, name, trainer) -> None:
            self.name, self.trainer = name, trainer

        def answer(self, message, has_gone=lambda: False):
            order = decode(message)
            seen[self.name].append(order)
            return self.trainer.answer(message, has_gone)

    run_folder.create(tmp_path / "run", agreement)
    programs = Programs.for_tables(agreement, *scenario.tables.values())
    trainers = in_process(agreement, simulated_merchants(agreement, scenario.tables, programs))
    listening = {name: Listening(name, trainer) for name, trainer in trainers.items()}
    run_server_app(server_app, LocalGrid(listening), {"run-folder": str(tmp_path / "run")})
    for orders in seen.values():
        mechanisms = [mechanism for order in orders for mechanism in cost_of(order, agreement).mechanisms]
        assert epsilon(mechanisms, 1e-5) == run_epsilon(agreement)
        assert all(encode(order) for order in orders)


def test_scaffold_is_private_too_since_its_variate_comes_of_the_update(private, tmp_path) -> None:
    scenario = private()
    values = scenario.agreement.model_dump(mode="json")
    values["training"]["algorithm"] = values["training"]["plan"]["algorithm"] = "scaffold"
    agreement = type(scenario.agreement).model_validate(values)
    outcome = run_scenario(type(scenario)(agreement, scenario.tables), tmp_path / "run")
    assert np.isfinite(outcome.weights).all()


def test_run_that_would_cost_more_than_promised_is_no_run(private, tmp_path) -> None:
    scenario = private({**DP, "epsilon": 0.5})
    with pytest.raises(AgreementError, match=r"promises epsilon 0\.5"):
        run_folder.create(tmp_path / "run", scenario.agreement)
    assert not (tmp_path / "run").exists()
