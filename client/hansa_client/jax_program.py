"""Local steps on JAX (`KERAS_BACKEND=jax`): the same Keras model and optimizer, stateless, in one compiled loop.

One thread computes, as on TensorFlow, so that the bytes do not depend on how many cores there are: that must be in the
environment before JAX starts its backend, which importing this module does not do.
"""

from __future__ import annotations

import os
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from numpy.typing import NDArray

from hansa_client.training_program import LocalStart, PaddedRows, Steps, StepSettings, seed_states
from hansa_common.features import Inputs
from hansa_common.model import build_model, model_inputs, ordered_variables
from hansa_common.vectors import Vector, num_params

# Weights in the model's own order, the other variables, the optimizer's.
_State = tuple[list[Any], list[Any], list[Any]]


class JaxProgram:
    """Implements training_program.Program."""

    def __init__(self, settings: StepSettings) -> None:
        """Build model and optimizer; the first call compiles."""
        configure_devices()
        self._settings = settings
        self._model = build_model(settings.spec, settings.model.precision)
        trainable = self._model.trainable_variables
        places = {id(variable): i for i, variable in enumerate(trainable)}
        # The agreement's order -> the model's own.
        self._order = [places[id(variable)] for variable in ordered_variables(self._model, settings.spec)]
        self._optimizer = settings.optimizer()
        self._optimizer.build(trainable)
        others = {id(variable): i for i, variable in enumerate(self._model.non_trainable_variables)}
        self._seed_places = [others[id(state)] for state in seed_states(self._model)]
        self._state: _State | None = None
        self._run = jax.jit(self._steps)
        self._score = jax.jit(self._scores)

    def run(self, start: LocalStart, rows: PaddedRows, steps: Steps) -> float:
        state = self._begun(start) if steps.is_first or self._state is None else self._state
        numbers = np.array([rows.num_rows, steps.first, steps.number], np.int32)
        inputs = (jnp.array(rows.inputs.dense), jnp.array(rows.inputs.ids), jnp.array(rows.labels))
        before = np.float32(steps.loss_sum)
        vectors = (start.weights, start.correction, start.mask)
        self._state, loss_sum = self._run(state, vectors, inputs, numbers, before)
        return float(loss_sum)

    def weights(self) -> Vector:
        if self._state is None:
            raise ValueError("no step has been done")
        return np.concatenate([np.asarray(self._state[0][place], np.float32).ravel() for place in self._order])

    def logits(self, weights: Vector, inputs: Inputs) -> NDArray[np.float32]:
        return np.asarray(self._score(weights, inputs.dense, inputs.ids), np.float32)

    def _begun(self, start: LocalStart) -> _State:
        others = [variable.value for variable in self._model.non_trainable_variables]
        for i, place in enumerate(self._seed_places):
            others[place] = jnp.array(start.dropout_state(i))
        rate = self._optimizer.learning_rate
        slots = [v.value if v is rate else jnp.zeros_like(v.value) for v in self._optimizer.variables]
        return self._cut(jnp.array(start.weights)), others, slots

    def _steps(
        self, state: _State, vectors: tuple[Any, Any, Any], inputs: tuple[Any, Any, Any], numbers: Any, before: Any
    ) -> tuple[_State, Any]:
        num_rows, first, number = numbers[0], numbers[1], numbers[2]
        anchor, corrections, masks = (self._cut(vector) for vector in vectors)
        batch_size = self._settings.plan.batch_size

        def step(i: Any, carried: tuple[_State, Any]) -> tuple[_State, Any]:
            now, loss_sum = carried
            begin = i * batch_size
            dense, ids, labels = (lax.dynamic_slice_in_dim(part, begin, batch_size) for part in inputs)
            is_real = (begin + jnp.arange(batch_size) < num_rows).astype(jnp.float32)
            batch = model_inputs(self._settings.spec, dense, ids)
            after, loss = self._step(now, batch, labels, is_real, anchor, corrections, masks)
            return after, loss_sum + loss * is_real.sum()

        done: tuple[_State, Any] = lax.fori_loop(first, first + number, step, (state, before))
        return done

    def _step(
        self,
        state: _State,
        batch: list[Any],
        labels: Any,
        is_real: Any,
        anchor: list[Any],
        corrections: list[Any],
        masks: list[Any],
    ) -> tuple[_State, Any]:
        weights, others, slots = state
        settings = self._settings

        def scaled_loss(weights: list[Any]) -> tuple[Any, tuple[Any, list[Any]]]:
            logits, new_others, penalties = self._model.stateless_call(
                weights, others, batch, training=True, return_losses=True
            )
            loss = (settings.row_losses(logits[:, 0], labels) * is_real).sum() / is_real.sum() + sum(penalties)
            return loss * settings.loss_scale, (loss, new_others)

        gradients, (loss, new_others) = jax.grad(scaled_loss, has_aux=True)(weights)
        corrected = [g / settings.loss_scale + c for g, c in zip(gradients, corrections, strict=True)]
        if settings.proximal_mu:
            away = [w - a for w, a in zip(weights, anchor, strict=True)]
            corrected = [g + settings.proximal_mu * d for g, d in zip(corrected, away, strict=True)]
        new_weights, new_slots = self._optimizer.stateless_apply(slots, corrected, weights)
        held = [w * m for w, m in zip(new_weights, masks, strict=True)]
        return (held, new_others, new_slots), loss

    def _scores(self, weights: Any, dense: Any, ids: Any) -> Any:
        others = [variable.value for variable in self._model.non_trainable_variables]
        inputs = model_inputs(self._settings.spec, dense, ids)
        logits, _ = self._model.stateless_call(self._cut(weights), others, inputs, training=False)
        return logits[:, 0]

    def _cut(self, vector: Any) -> list[Any]:
        """A vector of the agreement's order as arrays in the model's own."""
        shapes = self._settings.spec.shapes
        ends = np.cumsum([num_params((shape,)) for shape in shapes])[:-1]
        arrays: list[Any] = [None] * len(shapes)
        for place, piece, shape in zip(self._order, jnp.split(vector, ends), shapes, strict=True):
            arrays[place] = piece.reshape(shape)
        return arrays


def configure_devices() -> None:
    """Settle, before JAX's first operation, how many threads compute and how a GPU's memory is taken."""
    # The size of XLA's pool of threads on a CPU; its flag --xla_cpu_multi_thread_eigen is not heeded.
    os.environ["PJRT_NPROC"] = "1"
    # As it is needed, since other trainers may share the GPU; JAX alone would take three quarters at once.
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")


def device_name() -> str:
    """The device that JAX computes on, in words."""
    configure_devices()
    device = jax.devices()[0]
    return "CPU" if device.platform == "cpu" else str(device.device_kind)
