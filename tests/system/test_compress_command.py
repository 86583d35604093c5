"""`hansa compress` over a finished simulation: its choices are what whole runs under their agreements end with, and it
takes no other rows than the run's."""

from __future__ import annotations

import contextlib
import io
import json
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from shop_columns import AMOUNT, BUYS
from sklearn.metrics import roc_auc_score

from hansa_client.bundle_files import open_trusted
from hansa_client.data import merchant_table
from hansa_common.agreement import validate_agreement
from hansa_common.cli import installed_commands, run
from hansa_common.scorer import Scorer
from hansa_server import run_folder
from hansa_simulations.choices_files import CHOICES, FIGURE
from hansa_simulations.scenario import Scenario, run_scenario

pytestmark = [pytest.mark.system, pytest.mark.timeout(600)]

TOML = f"""\
task = "purchase"
{BUYS}{AMOUNT}
[[features]]
kind = "categorical"
name = "shelf"
hash_buckets = 8
missing = "refuse"

[model]
hidden = [16, 8]
dropout = 0.1

[training]
algorithm = "scaffold"
rounds = 3

[training.plan]
learning_rate = 0.2

[privacy]
min_count = 1
min_positives = 1
"""


def rows(num_rows=1000):
    values = np.random.default_rng(4)
    amount, shelf = values.uniform(0, 100, num_rows).round(2), values.choice(["a", "b", "c"], num_rows)
    buys = values.uniform(size=num_rows) < 1 / (1 + np.exp(3 - amount / 20 - 2 * (shelf == "b")))
    shop = values.choice(["alder", "birch"], num_rows)
    return pd.DataFrame({"shop": shop, "amount": amount, "shelf": shelf, "buys": buys.astype(int)})


def hansa_json(*words):
    """Run a command line in this process; what it tells a machine."""
    with contextlib.redirect_stdout(io.StringIO()) as out:
        assert run([*map(str, words), "--json"], installed_commands()) == 0
    return json.loads(out.getvalue())


@pytest.fixture(scope="module")
def compressed(tmp_path_factory):
    """A run that agreed on no small model, and two choices of one; the loss that is allowed lets both go."""
    folder = tmp_path_factory.mktemp("compress")
    rows().to_csv(folder / "rows.csv", index=False)
    (folder / "agreement.toml").write_text(TOML)
    simulate = ("simulate", folder / "agreement.toml", folder / "rows.csv", "--silo", "shop", "--out", folder / "run")
    metrics = hansa_json(*simulate)
    choose = ("--sparsity", "0.5", "--max-loss", "0.5", "--rounds", 2)
    told = hansa_json("compress", folder / "run", folder / "rows.csv", *choose)
    return SimpleNamespace(
        folder=folder, run=folder / "run", out=folder / "run" / "compress", told=told, metrics=metrics
    )


def agreement_of(folder):
    return validate_agreement(json.loads((folder / run_folder.AGREEMENT).read_bytes()), "it")


def tables_of(agreement):
    frames = dict(iter(rows().astype(str).groupby("shop")))
    return {name: merchant_table(frames[name], agreement, name, name) for name in agreement.roster}


def test_chosen_model_is_byte_for_byte_that_of_a_whole_run_under_its_agreement(compressed, tmp_path):
    agreement = agreement_of(compressed.out)
    assert (agreement.compression.sparsity, agreement.compression.pruning_rounds) == (0.5, 2)
    outcome = run_scenario(Scenario(agreement, tables_of(agreement)), tmp_path / "whole")
    for part in (run_folder.MODEL, run_folder.SMALL):
        files = sorted((tmp_path / "whole" / part).iterdir())
        assert files
        for path in files:
            assert (compressed.out / part / path.name).read_bytes() == path.read_bytes(), path.name
    told = json.loads((compressed.out / run_folder.METRICS).read_bytes())
    for key in ("compressed", "compression", "bundle", "federated", "agreement_fingerprint"):
        assert told[key] == outcome.metrics[key], key
    for name, values in outcome.metrics["merchants"].items():
        assert told["merchants"][name]["compressed"] == values["compressed"]


def test_choices_are_told_with_sizes_losses_and_figures_of_their_control(compressed):
    told = compressed.told
    assert told == json.loads((compressed.out / CHOICES).read_bytes())
    assert [c["sparsity"] for c in told["choices"]] == [0.0, 0.5]
    assert told["chosen"] == told["carried"] == 0.5
    int8, half = told["choices"]
    assert half["bundle"]["gzip_bytes"] < int8["bundle"]["gzip_bytes"]
    assert (int8["bundle"]["sparsity"], half["bundle"]["sparsity"]) == (0.0, pytest.approx(0.5, abs=0.03))
    for choice in told["choices"]:
        gate = choice["compression"]["validation"]
        loss = choice["validation"]["loss"]
        assert loss["estimate"] == pytest.approx(gate["original"]["pr_auc"] - gate["candidate"]["pr_auc"])
        assert loss["low"] <= loss["estimate"] <= loss["high"]
    pruning = half["compression"]["pruning"]
    control = half["compression"]["validation"]["original"]["pr_auc"] - pruning["validation"]["control"]["pr_auc"]
    assert half["validation"]["control_loss"]["estimate"] == pytest.approx(control)
    assert half["test"]["control"] == pruning["test"]["control"]
    assert (compressed.out / FIGURE).read_bytes().startswith(b"\x89PNG")


def test_bundle_of_the_chosen_one_is_signed_and_scores_as_told(compressed):
    bundle = open_trusted(compressed.out / run_folder.BUNDLE, None)
    assert bundle.manifest.agreement_fingerprint == compressed.told["choices"][1]["agreement_fingerprint"]
    key = bytes.fromhex((compressed.out / run_folder.HASH_KEY).read_text().strip())
    labels, scores = [], []
    for table in tables_of(agreement_of(compressed.out)).values():
        scores.append(Scorer(bundle, key).score({name: v[table.test] for name, v in table.columns.items()}))
        labels.append(table.labels[table.test])
    figures = compressed.told["choices"][1]["test"]["compressed"]
    assert roc_auc_score(np.concatenate(labels), np.concatenate(scores)) == pytest.approx(figures["roc_auc"], abs=1e-3)


def test_run_itself_stays_as_it_was(compressed):
    assert json.loads((compressed.run / run_folder.METRICS).read_bytes()) == compressed.metrics
    assert not (compressed.run / run_folder.BUNDLE).exists()


def refused(result, *words):
    assert result.exit_code == 2
    assert "Traceback" not in result.stderr
    for word in words:
        assert word in result.stderr


def test_table_is_asked_for_by_its_name(compressed, hansa):
    refused(hansa("compress", compressed.run), "'rows.csv'", f"hansa compress {compressed.run} FILE")


@pytest.mark.parametrize("change", ["a row less", "one other amount", "shops without a name"])
def test_other_rows_than_the_runs_are_refused(compressed, hansa, tmp_path, change):
    table = rows()
    match change:
        case "a row less":
            table = table.iloc[10:]
        case "one other amount":
            table["amount"] = 100 - table["amount"]
        case _:
            table["shop"] = "alder"
    table.to_csv(tmp_path / "other.csv", index=False)
    words = {"a row less": "training rows there", "one other amount": "not those that the model was trained on"}
    refused(hansa("compress", compressed.run, tmp_path / "other.csv"), words.get(change, "birch"))


def test_run_of_real_processes_has_no_rows_here(compressed, hansa, tmp_path):
    metrics = {name: value for name, value in compressed.metrics.items() if name != "data"}
    run_folder.create(tmp_path / "run", agreement_of(compressed.run))
    finished = run_folder.open_finished(compressed.run)
    run_folder.finish(tmp_path / "run", metrics, finished.spec, finished.weights, finished.preprocessing)
    refused(hansa("compress", tmp_path / "run", compressed.folder / "rows.csv"), "is not a simulation")


def test_folder_without_a_run_is_told(hansa, tmp_path):
    refused(hansa("compress", tmp_path), "holds no run")
    refused(hansa("compress", tmp_path / "nowhere"), "holds no run")
