"""A scenario is a function of itself: same seed, same bytes; and its federation is the algorithm that the papers
write down, here a second time, slowly, for logistic regression."""

from __future__ import annotations

import json

import numpy as np
import pytest

from hansa_common.errors import UsageError
from hansa_common.features import FittedPreprocessing
from hansa_common.messages import EvaluateOrder, RoundOrder, decode
from hansa_common.model import initial_weights
from hansa_common.randomness import generator
from hansa_server import run_folder
from hansa_server.federation import run_federation
from hansa_server.run_state import RunState
from hansa_simulations.grid import server_identity
from hansa_simulations.scenario import Scenario, check_roster, run_scenario, simulated_hash_key

L2 = 1e-3
NUM_ROUNDS = 6
# In the order of the model's vector: a weight for amount, one for member, the bias.
NUM_PARAMS = 3
BASELINES = ("local", "pooled")
FIGURES = {"roc_auc", "pr_auc"}


def run(scenario, folder, **options):
    outcome = run_scenario(scenario, folder, **options)
    files = sorted(path for path in (folder / run_folder.MODEL).iterdir())
    return outcome, {path.name: path.read_bytes() for path in files}


def told(folder):
    return json.loads((folder / run_folder.METRICS).read_bytes())


def without_time_and_name(metrics):
    rounds = [{key: value for key, value in entry.items() if key != "seconds"} for entry in metrics["rounds"]]
    return {**metrics, "rounds": rounds, "run_id": None}


@pytest.fixture(scope="module")
def finished(shops, tmp_path_factory):
    """One run with both baselines, and what was on disk when the first baseline had been trained."""
    folder, early = tmp_path_factory.mktemp("runs") / "one", []
    progress = []

    def on_baseline(entry):
        progress.append(entry)
        early.append(told(folder))

    outcome, files = run(shops.scenario(BASELINES), folder, on_baseline=on_baseline)
    return outcome, files, folder, early[0], progress


def one_step(w, x, y, learning_rate, correction):
    """w, correction: three floats; x (rows, 2), y (rows,). Mean cross-entropy and L2 on the kernel."""
    gradient = [0.0] * NUM_PARAMS
    for row, label in zip(x, y, strict=True):
        p = 1.0 / (1.0 + np.exp(-(w[0] * row[0] + w[1] * row[1] + w[2])))
        for j, value in enumerate([*row, 1.0]):
            gradient[j] += (p - label) * value / len(y)
    for j in range(NUM_PARAMS - 1):
        gradient[j] += 2.0 * L2 * w[j]
    return [w[j] - learning_rate * (gradient[j] + correction[j]) for j in range(NUM_PARAMS)]


def local_training(x_global, rows, plan, correction, orders):
    """Some epochs in the given orders, in batches whose last one may be short; weights and the number of steps."""
    w, num_steps = list(x_global), 0
    inputs, labels = rows
    for order in orders:
        for start in range(0, len(order), plan["batch_size"]):
            batch = order[start : start + plan["batch_size"]]
            w = one_step(w, inputs[batch], labels[batch], plan["learning_rate"], correction)
            num_steps += 1
    return w, num_steps


def orders_of(merchant, round_number, num_rows, num_epochs):
    shuffle = generator(0, "shuffle", merchant, 0, round_number)
    return [shuffle.permutation(num_rows) for _ in range(num_epochs)]


def fedavg(start, merchants, plan):
    """McMahan et al. 2017: w <- sum n_k / n * w_k. Yields the weights after each round."""
    w, num_rows = list(start), sum(len(labels) for _, labels in merchants.values())
    for round_number in range(1, NUM_ROUNDS + 1):
        after = [0.0] * NUM_PARAMS
        for name, rows in merchants.items():
            orders = orders_of(name, round_number, len(rows[1]), plan["local_epochs"])
            y, _ = local_training(w, rows, plan, [0.0] * NUM_PARAMS, orders)
            after = [after[j] + len(rows[1]) / num_rows * y[j] for j in range(NUM_PARAMS)]
        w = after
        yield w


def scaffold(start, merchants, plan):
    """Karimireddy et al. 2020, algorithm 1 with option II and a server rate of 1; where the paper writes a plain mean
    over clients, of updates and of variates, this takes the mean by rows. Everyone takes part in every round.
    """
    x, c, eta = list(start), [0.0] * NUM_PARAMS, plan["learning_rate"]
    c_of = {name: [0.0] * NUM_PARAMS for name in merchants}
    num_rows = sum(len(labels) for _, labels in merchants.values())
    for round_number in range(1, NUM_ROUNDS + 1):
        dx, dc = [0.0] * NUM_PARAMS, [0.0] * NUM_PARAMS
        for name, rows in merchants.items():
            share, c_i = len(rows[1]) / num_rows, c_of[name]
            orders = orders_of(name, round_number, len(rows[1]), plan["local_epochs"])
            y, num_steps = local_training(x, rows, plan, [c[j] - c_i[j] for j in range(NUM_PARAMS)], orders)
            c_plus = [c_i[j] - c[j] + (x[j] - y[j]) / (num_steps * eta) for j in range(NUM_PARAMS)]
            dx = [dx[j] + share * (y[j] - x[j]) for j in range(NUM_PARAMS)]
            dc = [dc[j] + share * (c_plus[j] - c_i[j]) for j in range(NUM_PARAMS)]
            c_of[name] = c_plus
        x, c = [x[j] + dx[j] for j in range(NUM_PARAMS)], [c[j] + dc[j] for j in range(NUM_PARAMS)]
        yield x


def scaled_rows(scenario):
    """Inputs and labels of every merchant's training rows, scaled by the mean and deviation of all of them."""
    tables = scenario.tables
    amounts = np.concatenate([table.columns["amount"][table.train] for table in tables.values()])
    mean, deviation = amounts.mean(), amounts.std()

    def rows(table):
        amount = (table.columns["amount"][table.train] - mean) / deviation
        member = 2.0 * table.columns["member"][table.train] - 1.0
        return np.stack([amount, member], axis=1), table.labels[table.train].astype(float)

    return {name: rows(table) for name, table in tables.items()}


def models_of(grid):
    """The model after each round, as the orders that came next carry it to the first merchant."""
    records = [decode(message.content["hansa"]["message"]) for message in grid.orders]
    orders = [r for r in records if isinstance(r, RoundOrder | EvaluateOrder) and r.recipient == "alder"]
    return [order.weights for order in orders[1 : NUM_ROUNDS + 1]]


@pytest.mark.parametrize(("algorithm", "reference"), [("fedavg", fedavg), ("scaffold", scaffold)])
def test_federation_equals_a_slow_reference_in_every_round(shops, tiny_programs, algorithm, reference):
    # Batches that do not divide the rows, and shops of different sizes: weights by rows and step counts matter.
    plan = {**shops.plan, "learning_rate": 0.4, "local_epochs": 3}
    training = {"algorithm": algorithm, "rounds": NUM_ROUNDS, "patience": NUM_ROUNDS, "plan": plan}
    scenario = shops.scenario(training=training)
    grid = shops.recording_grid(shops.trainers(scenario, tiny_programs.sharing(scenario.agreement)))
    with server_identity():
        run_federation(grid, scenario.agreement, RunState("run"), on_event=lambda _: None)
    start, merchants = initial_weights(tiny_programs.spec, 0).astype(float), scaled_rows(scenario)
    expected = list(reference(start, merchants, plan))
    np.testing.assert_allclose(models_of(grid), expected, atol=2e-6)
    # From the second round on the two algorithms are apart, or this would tell nothing.
    other = list({"fedavg": scaffold, "scaffold": fedavg}[algorithm](start, merchants, plan))
    assert np.abs(np.subtract(expected[1:], other[1:])).max(axis=1).min() > 1e-3


def test_same_scenario_leaves_the_same_bytes_and_figures(finished, shops, tmp_path):
    """With baselines or without. Two runs with baselines, in two processes, are in test_simulate_cli.py."""
    outcome, files, folder, _, _ = finished
    again, same_files = run(shops.scenario(), tmp_path / "again")
    assert same_files == files
    assert sorted(files) == ["preprocessing.json", "spec.json", "weights.npz"]
    assert (tmp_path / "again" / run_folder.AGREEMENT).read_bytes() == (folder / run_folder.AGREEMENT).read_bytes()
    first, second = without_time_and_name(outcome.metrics), without_time_and_name(again.metrics)
    told_by_both = second.keys() - {"merchants", "baselines"}
    assert {key: second[key] for key in told_by_both} == {key: first[key] for key in told_by_both}
    for name, merchant in second["merchants"].items():
        assert merchant == {key: first["merchants"][name][key] for key in merchant}
    assert again.metrics["run_id"] != outcome.metrics["run_id"]


def test_metrics_hold_what_readers_look_for(finished, shops):
    outcome, _, folder, _, _ = finished
    metrics = told(folder)
    assert metrics == outcome.metrics
    for party in ("federated", "pooled", "local"):
        assert metrics[party].keys() >= FIGURES
        assert all(0.0 <= metrics[party][figure] <= 1.0 for figure in FIGURES)
    assert list(metrics["merchants"]) == list(shops.num_rows)
    for merchant in metrics["merchants"].values():
        for party in ("federated", "pooled", "local"):
            assert merchant[party].keys() >= FIGURES
        assert merchant["gain"].keys() == FIGURES
        assert {"num_train_rows", "num_test_rows", "num_test_positives", "threshold", "quality"} <= merchant.keys()
    assert [entry["round"] for entry in metrics["rounds"]] == [1, 2, 3, 4]
    assert metrics["agreement_fingerprint"] == shops.agreement().fingerprint
    assert metrics["seed"] == 0
    assert metrics["data"]["rows"] == sum(shops.num_rows.values())
    assert metrics["baselines"]["local"].keys() == shops.num_rows.keys()
    assert metrics["baselines"]["pooled"]["plan"].keys() >= {"optimizer", "learning_rate"}


def test_federated_figures_are_those_that_the_federation_itself_came_to(finished):
    """Adding up the merchants' histograms over the grid, and scoring all rows at once, are the same."""
    outcome, _, _, early, _ = finished
    assert early["federated"] == outcome.metrics["federated"]


def test_federation_is_on_disk_before_the_first_baseline(finished):
    _, _, _, early, _ = finished
    assert {"local", "pooled", "baselines"}.isdisjoint(early)
    assert early["federated"]["roc_auc"] is not None


def test_every_baseline_tells_when_a_plan_of_it_is_trained(finished, shops):
    _, _, _, _, progress = finished
    num_plans = len(progress) // (len(shops.num_rows) + 1)
    assert [entry.name for entry in progress] == [n for n in (*shops.num_rows, "pooled") for _ in range(num_plans)]
    assert [entry.num_trained for entry in progress] == list(range(1, len(progress) + 1))
    assert {entry.num_all for entry in progress} == {len(progress)}


def test_simulation_withholds_nothing_from_its_own_comparison(finished, shops, tmp_path):
    privacy = {"min_count": 1, "min_positives": 1000, "share_metrics": False}
    outcome, files = run(shops.scenario(privacy=privacy, seed=1), tmp_path / "run")
    assert all(m["federated"]["pr_auc"] is not None for m in outcome.metrics["merchants"].values())
    # In the federation itself the floor holds.
    assert all(entry["validation"] is None for entry in outcome.metrics["rounds"])
    # And another seed left another model.
    assert files["weights.npz"] != finished[1]["weights.npz"]
    assert outcome.metrics["seed"] == 1


def test_folder_holds_a_whole_run(finished):
    _, _, folder, _, _ = finished
    names = {path.name for path in folder.iterdir()}
    assert names == {"agreement.json", "attendance.json", "rounds.jsonl", "model", "report.html", "metrics.json"}
    report = (folder / run_folder.REPORT).read_text(encoding="utf-8")
    assert all(name in report for name in ("alder", "birch", "cedar"))


def test_outcome_is_the_model_in_the_folder(finished):
    outcome, files, _, _, _ = finished
    assert FittedPreprocessing.from_json(files["preprocessing.json"].decode()) == outcome.preprocessing
    assert outcome.weights.dtype == np.float32
    assert outcome.weights.shape == (NUM_PARAMS,)


@pytest.mark.parametrize(
    ("roster", "merchants", "words"),
    [
        (("a", "b"), ("a",), "in the roster only: b"),
        (("a",), ("a", "c"), "a silo only: c"),
        (("a", "b"), ("c", "a"), "in the roster only: b; a silo only: c"),
    ],
)
def test_silos_that_are_not_the_roster_are_refused_by_name(roster, merchants, words):
    with pytest.raises(UsageError, match=words):
        check_roster(roster, merchants)
    check_roster(roster, tuple(reversed(roster)))


def test_scenario_without_a_merchants_table_cannot_be_made(shops):
    scenario = shops.scenario()
    tables = {name: table for name, table in scenario.tables.items() if name != "birch"}
    with pytest.raises(UsageError, match="in the roster only: birch"):
        Scenario(scenario.agreement, tables)


def test_hash_key_is_another_for_another_seed():
    assert simulated_hash_key(3) == simulated_hash_key(3)
    assert simulated_hash_key(3) != simulated_hash_key(4)
    assert len(simulated_hash_key(3)) == 32
