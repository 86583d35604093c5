"""What discrete noise costs, against Renyi divergences and deltas that are summed up over the grid itself."""

from __future__ import annotations

import math

import numpy as np
import pytest
from dp_accounting import GaussianDpEvent, PoissonSampledDpEvent
from dp_accounting.rdp.rdp_privacy_accountant import RdpAccountant

from hansa_common.privacy import (
    Gaussian,
    SampledDiscreteGaussian,
    SampledGaussian,
    epsilon,
    epsilon_by_rdp,
    noise_multiplier_for,
)

DELTA = 1e-5
ORDERS = (2, 3, 4, 8, 16)


def grid(deviation: float, shift: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
    """The logarithms of the probabilities of discrete Gaussian noise about zero, and about the shift, wherever either
    matters to a divergence of the highest order.
    """
    reach = math.ceil(12 * deviation) + max(ORDERS) * max(map(abs, shift))
    axis = np.arange(-reach, reach + 1, dtype=np.float64)
    total = np.logaddexp.reduce(-(axis**2) / (2 * deviation**2))
    before, moved = np.zeros(1), np.zeros(1)
    for part in shift:
        before = np.add.outer(before, -(axis**2) / (2 * deviation**2) - total)
        moved = np.add.outer(moved, -((axis - part) ** 2) / (2 * deviation**2) - total)
    return before.ravel(), moved.ravel()


def sampled(before: np.ndarray, moved: np.ndarray, rate: float) -> np.ndarray:
    return moved if rate == 1.0 else np.logaddexp(math.log1p(-rate) + before, math.log(rate) + moved)


def renyi(first: np.ndarray, second: np.ndarray, order: int) -> float:
    return float(np.logaddexp.reduce(order * first - (order - 1) * second)) / (order - 1)


@pytest.mark.parametrize(("deviation", "shift"), [(0.6, (1,)), (1.0, (1,)), (2.3, (3,)), (1.4, (1, -1)), (5.0, (4, 2))])
@pytest.mark.parametrize("rate", [0.01, 0.3, 1.0])
def test_samples_with_discrete_noise_diverge_by_no_more_than_is_accounted_for(deviation, shift, rate) -> None:
    before, moved = grid(deviation, shift)
    after = sampled(before, moved, rate)
    accountant = RdpAccountant(ORDERS)
    accountant.compose(PoissonSampledDpEvent(rate, GaussianDpEvent(deviation / math.hypot(*shift))))
    for order, accounted in zip(ORDERS, accountant._rdp, strict=True):
        # One direction is the continuous one's to the letter, the other at most that.
        assert renyi(after, before, order) == pytest.approx(accounted, rel=1e-6)
        assert renyi(before, after, order) <= accounted * (1 + 1e-6)


@pytest.mark.parametrize("noise", [1.0, 2.5])
@pytest.mark.parametrize("rate", [0.1, 1.0])
def test_delta_on_the_grid_is_below_what_is_promised_at_the_epsilon_that_is_told(noise: float, rate: float) -> None:
    shift = 3
    before, moved = grid(noise * shift, (shift,))
    after = sampled(before, moved, rate)
    told = epsilon([SampledDiscreteGaussian(noise, rate, 1)], DELTA)
    for first, second in ((before, after), (after, before)):
        assert np.maximum(np.exp(first) - np.exp(told + second), 0).sum() <= DELTA


def test_sum_of_shares_is_as_probable_as_one_discrete_gaussian_of_all_their_variance() -> None:
    deviation, reach = 8, 200
    axis = np.arange(-reach, reach + 1, dtype=np.float64)
    share = np.exp(-(axis**2) / (2 * deviation**2))
    summed = np.convolve(np.convolve(share / share.sum(), share / share.sum()), share / share.sum())
    axis = np.arange(-3 * reach, 3 * reach + 1, dtype=np.float64)
    one = np.exp(-(axis**2) / (2 * 3 * deviation**2))
    is_near = np.abs(axis) < 6 * deviation
    np.testing.assert_allclose(summed[is_near], (one / one.sum())[is_near], rtol=1e-12)


def test_discrete_noise_costs_nearly_what_continuous_noise_does() -> None:
    for rate, steps, noise in ((1.0, 60, 12.0), (0.1, 300, 2.0), (1.0, 100, 40.0)):
        continuous = epsilon([SampledGaussian(noise, rate, steps)], DELTA)
        discrete = epsilon([SampledDiscreteGaussian(noise, rate, steps)], DELTA)
        assert continuous <= discrete <= 1.12 * continuous
        assert discrete == epsilon_by_rdp([SampledGaussian(noise, rate, steps)], DELTA)


def test_everything_adds_up_beside_continuous_noise_too() -> None:
    steps, beside = SampledDiscreteGaussian(3.0, 0.2, 40), Gaussian(8.0)
    both = epsilon([steps, beside], DELTA)
    assert both > max(epsilon([steps], DELTA), epsilon([beside], DELTA))
    halves = [SampledDiscreteGaussian(3.0, 0.2, 20), beside, SampledDiscreteGaussian(3.0, 0.2, 20)]
    assert epsilon(halves, DELTA) == both
    # What is said to be continuous is not counted with it, nor the other way round.
    mixed = [SampledDiscreteGaussian(3.0, 0.2, 20), SampledGaussian(3.0, 0.2, 20), beside]
    assert epsilon(mixed, DELTA) == pytest.approx(both, rel=1e-3)


def test_no_noise_costs_infinitely_much_and_no_step_nothing() -> None:
    assert math.isinf(epsilon([SampledDiscreteGaussian(0.0, 1.0, 1)], DELTA))
    assert epsilon([SampledDiscreteGaussian(1.0, 1.0, 0), SampledDiscreteGaussian(1.0, 0.0, 5)], DELTA) == 0.0


def test_least_noise_that_holds_is_found_for_discrete_noise() -> None:
    noise = noise_multiplier_for(1.0, DELTA, 0.1, 300, [Gaussian(20.0)], SampledDiscreteGaussian)
    assert epsilon([SampledDiscreteGaussian(noise, 0.1, 300), Gaussian(20.0)], DELTA) <= 1.0
    assert epsilon([SampledDiscreteGaussian(noise - 0.001, 0.1, 300), Gaussian(20.0)], DELTA) > 1.0
