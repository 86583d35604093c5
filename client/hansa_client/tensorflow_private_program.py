"""Private steps on TensorFlow: one XLA program, a run of steps a call, beside tensorflow_program.py's of plain ones."""

from __future__ import annotations

from typing import Any

import tensorflow as tf

from hansa_client.clipped_gradients import clipped_sum, clipping_factors, row_norms, tap_widths, traced_logits
from hansa_client.private_program import BLOCK_ROWS, PrivateSettings, SampledSteps, penalty_gradients
from hansa_client.tensorflow_state import TensorFlowState
from hansa_client.training_program import LocalStart, StepSettings
from hansa_common.vectors import Vector


class TensorFlowPrivateProgram:
    """Implements private_program.PrivateProgram."""

    def __init__(self, settings: StepSettings) -> None:
        """Build model and optimizer; the first call compiles."""
        # A GPU's short products are off by a thousandth, and a row would reach further than its noise is for.
        tf.config.experimental.enable_tensor_float_32_execution(False)
        self._settings = settings
        self._state = TensorFlowState(settings)
        self._run = tf.function(self._steps, jit_compile=True, autograph=False, reduce_retracing=False)
        self._weights: Vector | None = None

    def run(self, start: LocalStart, private: PrivateSettings, steps: SampledSteps) -> None:
        inputs = steps.inputs
        weights = self._run(
            [tf.constant(vector) for vector in (start.weights, start.correction, start.mask)],
            [tf.constant(start.dropout_state(place)) for place in range(len(self._state.seeds))],
            [tf.constant(part) for part in (inputs.dense, inputs.ids, steps.labels, steps.is_real)],
            [tf.constant(steps.block_ends), tf.constant(steps.noise)],
            tf.constant([private.max_row_norm, private.expected_rows, private.learning_rate], tf.float32),
            tf.constant([steps.number, steps.is_first], tf.int32),
        )
        self._weights = weights.numpy()

    def weights(self) -> Vector:
        if self._weights is None:
            raise ValueError("no step has been done")
        return self._weights

    def _steps(
        self, vectors: list[Any], seeds: list[Any], rows: list[Any], steps: list[Any], private: Any, numbers: Any
    ) -> Any:
        state = self._state
        anchor, corrections, masks = (state.cut(vector) for vector in vectors)
        state.begin(anchor, seeds, numbers[1] > 0)
        state.set_learning_rate(private[2])
        block_ends, noise = steps
        max_row_norm, expected_rows = private[0], private[1]

        def step(i: Any) -> tuple[Any]:
            summed = self._summed(rows, block_ends[i], block_ends[i + 1], max_row_norm)
            values = [v.value for v in state.variables]
            noised = zip(summed, state.cut(noise[i]), penalty_gradients(self._settings.spec, values), strict=True)
            state.apply([(s + n) / expected_rows + p for s, n, p in noised], anchor, corrections, masks)
            return (i + 1,)

        tf.while_loop(lambda i: i < numbers[0], step, (tf.constant(0),))
        return state.flat()

    def _summed(self, rows: list[Any], first: Any, end: Any, max_row_norm: Any) -> list[Any]:
        def block(i: Any, *summed: Any) -> tuple[Any, ...]:
            begin = i * BLOCK_ROWS
            dense, ids = (tf.slice(part, [begin, 0], [BLOCK_ROWS, part.shape[1]]) for part in rows[:2])
            labels, is_real = (tf.slice(part, [begin], [BLOCK_ROWS]) for part in rows[2:])
            found = self._clipped(dense, ids, labels, is_real, max_row_norm)
            return (i + 1, *(s + f for s, f in zip(summed, found, strict=True)))

        zeros = [tf.zeros(shape) for shape in self._settings.spec.shapes]
        _, *summed = tf.while_loop(lambda i, *_: i < end, block, (first, *zeros))
        return list(summed)

    def _clipped(self, dense: Any, ids: Any, labels: Any, is_real: Any, max_row_norm: Any) -> list[Any]:
        spec, values = self._settings.spec, [v.value for v in self._state.variables]
        taps = [tf.zeros((BLOCK_ROWS, width)) for width in tap_widths(spec)]
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch(taps)
            logits, trace = traced_logits(spec, values, taps, (dense, ids), self._state.dropouts)
            loss = tf.reduce_sum(self._settings.row_losses(logits, labels))
        returned = tape.gradient(loss, taps)
        factors = clipping_factors(row_norms(spec, trace, returned), max_row_norm, is_real)
        return clipped_sum(spec, trace, returned, factors)
