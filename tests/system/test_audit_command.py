"""`hansa audit` as it is typed: in several processes it finds what it finds in one, and a gate keeps the bundle until
it passes."""

from __future__ import annotations

import contextlib
import io
import json
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from shop_columns import AMOUNT, BUYS, MEMBER

from hansa_client.bundle_files import open_trusted
from hansa_common.cli import installed_commands, run
from hansa_common.errors import RunFailedError
from hansa_server import run_folder
from hansa_simulations.audit_workers import Work, trained_confidences

pytestmark = [pytest.mark.system, pytest.mark.timeout(600)]

TOML = f"""\
task = "purchase"
{BUYS}{AMOUNT}{MEMBER}
[data]
test_share = 0.6

[model]
hidden = [8]
dropout = 0.0

[training]
algorithm = "fedavg"
rounds = 2

[compression]
format = "int8"
max_pr_auc_loss = 0.5
max_merchant_pr_auc_loss = 1.0

[privacy]
min_count = 1
min_positives = 1

[audit]
attack = "lira"
shadows = 4
max_true_positive_rate = 0.5
"""


def typed(*words):
    """Run a command line in this process: its exit code, and what it tells a machine."""
    with contextlib.redirect_stdout(io.StringIO()) as out:
        code = run([*map(str, words)], installed_commands())
    return SimpleNamespace(exit_code=code, stdout=out.getvalue())


@pytest.fixture(scope="module")
def audited(tmp_path_factory):
    """A run whose bundle waits for an audit, and what happened to it, audit by audit."""
    folder = tmp_path_factory.mktemp("audit")
    values = np.random.default_rng(4)
    amount, member = values.uniform(0, 100, 1800).round(2), values.integers(0, 2, 1800)
    buys = values.uniform(size=1800) < 1 / (1 + np.exp(3 - amount / 20 - member))
    rows = {"shop": values.choice(["alder", "birch"], 1800), "amount": amount, "member": member, "buys": buys * 1}
    pd.DataFrame(rows).to_csv(folder / "rows.csv", index=False)
    (folder / "agreement.toml").write_text(TOML)
    out, data = folder / "run", folder / "rows.csv"
    simulated = typed("simulate", folder / "agreement.toml", data, "--silo", "shop", "--out", out)
    bundles, words = [run_folder.has_bundle(out)], ("audit", out, data, "--no-inversion", "--json")
    results = []
    for options in (("--attack", "loss"), ("--processes", 2), ("--processes", 1), ("--attack", "loss")):
        results.append(typed(*words, *options))
        bundles.append(run_folder.has_bundle(out))
        if bundles[-1]:
            open_trusted(out / run_folder.BUNDLE, None)
    return SimpleNamespace(run=out, data=data, simulated=simulated, results=results, bundles=bundles)


def test_bundle_is_signed_once_the_agreed_audit_passes_and_taken_back_when_another_does_not(audited):
    assert audited.simulated.exit_code == 0
    assert [result.exit_code for result in audited.results] == [1, 0, 0, 1]
    assert audited.bundles == [False, False, True, True, False]
    told = [json.loads(result.stdout) for result in audited.results]
    assert "'lira', which was not run" in told[0]["verdict"]
    assert told[1]["passed"] is True


def test_small_model_is_attacked_beside_the_whole_one(audited):
    attacks = json.loads(audited.results[1].stdout)["attacks"]
    assert {(attack["attack"], attack["variant"], attack["model"]) for attack in attacks} == {
        (attack, variant, model)
        for attack, variant in (("lira", "online"), ("lira", "offline"), ("loss", ""))
        for model in ("model", "small model")
    }


def test_number_of_processes_changes_no_figure(audited):
    assert audited.results[1].stdout == audited.results[2].stdout


def test_table_that_is_not_there_is_told_in_one_line(audited, hansa, tmp_path):
    result = hansa("audit", audited.run, tmp_path / "nowhere.csv")
    assert result.exit_code == 2
    assert "nowhere.csv" in result.stderr
    assert "Traceback" not in result.stderr


def test_child_that_fails_ends_the_audit_with_its_own_last_word(audited, tmp_path):
    nobody = SimpleNamespace(pool=SimpleNamespace(labels=np.zeros(4)))
    with pytest.raises(RunFailedError, match=f"shadow federations failed: {tmp_path}/gone holds no run"):
        trained_confidences(Work(tmp_path / "gone", None, 4), nobody, 2, lambda: None)
