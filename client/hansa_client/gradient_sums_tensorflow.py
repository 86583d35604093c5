"""Sums of clipped gradients on TensorFlow: one XLA program for a piece of rows."""

from __future__ import annotations

from typing import Any

import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from hansa_client.clipped_gradients import tap_widths, traced_logits
from hansa_client.gradient_sums import exact_sum
from hansa_client.tensorflow_devices import configure_devices
from hansa_client.training_program import StepSettings
from hansa_common.features import Inputs
from hansa_common.vectors import Vector, unflatten


class TensorFlowPieceProgram:
    """Implements gradient_sums.PieceProgram."""

    def __init__(self, settings: StepSettings) -> None:
        """Compile nothing yet."""
        configure_devices()
        # A GPU's short products are off by a thousandth, and a row would reach further than its noise is for.
        tf.config.experimental.enable_tensor_float_32_execution(False)
        self._settings = settings
        self._run = tf.function(self._summed, jit_compile=True, autograph=False, reduce_retracing=False)

    def gradient_sum(
        self,
        weights: Vector,
        inputs: Inputs,
        labels: NDArray[np.float32],
        is_real: NDArray[np.float32],
        max_row_norm: float,
    ) -> NDArray[np.float64]:
        values = [tf.constant(value) for value in unflatten(weights, self._settings.spec.shapes)]
        rows = [tf.constant(part) for part in (inputs.dense, inputs.ids, labels, is_real)]
        found: NDArray[np.float64] = self._run(values, rows, tf.constant(max_row_norm, tf.float32)).numpy()
        return found

    def _summed(self, values: list[Any], rows: list[Any], max_row_norm: Any) -> Any:
        spec = self._settings.spec
        dense, ids, labels, is_real = rows
        taps = [tf.zeros((dense.shape[0], width)) for width in tap_widths(spec)]
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch(taps)
            logits, trace = traced_logits(spec, values, taps, (dense, ids))
            loss = tf.reduce_sum(self._settings.row_losses(logits, labels))
        summed = exact_sum(spec, trace, tape.gradient(loss, taps), is_real, max_row_norm)
        return tf.concat([tf.reshape(part, [-1]) for part in summed], axis=0)
