"""A federation that prunes, from tables to the signed bundle: what was agreed is what the finished file holds."""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import roc_auc_score

from hansa_client.bundle_files import open_trusted
from hansa_client.data import merchant_table
from hansa_common.agreement import validate_agreement
from hansa_common.bundle import INT8_NAME
from hansa_common.model import load_model_parts
from hansa_common.pruning import is_prunable, num_pruned
from hansa_common.scorer import Scorer
from hansa_common.vectors import unflatten
from hansa_server import run_folder
from hansa_simulations.scenario import Scenario, run_scenario

pytestmark = [pytest.mark.system, pytest.mark.timeout(600)]

SPARSITY, NUM_ROUNDS, PRUNING_ROUNDS = 0.8, 4, 2
AGREEMENT = validate_agreement(
    {
        "task": "purchase",
        "label": {"column": "buys"},
        "features": [
            {"kind": "numeric", "name": "amount", "low": 0, "high": 100, "missing": "refuse"},
            {
                "kind": "categorical", "name": "shelf", "vocabulary": ["a", "b", "c"], "encoding": "embedding",
                "embedding_dim": 3, "missing": "refuse",
            },
        ],
        "model": {"hidden": [32, 16], "dropout": 0.1},
        "training": {"algorithm": "scaffold", "rounds": NUM_ROUNDS, "plan": {"learning_rate": 0.2}},
        "compression": {
            "format": "int8", "sparsity": SPARSITY, "pruning_rounds": PRUNING_ROUNDS, "max_pr_auc_loss": 0.1,
            "max_merchant_pr_auc_loss": 0.2,
        },
        "privacy": {"min_count": 1, "min_positives": 1},
        "roster": ["alpha", "beta"],
    },
    "the test",
)  # fmt: skip


def table_of(merchant: str, seed: int):
    values = np.random.default_rng(seed)
    amount, shelf = values.uniform(0, 100, 600).round(2), values.choice(["a", "b", "c"], 600)
    buys = values.uniform(size=600) < 1 / (1 + np.exp(3 - amount / 20 - 2 * (shelf == "b")))
    columns = {"amount": amount.astype(str), "shelf": shelf, "buys": buys.astype(int).astype(str)}
    frame = pd.DataFrame(columns)
    return merchant_table(frame, AGREEMENT, merchant, "the test")


def finished(folder):
    tables = {name: table_of(name, seed) for seed, name in enumerate(AGREEMENT.roster)}
    return run_scenario(Scenario(AGREEMENT, tables), folder).metrics


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pruned") / "run"
    return folder, finished(folder)


def test_finished_int8_file_has_the_agreed_share_of_zeros_in_every_hidden_kernel_and_none_elsewhere(run):
    _, metrics = run
    assert metrics["compression"]["released"], metrics["compression"]["reason"]
    for name, found in metrics["compression"]["found"]["kernels"].items():
        expected = num_pruned(found["num_weights"], SPARSITY) if is_prunable(name) else 0
        assert found["float_zeros"] == expected, name
        # Rounding to eight bits makes a zero of a tiny weight too.
        assert expected <= found["int8_zeros"] <= expected + 0.05 * found["num_weights"], name


def test_small_model_stands_beside_the_kept_one_which_keeps_all_its_weights(run):
    folder, metrics = run
    spec, kept, _ = load_model_parts(folder / run_folder.MODEL)
    _, small, _ = load_model_parts(folder / run_folder.SMALL)
    for name, of_kept, of_small in zip(
        spec.named_shapes, unflatten(kept, spec.shapes), unflatten(small, spec.shapes), strict=True
    ):
        if is_prunable(name):
            assert np.count_nonzero(of_kept == 0) == 0, name
            assert np.count_nonzero(of_small == 0) == num_pruned(of_small.size, SPARSITY), name
    bundled = folder / run_folder.BUNDLE
    for name in ("weights.npz", INT8_NAME):
        assert (bundled / name).read_bytes() == (folder / run_folder.SMALL / name).read_bytes(), name
    assert metrics["bundle"]["sparsity"] == pytest.approx(SPARSITY, abs=0.03)


def test_figures_are_of_training_rounds_and_the_lines_of_all(run):
    folder, metrics = run
    lines = [json.loads(line) for line in (folder / run_folder.ROUNDS).read_text().splitlines()]
    assert [line for line in lines if line["stage"] == "train"] == metrics["rounds"]
    further = [line["round"] for line in lines if line["stage"] == "prune"]
    last = len(metrics["rounds"])
    assert (
        further
        == [line["round"] for line in lines if line["stage"] == "control"]
        == [last + 1, last + 2, last + 3, last + 4]
    )
    told = metrics["compression"]["pruning"]
    assert (told["sparsity"], told["rounds"], told["pruned"]) == (SPARSITY, PRUNING_ROUNDS, True)
    for rows in ("validation", "test"):
        for stage in ("pruned", "control"):
            assert 0 < told[rows][stage]["pr_auc"] <= 1
            assert last + PRUNING_ROUNDS <= told["best_round"][stage] <= last + 2 * PRUNING_ROUNDS


def test_same_seed_leaves_the_same_small_model_byte_for_byte(run, tmp_path):
    folder, _ = run
    finished(tmp_path / "again")
    for path in sorted((folder / run_folder.SMALL).iterdir()):
        assert (tmp_path / "again" / run_folder.SMALL / path.name).read_bytes() == path.read_bytes(), path.name


def test_bundle_is_the_simulated_coordinators_and_scores_as_the_metrics_say(run):
    folder, metrics = run
    bundle = open_trusted(folder / run_folder.BUNDLE, None)
    assert bundle.manifest.agreement_fingerprint == AGREEMENT.fingerprint
    table = table_of("alpha", 0)
    columns = {name: values[table.test] for name, values in table.columns.items()}
    scores = Scorer(bundle).score(columns)
    figures = metrics["merchants"]["alpha"]["compressed"]
    assert roc_auc_score(table.labels[table.test], scores) == pytest.approx(figures["roc_auc"], abs=1e-3)
