"""Updates in few bits, before they are masked: turned, cut off where hardly any coordinate is, and rounded by chance.

A merchant's update, weighted by its rows, becomes one of 2^bits - 1 levels a coordinate, as many below zero as above;
or of more, where these take no more elements of the ring. Of the mean that the sum gives:

- rounding moves it by nothing on average, and by `expected_error` at most as the root of a mean square, whatever the
  updates are; by more than `most_error` it never does, but for one chance in 10^14;
- cutting off shortens an update that is as long as agreed by .3 %, one of two thirds of that length by less than a
  hundred-thousandth (the share of a normal variable beyond REACH deviations), where its energy is not all in few
  columns (rotation.py);
- the sum cannot wrap around, for whatever `encode` takes (packing.py).

Source: Suresh et al., "Distributed Mean Estimation with Limited Communication" (2017). Levels are added and a scale is
agreed on, where the paper sends each client's own: of those a coordinator would learn each one's norm.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from hansa_common.masking import MAX_EXAMPLES, Ring
from hansa_common.packing import Packing
from hansa_common.rotation import Rotation
from hansa_common.vectors import Vector, l2_norm

MIN_BITS: Final = 2
MAX_BITS: Final = 8
# Levels reach as far as so many deviations of a coordinate of an update that is as long as agreed.
REACH: Final = 3.0
_CHUNK: Final = 1 << 16
# A norm in float64 of what was cut to length in float32.
_ROUNDING: Final = 1 + 1e-6


@dataclass(frozen=True)
class ShortUpdates:
    """Updates of norm `max_norm` at most as whole numbers of `bits` bits or more, weighted by rows of which a merchant
    has `max_examples` at most; `max_merchants` may be in one sum.
    """

    rotation: Rotation
    bits: int
    max_norm: float
    max_examples: int
    max_merchants: int

    def __post_init__(self) -> None:
        if not (MIN_BITS <= self.bits <= MAX_BITS and 0 < self.max_norm < math.inf):
            raise ValueError(f"no levels of {self.bits} bits for norm {self.max_norm}")
        if not 1 <= self.max_examples <= MAX_EXAMPLES:
            raise ValueError(f"no levels for {self.max_examples} examples")

    @property
    def packing(self) -> Packing:
        """How levels stand in the ring, the lowest as 0."""
        return Packing(self.rotation.num_turned, 2 * self._top, self.max_merchants)

    @property
    def num_elements(self) -> int:
        return self.packing.num_elements

    @property
    def _top(self) -> int:
        return top_level(self.bits, self.max_merchants)

    @property
    def _step(self) -> float:
        """Of a turned coordinate, from level to level."""
        return REACH * self.max_norm / math.sqrt(self.rotation.num_turned) / self._top

    def expected_error(self, num_merchants: int, total_examples: int) -> float:
        """The root of the mean square of how far, in L2 norm, rounding moves the mean of so many, at most."""
        mean_share = total_examples / (num_merchants * self.max_examples)
        return self.max_norm * relative_error(self._top, num_merchants, mean_share)

    def most_error(self, num_merchants: int, total_examples: int) -> float:
        """How far, in L2 norm, rounding moves the mean of so many, but for a chance of exp(-32).

        The norm of a sum of independent errors, each within a step, is convex in them: it exceeds its mean by t steps
        with a chance of exp(-t^2 / (2 num_merchants)) at most (Boucheron, Lugosi and Massart, "Concentration
        Inequalities", 2013, theorem 6.10). And nothing is off by a whole step.
        """
        times = min(2 * math.sqrt(num_merchants), 1 + 16 / math.sqrt(self.rotation.num_turned))
        return times * self.expected_error(num_merchants, total_examples)

    def encode(self, update: Vector, num_examples: int, rounding: np.random.Generator) -> Ring:
        """num_examples / max_examples times the update (num_params,), in levels; `rounding` draws up or down.

        Raises:
            ValueError: a shape is another, the update is not finite or longer than max_norm, or the count is out of
                bounds.
        """
        if not 1 <= num_examples <= self.max_examples:
            raise ValueError(f"{num_examples} examples; allowed are 1 to {self.max_examples}")
        norm = l2_norm(update)
        if not norm <= self.max_norm * _ROUNDING:
            raise ValueError(f"the update has norm {norm}, allowed is {self.max_norm}")
        turned = self.rotation.turn(update)
        factor, top = num_examples / self.max_examples / self._step, float(self._top)
        levels = np.empty(turned.size, np.uint32)
        for start in range(0, turned.size, _CHUNK):
            piece = np.multiply(turned[start : start + _CHUNK], factor, dtype=np.float64)
            np.clip(piece, -top, top, out=piece)
            piece += top
            # Of 24 bits: below 1 by enough that the highest level stays where it is.
            piece += rounding.random(piece.size, dtype=np.float32)
            levels[start : start + piece.size] = np.floor(piece, out=piece)
        return self.packing.pack(levels)

    def decode_mean(self, ring_sum: Ring, num_merchants: int, total_examples: int) -> NDArray[np.float64]:
        """The mean update by examples (num_params,) of so many merchants, who have so many together.

        Raises:
            ValueError: the sum is none of vectors of this layout.
        """
        levels = self.packing.unpack(ring_sum, num_merchants) - self._top * num_merchants
        # In float32, whose rounding is nothing beside that to levels, and twice as fast.
        mean_levels = self.rotation.turn_back(levels.astype(np.float32))
        return np.multiply(mean_levels, self._step * self.max_examples / total_examples, dtype=np.float64)


def top_level(bits: int, max_merchants: int) -> int:
    """The highest of at least 2^bits - 1 levels, of which the middle one is 0.

    >>> [top_level(bits, 10) for bits in (2, 4, 7, 8)]
    [1, 12, 81, 3276]
    """
    least = (1 << (bits - 1)) - 1
    return Packing(1, 2 * least, max_merchants).room // 2


def relative_error(top: int, num_merchants: int, mean_share: float) -> float:
    """The root of the mean square of how far, in L2 norm, rounding to levels up to `top` moves a mean update at most,
    as a share of the norm that was agreed on. `mean_share`: merchants' training rows on average, as a share of the most
    that were agreed on.

    >>> [f"{relative_error(top, 10, 0.5):.3f}" for top in (12, 81)]
    ['0.079', '0.012']
    """
    # A coordinate of one merchant's is off by half a step as a deviation at most, and never by a whole one.
    return REACH / top / (2 * math.sqrt(num_merchants) * mean_share)
