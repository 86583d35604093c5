"""How many merchants a masked sum needs, and how many may drop out of it or collude with the coordinator.

With n merchants in a cohort, m of them colluding and a threshold of t shares, 2t > n + m. For a merchant's secrets come
in two halves, each honest merchant opens one of the two, and a colluder both: to read one vector takes t - m honest
merchants for either half, 2(t - m) of the n - m that there are. So no merchant needs to see what the others were asked.

Those who open shares may be told of different sums, each of `least` merchants, and the sum that comes of it may be
smaller: to leave one out takes t - m honest merchants who were told so, and each was told so of n - least at most. So
(n - m)(n - least) / (t - m) can be left out at most, and `least` is such that `min_merchants` remain.

The sum itself says what one merchant sent to whoever knows all the others': so at least two of any sum are honest.

Source: Bonawitz et al., "Practical Secure Aggregation for Privacy-Preserving Machine Learning" (2017), section 6.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
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
        """How many merchants' vectors there are to be in a sum before anyone opens shares for it."""
        wanted = max(self.min_merchants, self.colluders + MIN_HONEST)
        sizes = range(max(self.threshold, self.min_merchants), self.num_merchants + 1)
        return next(size for size in sizes if self._smallest(size) >= wanted)

    @property
    def smallest_sum(self) -> int:
        """The fewest merchants whose sum can become known, colluders among them: never below `min_merchants`."""
        return min(self.least, self._smallest(self.least))

    def _smallest(self, size: int) -> int:
        honest, left_out_by_each = self.num_merchants - self.colluders, self.num_merchants - size
        return self.num_merchants - honest * left_out_by_each // (self.threshold - self.colluders)

    @property
    def dropouts(self) -> int:
        """How many of a full cohort may drop out, at whatever moment, and the others' sum be known."""
        return self.num_merchants - self.least


def secure_thresholds(
    num_merchants: int, colluders: int = 0, threshold: int | None = None, min_merchants: int = 1
) -> Thresholds:
    """The thresholds of a cohort; where none is given, the least that holds, which tolerates the most dropouts.

    Raises:
        ValueError: they cannot hold together; the message says what is allowed.

    >>> [secure_thresholds(10, m).dropouts for m in (0, 1, 3)]
    [4, 4, 3]
    >>> secure_thresholds(3, colluders=1).dropouts
    0
    """
    if threshold is not None:
        return Thresholds(num_merchants, colluders, threshold, min_merchants)
    least = Thresholds(num_merchants, colluders, _least_threshold(num_merchants, colluders), min_merchants)
    # With as many shares as merchants in a sum, there is less that openers can be told differently.
    more = replace(least, threshold=max(least.threshold, min_merchants))
    return min(least, more, key=lambda limits: limits.least)


def _least_threshold(num_merchants: int, colluders: int) -> int:
    return (num_merchants + colluders) // 2 + 1
