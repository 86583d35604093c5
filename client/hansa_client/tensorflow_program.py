"""Local steps on TensorFlow: an ordinary Keras model and optimizer in one XLA program, a whole run of steps a call."""

from __future__ import annotations

from typing import Any

import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from hansa_client.tensorflow_state import TensorFlowState
from hansa_client.training_program import LocalStart, PaddedRows, Steps, StepSettings
from hansa_common.features import Inputs
from hansa_common.model import model_inputs
from hansa_common.vectors import Vector, num_params


class TensorFlowProgram:
    """Implements training_program.Program."""

    def __init__(self, settings: StepSettings) -> None:
        """Build model and optimizer; the first call compiles."""
        self._settings = settings
        self._state = TensorFlowState(settings)
        self._weights: Vector = np.zeros(num_params(settings.spec.shapes), np.float32)
        self._run = tf.function(self._steps, jit_compile=True, autograph=False, reduce_retracing=False)
        self._score = tf.function(self._scores, jit_compile=True, autograph=False, reduce_retracing=False)

    def run(self, start: LocalStart, rows: PaddedRows, steps: Steps) -> float:
        numbers = np.array([rows.num_rows, steps.first, steps.number, steps.is_first], np.int32)
        weights, loss_sum = self._run(
            tf.constant(start.weights),
            tf.constant(start.correction),
            tf.constant(start.mask),
            [tf.constant(start.dropout_state(place)) for place in range(len(self._state.seeds))],
            [tf.constant(part) for part in (rows.inputs.dense, rows.inputs.ids, rows.labels)],
            tf.constant(numbers),
            tf.constant(steps.loss_sum, tf.float32),
        )
        self._weights = weights.numpy()
        return float(loss_sum)

    def weights(self) -> Vector:
        return self._weights

    def logits(self, weights: Vector, inputs: Inputs) -> NDArray[np.float32]:
        scored = self._score(tf.constant(weights), tf.constant(inputs.dense), tf.constant(inputs.ids))
        return np.asarray(scored.numpy(), np.float32)

    def _steps(
        self, start: Any, correction: Any, mask: Any, seeds: list[Any], rows: list[Any], numbers: Any, before: Any
    ) -> tuple[Any, Any]:
        num_rows, first, number, is_first = numbers[0], numbers[1], numbers[2], numbers[3] > 0
        dense, ids, labels = rows
        anchor, corrections, masks = (self._state.cut(vector) for vector in (start, correction, mask))
        self._state.begin(anchor, seeds, is_first)
        batch_size = self._settings.plan.batch_size

        def step(i: Any, loss_sum: Any) -> tuple[Any, Any]:
            begin = i * batch_size
            batch = [tf.slice(part, [begin, 0], [batch_size, part.shape[1]]) for part in (dense, ids)]
            batch_labels = tf.slice(labels, [begin], [batch_size])
            is_real = tf.cast(begin + tf.range(batch_size) < num_rows, tf.float32)
            gradients, loss = self._gradients(batch, batch_labels, is_real)
            self._state.apply(gradients, anchor, corrections, masks)
            return i + 1, loss_sum + loss * tf.reduce_sum(is_real)

        _, loss_sum = tf.while_loop(lambda i, _: i < first + number, step, (first, before))
        return self._state.flat(), loss_sum

    def _gradients(self, batch: list[Any], labels: Any, is_real: Any) -> tuple[list[Any], Any]:
        settings, model = self._settings, self._state.model
        with tf.GradientTape() as tape:
            logits = model(model_inputs(settings.spec, *batch), training=True)[:, 0]
            loss = tf.reduce_sum(settings.row_losses(logits, labels) * is_real) / tf.reduce_sum(is_real)
            if model.losses:
                loss += tf.add_n(model.losses)
            scaled = loss * settings.loss_scale
        gradients = tape.gradient(scaled, [v.value for v in self._state.variables])
        return [tf.convert_to_tensor(g) / settings.loss_scale for g in gradients], loss

    def _scores(self, weights: Any, dense: Any, ids: Any) -> Any:
        self._state.assign(self._state.cut(weights))
        return self._state.model(model_inputs(self._settings.spec, dense, ids), training=False)[:, 0]
