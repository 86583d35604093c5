"""Epsilons against closed forms, published figures, a second accountant and the laws of composition."""

from __future__ import annotations

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import brentq
from scipy.stats import norm

from hansa_common.privacy import Gaussian, SampledGaussian, epsilon, epsilon_by_rdp, noise_multiplier_for

DELTA = 1e-5


def analytic_epsilon(noise_multiplier: float, delta: float) -> float:
    """Theorem 8 of Balle and Wang, "Improving the Gaussian Mechanism for Differential Privacy" (2018)."""
    mu = 1 / noise_multiplier

    def excess(eps: float) -> float:
        return float(norm.cdf(mu / 2 - eps / mu) - math.exp(eps) * norm.cdf(-mu / 2 - eps / mu)) - delta

    return float(brentq(excess, 0, 200))


@pytest.mark.parametrize("noise_multiplier", [0.7, 1.0, 3.0, 20.0])
@pytest.mark.parametrize("number", [1, 7])
def test_epsilon_of_gaussian_releases_is_the_closed_form(noise_multiplier: float, number: int) -> None:
    exact = analytic_epsilon(noise_multiplier / math.sqrt(number), DELTA)
    found = epsilon([Gaussian(noise_multiplier, number)], DELTA)
    assert exact <= found <= exact * 1.001 + 2e-4


@pytest.mark.parametrize(
    ("mechanism", "published", "exact_is_below"),
    [
        # Abadi et al. (2016), section 3.2: q = 0.01, sigma = 4, 10,000 steps: (1.26, 1e-5) by the moments accountant.
        (SampledGaussian(4.0, 0.01, 10_000), 1.26, 1.26),
        # Google's dp-accounting and TensorFlow Privacy: 60,000 rows, batches of 150, noise 1.3, 15 epochs.
        (SampledGaussian(1.3, 150 / 60_000, 6_000), 0.7242234026109595, 0.7242234026109595),
    ],
)
def test_renyi_bound_is_the_published_one_and_the_exact_one_is_below(
    mechanism: SampledGaussian, published: float, exact_is_below: float
) -> None:
    assert epsilon_by_rdp([mechanism], DELTA) <= published * 1.02
    assert 0.7 * exact_is_below < epsilon([mechanism], DELTA) < exact_is_below


@settings(deadline=None, max_examples=8)
@given(
    st.floats(0.7, 8.0), st.floats(0.001, 0.5), st.integers(1, 1000), st.floats(5.0, 50.0),
)  # fmt: skip
def test_two_accountants_agree_within_what_renyi_gives_away(
    noise: float, rate: float, steps: int, beside: float
) -> None:
    mechanisms = [SampledGaussian(noise, rate, steps), Gaussian(beside)]
    exact, bound = epsilon(mechanisms, DELTA), epsilon_by_rdp(mechanisms, DELTA)
    assert exact <= bound
    assert bound <= 2.0 * exact + 0.5


def test_steps_compose_whichever_way_they_are_told() -> None:
    parts = [SampledGaussian(1.1, 0.02, 100), Gaussian(10.0), SampledGaussian(1.1, 0.02, 50), Gaussian(10.0)]
    assert epsilon(parts, DELTA) == epsilon([Gaussian(10.0, 2), SampledGaussian(1.1, 0.02, 150)], DELTA)


def test_sampling_everyone_is_no_sampling() -> None:
    assert epsilon([SampledGaussian(5.0, 1.0, 10)], DELTA) == epsilon([Gaussian(5.0, 10)], DELTA)


def test_more_steps_rows_or_releases_cost_more_and_noise_less() -> None:
    base = epsilon([SampledGaussian(1.0, 0.05, 100)], DELTA)
    assert epsilon([SampledGaussian(1.0, 0.05, 200)], DELTA) > base
    assert epsilon([SampledGaussian(1.0, 0.1, 100)], DELTA) > base
    assert epsilon([SampledGaussian(1.0, 0.05, 100), Gaussian(5.0)], DELTA) > base
    assert epsilon([SampledGaussian(1.2, 0.05, 100)], DELTA) < base


def test_nothing_costs_nothing_and_no_noise_has_no_bound() -> None:
    assert epsilon([], DELTA) == 0.0
    assert epsilon([SampledGaussian(1.0, 0.1, 0), Gaussian(2.0, 0), SampledGaussian(1.0, 0.0, 9)], DELTA) == 0.0
    assert math.isinf(epsilon([Gaussian(0.0), Gaussian(9.0)], DELTA))
    assert math.isinf(epsilon_by_rdp([SampledGaussian(0.0, 0.1, 1)], DELTA))


def test_what_costs_far_too_much_is_told_by_a_bound_and_at_once() -> None:
    assert epsilon([SampledGaussian(0.3, 0.1, 1000)], DELTA) == epsilon_by_rdp([SampledGaussian(0.3, 0.1, 1000)], DELTA)


@pytest.mark.parametrize(("target", "beside"), [(8.0, []), (1.0, [Gaussian(20.0)])])
def test_noise_found_for_an_epsilon_keeps_it_and_a_thousandth_less_does_not(
    target: float, beside: list[Gaussian]
) -> None:
    noise = noise_multiplier_for(target, DELTA, 0.1, 300, beside)
    assert epsilon([SampledGaussian(noise, 0.1, 300), *beside], DELTA) <= target
    assert epsilon([SampledGaussian(noise - 0.001, 0.1, 300), *beside], DELTA) > target


def test_no_noise_makes_room_for_what_stands_beside_it() -> None:
    with pytest.raises(ValueError, match="no noise on 300 steps"):
        noise_multiplier_for(1.0, DELTA, 0.1, 300, [Gaussian(1.0)])


@pytest.mark.parametrize("delta", [0.0, 1.0, -1.0, math.nan])
def test_a_delta_outside_0_to_1_is_refused(delta: float) -> None:
    with pytest.raises(ValueError, match="delta"):
        epsilon([Gaussian(1.0)], delta)


@pytest.mark.parametrize(
    "make",
    [
        lambda: Gaussian(-1.0),
        lambda: Gaussian(math.nan),
        lambda: Gaussian(1.0, -1),
        lambda: SampledGaussian(1.0, 1.1, 1),
        lambda: SampledGaussian(1.0, math.nan, 1),
        lambda: SampledGaussian(math.inf, 0.5, 1),
        lambda: SampledGaussian(1.0, 0.5, -1),
    ],
)
def test_numbers_that_make_no_mechanism_are_refused(make: object) -> None:
    with pytest.raises(ValueError, match="is"):
        make()  # type: ignore[operator]
