"""Row-weighted averages of merchants' vectors, as pure arithmetic in float64.

Guarantees: the bytes of a mean depend on the vectors, their weights and the order they were added in, and on
nothing else; one vector at a time is in memory. The caller adds in roster order and checks each vector first:
one NaN here would be everyone's.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray

from hansa_common.vectors import Vector

Doubles = NDArray[np.float64]

# In pieces that stay in cache: a float64 copy of a whole update would double the memory traffic.
_CHUNK: Final = 1 << 16


class WeightedSum:
    """A running sum of weight * vector over merchants, and of the weights."""

    def __init__(self, num_params: int) -> None:
        self.total_weight = 0.0
        self._sum: Doubles = np.zeros(num_params, np.float64)
        self._scaled: Doubles = np.empty(min(num_params, _CHUNK), np.float64)

    def add(self, vector: Vector | Doubles, weight: float) -> None:
        """Add weight * vector; vector: (num_params,).

        Raises:
            ValueError: the vector has another length, or the weight is not above zero.
        """
        if vector.shape != self._sum.shape:
            raise ValueError(f"a vector of shape {vector.shape} does not add to a sum of shape {self._sum.shape}")
        if not weight > 0:
            raise ValueError(f"the weight {weight} is not above zero")
        for start in range(0, vector.size, _CHUNK):
            piece = vector[start : start + _CHUNK]
            scaled = self._scaled[: piece.size]
            np.multiply(piece, weight, out=scaled, dtype=np.float64)
            self._sum[start : start + piece.size] += scaled
        self.total_weight += weight

    def divided_by(self, weight: float) -> Doubles:
        """The sum over a weight of the caller's choice, shape (num_params,) float64."""
        return self._sum / weight

    def mean(self) -> Doubles:
        """The weighted mean of what was added, shape (num_params,) float64.

        Raises:
            ValueError: nothing was added.
        """
        if self.total_weight == 0:
            raise ValueError("the mean of no vectors is not defined")
        return self.divided_by(self.total_weight)


def weighted_mean(updates: Sequence[Vector | Doubles], weights: Sequence[float]) -> Doubles:
    """The mean of updates (num_merchants, num_params) by weights (num_merchants,), shape (num_params,) float64.

    >>> weighted_mean(np.float32([[0.0, 1.0], [4.0, 1.0]]), [3, 1])
    array([1., 1.])

    Raises:
        ValueError: no updates, lengths that differ, or a weight that is not above zero.
    """
    if len(updates) == 0:
        raise ValueError("the mean of no vectors is not defined")
    total = WeightedSum(len(updates[0]))
    for update, weight in zip(updates, weights, strict=True):
        total.add(update, weight)
    return total.mean()
