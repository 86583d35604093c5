"""All that a merchant tells in a round as the one vector that is masked: its update, its count of training rows, the
score histogram of the weights that came in, and its training loss.

part        elements          what the sum of all gives
update      num_params        the mean by training rows, within FixedPoint's stated error
loss        1                 the mean by training rows, as an update's coordinate would be
rows        2                 how many training rows there are
counts      1 or 2 for each   the histogram's counts, exactly

- One sum, so that nothing is told of fewer merchants than are in it: no second sum is there to be compared with it.
- No part can overflow into another or wrap around, for whatever values `encode` takes.

Masks are masking.py's to add; who is in a sum is secure_round.py's.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from hansa_common.masking import NUM_COUNT_ELEMENTS, FixedPoint, Ring
from hansa_common.vectors import Vector

# In natural logarithms of a likelihood: beyond it, training has diverged.
MAX_LOSS: Final = 64.0
_RING: Final = 2**32
_DIGIT: Final = 2**15


@dataclass(frozen=True)
class RoundSum:
    """What the coordinator learns of a round: of all merchants in the sum together.

    `most_error`: how far, in L2 norm, the mean update is off at most where it was rounded by chance (short_updates.py).
    """

    mean_update: NDArray[np.float64]
    mean_loss: float
    num_examples: int
    counts: NDArray[np.int64]
    most_error: float = 0.0


@dataclass(frozen=True)
class RoundVector:
    """The layout for a model of `num_params` and a histogram of `num_counts` counts, none of them above `max_count` at
    one merchant.
    """

    fixed: FixedPoint
    num_params: int
    num_counts: int
    max_count: int

    def __post_init__(self) -> None:
        if not (self.num_params >= 0 and self.num_counts >= 0 and 0 <= self.max_count < _DIGIT**2):
            raise ValueError(f"no layout for {self.num_params} parameters and counts up to {self.max_count}")

    @property
    def num_elements(self) -> int:
        return self.num_params + 1 + NUM_COUNT_ELEMENTS + self.num_counts * self._num_digits

    @property
    def _num_digits(self) -> int:
        return 1 if self.max_count * self.fixed.max_merchants < _RING else 2

    def encode(self, update: Vector, loss: float, num_examples: int, counts: NDArray[np.int64]) -> Ring:
        """One merchant's vector (num_elements,); a loss that is not between 0 and MAX_LOSS is told as MAX_LOSS.

        update: (num_params,) float32; counts: (num_counts,) int64.

        Raises:
            ValueError: a shape is another, or a value is out of the bounds of FixedPoint or of max_count.
        """
        if update.shape != (self.num_params,) or counts.shape != (self.num_counts,):
            raise ValueError(f"{update.shape} and {counts.shape} do not fit {self.num_params} and {self.num_counts}")
        if counts.size and not 0 <= counts.min() <= counts.max() <= self.max_count:
            raise ValueError(f"counts from {counts.min()} to {counts.max()}; allowed are 0 to {self.max_count}")
        told = loss if 0 <= loss <= MAX_LOSS else MAX_LOSS
        # Below the bound by a rounding of float32 at most, and never above it.
        coordinate = np.float32(told / MAX_LOSS) * np.nextafter(np.float32(self.fixed.max_norm), np.float32(0))
        encoded = self.fixed.encode(np.append(update, coordinate).astype(np.float32, copy=False), num_examples)
        digits = [counts % _DIGIT, counts // _DIGIT] if self._num_digits > 1 else [counts]
        return np.concatenate([encoded, *(digit.astype(np.uint32) for digit in digits)])

    def decode(self, ring_sum: Ring, num_merchants: int) -> RoundSum:
        """What the sum (num_elements,) of so many merchants' vectors says.

        Raises:
            ValueError: it is not of vectors of this layout.
        """
        if ring_sum.shape != (self.num_elements,):
            raise ValueError(f"a sum of {ring_sum.size} elements, this layout has {self.num_elements}")
        start = self.num_params + 1 + NUM_COUNT_ELEMENTS
        mean, num_examples = self.fixed.decode_mean(ring_sum[:start])
        digits = ring_sum[start:].reshape(self._num_digits, self.num_counts).astype(np.int64)
        counts = digits[0] + (digits[1] * _DIGIT if self._num_digits > 1 else 0)
        if counts.size and counts.max() > self.max_count * num_merchants:
            raise ValueError(f"the sum has a count of {counts.max()}: it is not one of this cohort's vectors")
        loss = float(mean[-1]) / self.fixed.max_norm * MAX_LOSS
        return RoundSum(mean[:-1], loss, num_examples, counts)
