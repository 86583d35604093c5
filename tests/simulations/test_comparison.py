"""The comparison's figures are scikit-learn's, over the same rows for every party, and None where there are none."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import average_precision_score, roc_auc_score

from hansa_simulations.comparison import ScoredRows, comparison

TOLERANCE = 0.001
NUM_ROWS = {"alder": 900, "birch": 2500, "cedar": 400}
PARTIES = ("federated", "local", "pooled")
SKLEARN = {"roc_auc": roc_auc_score, "pr_auc": average_precision_score}


def scored(seed, num_rows, parties=PARTIES, skill=1.0):
    random = np.random.default_rng(seed)
    labels = (random.random(num_rows) < 0.15).astype(np.uint8)
    skills = {"federated": 1.5 * skill, "local": skill, "pooled": 1.7 * skill}
    logits = {party: random.normal(-2 + skills[party] * labels, 1).astype(np.float32) for party in parties}
    return ScoredRows(labels, **logits)


@pytest.fixture(scope="module")
def scores():
    return {name: scored(seed, num_rows) for seed, (name, num_rows) in enumerate(NUM_ROWS.items())}


@pytest.fixture(scope="module")
def found(scores):
    return comparison(scores, seed=0)


def joined(scores, field):
    return np.concatenate([getattr(rows, field) for rows in scores.values()])


@pytest.mark.parametrize("measure", SKLEARN)
@pytest.mark.parametrize("party", ["federated", "pooled"])
def test_figures_over_everyone_are_those_of_scikit_learn(found, scores, party, measure):
    expected = SKLEARN[measure](joined(scores, "labels"), joined(scores, party))
    assert found[party][measure] == pytest.approx(expected, abs=TOLERANCE)


@pytest.mark.parametrize("measure", SKLEARN)
@pytest.mark.parametrize("party", PARTIES)
@pytest.mark.parametrize("name", NUM_ROWS)
def test_merchants_figures_are_those_of_scikit_learn(found, scores, name, party, measure):
    expected = SKLEARN[measure](scores[name].labels, getattr(scores[name], party))
    assert found["merchants"][name][party][measure] == pytest.approx(expected, abs=TOLERANCE)


@pytest.mark.parametrize("measure", SKLEARN)
def test_figure_of_alone_is_the_mean_by_test_rows(found, scores, measure):
    each = [SKLEARN[measure](rows.labels, rows.local) for rows in scores.values()]
    expected = sum(n * value for n, value in zip(NUM_ROWS.values(), each, strict=True)) / sum(NUM_ROWS.values())
    assert found["local"][measure] == pytest.approx(expected, abs=TOLERANCE)


@pytest.mark.parametrize("measure", SKLEARN)
def test_intervals_hold_the_difference_of_the_two_figures(found, scores, measure):
    pooled = found["intervals"]["federated_minus_pooled"][measure]
    labels = joined(scores, "labels")
    difference = SKLEARN[measure](labels, joined(scores, "federated")) - SKLEARN[measure](
        labels, joined(scores, "pooled")
    )
    assert pooled["estimate"] == pytest.approx(difference, abs=1e-9)
    assert pooled["low"] < pooled["estimate"] < pooled["high"]
    for name, rows in scores.items():
        gain = found["merchants"][name]["gain"][measure]
        expected = SKLEARN[measure](rows.labels, rows.federated) - SKLEARN[measure](rows.labels, rows.local)
        assert gain["estimate"] == pytest.approx(expected, abs=1e-9)
        assert gain["low"] < gain["estimate"] < gain["high"]


def test_same_model_on_both_sides_gains_nothing_at_all():
    rows = scored(5, 300)
    twin = ScoredRows(rows.labels, rows.federated, local=rows.federated, pooled=rows.federated)
    found = comparison({"alder": twin}, seed=0)
    nothing = {"estimate": 0.0, "low": 0.0, "high": 0.0}
    assert found["merchants"]["alder"]["gain"] == {"roc_auc": nothing, "pr_auc": nothing}
    assert found["intervals"]["federated_minus_pooled"] == {"roc_auc": nothing, "pr_auc": nothing}


def test_rows_are_counted(found, scores):
    for name, rows in scores.items():
        merchant = found["merchants"][name]
        assert (merchant["num_test_rows"], merchant["num_test_positives"]) == (len(rows.labels), rows.labels.sum())


def test_same_seed_same_intervals_and_another_seed_others(scores):
    few = {"alder": scores["alder"]}
    assert comparison(few, seed=7) == comparison(few, seed=7)
    assert comparison(few, seed=7)["intervals"] != comparison(few, seed=8)["intervals"]


def test_merchant_with_one_class_has_no_figures_and_spoils_no_ones_mean(scores):
    rows = scored(9, 50)
    no_fraud = ScoredRows(np.zeros(50, np.uint8), rows.federated, rows.local, rows.pooled)
    found = comparison({"alder": scores["alder"], "quiet": no_fraud}, seed=0)
    quiet = found["merchants"]["quiet"]
    assert quiet["federated"] == quiet["local"] == quiet["pooled"] == {"roc_auc": None, "pr_auc": None}
    assert "gain" not in quiet
    assert found["local"] == pytest.approx(found["merchants"]["alder"]["local"])


def test_nobody_has_both_classes():
    rows = scored(9, 50)
    found = comparison({"quiet": ScoredRows(np.ones(50, np.uint8), rows.federated, rows.local, rows.pooled)}, seed=0)
    nothing = {"roc_auc": None, "pr_auc": None}
    assert found["federated"] == found["pooled"] == found["local"] == nothing
    assert found["intervals"] == {}


@pytest.mark.parametrize("parties", [("federated",), ("federated", "local"), ("federated", "pooled")])
def test_baseline_that_was_not_asked_for_is_not_told(parties):
    found = comparison({"alder": scored(3, 200, parties)}, seed=0)
    absent = {"local", "pooled"} - set(parties)
    assert absent.isdisjoint(found)
    assert absent.isdisjoint(found["merchants"]["alder"])
    assert ("gain" in found["merchants"]["alder"]) == ("local" in parties)
    assert ("intervals" in found) == ("pooled" in parties)
