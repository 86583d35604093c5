"""The sum of clipped gradients itself, where noise is added to it only later: under shared noise, in steps of a grid.

- A row moves the sum by its clipped gradient and, but for parts of 1e-9, by nothing else. Clipping is
  clipped_gradients.py's, in float32, and what it leaves of each row is added up in float64. Each row has its place,
  whether it is chosen or not: elsewhere among the others float32 might round it otherwise, and a unit turn on or off.
- Weights have no part in the sum but through the gradients: taken off weights that were chosen large, a step would
  vanish, or count for much more than it is.

gradient_sums_tensorflow.py and gradient_sums_jax.py compile one piece of rows; which are chosen, shared_rounds.py says.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final, Protocol

import numpy as np
from numpy.typing import NDArray

from hansa_client.clipped_gradients import Trace, clipped_sum, clipping_factors, row_norms
from hansa_client.training_loop import backend
from hansa_client.training_program import StepSettings
from hansa_common.agreement_sections import Model, Plan
from hansa_common.errors import DeadlineError
from hansa_common.features import Inputs
from hansa_common.model import ModelSpec
from hansa_common.vectors import Vector, num_params

PIECE_ROWS: Final = 1024


class PieceProgram(Protocol):
    """Compiled for PIECE_ROWS rows."""

    def gradient_sum(
        self,
        weights: Vector,
        inputs: Inputs,
        labels: NDArray[np.float32],
        is_real: NDArray[np.float32],
        max_row_norm: float,
    ) -> NDArray[np.float64]:
        """(num_params,) sum of the clipped gradients of the rows for which `is_real` is 1."""
        ...


class GradientSums:
    """Adds up the clipped gradients of one model."""

    def __init__(self, spec: ModelSpec, model: Model) -> None:
        """Build the program; it compiles at its first use.

        Raises:
            UsageError: Keras' backend is neither TensorFlow nor JAX.
        """
        self._program = _new_program(StepSettings(spec, model, Plan()))
        self._num_params = num_params(spec.shapes)
        self._dense = np.zeros((PIECE_ROWS, spec.num_dense), np.float32)
        self._ids = np.zeros((PIECE_ROWS, len(spec.embeddings)), np.int32)
        self._labels, self._is_real = np.zeros((2, PIECE_ROWS), np.float32)

    def chosen(
        self,
        weights: Vector,
        inputs: Inputs,
        labels: NDArray[np.uint8],
        is_chosen: NDArray[np.bool_],
        max_row_norm: float,
        should_stop: Callable[[], bool],
    ) -> NDArray[np.float64]:
        """(num_params,) sum of the gradients of the rows for which `is_chosen` (rows,) says so, at these weights, each
        clipped to max_row_norm.

        Raises:
            DeadlineError: should_stop said so between two pieces.
        """
        total = np.zeros(self._num_params, np.float64)
        for start in range(0, len(is_chosen), PIECE_ROWS):
            if should_stop():
                raise DeadlineError("gradients were stopped between two pieces: their deadline, or a shutdown")
            rows = slice(start, start + PIECE_ROWS)
            self._fill((inputs.dense[rows], inputs.ids[rows], labels[rows], is_chosen[rows]))
            piece = Inputs(self._dense, self._ids), self._labels, self._is_real
            total += self._program.gradient_sum(weights, *piece, max_row_norm)
        return total

    def _fill(self, parts: tuple[NDArray[Any], ...]) -> None:
        for buffer, part in zip((self._dense, self._ids, self._labels, self._is_real), parts, strict=True):
            buffer[: len(part)], buffer[len(part) :] = part, 0


def exact_sum(spec: ModelSpec, trace: Trace, returned: list[Any], is_real: Any, max_row_norm: Any) -> list[Any]:
    """The clipped sum in float64, of what a forward and a backward pass left in float32; for each of `spec.shapes`."""
    from keras import ops

    def exact(values: Any) -> Any:
        return ops.cast(values, "float64")

    factors = clipping_factors(row_norms(spec, trace, returned), max_row_norm, is_real)
    in_full = Trace(trace.ids, tuple(map(exact, trace.dense_inputs)), tuple(map(exact, trace.normalized)))
    return clipped_sum(spec, in_full, [exact(delta) for delta in returned], exact(factors))


def _new_program(settings: StepSettings) -> PieceProgram:
    if backend() == "jax":
        from hansa_client.gradient_sums_jax import JaxPieceProgram

        return JaxPieceProgram(settings)
    from hansa_client.gradient_sums_tensorflow import TensorFlowPieceProgram

    return TensorFlowPieceProgram(settings)
