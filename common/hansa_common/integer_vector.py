"""Whole numbers as a vector of a masked sum: statistics before the first round, and score histograms; below zero where
noise is in them.

Each number goes in digits of 16 bits, all lowest digits first, so that sums of 2^16 merchants' digits stay in Z / 2^32
and the decoded sums are exact. The update of a round has a layout of its own (round_vector.py).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from hansa_common.masking import Ring

_DIGIT_BITS: Final = 16
_DIGIT: Final = 2**_DIGIT_BITS


@dataclass(frozen=True)
class IntegerVector:
    """The layout of `length` numbers, none below `min_value` or above `max_value` at one merchant, of whom
    `max_merchants` are in a sum at most.
    """

    length: int
    max_value: int
    max_merchants: int
    min_value: int = 0

    def __post_init__(self) -> None:
        if not (self.length >= 0 and self.min_value <= 0 <= self.max_value and 1 <= self.max_merchants <= _DIGIT):
            raise ValueError(f"no layout for {self.length} numbers up to {self.max_value} of {self.max_merchants}")
        if self._most * self.max_merchants >= 2**63:
            raise ValueError(f"a sum of {self.max_merchants} numbers up to {self.max_value} does not fit into 63 bits")

    @property
    def _most(self) -> int:
        """What is encoded is a number's distance from the least."""
        return self.max_value - self.min_value

    @property
    def num_digits(self) -> int:
        return max(1, -(-self._most.bit_length() // _DIGIT_BITS))

    @property
    def num_elements(self) -> int:
        return self.length * self.num_digits

    def encode(self, values: NDArray[np.int64]) -> Ring:
        """One merchant's numbers (length,) as (num_elements,).

        Raises:
            ValueError: another length, or a number out of bounds.
        """
        if values.shape != (self.length,):
            raise ValueError(f"{values.size} numbers, this layout has {self.length}")
        if values.size and not self.min_value <= values.min() <= values.max() <= self.max_value:
            raise ValueError(
                f"numbers from {values.min()} to {values.max()}; allowed are {self.min_value} to {self.max_value}"
            )
        digits = [(values - self.min_value) >> (_DIGIT_BITS * place) & (_DIGIT - 1) for place in range(self.num_digits)]
        return np.concatenate(digits).astype(np.uint32)

    def decode(self, ring_sum: Ring, num_merchants: int) -> NDArray[np.int64]:
        """The sums (length,) of what so many merchants encoded, exactly.

        Raises:
            ValueError: another length, or a sum that no merchants of this layout have.
        """
        if ring_sum.shape != (self.num_elements,):
            raise ValueError(f"a sum of {ring_sum.size} elements, this layout has {self.num_elements}")
        digits = ring_sum.reshape(self.num_digits, self.length).astype(np.int64)
        if digits.size and digits.max() > num_merchants * (_DIGIT - 1):
            raise ValueError(f"a digit adds up to {digits.max()}: it is not one of this cohort's vectors")
        # As Python's numbers: what is no sum of such vectors need not fit into 63 bits.
        tops = digits[-1].tolist()
        if any(top << (_DIGIT_BITS * (self.num_digits - 1)) > self._most * num_merchants for top in tops):
            raise ValueError("a number of the sum is above what this cohort can have")
        values = np.full(self.length, num_merchants * self.min_value, np.int64)
        for place, digit in enumerate(digits):
            values += digit << (_DIGIT_BITS * place)
        return values
