"""One private step, in words that every Keras backend shares, and what a compiled program of such steps must offer.

A step's rows are those that its coins chose, in blocks of BLOCK_ROWS, the last of them filled up. Each row's gradient
is clipped (clipped_gradients.py), the sum over the blocks gets the step's noise, and the whole is divided by the number
of rows that are expected, not by that which came:

    g = (sum of clipped gradients + noise) / expected rows + penalties' gradient
        + correction + proximal_mu * (w - incoming w)

What is added after the noise depends on no row. The optimizer's step and the masks follow as in training_program.py.

Which rows, how much noise and when to stop is private_training.py's; tensorflow_private_program.py and
jax_private_program.py compile.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final, Protocol

import numpy as np
from numpy.typing import NDArray

from hansa_client.training_program import LocalStart
from hansa_common.features import Inputs
from hansa_common.model import ModelSpec
from hansa_common.vectors import Vector

BLOCK_ROWS: Final = 128


@dataclass(frozen=True)
class SampledSteps:
    """Some steps with their rows and noise, in arrays with room for more.

    inputs, is_real (blocks * BLOCK_ROWS,): the rows of all steps, block after block, and 1 where a row is one.
    block_ends: (steps + 1,) int32: step s has the blocks from block_ends[s] to block_ends[s + 1].
    noise: (steps, num_params) float32, as it is added to the sums.
    number: how many steps are to be done; with `is_first`, weights and optimizer begin anew before them.
    """

    inputs: Inputs
    labels: NDArray[np.float32]
    is_real: NDArray[np.float32]
    block_ends: NDArray[np.int32]
    noise: NDArray[np.float32]
    number: int
    is_first: bool


@dataclass(frozen=True)
class PrivateSettings:
    """What a private step does to a row's gradient, how many rows are expected in a step, and how long a step is."""

    max_row_norm: float
    expected_rows: float
    learning_rate: float


class PrivateProgram(Protocol):
    """Compiled private steps of one model and plan; keeps weights and optimizer from one call to the next."""

    def run(self, start: LocalStart, private: PrivateSettings, steps: SampledSteps) -> None:
        """Do some steps."""
        ...

    def weights(self) -> Vector:
        """The weights after the last step, (num_params,) float32."""
        ...


def penalty_gradients(spec: ModelSpec, weights: list[Any]) -> list[Any]:
    """The gradients of the kernels' L1 and L2 penalties, an array for each of `spec.shapes`."""
    from keras import ops

    return [
        spec.l1 * ops.sign(value) + 2.0 * spec.l2 * value if name.endswith(".kernel") else ops.zeros_like(value)
        for name, value in zip(spec.named_shapes, weights, strict=True)
    ]
