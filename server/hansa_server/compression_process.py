"""The child process that compression.py starts: `python -m hansa_server.compression_process FOLDER`.

Reads specification, weights and ranges from the folder; writes both TFLite files and what it found in them, or one
line of why not. The only place that touches tf_keras and tfmot, which are imported where they are used: this module
itself can be imported anywhere.

How it is done, and what would go wrong otherwise:
- tfmot knows Keras 2 only, so the network is built a second time in tf_keras and given the weights.
- A hidden layer with relu is one step with it: apart, tfmot would not quantize the kernel, and its zeros would be lost.
- Dense layers are annotated one by one: what quantizes whole models breaks on integer inputs.
- Ranges are set, not learned: a range that tfmot was left to fill in would be 0 to 0, or -6 to 6.
- Every range is widened to hold 0: one that does not would be moved until it does.
- The last hidden layer becomes int8 in the converted file: tfmot and the converter know int8 outputs or none of it.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from hansa_common.activations import INPUT, Range, Ranges, forward, is_one_step
from hansa_common.errors import CompressionError
from hansa_common.features import Inputs
from hansa_common.metrics import scores_of
from hansa_common.model import LAYER_NORM_EPSILON, ModelSpec
from hansa_common.randomness import generator
from hansa_common.vectors import Vector, num_params, unflatten
from hansa_server.compression import (
    FAILURE,
    FINDINGS,
    FLOAT_FILE,
    INT8_FILE,
    MAX_FLOAT_DIFFERENCE,
    REQUEST,
    WEIGHTS,
    CompressionReport,
    KernelCount,
    gzip_size,
)
from hansa_server.tflite_files import StoredArray, TfliteFile, run_file, with_int8_kernel

NUM_ROWS: Final = 10_000
# Made-up rows lie around 0 as scaled inputs do, and reach the ends of their range about once in 16,000 values.
_DEVIATIONS_IN_RANGE: Final = 8.0
_NUM_STEPS: Final = 255
_ROUNDING: Final = 0.51


def main(folder: Path) -> int:
    """Do what the folder asks; the exit status."""
    try:
        _compress(folder)
    except CompressionError as error:
        (folder / FAILURE).write_text(str(error), encoding="utf-8")
        return 1
    return 0


def _compress(folder: Path) -> None:
    request = json.loads((folder / REQUEST).read_text(encoding="utf-8"))
    spec = ModelSpec.model_validate(request["spec"])
    ranges = {name: _with_zero(low, high) for name, (low, high) in request["ranges"].items()}
    weights = np.load(folder / WEIGHTS, allow_pickle=False)
    float_file = _converted(_with_weights(_network(spec, None), spec, weights), is_quantized=False)
    int8_file = _int8_file(spec, weights, ranges, float_file)
    (folder / FLOAT_FILE).write_bytes(float_file)
    (folder / INT8_FILE).write_bytes(int8_file)
    report = inspect(spec, weights, ranges, float_file, int8_file)
    # Last: where it is, the files are whole.
    (folder / FINDINGS).write_text(json.dumps(report.to_json()), encoding="utf-8")


def _int8_file(spec: ModelSpec, weights: Vector, ranges: Ranges, float_file: bytes) -> bytes:
    if not spec.hidden:
        return float_file
    last = len(spec.hidden) - 1
    converted = _converted(_quantized(spec, weights, ranges), is_quantized=True) if last else float_file
    return with_int8_kernel(converted, last)


# --- the network in tf_keras ------------------------------------------------------------------------------------------


def _network(spec: ModelSpec, ranges: Ranges | None) -> Any:
    """The network in tf_keras; with ranges, each hidden layer but the last annotated for tfmot, and each activation
    before that cut to its own.

    Layers are called as in `spec.named_shapes`.
    """
    import tensorflow as tf
    import tf_keras

    layers = tf_keras.layers
    inputs, parts = [], []
    if spec.num_dense:
        inputs.append(layers.Input((spec.num_dense,), name="dense"))
        parts.append(inputs[-1])
    if spec.embeddings:
        ids = layers.Input((len(spec.embeddings),), dtype="int32", name="ids")
        inputs.append(ids)
        # All columns in one step: a slice each would cost a single row more time than the lookups.
        for i, (embedding, column) in enumerate(zip(spec.embeddings, tf.unstack(ids, axis=1), strict=True)):
            parts.append(layers.Embedding(embedding.num_ids, embedding.dim, name=f"embedding_{i}")(column))
    x = layers.Concatenate(name="inputs")(parts) if len(parts) > 1 else parts[0]
    if spec.hidden:
        x = _cut(x, INPUT, ranges)
    last = len(spec.hidden) - 1
    for i, num_units in enumerate(spec.hidden):
        x = _hidden(x, i, num_units, spec, ranges if i < last else None)
    return tf_keras.Model(inputs, layers.Dense(1, name="output")(x))


def _hidden(x: Any, place: int, num_units: int, spec: ModelSpec, ranges: Ranges | None) -> Any:
    import tensorflow_model_optimization as tfmot
    import tf_keras

    layers, name = tf_keras.layers, f"hidden_{place}"
    dense = layers.Dense(num_units, spec.activation if is_one_step(spec) else None, name=name)
    x = (dense if ranges is None else tfmot.quantization.keras.quantize_annotate_layer(dense))(x)
    if is_one_step(spec):
        return x
    if spec.layer_norm:
        x = _layer_norm()(name=f"norm_{place}")(x)
    return _cut(layers.Activation(spec.activation, name=f"activation_{place}")(x), name, ranges)


def _cut(x: Any, name: str, ranges: Ranges | None) -> Any:
    """The tensor as int8 with this range can express it."""
    import tensorflow_model_optimization as tfmot

    if ranges is None:
        return x
    low, high = ranges[name]
    quantizer = tfmot.quantization.keras.quantizers.FixedQuantizer(
        num_bits=8, init_min=low, init_max=high, narrow_range=False
    )
    return _quantize_layer()(quantizer, name=f"range_{name}")(x)


def _quantize_layer() -> Any:
    # tfmot takes such layers where they were added by hand, but does not export the class.
    from tensorflow_model_optimization.python.core.quantization.keras.quantize_layer import QuantizeLayer

    return QuantizeLayer


def _layer_norm() -> Any:
    """tf_keras' own layer becomes a batch norm between reshapes in TFLite; this one eight plain steps."""
    import tensorflow as tf
    import tf_keras

    class LayerNorm(tf_keras.layers.Layer):  # type: ignore[misc]  # tf_keras ships no types
        def build(self, shape: Any) -> None:
            self.gain = self.add_weight("gain", (shape[-1],))
            self.offset = self.add_weight("offset", (shape[-1],))

        def call(self, x: Any) -> Any:
            centred = x - tf.reduce_mean(x, axis=-1, keepdims=True)
            variance = tf.reduce_mean(tf.square(centred), axis=-1, keepdims=True)
            return centred * tf.math.rsqrt(variance + LAYER_NORM_EPSILON) * self.gain + self.offset

    return LayerNorm


def _with_weights(network: Any, spec: ModelSpec, weights: Vector) -> Any:
    """The network itself, its weights set."""
    by_layer: dict[str, list[NDArray[np.float32]]] = {}
    for name, array in zip(spec.named_shapes, unflatten(weights, spec.shapes), strict=True):
        by_layer.setdefault(name.partition(".")[0], []).append(array)
    for layer in network.layers:
        # An annotated layer has another name than the one in it.
        name = getattr(layer, "layer", layer).name
        if name in by_layer:
            layer.set_weights(by_layer.pop(name))
    if by_layer:
        raise CompressionError(f"the network in tf_keras has no layers {list(by_layer)}")
    return network


def _quantized(spec: ModelSpec, weights: Vector, ranges: Ranges) -> Any:
    """The network with tfmot's quantization in it, and every range set."""
    import tensorflow_model_optimization as tfmot

    annotated = _with_weights(_network(spec, ranges), spec, weights)
    known = {layer.__name__: layer for layer in (_quantize_layer(), _layer_norm())}
    with tfmot.quantization.keras.quantize_scope(known):
        network = tfmot.quantization.keras.quantize_apply(annotated)
    given = dict(zip(spec.named_shapes, unflatten(weights, spec.shapes), strict=True))
    before_last = range(len(spec.hidden) - 1)
    ends = {f"hidden_{i}.kernel": _kernel_range(given[f"hidden_{i}.kernel"]) for i in before_last}
    ends |= {f"hidden_{i}.post_activation": ranges[_given_by(spec, i)] for i in before_last}
    for layer in network.layers:
        for variable in layer.weights:
            what, _, end = variable.name.rpartition("/")[2].partition(":")[0].rpartition("_")
            if end in {"min", "max"}:
                variable.assign(_end(ends, f"{layer.name.removeprefix('quant_')}.{what}", end))
    return network


def _given_by(spec: ModelSpec, place: int) -> str:
    """The activation that a hidden layer itself ends in."""
    return f"hidden_{place}" if is_one_step(spec) else f"linear_{place}"


def _kernel_range(kernel: NDArray[np.float32]) -> Range:
    # A kernel that was pruned altogether still needs a step.
    reach = float(np.abs(kernel).max()) or 1.0
    return -reach, reach


def _end(ends: dict[str, Range], name: str, end: str) -> float:
    if name not in ends:
        raise CompressionError(f"tfmot keeps a range {name!r} that nothing is known of; another version of it may help")
    return ends[name][end == "max"]


def _converted(network: Any, *, is_quantized: bool) -> bytes:
    """The network as a TFLite file with inputs `dense` and `ids` of any number of rows, and output `logit`."""
    import tensorflow as tf

    shapes = [tf.TensorSpec([None, *x.shape[1:]], x.dtype, name=x.name) for x in network.inputs]
    call = tf.function(lambda *inputs: {"logit": network(list(inputs), training=False)}, input_signature=shapes)
    converter = tf.lite.TFLiteConverter.from_concrete_functions([call.get_concrete_function()], network)
    if is_quantized:
        converter.optimizations = [tf.lite.Optimize.DEFAULT]
    return bytes(converter.convert())


# --- the finished files -----------------------------------------------------------------------------------------------


def inspect(spec: ModelSpec, weights: Vector, ranges: Ranges, float_file: bytes, int8_file: bytes) -> CompressionReport:
    """Open both files again and say what they hold.

    Raises:
        CompressionError: the float file computes something else than the network; a zero was lost; or a range is not
            the one asked for.
    """
    in_float, in_int8 = TfliteFile(float_file, spec), TfliteFile(int8_file, spec)
    kernels = _kernel_counts(spec, weights, in_float, in_int8)
    found = in_int8.ranges() if len(spec.hidden) > 1 else {}
    _check_ranges(ranges, found)
    inputs = made_up_inputs(spec, ranges[INPUT])
    expected = scores_of(forward(spec, weights, inputs)[0])
    differences = [
        float(np.abs(scores_of(run_file(content, spec, inputs)) - expected).max())
        for content in (float_file, int8_file)
    ]
    # Not `>`, so that NaN is refused too.
    if not differences[0] <= MAX_FLOAT_DIFFERENCE:
        raise CompressionError(
            f"the float file's scores differ from the network's by {differences[0]:.2g}, allowed {MAX_FLOAT_DIFFERENCE}"
        )
    return CompressionReport(
        kernels=kernels,
        ranges=found,
        num_rows=NUM_ROWS,
        float_score_difference=differences[0],
        int8_score_difference=differences[1],
        bytes=len(int8_file),
        gzip_bytes=gzip_size(int8_file),
        float_file_bytes=len(float_file),
        float32_bytes=4 * num_params(spec.shapes),
        sparsity=sum(c.float_zeros for c in kernels.values()) / sum(c.num_weights for c in kernels.values()),
    )


def made_up_inputs(spec: ModelSpec, bounds: Range) -> Inputs:
    """NUM_ROWS rows, always the same: dense inputs around 0 and within the bounds, every id equally likely."""
    random, (low, high) = generator(0, "made-up rows"), bounds
    drawn = random.normal(0.0, (high - low) / _DEVIATIONS_IN_RANGE, (NUM_ROWS, spec.num_dense))
    ids = np.zeros((NUM_ROWS, len(spec.embeddings)), np.int32)
    for i, embedding in enumerate(spec.embeddings):
        ids[:, i] = random.integers(0, embedding.num_ids, NUM_ROWS)
    return Inputs(np.clip(drawn, low, high).astype(np.float32), ids)


def _kernel_counts(
    spec: ModelSpec, weights: Vector, in_float: TfliteFile, in_int8: TfliteFile
) -> dict[str, KernelCount]:
    given = dict(zip(spec.named_shapes, unflatten(weights, spec.shapes), strict=True))
    floats, int8s, counts = in_float.arrays(), in_int8.arrays(), {}
    for name in floats:
        if not np.array_equal(floats[name].values, given[name]):
            raise CompressionError(f"{name} is not the same in the float file as in the network")
        _check_steps(name, given[name], int8s[name])
        if name.endswith(".kernel"):
            zeros = [int(np.sum(array.values == 0.0)) for array in (floats[name], int8s[name])]
            counts[name] = KernelCount(given[name].size, *zeros)
    return counts


def _check_steps(name: str, given: NDArray[np.float32], found: StoredArray) -> None:
    lost = int(np.count_nonzero(found.values[given == 0.0]))
    if lost:
        raise CompressionError(f"{lost} zeros of {name} are no zeros in the int8 file: the pruning would be lost")
    away = float(np.abs(found.values - given).max())
    # Half a step is rounding, and a little more is float32's.
    if not away <= _ROUNDING * found.step:
        raise CompressionError(
            f"{name} is up to {away:.3g} away in the int8 file, of steps of {found.step:.3g}: its numbers do not fit; "
            "its activations' range may be far too narrow"
        )


def _check_ranges(asked: Ranges, found: Ranges) -> None:
    for name, (low, high) in found.items():
        step = (high - low) / _NUM_STEPS
        is_as_asked = abs(low - asked[name][0]) <= step and abs(high - asked[name][1]) <= step
        if not (low < high and is_as_asked):
            raise CompressionError(f"activation {name!r} got the range {low} to {high}, asked was {asked[name]}")


def _with_zero(low: float, high: float) -> Range:
    return min(low, 0.0), max(high, 0.0)


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
