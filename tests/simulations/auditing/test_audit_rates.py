"""Rates of an attack: against their definition, scipy's intervals, and what resampling says."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from scipy import stats
from sklearn.metrics import roc_auc_score

from hansa_common.bootstrap import Interval
from hansa_simulations.audit_rates import (
    allowed,
    attack_rates,
    clopper_pearson,
    difference,
    least_epsilon,
    most_true_positives,
    rate_at,
    roc_curve,
)


def rng():
    return np.random.default_rng(3)


def slow_rate(false_positive_rate, members, non_members):
    """The most members above any threshold that few enough non-members are above."""
    best = 0
    for threshold in [math.inf, *members, *non_members, -math.inf]:
        if np.count_nonzero(non_members > threshold) <= false_positive_rate * len(non_members):
            best = max(best, np.count_nonzero(members > threshold))
    return best / len(members)


@pytest.mark.parametrize("decimals", [0, 1, 6])
@pytest.mark.parametrize("rate", [0.01, 0.1])
def test_rate_is_that_of_the_lowest_threshold_that_few_enough_non_members_are_above(decimals, rate):
    random = np.random.default_rng(decimals)
    members = random.normal(0.7, 1.0, 230).round(decimals)
    non_members = random.normal(0.0, 1.0, 170).round(decimals)
    found = rate_at(rate, members, non_members, rng())
    assert found.true_positives.estimate == pytest.approx(slow_rate(rate, members, non_members))
    assert found.num_false_positives <= rate * len(non_members)


def test_attack_that_says_the_same_of_all_finds_nobody():
    found = rate_at(0.01, np.zeros(500), np.zeros(1000), rng())
    assert found.true_positives.estimate == 0.0
    assert found.true_positives.high < 0.01


@pytest.mark.parametrize(("found", "trials"), [(0, 10), (10, 10), (1, 10), (24, 2466), (86, 8631), (8000, 8631)])
def test_exact_interval_is_scipys(found, trials):
    interval = clopper_pearson(found, trials)
    theirs = stats.binomtest(found, trials).proportion_ci(0.95, "exact")
    assert (interval.low, interval.high) == pytest.approx((theirs.low, theirs.high), abs=1e-9)


def test_interval_of_a_rate_holds_both_samples_to_account():
    """Beside resamples of both: the same quantiles, or wider where the exact one is."""
    random = np.random.default_rng(0)
    members, non_members = random.normal(0.5, 1.0, 800), random.normal(0.0, 1.0, 1000)
    found = rate_at(0.01, members, non_members, rng()).true_positives
    rates = []
    for _ in range(2000):
        one, other = random.choice(members, 800), random.choice(non_members, 1000)
        rates.append(np.mean(one > np.sort(other)[::-1][allowed(0.01, 1000)]))
    low, high = np.quantile(rates, [0.025, 0.975])
    assert found.low <= low + 0.004
    assert found.high >= high - 0.004
    exact = clopper_pearson(round(found.estimate * 800), 800)
    assert found.low <= exact.low
    assert found.high >= exact.high


def test_interval_covers_the_rate_that_many_rows_would_show():
    true = 1.0 - stats.norm.cdf(stats.norm.ppf(0.99) - 0.5)
    random, hits = np.random.default_rng(1), 0
    for _ in range(60):
        found = rate_at(0.01, random.normal(0.5, 1, 1000), random.normal(0, 1, 1000), random).true_positives
        hits += found.low <= true <= found.high
    assert hits >= 52


def test_area_and_rates_that_the_non_members_suffice_for():
    random = np.random.default_rng(2)
    members, non_members = random.normal(0.3, 1, 900), random.normal(0, 1, 1200)
    found = attack_rates(members, non_members, rng())
    labels = np.arange(2100) < 900
    expected = roc_auc_score(labels, np.concatenate([members, non_members]))
    assert found.roc_auc.estimate == pytest.approx(expected)
    assert found.roc_auc.low < expected < found.roc_auc.high
    assert found.at(0.01) is not None
    assert found.at(0.001) is None
    assert attack_rates(members[:9], non_members[:999], rng()).rates == ()
    assert len(attack_rates(members, np.tile(non_members, 10), rng()).rates) == 2


def test_same_seed_gives_the_same_figures():
    random = np.random.default_rng(4)
    members, non_members = random.normal(0.3, 1, 900), random.normal(0, 1, 1200)
    assert attack_rates(members, non_members, rng()) == attack_rates(members, non_members, rng())


def test_curve_rises_from_corner_to_corner_and_holds_the_rate():
    random = np.random.default_rng(5)
    members, non_members = random.normal(1, 1, 700), random.normal(0, 1, 1000)
    curve = roc_curve(members, non_members)
    assert curve[0][0] == 0.0
    assert curve[-1] == (1.0, 1.0)
    assert all(a[0] < b[0] and a[1] <= b[1] for a, b in itertools.pairwise(curve))
    assert (0.01, slow_rate(0.01, members, non_members)) in curve


def test_difference_of_two_shares_is_newcombes():
    """His example: 56 of 70 and 48 of 80. His intervals are Wilson's, ours the exact ones, so a little wider."""
    found = difference(clopper_pearson(56, 70), clopper_pearson(48, 80))
    assert found.estimate == pytest.approx(0.2)
    assert 0.03 < found.low < 0.0524
    assert 0.3339 < found.high < 0.36
    known = difference(Interval(0.3, 0.3, 0.3), Interval(0.1, 0.1, 0.1))
    assert (known.low, known.high) == pytest.approx((0.2, 0.2))


@pytest.mark.parametrize("epsilon", [0.0, 0.5, 2.0, 8.0])
@pytest.mark.parametrize("delta", [0.0, 1e-5, 0.01])
def test_bound_is_the_lower_of_both_of_its_inequalities(epsilon, delta):
    for rate in np.linspace(0, 1, 21):
        most = most_true_positives(epsilon, delta, rate)
        assert most <= min(1.0, math.exp(epsilon) * rate + delta) + 1e-12
        assert (1.0 - delta - rate) <= math.exp(epsilon) * (1.0 - most) + 1e-12
        assert most == pytest.approx(
            min(1.0, math.exp(epsilon) * rate + delta, 1.0 - math.exp(-epsilon) * max(0.0, 1.0 - delta - rate))
        )
    assert most_true_positives(1000.0, 1e-5, 0.01) == 1.0


def test_randomised_response_meets_the_bound_and_its_least_epsilon_stays_below_the_true_one():
    """It says the truth with probability e^epsilon / (1 + e^epsilon), which is the most that epsilon leaves."""
    epsilon = 1.5
    truth = math.exp(epsilon) / (1.0 + math.exp(epsilon))
    assert most_true_positives(epsilon, 0.0, 1.0 - truth) == pytest.approx(truth)
    random = np.random.default_rng(6)
    members, non_members = (random.random(20_000) < share for share in (truth, 1.0 - truth))
    found = rate_at(1.0 - truth + 0.01, members.astype(float), non_members.astype(float), rng())
    least = least_epsilon(found, 20_000, 20_000, 0.0)
    assert epsilon - 0.15 < least < epsilon
    assert least_epsilon(found, 20_000, 20_000, 0.9) == 0.0
