"""A turn that everyone knows, after which no coordinate of an update stands out: what rounds them alike wastes nothing.

Signs that a seed draws, then Walsh-Hadamard transforms down the columns and along the rows of the vector laid out as a
matrix. It is orthogonal, so norms and sums stay, and turning back is as exact as float64 is.

- A coordinate of the turned vector is a sum of coordinates of the vector under independent signs, each over
  sqrt(2^floor(log2(num_params))): for any vector whatsoever, it is above c times its norm times `spread` with a chance
  of at most 2 exp(-c^2 / 2) (Hoeffding, 1963). Where the energy is not all in few columns, it is nearly normal with a
  deviation of norm / sqrt(num_turned), which `spread` is between 1 and sqrt(2) times.
- Additions, subtractions and one multiplication, each of single numbers: the same bytes on every machine.

Source: Suresh et al., "Distributed Mean Estimation with Limited Communication" (2017), who take one transform of the
next power of two; two transforms side by side need next to no padding.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from hansa_common.randomness import generator

Real = TypeVar("Real", np.float32, np.float64)


@dataclass(frozen=True)
class Rotation:
    """The turn of vectors of `num_params` numbers that `seed` stands for."""

    num_params: int
    seed: int

    def __post_init__(self) -> None:
        if self.num_params < 1:
            raise ValueError(f"a vector of {self.num_params} numbers cannot be turned")

    @property
    def num_turned(self) -> int:
        """How many coordinates a turned vector has: at most 1.5 sqrt(num_params) more than before."""
        return self._num_rows * self._num_columns

    @property
    def spread(self) -> float:
        """How large a coordinate of a turned vector of norm 1 is, as a deviation, whatever the vector was."""
        return 1 / math.sqrt(self._num_rows * self._group)

    def turn(self, vector: NDArray[Real]) -> NDArray[Real]:
        """The turned vector (num_turned,) of a vector (num_params,)."""
        if vector.shape != (self.num_params,):
            raise ValueError(f"a vector of shape {vector.shape}; {self.num_params} numbers are turned here")
        laid_out = np.zeros(self.num_turned, vector.dtype)
        np.multiply(vector, self._signs, out=laid_out[: self.num_params], casting="same_kind")
        _transform(laid_out.reshape(self._num_rows, self._num_columns))
        # Copied across, so that the second transform too is along the first axis, where numpy is fast.
        turned = np.ascontiguousarray(laid_out.reshape(-1, self._group).T)
        _transform(turned)
        turned *= vector.dtype.type(self.spread)
        return turned.reshape(-1)

    def turn_back(self, turned: NDArray[Real]) -> NDArray[Real]:
        """The vector (num_params,) that was turned into this one (num_turned,)."""
        across = turned.reshape(self._group, -1).copy()
        _transform(across)
        laid_out = np.ascontiguousarray(across.T).reshape(self._num_rows, self._num_columns)
        _transform(laid_out)
        vector = laid_out.reshape(-1)[: self.num_params]
        return vector * (self._signs * vector.dtype.type(self.spread))

    @cached_property
    def _signs(self) -> NDArray[np.float32]:
        num_bytes = -(-self.num_params // 8)
        drawn = np.frombuffer(generator(self.seed, "signs").bytes(num_bytes), np.uint8)
        return 1 - 2 * np.unpackbits(drawn, count=self.num_params).astype(np.float32)

    @property
    def _num_rows(self) -> int:
        """Rows of the matrix, a power of two near the root: each column is transformed as one."""
        return 1 << -(-self._bits // 2)

    @property
    def _group(self) -> int:
        """Neighbours in a row, a power of two, of which no two are of one column: each such group is transformed."""
        return 1 << self._bits // 2

    @property
    def _num_columns(self) -> int:
        return -(-self.num_params // self._num_rows)

    @property
    def _bits(self) -> int:
        return self.num_params.bit_length() - 1


def _transform(matrix: NDArray[Real]) -> None:
    """The Walsh-Hadamard transform of each column, in place and without its factor; (a power of two, num_columns)."""
    num_rows, num_columns = matrix.shape
    half = 1
    while half < num_rows:
        pairs = matrix.reshape(num_rows // (2 * half), 2, half * num_columns)
        upper, lower = pairs[:, 0], pairs[:, 1]
        difference = upper - lower
        upper += lower
        lower[...] = difference
        half *= 2
