"""LiRA against its paper, row by row; and both attacks on models that have, and have not, seen the rows."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from hansa_simulations.audit_attacks import federation_rates, membership_attacks
from hansa_simulations.audit_membership import PER_ROW_SHADOWS, Shadows, confidences, lira, memberships


def made_up(num_shadows, num_rows, gap, seed=0):
    """Rows of their own difficulty, of which a model that has seen them is surer by `gap`; the last is attacked."""
    random = np.random.default_rng(seed)
    is_in = memberships(num_shadows, num_rows, random)
    is_target = random.random(num_rows) < 0.5
    difficulty, spread = random.normal(0, 3, num_rows), 1.0
    seen = np.vstack([is_in, is_target])
    sure = difficulty + gap * seen + random.normal(0, spread, seen.shape)
    return sure[-1], is_target, Shadows(sure[:-1], is_in)


def test_every_row_is_in_half_of_the_shadows_and_every_shadow_has_about_half_of_the_rows():
    is_in = memberships(32, 5000, np.random.default_rng(0))
    assert (is_in.sum(axis=0) == 16).all()
    assert (abs(is_in.mean(axis=1) - 0.5) < 0.05).all()
    # No two rows go together: how often they meet is what coins would do.
    assert abs(np.mean(is_in[:, 0::2] == is_in[:, 1::2]) - 15 / 31) < 0.02


@pytest.mark.parametrize("num_shadows", [2, 5, 33])
def test_shadows_that_cannot_be_halved_are_refused(num_shadows):
    with pytest.raises(ValueError, match="even number"):
        memberships(num_shadows, 10, np.random.default_rng(0))


def test_confidence_is_the_logit_of_the_probability_of_the_rows_own_label():
    logits, labels = np.random.default_rng(0).normal(0, 4, 50).astype(np.float32), np.arange(50) % 2
    probability = 1 / (1 + np.exp(-logits.astype(np.float64)))
    own = np.where(labels == 1, probability, 1 - probability)
    np.testing.assert_allclose(confidences(logits, labels.astype(np.uint8)), np.log(own / (1 - own)), rtol=1e-6)


def slow_lira(target, shadows, variant):
    """Algorithm 1 of Carlini et al. (2022), a row at a time, with its global variance where shadows are few."""
    rows = range(len(target))
    columns = {
        kind: [shadows.confidences[chosen[:, row], row] for row in rows]
        for kind, chosen in (("in", shadows.is_in), ("out", ~shadows.is_in))
    }
    deviations = {}
    for kind, values in columns.items():
        own = np.array([np.std(column) for column in values])
        around = np.concatenate([column - np.mean(column) for column in values])
        deviations[kind] = own if len(shadows.is_in) >= PER_ROW_SHADOWS else np.full(len(own), np.std(around))
    found = []
    for row in rows:
        out = stats.norm(np.mean(columns["out"][row]), deviations["out"][row])
        if variant == "offline":
            found.append(1.0 - out.sf(target[row]))
        else:
            inside = stats.norm(np.mean(columns["in"][row]), deviations["in"][row])
            found.append(inside.pdf(target[row]) / out.pdf(target[row]))
    return np.array(found)


@pytest.mark.parametrize("num_shadows", [8, PER_ROW_SHADOWS])
def test_online_score_is_the_logarithm_of_the_papers_ratio(num_shadows):
    target, _, shadows = made_up(num_shadows, 60, 1.0)
    np.testing.assert_allclose(lira(target, shadows), np.log(slow_lira(target, shadows, "online")), atol=1e-9)


@pytest.mark.parametrize("num_shadows", [8, PER_ROW_SHADOWS])
def test_offline_score_puts_rows_in_the_papers_order(num_shadows):
    target, _, shadows = made_up(num_shadows, 60, 1.0)
    scores, theirs = lira(target, shadows, "offline"), slow_lira(target, shadows, "offline")
    np.testing.assert_allclose(stats.norm.cdf(scores), theirs, atol=1e-9)


def test_row_that_all_shadows_agree_on_gives_a_finite_score():
    shadows = Shadows(np.ones((4, 3)), memberships(4, 3, np.random.default_rng(0)))
    for variant in ("online", "offline"):
        assert np.isfinite(lira(np.array([0.0, 1.0, 2.0]), shadows, variant)).all()


def test_lira_finds_what_a_threshold_cannot_where_rows_are_of_unequal_difficulty():
    target, is_member, shadows = made_up(32, 8000, 2.0)
    found = {(a.attack, a.variant): a for a in membership_attacks({"model": target}, is_member, shadows, 0)}
    rates = {key: attack.rates.at(0.01).true_positives for key, attack in found.items()}
    # What the best of all attacks finds, which knows the difficulty: a shift of two deviations.
    best = stats.norm.sf(stats.norm.isf(0.01) - 2.0)
    assert rates["lira", "online"].estimate == pytest.approx(best, abs=0.08)
    assert rates["lira", "online"].low > 0.2
    assert rates["loss", ""].high < 0.1
    assert found["lira", "online"].rates.roc_auc.low > found["loss", ""].rates.roc_auc.high


def test_nothing_is_found_where_training_left_no_trace():
    target, is_member, shadows = made_up(32, 8000, 0.0)
    for attack in membership_attacks({"model": target}, is_member, shadows, 0):
        found = attack.rates.at(0.01).true_positives
        assert found.low <= 0.01 <= found.high
        assert attack.rates.roc_auc.low <= 0.5 <= attack.rates.roc_auc.high


def test_shadows_attack_each_other_and_never_themselves():
    _, _, shadows = made_up(16, 4000, 1.5)
    found = federation_rates(shadows, 0)
    # The best attack knows each row's difficulty; from seven shadows or eight it is known a little.
    best = stats.norm.sf(stats.norm.isf(0.01) - 1.5)
    assert 0.6 * best < found.true_positives[0.01].estimate < best
    assert list(found.true_positives) == [0.01]
    nothing = federation_rates(made_up(16, 4000, 0.0)[2], 0)
    # A shadow that were among its own judges would be found out: its own confidence is in their mean.
    assert nothing.true_positives[0.01].low <= 0.012
    assert nothing.true_positives[0.01].estimate < 0.015


@pytest.mark.parametrize("num_shadows", [4, 8, 32])
def test_number_of_other_shadows_that_have_a_row_neither_tells_it_nor_hides_it(num_shadows):
    # Of a row that one shadow has, one fewer of the others has it than has it not, and the other way round.
    _, _, shadows = made_up(num_shadows, 20_000, 0.0)
    assert federation_rates(shadows, 0).true_positives[0.01].estimate == pytest.approx(0.01, abs=0.0015)
    others = shadows.without(1)
    assert others.is_in.shape == (num_shadows - 2, 20_000)
    assert set(others.is_in.sum(axis=0)) == {num_shadows // 2 - 1}
    # Each row's are its own, and none is the attacked one's.
    assert not np.isin(others.confidences, shadows.confidences[1]).any()
    assert np.isin(others.confidences[:, 0], shadows.confidences[:, 0]).all()
