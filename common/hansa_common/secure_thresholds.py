"""How many merchants a masked sum needs, and how many may drop out of it or collude with the coordinator.

With n merchants in a cohort, m of them colluding and a threshold of t shares, 2t > n + m. For a merchant's secrets come
in two halves, each honest merchant opens one of the two, and a colluder both: to read one vector takes t - m honest
merchants for either half, 2(t - m) of the n - m that there are. So no merchant needs to see what the others were asked.

Nobody sees what others are told: neither who takes part, whose shares they are given and whose keys go into their
masks, nor who is in the sum. Masks cancel among those alone who were told of the same u merchants, `least` at least. So
who is not of these is in their sum without a trace, and each of the e others of the u has to be left out by opening its
masks' key: t - m honest merchants do that, none its own. Those in the sum, of whom s are honest, leave u - least out at
most each; all others, who may be told that everyone takes part, n - least. So a sum of s is possible only where

    e (t - m) <= s (u - least) + (n - m - s) (n - least),    e = u - m - s,

and where there are t - m who can leave somebody out. `least` is such that `min_merchants` remain in every sum that is.

The sum itself says what one merchant sent to whoever knows all the others': so at least two of any sum are honest.

Source: Bonawitz et al., "Practical Secure Aggregation for Privacy-Preserving Machine Learning" (2017), section 6.
"""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Final

MIN_MERCHANTS: Final = 3
MIN_HONEST: Final = 2


@dataclass(frozen=True)
class Thresholds:
    """What was agreed on for cohorts of at most `num_merchants`: `threshold` shares open a secret, and a sum is of
    `min_merchants` at least, whatever those who open it are told.
    """

    num_merchants: int
    colluders: int
    threshold: int
    min_merchants: int

    def __post_init__(self) -> None:
        n, m, t = self.num_merchants, self.colluders, self.threshold
        if n < MIN_MERCHANTS:
            raise ValueError(
                f"a masked sum takes {MIN_MERCHANTS} merchants, there are {n}: of two, each knows the other's"
            )
        if not 0 <= m <= n - MIN_HONEST:
            raise ValueError(
                f"{m} colluders among {n} merchants leave no secret in a sum; allowed are 0 to {n - MIN_HONEST}"
            )
        if not n + m < 2 * t <= 2 * n:
            raise ValueError(
                f"a threshold of {t} shares does not hold for {n} merchants of whom {m} collude; "
                f"allowed are {_least_threshold(n, m)} to {n}"
            )
        if not 1 <= self.min_merchants <= n:
            raise ValueError(f"a sum of {self.min_merchants} merchants at least is none of {n}")

    @property
    def least(self) -> int:
        """How many merchants are to take part, and how many vectors to be in a sum, before anyone masks or opens."""
        return _least_size(self)

    @property
    def smallest_sum(self) -> int:
        """The fewest merchants whose sum can become known, colluders among them: never below `min_merchants`."""
        return self._smallest(self.least)

    def can_hold(self, size: int) -> bool:
        """Whether `min_merchants`, two of them honest, are in any sum where merchants ask for so many."""
        return self._smallest(size) >= max(self.min_merchants, self.colluders + MIN_HONEST)

    def _smallest(self, least: int) -> int:
        """With all colluders among those who take part. What is asked of u is linear in it, but where it begins."""
        among = {least, min(least + 1, self.num_merchants), self.num_merchants}
        return min(self._fewest_honest(num_told, least) for num_told in among) + self.colluders

    def _fewest_honest(self, num_told: int, least: int) -> int:
        """The fewest honest merchants whose sum may become known, where they were told that so many take part."""
        needed, honest = self.threshold - self.colluders, self.num_merchants - self.colluders
        # What is asked of their number s, as `missing <= s each`.
        missing = (num_told - self.colluders) * needed - honest * (self.num_merchants - least)
        each = needed + num_told - self.num_merchants
        fewest = max(1, -(-missing // each)) if each > 0 else 1
        openers = honest - 1 - (fewest if num_told == least else 0)
        nobody_left_out = num_told - self.colluders
        can_leave_out = missing <= fewest * each and openers >= needed
        return min(fewest, nobody_left_out) if can_leave_out else nobody_left_out

    @property
    def dropouts(self) -> int:
        """How many of a full cohort may drop out, at whatever moment, and the others' sum be known."""
        return self.num_merchants - self.least


def secure_thresholds(
    num_merchants: int, colluders: int = 0, threshold: int | None = None, min_merchants: int = 1
) -> Thresholds:
    """The thresholds of a cohort; where none is given, the least of those that tolerate the most dropouts.

    Raises:
        ValueError: they cannot hold together; the message says what is allowed.

    >>> [secure_thresholds(10, m).dropouts for m in (0, 1, 3)]
    [3, 3, 2]
    >>> secure_thresholds(3, colluders=1).dropouts
    0
    """
    if threshold is None:
        threshold = _best_threshold(num_merchants, colluders, min_merchants)
    return Thresholds(num_merchants, colluders, threshold, min_merchants)


# Asked for with every order.
@lru_cache(maxsize=1024)
def _least_size(limits: Thresholds) -> int:
    sizes = range(max(limits.threshold, limits.min_merchants), limits.num_merchants + 1)
    return sizes[bisect_left(sizes, x=True, key=limits.can_hold)]


@lru_cache(maxsize=1024)
def _best_threshold(num_merchants: int, colluders: int, min_merchants: int) -> int:
    least = Thresholds(num_merchants, colluders, _least_threshold(num_merchants, colluders), min_merchants)
    return min(
        range(least.threshold, num_merchants + 1), key=lambda threshold: replace(least, threshold=threshold).least
    )


def _least_threshold(num_merchants: int, colluders: int) -> int:
    return (num_merchants + colluders) // 2 + 1
