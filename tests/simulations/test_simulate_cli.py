"""`hansa simulate` and `hansa demo`: what cannot be done is refused with the nearest right name before anything is
trained, and what is done can be read by a machine."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
from shop_columns import AMOUNT, BUYS, MEMBER
from sklearn.metrics import roc_auc_score

from hansa_common.agreement import parse_agreement
from hansa_common.randomness import generator
from hansa_simulations.cli import DEMO_AGREEMENT, demo_scenario, parse_baselines
from hansa_simulations.merchants import FIVE_MERCHANTS, payments

HANSA = str(Path(sys.executable).with_name("hansa"))
TOML = f"""\
name = "Three shops"
task = "purchase"
ROSTER
{BUYS}{AMOUNT}{MEMBER}
[model]
hidden = []
dropout = 0.0

[training]
algorithm = "fedavg"
rounds = 2

[training.plan]
optimizer = "sgd"
learning_rate = 0.1
batch_size = 16
local_epochs = 2
"""
MODEL_FILES = ("spec.json", "weights.npz", "preprocessing.json")


def toml(roster=()):
    return TOML.replace("ROSTER", f"roster = {json.dumps(list(roster))}")


@pytest.fixture
def folder(tmp_path, shops):
    """An agreement without a roster, and a table of three shops."""
    rows = pd.concat([shops.rows(name) for name in shops.num_rows])
    rows.to_csv(tmp_path / "rows.csv", index=False)
    (tmp_path / "agreement.toml").write_text(toml(), encoding="utf-8")
    return tmp_path


@pytest.fixture
def simulate(hansa, folder):
    def run_line(*words, agreement="agreement.toml", silo="shop", out="run"):
        data, out = folder / "rows.csv", folder / out
        return hansa("simulate", folder / agreement, data, "--silo", silo, "--out", out, *words)

    return run_line


def refused(result, *words):
    """Told in one message on stderr, as the user's to mend."""
    assert result.exit_code == 2
    assert result.stdout == ""
    assert "Traceback" not in result.stderr
    for word in words:
        assert word in result.stderr


def model_of(run):
    return {name: (run / "model" / name).read_bytes() for name in MODEL_FILES}


def test_silo_column_that_is_not_there_is_refused_with_the_nearest(simulate, folder):
    refused(simulate(silo="shops"), "no column 'shops'", "did you mean 'shop'?")
    refused(simulate(silo="Amount:0,50"), "no column 'Amount'", "did you mean 'amount'?")
    assert not (folder / "run").exists()


@pytest.mark.parametrize("silo", ["amount:0,50,50", "amount:0,5x"])
def test_silo_bands_that_are_no_ascending_numbers_are_refused(simulate, silo):
    refused(simulate(silo=silo), f"--silo {silo}")


@pytest.mark.parametrize(
    ("words", "nearest"), [("locale,pooled", "local"), ("pool", "pooled"), ("local pooled", "pool")]
)
def test_misspelt_baseline_is_refused_with_the_nearest(simulate, folder, words, nearest):
    refused(simulate("--baselines", words), "no baseline", f"did you mean '{nearest}")
    assert not (folder / "run").exists()


def test_baseline_like_no_other_is_refused_with_all_there_are(simulate):
    refused(simulate("--baselines", "xyz"), "there are: local, pooled")


def test_baselines_come_in_one_order_and_once():
    assert parse_baselines("pooled,local,pooled") == ("local", "pooled")
    assert parse_baselines(" ") == ()


def test_roster_that_is_not_the_silos_is_refused_by_name(simulate, folder):
    (folder / "agreement.toml").write_text(toml(["alder", "birch", "ceder"]), encoding="utf-8")
    refused(simulate(), "in the roster only: ceder", "a silo only: cedar", "leave it empty")
    assert not (folder / "run").exists()


def test_agreement_or_table_that_is_not_there_is_refused(simulate, folder):
    refused(simulate(agreement="agreement.tom"), "agreement.tom")
    (folder / "rows.csv").unlink()
    refused(simulate(), "rows.csv")


def test_unknown_key_of_the_agreement_is_refused_with_the_nearest(simulate, folder):
    (folder / "agreement.toml").write_text(toml().replace("rounds =", "roundz ="), encoding="utf-8")
    refused(simulate(), "unknown key 'roundz'", "did you mean 'rounds'?")


def test_unknown_option_is_refused(simulate):
    refused(simulate("--baseline", "local"), "--baselines")


def test_label_column_that_is_not_in_the_table_is_a_failure_of_the_data(simulate, folder):
    (folder / "agreement.toml").write_text(toml().replace('"buys"', '"buy"'), encoding="utf-8")
    result = simulate()
    assert result.exit_code == 1
    assert "no column 'buy'; did you mean 'buys'?" in result.stderr
    assert "Traceback" not in result.stderr


def test_finished_run_is_written_over_when_asked_and_not_before(simulate, folder):
    assert simulate("--seed", 3).exit_code == 0
    first = model_of(folder / "run")
    refused(simulate("--seed", 4), "holds a finished run")
    assert model_of(folder / "run") == first
    assert simulate("--seed", 4, "--force").exit_code == 0
    assert model_of(folder / "run")["weights.npz"] != first["weights.npz"]


def test_json_stands_alone_on_stdout_and_small_silos_are_merged(simulate, folder):
    result = simulate("--json", "--min-silo-rows", 125)
    assert result.exit_code == 0
    metrics = json.loads(result.stdout)
    assert metrics == json.loads((folder / "run" / "metrics.json").read_bytes())
    assert "round 1:" in result.stderr
    # alder's 120 rows and cedar's 75.
    assert list(metrics["merchants"]) == ["birch", "other"]


def test_agreement_as_its_author_wrote_it_is_kept_and_the_figures_are_told(simulate, folder, shops):
    text = toml(shops.num_rows)
    (folder / "agreement.toml").write_text(text, encoding="utf-8")
    result = simulate()
    assert result.exit_code == 0
    assert (folder / "run" / "agreement.toml").read_text(encoding="utf-8") == text
    assert "round 1:" in result.stdout
    assert f"The report is {folder / 'run' / 'report.html'}" in result.stdout


def test_agreement_with_keys_is_simulated_as_if_it_had_none(simulate, folder, shops):
    (folder / "agreement.toml").write_text(toml(shops.num_rows), encoding="utf-8")
    assert simulate(out="without").exit_code == 0
    keys = {name: f"{number:064x}" for number, name in enumerate(shops.num_rows)}
    trust = f'\n[trust]\ncoordinator = "{"c0" * 32}"\nmerchants = {{ALL}}\n'
    entries = ", ".join(f'{name} = "{key}"' for name, key in keys.items())
    (folder / "agreement.toml").write_text(toml(shops.num_rows) + trust.replace("ALL", entries), encoding="utf-8")
    assert simulate(out="with").exit_code == 0
    assert model_of(folder / "with") == model_of(folder / "without")
    assert (folder / "with" / "agreement.json").read_bytes() == (folder / "without" / "agreement.json").read_bytes()


def test_seed_stands_in_the_agreement_wherever_it_was_given(simulate, folder):
    assert simulate("--seed", 5, out="five").exit_code == 0
    (folder / "agreement.toml").write_text("seed = 5\n" + toml(), encoding="utf-8")
    assert simulate(out="said").exit_code == 0
    assert (folder / "said" / "agreement.json").read_bytes() == (folder / "five" / "agreement.json").read_bytes()
    assert model_of(folder / "said") == model_of(folder / "five")
    # The author's file says neither the seed nor the roster of this run.
    assert not (folder / "five" / "agreement.toml").exists()


def test_demo_is_five_merchants_under_an_agreement_that_holds():
    scenario, other = demo_scenario(0), demo_scenario(1)
    assert scenario.agreement.roster == tuple(FIVE_MERCHANTS.num_payments)
    assert scenario.baselines == ("local", "pooled")
    sizes = {name: len(table.labels) for name, table in scenario.tables.items()}
    assert sizes == FIVE_MERCHANTS.num_payments
    assert (scenario.agreement.seed, other.agreement.seed) == (0, 1)
    # Another seed is another world, not only another draw of the model's weights.
    name = scenario.agreement.roster[0]
    assert scenario.tables[name].columns["amount"].tolist() != other.tables[name].columns["amount"].tolist()
    # Rings are only caught if all test rows are later than all others.
    for table in scenario.tables.values():
        moments = table.columns["time"]
        assert moments[table.train].max() <= moments[table.validation].min()
        assert moments[table.validation].max() <= moments[table.test].min()


def test_demo_agreement_has_no_roster_of_its_own():
    text = (Path(__file__).parents[2] / "simulations/hansa_simulations" / DEMO_AGREEMENT).read_text(encoding="utf-8")
    assert parse_agreement(text, "the demo's").roster == ()


def test_demo_touches_no_folder_of_other_things(hansa, tmp_path):
    (tmp_path / "mine.txt").write_text("keep", encoding="utf-8")
    refused(hansa("demo", "--out", tmp_path), "holds other things than a run")
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def hansa_process(*words, cwd):
    environment = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3"}
    return subprocess.run(
        [HANSA, *map(str, words)], cwd=cwd, env=environment, capture_output=True, text=True, check=False
    )


@pytest.mark.system
@pytest.mark.timeout(600)
def test_two_processes_leave_the_same_figures_of_the_comparison(folder):
    told = []
    for out in ("one", "two"):
        words = ("simulate", "agreement.toml", "rows.csv", "--silo", "shop", "--out", out, "--json")
        result = hansa_process(*words, "--baselines", "local,pooled", cwd=folder)
        assert result.returncode == 0, result.stderr
        metrics = json.loads(result.stdout)
        del metrics["run_id"]
        for entry in metrics["rounds"]:
            del entry["seconds"]
        told.append(metrics)
    assert told[0] == told[1]
    assert {"federated", "local", "pooled"} <= told[0].keys()
    assert model_of(folder / "one") == model_of(folder / "two")


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    """`hansa demo` as a machine reads it: how it ended, and where."""
    folder = tmp_path_factory.mktemp("demo")
    return hansa_process("demo", "--json", cwd=folder), folder


@pytest.mark.system
@pytest.mark.timeout(600)
def test_demo_shows_what_a_federation_is_worth(demo):
    """The promise to who sees it first: most merchants gain, all of them together, and little is left to the pool."""
    result, folder = demo
    assert result.returncode == 0, result.stderr
    metrics = json.loads(result.stdout)
    gains = [m["federated"]["pr_auc"] - m["local"]["pr_auc"] for m in metrics["merchants"].values()]
    assert sum(gain > 0 for gain in gains) >= 4
    assert metrics["federated"]["pr_auc"] > metrics["local"]["pr_auc"] + 0.05
    assert metrics["federated"]["pr_auc"] > metrics["pooled"]["pr_auc"] - 0.03
    assert (folder / "runs" / "demo" / "report.html").stat().st_size > 10_000
    # Progress for who watches: every round with its cohort and PR-AUC, and the time that is left.
    rounds = [line for line in result.stderr.splitlines() if line.startswith("round ")]
    assert len(rounds) == len(metrics["rounds"])
    assert all("5 of 5 merchants" in line and "PR-AUC" in line for line in rounds)
    assert all("left" in line for line in rounds)


@pytest.mark.system
@pytest.mark.timeout(600)
def test_demo_ends_with_a_bundle_that_scores_rows_nobody_has_seen(demo, tmp_path):
    run = demo[1] / "runs" / "demo"
    assert hansa_process("bundle", "verify", run / "bundle", cwd=tmp_path).returncode == 0
    rows = payments(FIVE_MERCHANTS, generator(0, "other payments")).head(2000)
    rows.drop(columns="is_fraud").to_csv(tmp_path / "new.csv", index=False)
    words = ("score", run / "bundle", "new.csv", "-o", "scores.csv", "--threshold", "0.5")
    assert hansa_process(*words, cwd=tmp_path).returncode == 2
    result = hansa_process(*words, "--hash-key", run / "hash.key", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    scores = pd.read_csv(tmp_path / "scores.csv")
    assert len(scores) == len(rows)
    # Rings and networks are others: what the model knows of devices is of no use here, the rest of it is.
    assert roc_auc_score(rows["is_fraud"], scores["score"]) > 0.9
