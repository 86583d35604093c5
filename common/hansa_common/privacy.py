"""What noised releases cost together: epsilon at a delta, by numerical accounting.

Promises: the epsilon of a composition of Gaussian mechanisms, sampled or not, discrete or not, never below the true
one; an upper bound comes out where the exact one cannot be computed; no noise costs infinitely much.
Refuses: numbers that make no mechanism. Leaves to others: what a release's sensitivity is (privacy_costs.py), how noise
is drawn (privacy_noise.py), who may spend how much (the merchant's ledger).

Neighbours are two tables of which one lacks one unit's contribution. Sampling is Poisson's: each unit by a coin of its
own. Nothing composes in parallel: two releases add up even where no row is in both.

What has discrete noise beside what has not is told by Renyi's bound alone, at whole orders. At those the discrete
Gaussian has the continuous one's: for a shift of whole steps the sum over the grid of exp(-(x - k shift)^2 / 2 s^2) is
the same for each whole k, so E(P/Q)^k = exp((k^2 - k) shift^2 / 2 s^2) to the letter, and what Mironov et al. make of
it for samples follows. That the other direction is no larger, by their theorem 5, takes a reflection that exchanges the
two distributions, which the grid has as well.

Sources: Koskela et al., "Computing Tight Differential Privacy Guarantees Using FFT" (2020), and Doroshenko et al.,
"Connect the Dots" (2022), for privacy loss distributions; Mironov et al., "Renyi Differential Privacy of the Sampled
Gaussian Mechanism" (2019); all as Google's dp-accounting computes them, which is imported where it is used, because it
brings scipy.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any, Final

# A privacy loss distribution has 10,000 places for each unit of epsilon: what costs more than this is told by Renyi's
# bound, which is higher, and no promise anyway.
MAX_EXACT_EPSILON: Final = 60.0
# Epsilons are rounded up to so many digits after the point, noise multipliers to parts of one.
EPSILON_DIGITS: Final = 4
# Between two places of a privacy loss distribution; wider ones are quicker, and round further up.
_INTERVAL: Final = 1e-4
_COARSE_INTERVAL: Final = 1e-3
_NOISE_PARTS: Final = 1000
# How much less noise the exact accounting may ask for than Renyi's bound does; what would ask for less gets this.
_LEAST_EXCESS: Final = 0.75
# Whole ones, at which discrete noise is as good as continuous: some between 1 and 2 do not converge besides.
_RDP_ORDERS: Final = (*range(2, 65), 80, 96, 128, 192, 256, 384, 512, 1024)
MAX_NOISE_MULTIPLIER: Final = 1e6
MAX_EPSILON: Final = 1e4


@dataclass(frozen=True)
class SampledGaussian:
    """`num_steps` sums over Poisson-sampled units, each with Gaussian noise of `noise_multiplier` sensitivities."""

    noise_multiplier: float
    sampling_rate: float
    num_steps: int

    def __post_init__(self) -> None:
        _check_noise(self.noise_multiplier)
        if not 0.0 <= self.sampling_rate <= 1.0:
            raise ValueError(f"a sampling rate is from 0 to 1, not {self.sampling_rate}")
        if self.num_steps < 0:
            raise ValueError(f"a number of steps is 0 or more, not {self.num_steps}")


@dataclass(frozen=True)
class SampledDiscreteGaussian(SampledGaussian):
    """The same of whole numbers with discrete Gaussian noise, as shared_noise.py adds it: sensitivities and noise are
    counted in steps of the grid, and of the noise of several, its variance as one.
    """


@dataclass(frozen=True)
class Gaussian:
    """`num_releases` vectors with Gaussian noise of `noise_multiplier` sensitivities; 0 is no noise at all."""

    noise_multiplier: float
    num_releases: int = 1

    def __post_init__(self) -> None:
        _check_noise(self.noise_multiplier)
        if self.num_releases < 0:
            raise ValueError(f"a number of releases is 0 or more, not {self.num_releases}")


Mechanism = SampledGaussian | Gaussian


def epsilon(mechanisms: Sequence[Mechanism], delta: float) -> float:
    """The epsilon at this delta of everything together, rounded up; infinite where something has no noise.

    By privacy loss distributions up to MAX_EXACT_EPSILON, and beyond that by Renyi's bound.

    >>> epsilon([Gaussian(1.0)], 1e-5), epsilon([], 1e-5), epsilon([Gaussian(0.0)], 1e-5)
    (4.3772, 0.0, inf)

    Raises:
        ValueError: delta is not between 0 and 1.
    """
    _check_delta(delta)
    return _epsilon(_merged(mechanisms), delta)


# The name under which a function sees it that has an epsilon of its own.
_exact: Final = epsilon


def epsilon_by_rdp(mechanisms: Sequence[Mechanism], delta: float) -> float:
    """The same by Renyi differential privacy: looser, and computed in another way.

    Raises:
        ValueError: delta is not between 0 and 1.
    """
    _check_delta(delta)
    return _epsilon_by_rdp(_merged(mechanisms), delta)


def noise_multiplier_for(
    epsilon: float,
    delta: float,
    sampling_rate: float,
    num_steps: int,
    beside: Sequence[Mechanism] = (),
    kind: type[SampledGaussian] = SampledGaussian,
) -> float:
    """The least noise multiplier, rounded up, with which so many steps of a kind and what is `beside` them keep to
    epsilon.

    Raises:
        ValueError: there is none: what is beside them costs more than epsilon already, or a number is out of bounds.
    """
    if not 0 < epsilon <= MAX_EPSILON:
        raise ValueError(f"epsilon is above 0 and at most {MAX_EPSILON:g}, not {epsilon}")
    _check_delta(delta)

    def holds(thousandths: int, cost: Callable[[Sequence[Mechanism], float], float]) -> bool:
        steps = kind(thousandths / _NOISE_PARTS, sampling_rate, num_steps)
        return cost([steps, *beside], delta) <= epsilon

    most = int(MAX_NOISE_MULTIPLIER * _NOISE_PARTS)
    if not holds(most, epsilon_by_rdp):
        raise ValueError(f"no noise on {num_steps} steps keeps them and what is beside them to epsilon {epsilon:g}")
    # Each takes longer than the one before and asks for no more noise, hardly ever for less than a thousandth less.
    enough = _least(lambda number: holds(number, epsilon_by_rdp), 1, most)
    enough = _least(lambda number: holds(number, _coarse), max(1, int(enough * _LEAST_EXCESS)), enough)
    while enough > 1 and holds(enough - 1, _exact):
        enough -= 1
    return enough / _NOISE_PARTS


def _coarse(mechanisms: Sequence[Mechanism], delta: float) -> float:
    return _epsilon(_merged(mechanisms), delta, _COARSE_INTERVAL)


def _least(holds: Callable[[int], bool], low: int, high: int) -> int:
    """The least number from low to high that holds, where `high` does and all above the least one do."""
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if holds(middle) else (middle + 1, high)
    return high


def _merged(mechanisms: Sequence[Mechanism]) -> tuple[Mechanism, ...]:
    """The same composition in few parts: all plain releases are one Gaussian, equal steps are counted."""
    steps: Counter[SampledGaussian] = Counter()
    precision = 0.0
    for mechanism in mechanisms:
        if isinstance(mechanism, Gaussian):
            precision += _precision(mechanism.noise_multiplier, mechanism.num_releases)
        elif mechanism.sampling_rate == 1.0 and not isinstance(mechanism, SampledDiscreteGaussian):
            precision += _precision(mechanism.noise_multiplier, mechanism.num_steps)
        elif mechanism.sampling_rate and mechanism.num_steps:
            steps[replace(mechanism, num_steps=1)] += mechanism.num_steps
    plain = [Gaussian(0.0 if math.isinf(precision) else precision**-0.5)] if precision else []
    return (*plain, *(replace(step, num_steps=steps[step]) for step in sorted(steps, key=_place)))


def _place(steps: SampledGaussian) -> tuple[bool, float, float]:
    return isinstance(steps, SampledDiscreteGaussian), steps.noise_multiplier, steps.sampling_rate


def _precision(noise_multiplier: float, number: int) -> float:
    """Of so many Gaussian releases together, as one: precisions add up."""
    if not number:
        return 0.0
    return math.inf if not noise_multiplier else number / noise_multiplier**2


# Rounds of one run ask for the same sums again and again.
@lru_cache(maxsize=4096)
def _epsilon(merged: tuple[Mechanism, ...], delta: float, interval: float = _INTERVAL) -> float:
    bound = _epsilon_by_rdp(merged, delta)
    is_discrete = any(isinstance(mechanism, SampledDiscreteGaussian) for mechanism in merged)
    if is_discrete or bound == 0.0 or bound > MAX_EXACT_EPSILON:
        return bound
    from dp_accounting.pld.pld_privacy_accountant import PLDAccountant

    return min(
        bound, _rounded_up(_composed(PLDAccountant(value_discretization_interval=interval), merged).get_epsilon(delta))
    )


@lru_cache(maxsize=4096)
def _epsilon_by_rdp(merged: tuple[Mechanism, ...], delta: float) -> float:
    if not merged:
        return 0.0
    if any(mechanism.noise_multiplier == 0.0 for mechanism in merged):
        return math.inf
    from dp_accounting.rdp.rdp_privacy_accountant import RdpAccountant

    return _rounded_up(_composed(RdpAccountant(_RDP_ORDERS), merged).get_epsilon(delta))


def _composed(accountant: Any, merged: tuple[Mechanism, ...]) -> Any:
    for event, number in _events(merged):
        accountant.compose(event, number)
    return accountant


def _events(merged: tuple[Mechanism, ...]) -> Iterator[tuple[Any, int]]:
    from dp_accounting import GaussianDpEvent, PoissonSampledDpEvent

    for mechanism in merged:
        noise = GaussianDpEvent(mechanism.noise_multiplier)
        if isinstance(mechanism, Gaussian):
            yield noise, mechanism.num_releases
        else:
            yield PoissonSampledDpEvent(mechanism.sampling_rate, noise), mechanism.num_steps


def _rounded_up(value: float) -> float:
    if not math.isfinite(value):
        return math.inf
    return round(math.ceil(value * 10**EPSILON_DIGITS) / 10**EPSILON_DIGITS, EPSILON_DIGITS)


def _check_noise(noise_multiplier: float) -> None:
    if not (math.isfinite(noise_multiplier) and noise_multiplier >= 0.0):
        raise ValueError(f"a noise multiplier is 0 or more, and finite, not {noise_multiplier}")


def _check_delta(delta: float) -> None:
    if not 0.0 < delta < 1.0:
        raise ValueError(f"delta is between 0 and 1, not {delta}")
