"""Local steps on TensorFlow: an ordinary Keras model and optimizer in one XLA program, a whole run of steps a call.

Assigning the incoming weights, resetting the optimizer and reading the outcome happen inside the program, so that a
call costs little besides its steps. One thread computes: with more, XLA's sums, and so the bytes, depend on how many
cores there are.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from hansa_client.training_program import LocalStart, PaddedRows, Steps, StepSettings, seed_states
from hansa_common.features import Inputs
from hansa_common.model import build_model, model_inputs, ordered_variables
from hansa_common.vectors import Vector, num_params


class TensorFlowProgram:
    """Implements training_program.Program."""

    def __init__(self, settings: StepSettings) -> None:
        """Build model and optimizer; the first call compiles."""
        configure_devices()
        self._settings = settings
        self._model = build_model(settings.spec, settings.model.precision)
        self._variables = ordered_variables(self._model, settings.spec)
        self._optimizer = settings.optimizer()
        self._optimizer.build(self._variables)
        self._slots = [v for v in self._optimizer.variables if v is not self._optimizer.learning_rate]
        self._seeds = seed_states(self._model)
        self._weights: Vector = np.zeros(num_params(settings.spec.shapes), np.float32)
        self._run = tf.function(self._steps, jit_compile=True, autograph=False, reduce_retracing=False)
        self._score = tf.function(self._scores, jit_compile=True, autograph=False, reduce_retracing=False)

    def run(self, start: LocalStart, rows: PaddedRows, steps: Steps) -> float:
        numbers = np.array([rows.num_rows, steps.first, steps.number, steps.is_first], np.int32)
        weights, loss_sum = self._run(
            tf.constant(start.weights),
            tf.constant(start.correction),
            tf.constant(start.mask),
            [tf.constant(start.dropout_state(place)) for place in range(len(self._seeds))],
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
        anchor, corrections, masks = self._cut(start), self._cut(correction), self._cut(mask)
        self._begin(anchor, seeds, is_first)
        batch_size = self._settings.plan.batch_size

        def step(i: Any, loss_sum: Any) -> tuple[Any, Any]:
            begin = i * batch_size
            batch = [tf.slice(part, [begin, 0], [batch_size, part.shape[1]]) for part in (dense, ids)]
            batch_labels = tf.slice(labels, [begin], [batch_size])
            is_real = tf.cast(begin + tf.range(batch_size) < num_rows, tf.float32)
            loss, count = self._step(batch, batch_labels, is_real, anchor, corrections, masks)
            return i + 1, loss_sum + loss * count

        _, loss_sum = tf.while_loop(lambda i, _: i < first + number, step, (first, before))
        return tf.concat([tf.reshape(v.value, [-1]) for v in self._variables], axis=0), loss_sum

    def _step(
        self,
        batch: list[Any],
        labels: Any,
        is_real: Any,
        anchor: list[Any],
        corrections: list[Any],
        masks: list[Any],
    ) -> tuple[Any, Any]:
        settings, count = self._settings, tf.reduce_sum(is_real)
        with tf.GradientTape() as tape:
            logits = self._model(model_inputs(settings.spec, *batch), training=True)[:, 0]
            loss = tf.reduce_sum(settings.row_losses(logits, labels) * is_real) / count
            if self._model.losses:
                loss += tf.add_n(self._model.losses)
            scaled = loss * settings.loss_scale
        variables = [v.value for v in self._variables]
        gradients = [tf.convert_to_tensor(g) / settings.loss_scale for g in tape.gradient(scaled, variables)]
        corrected = [g + c for g, c in zip(gradients, corrections, strict=True)]
        if settings.proximal_mu:
            away = [v - a for v, a in zip(variables, anchor, strict=True)]
            corrected = [g + settings.proximal_mu * d for g, d in zip(corrected, away, strict=True)]
        self._optimizer.apply(corrected, self._variables)
        for variable, mask in zip(self._variables, masks, strict=True):
            variable.assign(variable.value * mask)
        return loss, count

    def _scores(self, weights: Any, dense: Any, ids: Any) -> Any:
        for variable, value in zip(self._variables, self._cut(weights), strict=True):
            variable.assign(value)
        return self._model(model_inputs(self._settings.spec, dense, ids), training=False)[:, 0]

    def _begin(self, weights: list[Any], seeds: list[Any], is_first: Any) -> None:
        for variable, value in zip(self._variables, weights, strict=True):
            variable.assign(tf.where(is_first, value, variable.value))
        for slot in self._slots:
            slot.assign(tf.where(is_first, tf.zeros_like(slot.value), slot.value))
        for state, seed in zip(self._seeds, seeds, strict=True):
            state.assign(tf.where(is_first, seed, state.value))

    def _cut(self, vector: Any) -> list[Any]:
        shapes = self._settings.spec.shapes
        pieces = tf.split(vector, [num_params((shape,)) for shape in shapes])
        return [tf.reshape(piece, shape) for piece, shape in zip(pieces, shapes, strict=True)]


@cache
def configure_devices() -> None:
    """Settle, before the first operation, how many threads compute and how a GPU's memory is taken."""
    tf.config.threading.set_intra_op_parallelism_threads(1)
    tf.config.threading.set_inter_op_parallelism_threads(1)
    for gpu in tf.config.list_physical_devices("GPU"):
        tf.config.experimental.set_memory_growth(gpu, enable=True)


def device_name() -> str:
    """The device that TensorFlow computes on, in words."""
    configure_devices()
    gpus = tf.config.list_physical_devices("GPU")
    if not gpus:
        return "CPU"
    return str(tf.config.experimental.get_device_details(gpus[0]).get("device_name", gpus[0].name))
