"""The sum of each row's gradient, clipped to an L2 norm, without ever holding the gradient of one row.

A row's gradient for a dense layer is the outer product of what went into the layer and what came back to its output,
so its norm is the product of theirs, and the clipped sum over rows is one matrix product with scaled rows. What came
back is read by `taps`: zeros that are added to every layer's output, whose gradient it is.

    kernel       |a|^2 |d|^2        a^T (s * d)
    bias         |d|^2              sum of s * d
    table        |d|^2              rows of s * d added up by id
    gain, offset |d * x|^2, |d|^2   sums of s * d * x, of s * d

with a the layer's input, d what came back, x the normalized input of a norm, s the row's factor min(1, max_norm/norm).

Sources: Goodfellow, "Efficient Per-Example Gradient Computations" (2015); Bu et al., "Differentially Private
Optimization on Large Model at Small Cost" (2023), whose book-keeping this is; Abadi et al., "Deep Learning with
Differential Privacy" (2016), for what it is used for. Written in Keras' operations, for each of its backends: the
caller differentiates by the taps.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from hansa_common.model import LAYER_NORM_EPSILON, ModelSpec

# Below this a gradient is as good as none; its factor would not be finite.
_LEAST_NORM: Final = 1e-12
# What comes back and is smaller is taken for nothing, in norm and sum alike: its square may be flushed to zero in
# float32, while its product with what went in is large where weights were chosen so.
_LEAST_RETURNED: Final = 1e-18


@dataclass(frozen=True)
class Trace:
    """What a forward pass leaves for its rows, by layer: inputs of dense layers (rows, units), the last of them the
    output's; normalized inputs of norms (rows, units); and the ids (rows, tables).
    """

    ids: Any
    dense_inputs: tuple[Any, ...]
    normalized: tuple[Any, ...]


def tap_widths(spec: ModelSpec) -> tuple[int, ...]:
    """How wide each tap is: tables, then each hidden layer and its norm, then the output."""
    hidden = [width for width in spec.hidden for _ in range(2 if spec.layer_norm else 1)]
    return (*(embedding.dim for embedding in spec.embeddings), *hidden, 1)


def traced_logits(
    spec: ModelSpec,
    weights: Sequence[Any],
    taps: Sequence[Any],
    inputs: tuple[Any, Any],
    dropout: Sequence[Any] = (),
) -> tuple[Any, Trace]:
    """Logits (rows,) of dense inputs (rows, num_dense) and ids (rows, tables), and the trace of how they came about.

    `weights` in the order of `spec.shapes`; `taps` (rows, width) each; `dropout` has a function for each hidden layer,
    or none. With taps of zero these are the logits of `build_model`'s network.
    """
    import keras
    from keras import ops

    dense, ids = inputs
    left, tapped = iter(weights), iter(taps)
    places = range(len(spec.embeddings))
    embedded = [ops.take(next(left), ids[:, place], axis=0) + next(tapped) for place in places]
    parts = [dense, *embedded] if spec.num_dense else embedded
    x = ops.concatenate(parts, axis=1) if len(parts) > 1 else parts[0]
    activation = keras.activations.get(spec.activation)
    dense_inputs, normalized = [], []
    for place in range(len(spec.hidden)):
        dense_inputs.append(x)
        x = ops.matmul(x, next(left)) + next(left) + next(tapped)
        if spec.layer_norm:
            normalized.append(_normalized(x))
            x = normalized[-1] * next(left) + next(left) + next(tapped)
        x = activation(x)
        x = dropout[place](x) if dropout else x
    dense_inputs.append(x)
    logits = ops.matmul(x, next(left)) + next(left) + next(tapped)
    return logits[:, 0], Trace(ids, tuple(dense_inputs), tuple(normalized))


def row_norms(spec: ModelSpec, trace: Trace, returned: Sequence[Any]) -> Any:
    """(rows,) L2 norms of each row's gradient over all weights; `returned` are the gradients by the taps."""
    from keras import ops

    tables, layers = _by_layer(spec, returned)
    total = sum(_squares(delta) for delta in tables)
    for place, (delta, of_norm) in enumerate(layers):
        total += (_squares(trace.dense_inputs[place]) + 1.0) * _squares(delta)
        if of_norm is not None:
            total += _squares(of_norm * trace.normalized[place]) + _squares(of_norm)
    return ops.sqrt(total)


def clipped_sum(spec: ModelSpec, trace: Trace, returned: Sequence[Any], factors: Any) -> list[Any]:
    """The sum over rows of factors (rows,) times each row's gradient, an array for each of `spec.shapes`.

    What has the factor zero counts for nothing, whatever it holds: one row that overflows, as weights can be chosen to
    bring about, must not show.
    """
    from keras import ops

    scale = factors[:, None]

    def counted(values: Any) -> Any:
        # Not by the factor alone: zero times infinity is no number.
        return ops.where(scale > 0.0, values, 0.0)

    trace = Trace(trace.ids, tuple(map(counted, trace.dense_inputs)), tuple(map(counted, trace.normalized)))
    tables, layers = _by_layer(spec, [counted(delta) for delta in returned])
    gradients = [
        ops.segment_sum(scale * delta, trace.ids[:, place], num_segments=spec.embeddings[place].num_ids)
        for place, delta in enumerate(tables)
    ]
    for place, (delta, of_norm) in enumerate(layers):
        scaled = scale * delta
        gradients += [ops.matmul(ops.transpose(trace.dense_inputs[place]), scaled), ops.sum(scaled, axis=0)]
        if of_norm is not None:
            gradients += [ops.sum(scale * of_norm * trace.normalized[place], axis=0), ops.sum(scale * of_norm, axis=0)]
    return gradients


def clipping_factors(norms: Any, max_norm: float, is_real: Any) -> Any:
    """(rows,) factors that bring each norm to at most max_norm; zero for rows that only fill up a block, and for those
    whose gradient is not finite, which no factor brings there.
    """
    from keras import ops

    return ops.where(ops.isfinite(norms), is_real * ops.minimum(1.0, max_norm / ops.maximum(norms, _LEAST_NORM)), 0.0)


def _by_layer(spec: ModelSpec, returned: Sequence[Any]) -> tuple[list[Any], list[tuple[Any, Any]]]:
    """The tables' part, and for each dense layer its own part and its norm's, None where it has none."""
    from keras import ops

    left = iter([ops.where(ops.abs(delta) < _LEAST_RETURNED, 0.0, delta) for delta in returned])
    tables = [next(left) for _ in spec.embeddings]
    layers = [(next(left), next(left) if spec.layer_norm else None) for _ in spec.hidden]
    return tables, [*layers, (next(left), None)]


def _squares(rows: Any) -> Any:
    from keras import ops

    return ops.sum(ops.square(rows), axis=1)


def _normalized(x: Any) -> Any:
    from keras import ops

    centered = x - ops.mean(x, axis=1, keepdims=True)
    return centered * ops.rsqrt(ops.mean(ops.square(centered), axis=1, keepdims=True) + LAYER_NORM_EPSILON)
