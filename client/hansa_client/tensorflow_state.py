"""A Keras model and optimizer as what a compiled TensorFlow program changes: weights in, steps, weights out.

Assigning the incoming weights, resetting the optimizer and reading the outcome are operations of the program itself,
so that a call costs little besides its steps.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import tensorflow as tf

from hansa_client.tensorflow_devices import configure_devices
from hansa_client.training_program import StepSettings, seed_states
from hansa_common.model import build_model, ordered_variables
from hansa_common.vectors import num_params


class TensorFlowState:
    """Model, optimizer and their variables, in the order of the specification's shapes."""

    def __init__(self, settings: StepSettings) -> None:
        """Build model and optimizer."""
        configure_devices()
        self._settings = settings
        self.model = build_model(settings.spec, settings.model.precision)
        self.variables = ordered_variables(self.model, settings.spec)
        self.seeds = seed_states(self.model)
        self._optimizer = settings.optimizer()
        self._optimizer.build(self.variables)
        self._slots = [v for v in self._optimizer.variables if v is not self._optimizer.learning_rate]

    @property
    def dropouts(self) -> list[Any]:
        """The hidden layers' dropout, a function of (rows, units) each; empty where the network has none."""
        layers = [layer for layer in self.model.layers if hasattr(layer, "seed_state")]
        return [partial(layer, training=True) for layer in layers]

    def begin(self, weights: list[Any], seeds: list[Any], is_first: Any) -> None:
        """Where `is_first`, take the weights and the seeds of dropout, and forget what the optimizer remembers."""
        self.assign([tf.where(is_first, w, v.value) for w, v in zip(weights, self.variables, strict=True)])
        for slot in self._slots:
            slot.assign(tf.where(is_first, tf.zeros_like(slot.value), slot.value))
        for state, seed in zip(self.seeds, seeds, strict=True):
            state.assign(tf.where(is_first, seed, state.value))

    def set_learning_rate(self, rate: Any) -> None:
        """Take another learning rate than the plan's, a tensor ()."""
        self._optimizer.learning_rate.assign(rate)

    def apply(self, gradients: list[Any], anchor: list[Any], corrections: list[Any], masks: list[Any]) -> None:
        """One step of the optimizer from gradients, corrected and pulled to the anchor, and then the masks."""
        corrected = [g + c for g, c in zip(gradients, corrections, strict=True)]
        if self._settings.proximal_mu:
            away = [v.value - a for v, a in zip(self.variables, anchor, strict=True)]
            corrected = [g + self._settings.proximal_mu * d for g, d in zip(corrected, away, strict=True)]
        self._optimizer.apply(corrected, self.variables)
        for variable, mask in zip(self.variables, masks, strict=True):
            variable.assign(variable.value * mask)

    def assign(self, weights: list[Any]) -> None:
        """Take weights, an array for each variable."""
        for variable, value in zip(self.variables, weights, strict=True):
            variable.assign(value)

    def flat(self) -> Any:
        """The weights as one tensor (num_params,)."""
        return tf.concat([tf.reshape(v.value, [-1]) for v in self.variables], axis=0)

    def cut(self, vector: Any) -> list[Any]:
        """A tensor (num_params,) as one for each variable."""
        shapes = self._settings.spec.shapes
        pieces = tf.split(vector, [num_params((shape,)) for shape in shapes])
        return [tf.reshape(piece, shape) for piece, shape in zip(pieces, shapes, strict=True)]
