"""Private steps on JAX, a run of steps a call, beside jax_program.py's of plain ones."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from hansa_client.clipped_gradients import (
    Trace,
    clipped_sum,
    clipping_factors,
    row_norms,
    tap_widths,
    traced_logits,
)
from hansa_client.jax_program import configure_devices
from hansa_client.private_program import BLOCK_ROWS, PrivateSettings, SampledSteps, penalty_gradients
from hansa_client.training_program import LocalStart, StepSettings
from hansa_common.model import build_model, ordered_variables
from hansa_common.vectors import Vector, num_params

# Weights in the agreement's order, the dropouts' seeds, the optimizer's variables.
_State = tuple[list[Any], list[Any], list[Any]]


class JaxPrivateProgram:
    """Implements private_program.PrivateProgram."""

    def __init__(self, settings: StepSettings) -> None:
        """Build model and optimizer; the first call compiles."""
        configure_devices()
        self._settings = settings
        model = build_model(settings.spec, settings.model.precision)
        self._dropouts = [layer for layer in model.layers if hasattr(layer, "seed_state")]
        self._optimizer = settings.optimizer()
        self._optimizer.build(ordered_variables(model, settings.spec))
        self._state: _State | None = None
        self._run = jax.jit(self._steps)

    def run(self, start: LocalStart, private: PrivateSettings, steps: SampledSteps) -> None:
        state = self._begun(start, private) if steps.is_first or self._state is None else self._state
        vectors = (start.weights, start.correction, start.mask)
        rows = (steps.inputs.dense, steps.inputs.ids, steps.labels, steps.is_real)
        chunk = (*rows, steps.block_ends, steps.noise)
        bounds = np.array([private.max_row_norm, private.expected_rows], np.float32)
        # A GPU's short products are off by a thousandth, and a row would reach further than its noise is for.
        with jax.default_matmul_precision("highest"):
            done = self._run(state, vectors, chunk, bounds, np.int32(steps.number))
        # To its end, because the caller fills the buffers anew, which JAX may read as they are.
        self._state = jax.block_until_ready(done)

    def weights(self) -> Vector:
        if self._state is None:
            raise ValueError("no step has been done")
        return np.concatenate([np.asarray(value, np.float32).ravel() for value in self._state[0]])

    def _begun(self, start: LocalStart, private: PrivateSettings) -> _State:
        seeds = [jnp.array(start.dropout_state(place)) for place in range(len(self._dropouts))]
        variables, its_rate = self._optimizer.variables, self._optimizer.learning_rate
        rate = jnp.float32(private.learning_rate)
        slots = [rate if v is its_rate else jnp.zeros_like(v.value) for v in variables]
        return self._cut(jnp.array(start.weights)), seeds, slots

    def _steps(
        self, state: _State, vectors: tuple[Any, ...], chunk: tuple[Any, ...], bounds: Any, number: Any
    ) -> _State:
        anchor, corrections, masks = (self._cut(vector) for vector in vectors)
        *rows, block_ends, noise = chunk
        max_row_norm, expected_rows = bounds[0], bounds[1]
        settings = self._settings

        def step(i: Any, now: _State) -> _State:
            weights, seeds, slots = now
            summed, new_seeds = self._summed(weights, seeds, rows, (block_ends[i], block_ends[i + 1]), max_row_norm)
            noised = zip(summed, self._cut(noise[i]), penalty_gradients(settings.spec, weights), strict=True)
            gradients = [(s + n) / expected_rows + p for s, n, p in noised]
            corrected = [g + c for g, c in zip(gradients, corrections, strict=True)]
            if settings.proximal_mu:
                away = [w - a for w, a in zip(weights, anchor, strict=True)]
                corrected = [g + settings.proximal_mu * d for g, d in zip(corrected, away, strict=True)]
            new_weights, new_slots = self._optimizer.stateless_apply(slots, corrected, weights)
            return [w * m for w, m in zip(new_weights, masks, strict=True)], new_seeds, new_slots

        done: _State = lax.fori_loop(0, number, step, state)
        return done

    def _summed(
        self, weights: list[Any], seeds: list[Any], rows: list[Any], blocks: tuple[Any, Any], max_row_norm: Any
    ) -> tuple[list[Any], list[Any]]:
        def block(i: Any, carried: tuple[list[Any], list[Any]]) -> tuple[list[Any], list[Any]]:
            summed, before = carried
            part = [lax.dynamic_slice_in_dim(values, i * BLOCK_ROWS, BLOCK_ROWS) for values in rows]
            found, after = self._clipped(weights, before, part, max_row_norm)
            return [s + f for s, f in zip(summed, found, strict=True)], after

        zeros = [jnp.zeros(shape, jnp.float32) for shape in self._settings.spec.shapes]
        done: tuple[list[Any], list[Any]] = lax.fori_loop(*blocks, block, (zeros, seeds))
        return done

    def _clipped(
        self, weights: list[Any], seeds: list[Any], rows: list[Any], max_row_norm: Any
    ) -> tuple[list[Any], list[Any]]:
        spec = self._settings.spec
        dense, ids, labels, is_real = rows

        def loss(taps: list[Any]) -> tuple[Any, tuple[Any, list[Any]]]:
            after: list[Any] = []
            logits, trace = traced_logits(spec, weights, taps, (dense, ids), self._seeded(seeds, after))
            parts = (trace.ids, trace.dense_inputs, trace.normalized)
            return self._settings.row_losses(logits, labels).sum(), (parts, after)

        taps = [jnp.zeros((BLOCK_ROWS, width), jnp.float32) for width in tap_widths(spec)]
        returned, (parts, after) = jax.grad(loss, has_aux=True)(taps)
        trace = Trace(*parts)
        factors = clipping_factors(row_norms(spec, trace, returned), max_row_norm, is_real)
        return clipped_sum(spec, trace, returned, factors), after

    def _seeded(self, seeds: list[Any], after: list[Any]) -> list[Any]:
        """The layers of dropout as functions, which leave their next seeds in `after`."""

        def dropped(layer: Any, seed: Any) -> Any:
            def apply(x: Any) -> Any:
                outputs, (new_seed,) = layer.stateless_call([], [seed], x, training=True)
                after.append(new_seed)
                return outputs

            return apply

        return [dropped(layer, seed) for layer, seed in zip(self._dropouts, seeds, strict=True)]

    def _cut(self, vector: Any) -> list[Any]:
        """A vector (num_params,) as an array for each of the specification's shapes."""
        shapes = self._settings.spec.shapes
        ends = np.cumsum([num_params((shape,)) for shape in shapes])[:-1]
        return [piece.reshape(shape) for piece, shape in zip(jnp.split(vector, ends), shapes, strict=True)]
