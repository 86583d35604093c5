"""Small whole numbers, several to an element of Z / 2^32, so that adding elements adds each of the numbers.

An element holds numbers as digits of a base above the largest sum that there can be. So no sum reaches into the next
digit, nor over the ring's end, and a masked sum of packed vectors is that of the numbers, exactly: masks know nothing
of it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from hansa_common.masking import Ring

_LARGEST: Final = 2**32 - 1


@dataclass(frozen=True)
class Packing:
    """The layout of `length` numbers from 0 to `max_value`, of which `max_merchants` merchants' are added at most."""

    length: int
    max_value: int
    max_merchants: int

    def __post_init__(self) -> None:
        if not (self.length >= 0 and self.max_value >= 1 and self.max_merchants >= 1 and self._base <= _LARGEST):
            raise ValueError(f"no layout for {self.length} numbers up to {self.max_value} of {self.max_merchants}")

    @property
    def _base(self) -> int:
        return self.max_value * self.max_merchants + 1

    @property
    def per_element(self) -> int:
        """How many numbers are in an element.

        >>> [Packing(1, 2 * 127, merchants).per_element for merchants in (5, 10)]
        [3, 2]
        """
        fit = 1
        while self._base ** (fit + 1) <= _LARGEST:
            fit += 1
        return fit

    @property
    def room(self) -> int:
        """What `max_value` could be with as many numbers to an element.

        >>> Packing(1, 2 * 127, 5).room, Packing(1, 325, 5).per_element
        (324, 2)
        """
        base: int = round(_LARGEST ** (1 / self.per_element)) + 1
        while base**self.per_element > _LARGEST:
            base -= 1
        return (base - 1) // self.max_merchants

    @property
    def num_elements(self) -> int:
        return -(-self.length // self.per_element)

    def pack(self, values: NDArray[np.uint32]) -> Ring:
        """One merchant's numbers (length,) as (num_elements,).

        Raises:
            ValueError: another length, or a number out of bounds.
        """
        if values.shape != (self.length,):
            raise ValueError(f"{values.size} numbers, this layout has {self.length}")
        if values.size and values.max() > self.max_value:
            raise ValueError(f"a number is {values.max()}; allowed are 0 to {self.max_value}")
        packed: Ring = np.zeros(self.num_elements, np.uint32)
        for place in reversed(range(self.per_element)):
            digits = values[place * packed.size : (place + 1) * packed.size]
            packed *= np.uint32(self._base)
            packed[: digits.size] += digits
        return packed

    def unpack(self, ring_sum: Ring, num_merchants: int) -> NDArray[np.int64]:
        """The sums (length,) of what so many merchants packed.

        Raises:
            ValueError: another length, or a sum that no merchants of this layout have.
        """
        if ring_sum.shape != (self.num_elements,):
            raise ValueError(f"a sum of {ring_sum.size} elements, this layout has {self.num_elements}")
        sums = np.zeros(self.num_elements * self.per_element, np.int64)
        left, base = ring_sum, np.uint32(self._base)
        for place in range(self.per_element):
            # Not divmod, which numpy does number by number.
            rest = left // base
            sums[place * ring_sum.size : (place + 1) * ring_sum.size] = left - rest * base
            left = rest
        most = self.max_value * num_merchants
        if left.any() or sums[self.length :].any() or sums.max(initial=0) > most:
            raise ValueError(f"a number of the sum is above {most}: it is not one of this cohort's vectors")
        return sums[: self.length]
