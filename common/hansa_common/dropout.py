"""Dropout whose masks are a function of a seed, the step and the place in the batch.

Keras' own draws from a generator that XLA compiles to slow code on a CPU: with it a step of a small network took fifty
times as long. This one hashes a counter with a few integer operations, which fuse with the step; TensorFlow and JAX
draw the same masks. It is for regularization alone: privacy noise and keys do not come from here.

The hash is Chris Wellons' `lowbias32`, "Prospecting for Hash Functions" (2018). Imports Keras: only model.py, while it
builds a network, may import this.
"""

from __future__ import annotations

from typing import Any, Final

import keras
from keras import ops

_MULTIPLIERS: Final = (0x7FEB352D, 0x846CA68B)
_GOLDEN: Final = 0x9E3779B9
_WORD: Final = 2.0**32


class SeededDropout(keras.layers.Layer):  # type: ignore[misc]  # Keras is followed as untyped
    """Sets a share `rate` of the inputs to zero in training and scales the rest, so that the mean stays."""

    def __init__(self, rate: float, **options: Any) -> None:
        super().__init__(**options)
        self._rate = rate
        self.seed_state = self.add_weight(shape=(2,), dtype="uint32", trainable=False, initializer="zeros", name="seed")

    def call(self, inputs: Any, training: bool | None = None) -> Any:
        """Inputs (rows, units); the state is (seed, number of the step), and each call in training is a step."""
        if not training:
            return inputs
        seed, step = self.seed_state[0], self.seed_state[1]
        self.seed_state.assign(ops.stack([seed, step + _word(1)]))
        rows, units = inputs.shape
        place = ops.reshape(ops.cast(ops.arange(rows * units), "uint32"), (rows, units))
        base = _mixed(ops.bitwise_xor(_mixed(seed), step))
        bits = _mixed(ops.add(ops.multiply(place, _word(_GOLDEN)), base))
        is_kept = ops.greater_equal(bits, _word(int(self._rate * _WORD)))
        return ops.where(is_kept, inputs / (1.0 - self._rate), ops.zeros_like(inputs))

    def compute_output_spec(self, inputs: Any, training: bool | None = None) -> Any:
        del training
        return keras.KerasTensor(inputs.shape, dtype=self.compute_dtype)


def _mixed(words: Any) -> Any:
    """A hash of each word."""
    words = ops.bitwise_xor(words, ops.right_shift(words, _word(16)))
    words = ops.multiply(words, _word(_MULTIPLIERS[0]))
    words = ops.bitwise_xor(words, ops.right_shift(words, _word(15)))
    words = ops.multiply(words, _word(_MULTIPLIERS[1]))
    return ops.bitwise_xor(words, ops.right_shift(words, _word(16)))


def _word(number: int) -> Any:
    return ops.convert_to_tensor(number, dtype="uint32")
