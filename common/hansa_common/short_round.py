"""All that a merchant tells in a round, as round_vector.py has it, with the update in few bits.

part        elements                       what the sum of all gives
update      several coordinates to one     the mean by training rows, rounded by chance (short_updates.py)
loss, rows  3                              as in round_vector.py
counts      as many to one as fit          the histogram's counts, exactly
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hansa_common.masking import FixedPoint, Ring
from hansa_common.packing import Packing
from hansa_common.round_vector import RoundSum, RoundVector
from hansa_common.short_updates import ShortUpdates
from hansa_common.vectors import Vector

_NO_UPDATE = np.zeros(0, np.float32)
_NO_COUNTS = np.zeros(0, np.int64)


@dataclass(frozen=True)
class ShortRoundVector:
    """The layout for updates in few bits and a histogram of `num_counts` counts, none of them above `max_count` at one
    merchant.
    """

    updates: ShortUpdates
    num_counts: int
    max_count: int

    @property
    def num_elements(self) -> int:
        return self.updates.num_elements + self._figures.num_elements + self._counts.num_elements

    @property
    def _figures(self) -> RoundVector:
        """The loss and the count of rows."""
        updates = self.updates
        return RoundVector(FixedPoint(updates.max_norm, updates.max_examples, updates.max_merchants), 0, 0, 0)

    @property
    def _counts(self) -> Packing:
        return Packing(self.num_counts, self.max_count, self.updates.max_merchants)

    def encode(
        self,
        update: Vector,
        loss: float,
        num_examples: int,
        counts: NDArray[np.int64],
        rounding: np.random.Generator,
    ) -> Ring:
        """One merchant's vector (num_elements,); a loss that is not between 0 and MAX_LOSS is told as MAX_LOSS.

        update: (num_params,) float32; counts: (num_counts,) int64; `rounding` draws how the update is rounded.

        Raises:
            ValueError: a shape is another, or a value is out of bounds.
        """
        if counts.size and not 0 <= counts.min() <= counts.max() <= self.max_count:
            raise ValueError(f"counts from {counts.min()} to {counts.max()}; allowed are 0 to {self.max_count}")
        return np.concatenate(
            [
                self.updates.encode(update, num_examples, rounding),
                self._figures.encode(_NO_UPDATE, loss, num_examples, _NO_COUNTS),
                self._counts.pack(counts.astype(np.uint32)),
            ]
        )

    def decode(self, ring_sum: Ring, num_merchants: int) -> RoundSum:
        """What the sum (num_elements,) of so many merchants' vectors says.

        Raises:
            ValueError: it is not of vectors of this layout.
        """
        if ring_sum.shape != (self.num_elements,):
            raise ValueError(f"a sum of {ring_sum.size} elements, this layout has {self.num_elements}")
        ends = np.cumsum([self.updates.num_elements, self._figures.num_elements])
        update, figures, counts = np.split(ring_sum, ends)
        told = self._figures.decode(figures, num_merchants)
        return RoundSum(
            self.updates.decode_mean(update, num_merchants, told.num_examples),
            told.mean_loss,
            told.num_examples,
            self._counts.unpack(counts, num_merchants),
            self.updates.most_error(num_merchants, told.num_examples),
        )
