"""A model's weights as a list of arrays and as one flat float32 vector, and norms over them.

Pure functions on arrays: which array stands where is model.py's knowledge, carried here as `shapes`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Vector = NDArray[np.float32]
Shapes = tuple[tuple[int, ...], ...]


def num_params(shapes: Shapes) -> int:
    """How many numbers a model of these shapes has.

    >>> num_params(((3, 2), (2,)))
    8
    """
    return sum(math.prod(shape) for shape in shapes)


def flatten(arrays: Sequence[NDArray[np.float32]]) -> Vector:
    """Concatenate arrays, each in C order, into one float32 vector of shape (num_params,).

    >>> flatten([np.ones((1, 2)), np.zeros(1)])
    array([1., 1., 0.], dtype=float32)
    """
    if not arrays:
        return np.zeros(0, np.float32)
    return np.concatenate([np.asarray(array, np.float32).ravel() for array in arrays])


def unflatten(vector: Vector, shapes: Shapes) -> list[NDArray[np.float32]]:
    """Cut a vector of shape (num_params,) back into arrays; the arrays are views of the vector.

    Raises:
        ValueError: the vector's length is not what the shapes need.
    """
    if vector.shape != (num_params(shapes),):
        raise ValueError(f"a vector of shape {vector.shape} does not fill {num_params(shapes)} parameters")
    arrays, start = [], 0
    for shape in shapes:
        stop = start + math.prod(shape)
        arrays.append(vector[start:stop].reshape(shape))
        start = stop
    return arrays


def l2_norm(vector: Vector | NDArray[np.float64]) -> float:
    """Euclidean norm, summed in float64.

    >>> l2_norm(np.array([3.0, 4.0], np.float32))
    5.0
    """
    # Not np.dot: BLAS wakes its threads for it, which costs more than the sum and divides it by their number.
    return float(np.sqrt(np.sum(np.square(vector, dtype=np.float64))))
