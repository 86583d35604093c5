"""An audit is of the run's own rows: others, of which as many are alike, are refused, whatever hides the statistics."""

from __future__ import annotations

import pytest

from hansa_common.errors import UsageError
from hansa_simulations.audit_run import Auditor, Settings

PLAN = {"optimizer": "sgd", "learning_rate": 0.1, "local_steps": 2}
NOISE = {"epsilon": 8.0, "noise_multiplier": 3.0, "sampling_rate": 0.1}
OTHER_TRAINING_ROWS = "not those that the model was trained on"
LOSS = Settings("loss", inversion=False)

KINDS = {
    "noised": {"privacy": {"dp": {**NOISE, "statistics_noise_multiplier": 5.0}}},
    "domains": {"privacy": {"dp": {**NOISE, "statistics": "domains"}}},
    "masked": {
        "secure_aggregation": {"protocol": "double-masking"},
        "cohort": {"min_merchants": 3, "max_update_norm": 10.0, "max_examples": 1000},
    },
    "medians": {"robustness": {"rule": "median", "num_dishonest": 1}},
}


@pytest.fixture(scope="module")
def run_of(coins, tmp_path_factory):
    """A run of each kind, made when it is first asked for."""
    made = {}

    def run(kind: str):
        if kind not in made:
            training = {"algorithm": "fedavg", "rounds": 1, "plan": PLAN}
            agreement = coins.agreement(training=training, model={"hidden": [], "dropout": 0.0}, **KINDS[kind])
            made[kind] = coins.run(tmp_path_factory.mktemp(kind), agreement)
        return made[kind]

    return run


@pytest.mark.parametrize("change", ["a row less", "another number", "shops without a name"])
def test_other_rows_than_the_runs_are_refused(coin_run, coins, tmp_path, change):
    table = coins.rows()
    if change == "a row less":
        table, words = table.iloc[9:], "training rows there"
    elif change == "another number":
        table["n0"], words = table["n1"], OTHER_TRAINING_ROWS
    else:
        table["shop"], words = "alder", "birch"
    table.to_csv(tmp_path / "other.csv", index=False)
    with pytest.raises(UsageError, match=words):
        Auditor(coin_run.folder, tmp_path / "other.csv", LOSS)


@pytest.mark.parametrize("kind", KINDS)
def test_rows_of_the_run_are_taken_whatever_hides_their_statistics(run_of, kind):
    run = run_of(kind)
    assert Auditor(run.folder, run.data, LOSS).audited().attacks


@pytest.mark.parametrize("kind", ["noised", "masked", "medians"])
def test_other_training_rows_are_refused_whatever_hides_their_statistics(run_of, coins, tmp_path, kind):
    # As many rows of every merchant, of the same world.
    coins.rows(seed=8).to_csv(tmp_path / "other.csv", index=False)
    with pytest.raises(UsageError, match=OTHER_TRAINING_ROWS):
        Auditor(run_of(kind).folder, tmp_path / "other.csv", LOSS)


def test_other_test_rows_are_refused_where_no_statistics_were_taken(run_of, coins, tmp_path):
    coins.rows(seed=8).to_csv(tmp_path / "other.csv", index=False)
    auditor = Auditor(run_of("domains").folder, tmp_path / "other.csv", LOSS)
    with pytest.raises(UsageError, match="these rows are not those of the run: the kept model has roc_auc"):
        auditor.audited()
