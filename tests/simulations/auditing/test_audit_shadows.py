"""Shadow federations are the run over other rows, and both attacks find who was in, and nobody who was not."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest

from hansa_common.errors import UsageError
from hansa_common.metrics import metrics_from_histogram, score_histogram
from hansa_server.run_folder import METRICS, open_finished
from hansa_simulations.audit_attacks import membership_attacks
from hansa_simulations.audit_run import Auditor, Settings
from hansa_simulations.audit_shadows import Pool, ShadowFederations, as_plain_rounds, check_divisible


def sure_of(federations, run):
    finished = open_finished(run.folder)
    return federations.confidences(finished.weights, finished.preprocessing)


def test_shadow_over_the_runs_own_rows_is_the_run_byte_for_byte(coin_run, coins):
    federations = ShadowFederations(coin_run.agreement, coins.tables(coin_run.agreement), 4)
    federations.is_in[0] = federations.pool.is_member
    np.testing.assert_array_equal(federations.trained(0), sure_of(federations, coin_run))


def test_shadow_is_the_same_whenever_it_is_trained(coin_run, coins, eight_shadows):
    again = ShadowFederations(coin_run.agreement, coins.tables(coin_run.agreement), 8)
    np.testing.assert_array_equal(again.is_in, eight_shadows.shadows.is_in)
    np.testing.assert_array_equal(again.trained(5), eight_shadows.shadows.confidences[5])


def test_rows_in_question_are_training_and_test_rows_and_a_shadow_trains_on_the_chosen_ones_only(coins):
    tables = coins.tables(coins.agreement())
    pool = Pool.of(tables)
    chosen = np.random.default_rng(0).random(len(pool.labels)) < 0.5
    divided = pool.divided(chosen)
    start = 0
    for name, table in tables.items():
        rows, stop = pool.rows[name], start + len(pool.rows[name])
        assert set(rows.tolist()) == set(table.train.tolist()) | set(table.test.tolist())
        assert not set(divided[name].tolist()) & set(table.validation.tolist())
        assert divided[name].tolist() == sorted(rows[chosen[start:stop]].tolist())
        np.testing.assert_array_equal(pool.labels[start:stop], table.labels[rows])
        assert pool.is_member[start:stop].sum() == len(table.train)
        start = stop


def test_confidences_are_those_of_the_runs_own_figures(coin_run, eight_shadows):
    pool, finished = eight_shadows.federations.pool, open_finished(coin_run.folder)
    sure = sure_of(eight_shadows.federations, coin_run)[~pool.is_member]
    labels = pool.labels[~pool.is_member]
    logits = np.where(labels == 1, sure, -sure).astype(np.float32)
    found = metrics_from_histogram(score_histogram(logits, labels))
    assert found.roc_auc == finished.metrics["federated"]["roc_auc"]


def test_both_attacks_find_members_of_a_model_that_learned_them_by_heart(coin_run, eight_shadows):
    pool = eight_shadows.federations.pool
    sure = sure_of(eight_shadows.federations, coin_run)
    for attack in membership_attacks({"model": sure}, pool.is_member, eight_shadows.shadows, 0):
        assert attack.rates.roc_auc.low > 0.6, attack.name
        if attack.attack == "lira":
            assert attack.rates.at(0.01).true_positives.low > 0.01, attack.name


def test_both_attacks_find_nobody_in_a_model_that_has_seen_none_of_the_rows(other_run, eight_shadows):
    pool = eight_shadows.federations.pool
    sure = sure_of(eight_shadows.federations, other_run)
    for attack in membership_attacks({"model": sure}, pool.is_member, eight_shadows.shadows, 0):
        found = attack.rates.at(0.01).true_positives
        assert found.low <= 0.01 <= found.high, attack.name
        assert attack.rates.roc_auc.low <= 0.5 <= attack.rates.roc_auc.high, attack.name


def test_agreement_of_a_shadow_trains_as_the_runs(coins):
    agreement = coins.agreement(
        data={"split": "time", "time_column": "n0", "test_share": 0.3},
        compression={"format": "int8", "sparsity": 0.5},
        audit={"max_true_positive_rate": 0.05},
    )
    plain = as_plain_rounds(agreement)
    assert plain.compression.format == "none"
    assert not plain.audit.is_gate
    for part in ("seed", "features", "model", "training", "cohort", "privacy", "roster"):
        assert getattr(plain, part) == getattr(agreement, part), part


def test_merchant_that_cannot_be_divided_is_refused(coins):
    tables = coins.tables(coins.agreement())
    few = replace(tables["birch"], train=np.arange(8), test=np.arange(8, 15))
    with pytest.raises(UsageError, match="birch has 15 training and test rows"):
        check_divisible({**tables, "birch": few})


def test_folder_without_a_simulation_and_rows_that_are_not_named_are_refused(coin_run, tmp_path):
    with pytest.raises(UsageError, match="holds no run"):
        Auditor(tmp_path, coin_run.data, Settings())
    with pytest.raises(UsageError, match=r"give the file: hansa audit .* FILE"):
        Auditor(coin_run.folder, None, Settings())
    metrics = {k: v for k, v in json.loads((coin_run.folder / METRICS).read_text()).items() if k != "data"}
    copied = tmp_path / "real"
    copied.mkdir()
    for path in coin_run.folder.rglob("*"):
        target = copied / path.relative_to(coin_run.folder)
        target.mkdir(exist_ok=True) if path.is_dir() else target.write_bytes(path.read_bytes())
    (copied / METRICS).write_text(json.dumps(metrics))
    with pytest.raises(UsageError, match="every merchant's rows"):
        Auditor(copied, coin_run.data, Settings())


def test_too_few_test_rows_and_odd_shadows_are_refused_before_anything_is_trained(coin_run, coins, tmp_path):
    with pytest.raises(UsageError, match="even number"):
        Auditor(coin_run.folder, coin_run.data, Settings("lira", 5))
    quick = {"rounds": 1, "plan": {"optimizer": "sgd", "local_epochs": 1}}
    small = coins.run(tmp_path, coins.agreement(training=quick), coins.rows(1200))
    with pytest.raises(UsageError, match=r"600 test rows in all.*takes 1,000"):
        Auditor(small.folder, small.data, Settings("loss"))


def test_column_to_guess_is_refused_at_once_where_it_is_none_of_a_few_values(coin_run):
    with pytest.raises(UsageError, match="did you mean 'shelf'"):
        Auditor(coin_run.folder, coin_run.data, Settings("loss", attribute="shelv"))
    with pytest.raises(UsageError, match="'n0' is not a boolean"):
        Auditor(coin_run.folder, coin_run.data, Settings("loss", attribute="n0"))


def test_shadow_of_a_private_run_does_not_know_the_runs_noise(coins, tmp_path):
    """Otherwise it would differ from the run by nothing but the rows, which the noise is there to hide."""
    plan = {"optimizer": "sgd", "learning_rate": 0.5, "local_steps": 3}
    promised = {"epsilon": 8.0, "noise_multiplier": 2.0, "sampling_rate": 0.1}
    changes = {"training": {"algorithm": "fedavg", "rounds": 1, "plan": plan}, "privacy": {"dp": promised}}
    run = coins.run(tmp_path, coins.agreement(**changes))
    federations = ShadowFederations(run.agreement, coins.tables(run.agreement), 4)
    federations.is_in[0] = federations.pool.is_member
    assert np.abs(federations.trained(0) - sure_of(federations, run)).max() > 0.01
