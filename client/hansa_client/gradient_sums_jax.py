"""Sums of clipped gradients on JAX, beside gradient_sums_tensorflow.py's."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import NDArray

from hansa_client.clipped_gradients import Trace, tap_widths, traced_logits
from hansa_client.gradient_sums import exact_sum
from hansa_client.jax_program import configure_devices
from hansa_client.training_program import StepSettings
from hansa_common.features import Inputs
from hansa_common.vectors import Vector, unflatten


class JaxPieceProgram:
    """Implements gradient_sums.PieceProgram."""

    def __init__(self, settings: StepSettings) -> None:
        """Compile nothing yet."""
        configure_devices()
        self._settings = settings
        self._run = jax.jit(self._summed)

    def gradient_sum(
        self,
        weights: Vector,
        inputs: Inputs,
        labels: NDArray[np.float32],
        is_real: NDArray[np.float32],
        max_row_norm: float,
    ) -> NDArray[np.float64]:
        values = unflatten(weights, self._settings.spec.shapes)
        rows = (inputs.dense, inputs.ids, labels, is_real)
        # A GPU's short products are off by a thousandth; and without x64 there is no float64.
        with jax.enable_x64(True), jax.default_matmul_precision("highest"):
            found = self._run(values, rows, np.float32(max_row_norm))
            # To its end, because the caller fills the buffers anew, which JAX may read as they are.
            return np.asarray(jax.block_until_ready(found), np.float64)

    def _summed(self, values: list[Any], rows: tuple[Any, ...], max_row_norm: Any) -> Any:
        spec, settings = self._settings.spec, self._settings
        dense, ids, labels, is_real = rows

        def loss(taps: list[Any]) -> tuple[Any, Any]:
            logits, trace = traced_logits(spec, values, taps, (dense, ids))
            return settings.row_losses(logits, labels).sum(), (trace.ids, trace.dense_inputs, trace.normalized)

        taps = [jnp.zeros((dense.shape[0], width), jnp.float32) for width in tap_widths(spec)]
        returned, parts = jax.grad(loss, has_aux=True)(taps)
        summed = exact_sum(spec, Trace(*parts), returned, is_real, max_row_norm)
        return jnp.concatenate([part.ravel() for part in summed])
