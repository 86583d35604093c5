"""A finished TFLite file opened again: what stands in it, what it computes, and a kernel of it changed to int8.

Hidden layer i is the i-th fully connected step and the output the last one, whatever the converter called them.
Only for files that this coordinator made itself, in the process that made them: the interpreter is native code.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from ai_edge_litert import schema_py_generated as schema
from ai_edge_litert.interpreter import Interpreter
from flatbuffers import Builder
from numpy.typing import NDArray

from hansa_common.activations import INPUT, Range, is_one_step
from hansa_common.errors import CompressionError
from hansa_common.features import Inputs
from hansa_common.model import ModelSpec

LOGIT: Final = "logit"
_FILE_KIND: Final = b"TFL3"
# From which version on a fully connected step takes floats beside an int8 kernel.
_MIXED_VERSION: Final = 3
# As the format asks for it (schema.fbs, Buffer.data); the generated code would not align a vector of bytes at all.
_ALIGNMENT: Final = 16
_LOWEST: Final = -128
_HIGHEST: Final = 127
_DTYPES: Final = {
    schema.TensorType.FLOAT32: "<f4",
    schema.TensorType.INT8: "<i1",
    schema.TensorType.INT32: "<i4",
}


@dataclass(frozen=True)
class StoredArray:
    """The numbers that a file's integers stand for, and how far two neighbouring ones are apart (0: they are floats).

    A kernel is (inputs, units), as it was trained.
    """

    values: NDArray[np.float64]
    step: float


class TfliteFile:
    """The tensors of one network's file, read without running it."""

    def __init__(self, content: bytes, spec: ModelSpec) -> None:
        self._model = schema.ModelT.InitFromObj(schema.Model.GetRootAs(content, 0))
        self._graph = self._model.subgraphs[0]
        self._spec = spec
        self._layers = _fully_connected(self._model)
        if len(self._layers) != len(spec.hidden) + 1:
            raise CompressionError(
                f"the finished file has {len(self._layers)} fully connected steps, the network {len(spec.hidden) + 1}"
            )

    def arrays(self) -> dict[str, StoredArray]:
        """Kernel and bias of each hidden layer and of the output, called and shaped as in `spec.named_shapes`."""
        names = [*(f"hidden_{i}" for i in range(len(self._spec.hidden))), "output"]
        found = {}
        for name, layer in zip(names, self._layers, strict=True):
            kernel = found[f"{name}.kernel"] = self._array(layer.inputs[1])
            # A bias of nothing but zeros is left out.
            zeros = StoredArray(np.zeros(kernel.values.shape[1]), 0.0)
            found[f"{name}.bias"] = self._array(layer.inputs[2]) if layer.inputs[2] >= 0 else zeros
        return found

    def ranges(self) -> dict[str, Range]:
        """The range of each named activation, as its int8 steps can express it.

        Raises:
            CompressionError: an activation that should be int8 is not; says which.
        """
        return {name: self._range(name, place) for name, place in self._activations()}

    def _activations(self) -> Iterator[tuple[str, int]]:
        """Each named activation and the place of its tensor: what a hidden layer takes, and what it gives."""
        for i, layer in enumerate(self._layers[:-1]):
            yield (f"hidden_{i - 1}" if i else INPUT), self._before_dequantize(layer.inputs[0])
            if i < len(self._spec.hidden) - 1 and not is_one_step(self._spec):
                yield f"linear_{i}", int(layer.outputs[0])

    def _before_dequantize(self, place: int) -> int:
        for step in self._graph.operators:
            if place in step.outputs and _is(self._model, step, "DEQUANTIZE"):
                return int(step.inputs[0])
        return int(place)

    def _range(self, name: str, place: int) -> Range:
        tensor = self._graph.tensors[place]
        if tensor.type != schema.TensorType.INT8:
            raise CompressionError(f"activation {name!r} did not become int8 in the finished file")
        scale, zero = float(tensor.quantization.scale[0]), int(tensor.quantization.zeroPoint[0])
        return (_LOWEST - zero) * scale, (_HIGHEST - zero) * scale

    def _array(self, place: int) -> StoredArray:
        tensor = self._graph.tensors[place]
        content = np.asarray(self._model.buffers[tensor.buffer].data, np.uint8).tobytes()
        values = np.frombuffer(content, _DTYPES[tensor.type]).reshape(tuple(tensor.shape)).T.astype(np.float64)
        if tensor.type == schema.TensorType.FLOAT32:
            return StoredArray(values, 0.0)
        # Symmetric, so that zero is zero: there is no zero point to take off.
        step = float(tensor.quantization.scale[0])
        return StoredArray(values * step, step)


def with_int8_kernel(content: bytes, place: int) -> bytes:
    """The file with the float kernel of one fully connected step, the place-th of them, in symmetric int8 steps.

    What the step takes and gives stays float: when it runs, each row is put into int8 steps of its own.
    """
    model = schema.ModelT.InitFromObj(schema.Model.GetRootAs(content, 0))
    layer = _fully_connected(model)[place]
    tensor = model.subgraphs[0].tensors[layer.inputs[1]]
    kernel = np.asarray(model.buffers[tensor.buffer].data, np.uint8).view("<f4")
    step = np.float32((np.abs(kernel).max() or 1.0) / _HIGHEST)
    tensor.type = schema.TensorType.INT8
    tensor.quantization = schema.QuantizationParametersT(scale=np.array([step]), zeroPoint=np.array([0]))
    # Equal contents may share a buffer, so this one is left to the others.
    model.buffers.append(schema.BufferT(data=np.round(kernel / step).astype(np.int8).view(np.uint8)))
    shared, tensor.buffer = tensor.buffer, len(model.buffers) - 1
    if all(other.buffer != shared for other in model.subgraphs[0].tensors):
        model.buffers[shared].data = None
    code = model.operatorCodes[layer.opcodeIndex]
    code.version = max(code.version, _MIXED_VERSION)
    builder = _AlignedBuilder(len(content))
    builder.Finish(model.Pack(builder), _FILE_KIND)
    return bytes(builder.Output())


class _AlignedBuilder(Builder):  # type: ignore[misc]  # flatbuffers ships no types
    def StartVector(self, elemSize: int, numElems: int, alignment: int) -> int:  # noqa: N802, N803 - its own names
        return int(super().StartVector(elemSize, numElems, _ALIGNMENT if elemSize == 1 else alignment))


def _fully_connected(model: Any) -> list[Any]:
    return [step for step in model.subgraphs[0].operators if _is(model, step, "FULLY_CONNECTED")]


def _is(model: Any, step: Any, kind: str) -> bool:
    code = model.operatorCodes[step.opcodeIndex]
    # Small codes stand in the older of the two fields, and large ones in the newer.
    found: int = max(code.builtinCode, code.deprecatedBuiltinCode)
    return found == int(vars(schema.BuiltinOperator)[kind])


def run_file(content: bytes, spec: ModelSpec, inputs: Inputs) -> NDArray[np.float32]:
    """(rows,) logits of one file."""
    parts: dict[str, NDArray[Any]] = {"dense": inputs.dense} if spec.num_dense else {}
    if spec.embeddings:
        parts["ids"] = inputs.ids
    runner = Interpreter(model_content=content, num_threads=1).get_signature_runner()
    return np.array(runner(**parts)[LOGIT][:, 0])
