"""`hansa attack`: what its file may say, what it shows and leaves, and that what misses a mark stands there."""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pytest
from rich.console import Console

from hansa_common.agreement import validate_agreement
from hansa_common.errors import UsageError
from hansa_simulations.attack_display import AttackDisplay, print_results
from hansa_simulations.attack_results import Results, leave, out_folder, picture
from hansa_simulations.attack_scenario import AttackScenario, read_scenario
from hansa_simulations.attack_trials import UNATTACKED, Cell, Trial

SCENARIO = """
attackers = ["b"]

[[defences]]
rule = "median"
num_dishonest = 1

[[defences]]
rule = "krum"
num_dishonest = 1

[[attacks]]
kind = "sign-flip"

[[attacks]]
kind = "backdoor"
trigger = {feature = "member", value = true}

[marks]
max_loss = 0.02
max_backdoor = 0.05
max_backdoor_share = 0.25
"""
AGREEMENT = """
task = "purchase"
[label]
column = "buys"
[[features]]
kind = "numeric"
name = "amount"
low = 0
high = 100
[[features]]
kind = "boolean"
name = "member"
[model]
hidden = []
dropout = 0.0
[training]
algorithm = "fedavg"
rounds = 2
plan = {optimizer = "sgd", local_epochs = 1}
[privacy]
min_count = 1
min_positives = 1
"""


def scenario(**changes):
    values = {"attackers": ["b"], "attacks": [{"kind": "sign-flip"}], **changes}
    return AttackScenario.model_validate(values)


def agreement(**changes):
    values = {
        "task": "purchase",
        "label": {"column": "buys"},
        "features": [
            {"kind": "numeric", "name": "amount", "low": 0, "high": 9},
            {"kind": "boolean", "name": "member"},
            {"kind": "categorical", "name": "colour", "vocabulary": ["red"]},
        ],
        "training": {"algorithm": "fedavg"},
        "roster": ["a", "b", "c"],
    }
    return validate_agreement({**values, **changes}, "the test")


def backdoor(feature, value):
    return {"attacks": [{"kind": "backdoor", "trigger": {"feature": feature, "value": value}}]}


REFUSED = {
    "a stranger": ({"attackers": ["z"]}, {}, r"attackers \['z'\] are not among"),
    "everyone": ({"attackers": ["a", "b", "c"]}, {}, "no honest merchant"),
    "one colluder": ({"attacks": [{"kind": "colluders"}]}, {}, "at least 2"),
    "variates": ({}, {"training": {"algorithm": "scaffold"}}, "set training.algorithm = 'fedavg'"),
    "a trigger of no feature": (backdoor("size", 1), {}, "'size' is none of the agreement's"),
    "a number outside": (backdoor("amount", 10), {}, "value 10.0 is none that feature 'amount'"),
    "a word for a number": (backdoor("amount", "ten"), {}, "'ten' is none"),
    "a number for a truth": (backdoor("member", 1), {}, "feature 'member'"),
    "a word that is unknown": (backdoor("colour", "blue"), {}, "'blue' is none"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_scenario_that_cannot_be_run_is_refused_before_anything_runs(case):
    asked, agreed, told = REFUSED[case]
    with pytest.raises(UsageError, match=told):
        scenario(**asked).check(agreement(**agreed))


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("attackers = ", "is not TOML"),
        ('attackers = ["b"]\nattacks = []', "attacks"),
        ('attackers = ["b"]\n[[attacks]]\nkind = "charm"', "sign-flip"),
        ('attackers = ["b"]\n[[attacks]]\nkind = "scaling"\nfactors = 3', "did you mean 'factor'"),
        ('attackers = ["b"]\n[[attacks]]\nkind = "scaling"\n[[defences]]\nrule = "median"', "defends against nobody"),
    ],
)
def test_file_that_is_no_scenario_is_refused_with_its_place(tmp_path, text, told):
    (tmp_path / "s.toml").write_text(text)
    with pytest.raises(UsageError, match=told):
        read_scenario(tmp_path / "s.toml")
    with pytest.raises(UsageError, match="cannot be read"):
        read_scenario(tmp_path / "absent.toml")


def test_several_of_a_kind_are_told_apart_and_the_plain_mean_comes_first():
    twice = scenario(attacks=[{"kind": "scaling"}, {"kind": "scaling", "factor": 2}, {"kind": "label-flip"}])
    assert list(twice.attacks_by_name) == ["scaling 1", "scaling 2", "label-flip"]
    assert [defence.rule for defence in scenario(defences=[{"rule": "mean"}]).all_defences] == ["mean"]


# Marks


def results_of(*cells):
    text = scenario(
        attacks=[{"kind": "sign-flip"}, *backdoor("member", True)["attacks"]],
        defences=[{"rule": rule, "num_dishonest": 1} for rule in ("median", "krum")],
        marks={"max_loss": 0.02, "max_backdoor": 0.05, "max_backdoor_share": 0.25},
    )
    reference = {"pr_auc": 0.7, "roc_auc": 0.9, "unattacked_pr_auc": 0.7}
    mean = [
        Cell("mean", UNATTACKED, **reference),
        Cell("mean", "sign-flip", ("b",), **{**reference, "pr_auc": 0.2}),
        Cell("mean", "backdoor", ("b",), **reference, backdoor=0.16),
    ]
    return Results(text, agreement(), (*mean, *cells), {"source": "the test"})


def median(attack, pr_auc=0.7, **values):
    return Cell("median", attack, pr_auc=pr_auc, roc_auc=0.9, unattacked_pr_auc=0.7, **values)


@pytest.mark.parametrize(
    ("cell", "told"),
    [
        (median("sign-flip", 0.6801), ()),
        (median("sign-flip", 0.6799), ("loses 0.0201",)),
        (median("backdoor", backdoor=0.04), ()),
        (median("backdoor", backdoor=0.045), ("undefended in 16.0%",)),
        (median("backdoor", 0.5, backdoor=0.06), ("loses 0.2", "at most 5.0%", "undefended")),
        (Cell("median", "sign-flip", reason="no model: it diverged"), ("no model: it diverged",)),
    ],
)
def test_what_misses_a_mark_is_told(cell, told):
    found = results_of(cell).misses(cell)
    assert len(found) == len(told)
    assert all(words in line for words, line in zip(told, found, strict=True))


def test_nothing_is_asked_of_the_plain_mean_nor_of_a_rule_under_more_liars_than_agreed():
    beyond = median("sign-flip", 0.2, attackers=("b", "c"))
    results = results_of(beyond)
    assert results.is_beyond(beyond)
    assert all(results.misses(cell) == () for cell in results.cells)
    assert results.to_json()["cells"][-1]["is_beyond"] is True


def test_every_miss_and_every_refusal_stands_in_the_table_the_picture_and_the_file(tmp_path):
    cells = [median(UNATTACKED), median("sign-flip", 0.6), median("backdoor", backdoor=0.3)]
    krum = [Cell("krum", name, reason="Krum needs five") for name in (UNATTACKED, "sign-flip", "backdoor")]
    results = results_of(*cells, *krum)
    with (tmp_path / "shown.txt").open("w") as file:
        print_results(results, Console(file=file, width=200))
    shown = (tmp_path / "shown.txt").read_text()
    assert "! 0.600" in shown
    assert "+0.100" in shown
    assert "! median, sign-flip: loses 0.1000 of PR-AUC, asked is at most 0.02" in shown
    assert shown.count("! none") == 3
    assert shown.count("Krum needs five") == 3
    assert "All marks are met by: no defence" in shown
    leave(results, tmp_path / "out")
    told = json.loads((tmp_path / "out" / "results.json").read_bytes())
    assert [cell["misses"] for cell in told["cells"] if cell["defence"] == "krum"] == [["Krum needs five"]] * 3
    assert [len(cell["misses"]) for cell in told["cells"] if cell["defence"] == "median"] == [0, 1, 2]
    assert (tmp_path / "out" / "attacks.png").read_bytes().startswith(b"\x89PNG")
    assert picture(results) == picture(results)


def test_folder_with_anything_else_in_it_is_left_alone(tmp_path):
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(UsageError, match="holds other things"):
        out_folder(tmp_path).check_free()
    leave(results_of(), tmp_path / "new")
    leave(results_of(), tmp_path / "new")


# Whole


@pytest.fixture
def files(tmp_path):
    random = np.random.default_rng(1)
    size = 450
    amount, member = random.uniform(0, 100, size).round(1), random.random(size) < 0.3
    rows = {
        "shop": random.choice(["a", "b", "c"], size),
        "amount": amount,
        "member": member,
        "buys": (random.random(size) < amount / 100).astype(int),
    }
    pd.DataFrame(rows).to_csv(tmp_path / "rows.csv", index=False)
    (tmp_path / "agreement.toml").write_text(AGREEMENT)
    (tmp_path / "scenario.toml").write_text(SCENARIO)
    names = [tmp_path / name for name in ("scenario.toml", "agreement.toml", "rows.csv")]
    return [*names, "--silo", "shop", "-o", tmp_path / "out"]


def test_command_runs_every_cell_and_leaves_the_table(hansa, files):
    done = hansa("attack", *files)
    assert done.exit_code == 0, done.stderr
    told = json.loads((files[-1] / "results.json").read_bytes())
    assert [(cell["defence"], cell["attack"]) for cell in told["cells"]] == [
        (defence, attack) for defence in ("mean", "median", "krum") for attack in ("none", "sign-flip", "backdoor")
    ]
    # Three merchants are too few for Krum: a cell like any other.
    assert all("2 f + 2 < n" in cell["reason"] for cell in told["cells"] if cell["defence"] == "krum")
    assert all(cell["num_steps"] == 2 for cell in told["cells"] if cell["defence"] != "krum")
    assert "median, sign-flip: PR-AUC" in done.stdout
    assert "Traceback" not in done.stderr
    # Again, as JSON: that alone on standard output, and the same.
    again = hansa("attack", *files, "--json")
    assert json.loads(again.stdout) == json.loads((files[-1] / "results.json").read_bytes()) == told


def test_refusal_is_one_clear_line(hansa, files):
    files[0].write_text(SCENARIO.replace('["b"]', '["nobody"]'))
    refused = hansa("attack", *files)
    assert refused.exit_code == 2
    assert "nobody" in refused.stderr
    assert "Traceback" not in refused.stderr
    assert not files[-1].exists()


def test_display_in_a_pipe_says_a_line_for_each_cell(tmp_path):
    with (tmp_path / "shown.txt").open("w") as file, AttackDisplay(scenario(), 2, Console(file=file)) as display:
        display.begin("mean", UNATTACKED)
        display.end(Cell("mean", UNATTACKED, pr_auc=0.5))
    assert (tmp_path / "shown.txt").read_text() == "mean, none: PR-AUC 0.500\n"


def test_trial_checks_its_scenario_before_it_builds_anything():
    with pytest.raises(UsageError, match="not among"):
        Trial(scenario(attackers=["z"]), agreement(), {})
