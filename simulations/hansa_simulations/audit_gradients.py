"""Rows told from a merchant's update and from what everybody knows of the model.

read off   in the first hidden layer a kernel's gradient divided by its bias' gradient, unit by unit, is a mean of the
           rows' inputs, weighted by what came back to the unit: the very row where there is one, or where a unit was
           active for one row alone. Phong et al., "Privacy-Preserving Deep Learning via Additively Homomorphic
           Encryption" (2018); Boenisch et al., "When the Curious Abandon Honesty" (2023).
matched    dummy rows whose gradient points where the update does: Zhu, Liu and Han, "Deep Leakage from Gradients"
           (2019), with the cosine of Geiping et al., "Inverting Gradients" (2020), and for tables as in Vero et al.,
           "TabLeak: Tabular Data Leakage in Federated Learning" (2023): a category is a softmax over its values, a
           boolean a tanh. Of several starts, one of them what can be read off, the best match is kept. (TabLeak also
           takes the median over an ensemble; that is left out.)

The attacker is told how many rows there are and their labels. An update of several local steps is taken for one of
their mean gradient, an update of Adam for one of SGD; dropout is taken for none. Columns that only flag missing values
are taken for zero. TensorFlow only: the gradient of a gradient is needed.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from hansa_client.training_program import StepSettings
from hansa_common.model import LAYER_NORM_EPSILON, ModelSpec
from hansa_common.schema import BooleanFeature, CategoricalFeature, Feature
from hansa_common.vectors import Vector, unflatten

NUM_STARTS: Final = 3
NUM_STEPS: Final = 400
LEARNING_RATE: Final = 0.06
# A cosine of this much less than one is as good as one.
NEAR_ENOUGH: Final = 1e-4
_LEAST_GRADIENT: Final = 1e-12
# What a category that was read off starts from, so that a softmax of it is nearly it.
_SHARPNESS: Final = 6.0

Floats = NDArray[np.float32]


@dataclass(frozen=True)
class Block:
    """Which columns of a guess a feature is in: `kind` is one_hot (a softmax), boolean (a tanh), free or flag."""

    feature: str
    kind: str
    start: int
    width: int


def layout(features: tuple[Feature, ...]) -> tuple[tuple[Block, ...], int]:
    """The blocks of a row's guess, and how wide it is: dense inputs as the network takes them, then for each embedded
    feature a column for each of its ids.
    """
    blocks: list[Block] = []
    start = 0
    embedded = [f for f in features if isinstance(f, CategoricalFeature) and f.encoding == "embedding"]
    for feature in [f for f in features if f not in embedded]:
        kind = "free"
        if isinstance(feature, CategoricalFeature):
            kind = "one_hot"
        elif isinstance(feature, BooleanFeature):
            kind = "boolean"
        flag = 0 if kind == "one_hot" or feature.missing == "refuse" else 1
        blocks.append(Block(feature.name, kind, start, feature.dense_width - flag))
        if flag:
            blocks.append(Block(feature.name, "flag", start + feature.dense_width - 1, 1))
        start += feature.dense_width
    for feature in embedded:
        blocks.append(Block(feature.name, "one_hot", start, feature.num_ids))
        start += feature.num_ids
    return tuple(blocks), start


def read_off(spec: ModelSpec, update: Vector, num_rows: int) -> Floats:
    """(num_rows, num_dense) dense inputs as they stand in the first layer's gradient, from the units that most came
    back to; of fewer units the last one again. Embedded features are not among them.
    """
    arrays = unflatten(update, spec.shapes)[len(spec.embeddings) :]
    kernel, bias = arrays[0].astype(np.float64), arrays[1].astype(np.float64)
    units = np.argsort(-np.abs(bias), kind="stable")[:num_rows]
    units = units[np.minimum(np.arange(num_rows), len(units) - 1)]
    below = np.where(np.abs(bias[units]) < _LEAST_GRADIENT, np.inf, bias[units])
    return (kernel[: spec.num_dense, units] / below).T.astype(np.float32)


class GradientMatch:
    """Finds rows whose gradient, from given weights, points where an update does."""

    def __init__(self, settings: StepSettings, features: tuple[Feature, ...]) -> None:
        import tensorflow as tf

        self._settings = settings
        self._blocks, self._width = layout(features)
        self._step = tf.function(self._distance, autograph=False, reduce_retracing=False)

    def matched(self, weights: Vector, update: Vector, labels: NDArray[np.uint8], rng: np.random.Generator) -> Floats:
        """(rows, width) rows with these labels (rows,) from weights and update (num_params,)."""
        import tensorflow as tf

        arrays = [tf.constant(array) for array in unflatten(weights, self._settings.spec.shapes)]
        wanted = tf.constant(-update / max(float(np.linalg.norm(update)), _LEAST_GRADIENT))
        known = (arrays, wanted, tf.constant(labels, tf.float32))
        best, best_distance = np.zeros((len(labels), self._width), np.float32), np.inf
        for start in range(NUM_STARTS):
            guess = rng.normal(size=(len(labels), self._width)).astype(np.float32)
            if start == 0:
                guess[:, : self._settings.spec.num_dense] = self._unsquashed(update, len(labels))
            found, distance = self._descended(guess, known)
            if distance < best_distance:
                best, best_distance = self._rows(tf.constant(found)).numpy(), distance
            if best_distance <= NEAR_ENOUGH:
                break
        return best

    def _descended(self, guess: Floats, known: tuple[list[Any], Any, Any]) -> tuple[Floats, float]:
        """Adam (Kingma and Ba, 2015) from a guess; where the distance was least, and that distance."""
        import tensorflow as tf

        first, second = np.zeros_like(guess), np.zeros_like(guess)
        best, best_distance = guess, np.inf
        for number in range(1, NUM_STEPS + 1):
            distance, gradient = (part.numpy() for part in self._step(tf.constant(guess), *known))
            if distance < best_distance:
                best, best_distance = guess, float(distance)
            if best_distance <= NEAR_ENOUGH:
                break
            first, second = 0.9 * first + 0.1 * gradient, 0.999 * second + 0.001 * gradient**2
            moved = (first / (1 - 0.9**number)) / (np.sqrt(second / (1 - 0.999**number)) + 1e-8)
            guess = (guess - LEARNING_RATE * moved).astype(np.float32)
        return best, best_distance

    def _unsquashed(self, update: Vector, num_rows: int) -> Floats:
        """What can be read off, as the numbers that softmax and tanh are taken of."""
        rows = np.clip(np.nan_to_num(read_off(self._settings.spec, update, num_rows)), -10, 10)
        for block in self._blocks:
            columns = slice(block.start, block.start + block.width)
            if block.start < rows.shape[1] and block.kind == "one_hot":
                rows[:, columns] = _SHARPNESS * np.clip(rows[:, columns], 0, 1)
            if block.kind == "boolean":
                rows[:, columns] = np.arctanh(np.clip(rows[:, columns], -0.95, 0.95))
        return rows

    def _distance(self, guess: Any, arrays: list[Any], wanted: Any, labels: Any) -> tuple[Any, Any]:
        """One minus the cosine of the guess' gradient and the wanted one, and its own gradient by the guess."""
        import tensorflow as tf

        with tf.GradientTape() as outer:
            outer.watch(guess)
            with tf.GradientTape() as inner:
                inner.watch(arrays)
                loss = self._loss(arrays, self._rows(guess), labels)
            gradient = tf.concat([tf.reshape(part, [-1]) for part in inner.gradient(loss, arrays)], 0)
            distance = 1.0 - tf.tensordot(gradient, wanted, 1) / (tf.norm(gradient) + _LEAST_GRADIENT)
        return distance, outer.gradient(distance, guess)

    def _rows(self, guess: Any) -> Any:
        import tensorflow as tf

        parts = []
        for block in self._blocks:
            part = guess[:, block.start : block.start + block.width]
            match block.kind:
                case "one_hot":
                    part = tf.nn.softmax(part, axis=1)
                case "boolean":
                    part = tf.tanh(part)
                case "flag":
                    part = tf.zeros_like(part)
            parts.append(part)
        return tf.concat(parts, 1)

    def _loss(self, arrays: list[Any], rows: Any, labels: Any) -> Any:
        import tensorflow as tf

        spec, left = self._settings.spec, iter(arrays)
        parts, start = [rows[:, : spec.num_dense]], spec.num_dense
        for embedding in spec.embeddings:
            parts.append(tf.matmul(rows[:, start : start + embedding.num_ids], next(left)))
            start += embedding.num_ids
        x, penalty = tf.concat(parts, 1), 0.0
        for _ in spec.hidden:
            kernel = next(left)
            x = tf.matmul(x, kernel) + next(left)
            if spec.layer_norm:
                x = _normalized(x) * next(left) + next(left)
            x = _activated(spec, x)
            penalty += spec.l1 * tf.reduce_sum(tf.abs(kernel)) + spec.l2 * tf.reduce_sum(kernel**2)
        kernel = next(left)
        logits = (tf.matmul(x, kernel) + next(left))[:, 0]
        penalty += spec.l1 * tf.reduce_sum(tf.abs(kernel)) + spec.l2 * tf.reduce_sum(kernel**2)
        return tf.reduce_mean(self._settings.row_losses(logits, labels)) + penalty


def _activated(spec: ModelSpec, x: Any) -> Any:
    import keras

    return keras.activations.get(spec.activation)(x)


def _normalized(x: Any) -> Any:
    import tensorflow as tf

    mean, variance = tf.nn.moments(x, [1], keepdims=True)
    return (x - mean) * tf.math.rsqrt(variance + LAYER_NORM_EPSILON)
