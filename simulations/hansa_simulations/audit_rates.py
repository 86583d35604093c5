"""How well an attack tells two kinds of rows apart, from one score a row: rates with intervals, and a DP bound on them.

Pure functions. Scores of members and of non-members (rows,) float, higher meaning "more likely a member". A rate of
true positives at a rate of false positives is that of the lowest threshold that no more than that share of the
non-members is above, so that ties help no attack.

Intervals are of 95 %. A rate's holds both samples to account: it covers the bootstrap over members and non-members
together (Efron and Tibshirani, An Introduction to the Bootstrap, 1993), because the threshold is taken from the
non-members, and the exact one over the members alone (Clopper and Pearson, 1934), because a bootstrap of none is none.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from hansa_common.bootstrap import CONFIDENCE, Interval, paired_bootstrap

FALSE_POSITIVE_RATES: Final = (0.01, 0.001)
# So many non-members may be above the threshold, or a rate is not told: fewer, and it would be these rows' own.
LEAST_FALSE_POSITIVES: Final = 10
MAX_CURVE_POINTS: Final = 200
_RESAMPLES: Final = 2000
_TAIL: Final = (1.0 - CONFIDENCE) / 2.0
_BISECTIONS: Final = 60

Scores = NDArray[np.float64]


@dataclass(frozen=True)
class Rate:
    """True positives at a rate of false positives: the share found, with its interval, and what it was counted from."""

    false_positive_rate: float
    true_positives: Interval
    num_true_positives: int
    num_false_positives: int

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return {
            "false_positive_rate": self.false_positive_rate,
            "true_positive_rate": self.true_positives.to_json(),
            "num_true_positives": self.num_true_positives,
            "num_false_positives": self.num_false_positives,
        }


@dataclass(frozen=True)
class AttackRates:
    """An attack in figures: rates at those of FALSE_POSITIVE_RATES that the non-members suffice for, the area under its
    curve, and the curve, (false positives, true positives) from left to right.
    """

    num_members: int
    num_non_members: int
    roc_auc: Interval
    rates: tuple[Rate, ...]
    curve: tuple[tuple[float, float], ...]

    def at(self, false_positive_rate: float) -> Rate | None:
        """The rate at this many false positives; None where the non-members do not suffice."""
        return next((rate for rate in self.rates if rate.false_positive_rate == false_positive_rate), None)

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return {
            "num_members": self.num_members,
            "num_non_members": self.num_non_members,
            "roc_auc": self.roc_auc.to_json(),
            "rates": [rate.to_json() for rate in self.rates],
            "curve": [list(point) for point in self.curve],
        }


def attack_rates(members: Scores, non_members: Scores, rng: np.random.Generator) -> AttackRates:
    """Measure an attack by its scores of members (rows,) and of non-members (rows,).

    Raises:
        ValueError: there are none of a kind, or a score is NaN.
    """
    scores = np.concatenate([members, non_members])
    is_member = np.arange(len(scores)) < len(members)
    # Against a guess, whose area is a half.
    area = paired_bootstrap(scores, np.zeros(len(scores)), is_member, rng=rng)["roc_auc"]
    asked = [rate for rate in FALSE_POSITIVE_RATES if least_non_members(rate) <= len(non_members)]
    return AttackRates(
        len(members),
        len(non_members),
        Interval(area.estimate + 0.5, area.low + 0.5, area.high + 0.5),
        tuple(rate_at(rate, members, non_members, rng) for rate in asked),
        roc_curve(members, non_members),
    )


def least_non_members(false_positive_rate: float) -> int:
    """How many non-members a rate needs to be told.

    >>> [least_non_members(rate) for rate in FALSE_POSITIVE_RATES]
    [1000, 10000]
    """
    return math.ceil(LEAST_FALSE_POSITIVES / false_positive_rate - 1e-6)


def rate_at(false_positive_rate: float, members: Scores, non_members: Scores, rng: np.random.Generator) -> Rate:
    """True positives at a rate of false positives, as the module says."""
    num_allowed = allowed(false_positive_rate, len(non_members))
    above = shares_above(members, non_members)
    num_found = round(above[num_allowed] * len(members))
    # The threshold's place in a resample of the non-members: an order statistic of uniform numbers.
    places = rng.beta(num_allowed + 1, len(non_members) - num_allowed, _RESAMPLES) * len(non_members)
    shares = above[np.minimum(places.astype(np.int64), len(non_members) - 1)]
    found = rng.binomial(len(members), shares) / len(members)
    exact = clopper_pearson(num_found, len(members))
    low, high = np.quantile(found, [_TAIL, 1.0 - _TAIL])
    threshold = np.sort(non_members)[::-1][num_allowed]
    return Rate(
        false_positive_rate,
        Interval(num_found / len(members), min(float(low), exact.low), max(float(high), exact.high)),
        num_found,
        int(np.count_nonzero(non_members > threshold)),
    )


def allowed(false_positive_rate: float, num_non_members: int) -> int:
    """How many non-members may be above the threshold.

    >>> allowed(0.01, 2466), allowed(0.01, 1000)
    (24, 10)
    """
    return min(math.floor(false_positive_rate * num_non_members + 1e-9), num_non_members - 1)


def shares_above(members: Scores, non_members: Scores) -> NDArray[np.float64]:
    """(non-members,) the share of members above each non-member, the highest non-member first."""
    ascending = np.sort(members)
    below = np.searchsorted(ascending, np.sort(non_members)[::-1], side="right")
    return (len(members) - below) / len(members)


def roc_curve(members: Scores, non_members: Scores) -> tuple[tuple[float, float], ...]:
    """(false positives, true positives), at most MAX_CURVE_POINTS of them, evenly on a logarithmic scale."""
    above = shares_above(members, non_members)
    steps = np.unique(np.geomspace(1, len(non_members), MAX_CURVE_POINTS).astype(np.int64))
    places = [0, *steps[steps < len(non_members)].tolist()]
    return (*((place / len(non_members), float(above[place])) for place in places), (1.0, 1.0))


def clopper_pearson(num_found: int, num_trials: int) -> Interval:
    """The exact interval of a share of which `num_found` in `num_trials` were seen.

    Source: Clopper and Pearson, "The use of confidence or fiducial limits illustrated in the case of the binomial"
    (1934).

    >>> round(clopper_pearson(0, 10).high, 4), round(clopper_pearson(5, 10).low, 4)
    (0.3085, 0.1871)
    """
    low = 0.0 if num_found == 0 else _share_where(num_found - 1, num_trials, 1.0 - _TAIL)
    high = 1.0 if num_found == num_trials else _share_where(num_found, num_trials, _TAIL)
    return Interval(num_found / num_trials, low, high)


def difference(one: Interval, other: Interval) -> Interval:
    """`one - other` of two independent shares, from their own intervals (Newcombe, "Interval estimation for the
    difference between independent proportions", 1998).

    >>> round(difference(Interval(0.5, 0.4, 0.6), Interval(0.2, 0.2, 0.2)).high, 4)
    0.4
    """
    estimate = one.estimate - other.estimate
    low = math.hypot(one.estimate - one.low, other.high - other.estimate)
    high = math.hypot(one.high - one.estimate, other.estimate - other.low)
    return Interval(estimate, estimate - low, estimate + high)


def most_true_positives(epsilon: float, delta: float, false_positive_rate: float) -> float:
    """The highest rate of true positives that (epsilon, delta)-differential privacy leaves to any attack.

    Source: Kairouz, Oh and Viswanath, "The composition theorem for differential privacy" (2015), theorem 2.1.

    >>> most_true_positives(0.0, 0.0, 0.01), round(most_true_positives(1.0, 1e-5, 0.01), 4)
    (0.01, 0.0272)
    """
    right = 1.0 - max(0.0, 1.0 - delta - false_positive_rate) * math.exp(-epsilon)
    # Beyond this the other bound is the lower one, and exp would overflow.
    left = math.exp(epsilon) * false_positive_rate + delta if epsilon < 50 else 1.0  # noqa: PLR2004
    return min(1.0, left, right)


def least_epsilon(rate: Rate, num_members: int, num_non_members: int, delta: float) -> float:
    """An epsilon that the run cannot be below, if the threshold of `rate` had been named beforehand: from both exact
    intervals, so with a confidence of 90 % at least.
    """
    found = clopper_pearson(rate.num_true_positives, num_members).low - delta
    mistaken = clopper_pearson(rate.num_false_positives, num_non_members).high
    return max(0.0, math.log(found / mistaken)) if found > 0.0 else 0.0


def _share_where(num_found: int, num_trials: int, probability: float) -> float:
    """The share at which at most `num_found` of `num_trials` are found with this probability."""
    found = np.arange(num_found + 1)
    logs = np.concatenate([[0.0], np.cumsum(np.log(np.arange(1, num_trials + 1)))])
    choices = logs[num_trials] - logs[found] - logs[num_trials - found]
    low, high = 0.0, 1.0
    for _ in range(_BISECTIONS):
        share = (low + high) / 2.0
        terms = choices + found * math.log(share) + (num_trials - found) * math.log1p(-share)
        if np.exp(terms).sum() > probability:
            low = share
        else:
            high = share
    return (low + high) / 2.0
