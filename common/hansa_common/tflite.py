"""A TFLite file as a function from model inputs to logits, in this process, without TensorFlow.

- A file is one of ours where it takes dense (rows, num_dense) float32 and ids (rows, num_embedded) int32, those of the
  two that it has, any number of rows, and gives (rows, 1) float32. Everything else is refused.
- A row's logit does not depend on the rows beside it: rows go through in blocks of one size, the last one filled up.
- Threads may share a network for `logits`, where their calls wait for each other; `row` and `row_logit` are for one at
  a time. One call computes on one thread.
- The one row is written and its logit read where the interpreter itself keeps them: copying them in and out through
  its own calls takes as long as a small network.

The file's bytes are read by native code. Who does not trust them gives them to a process that has nothing to lose
(the merchant's candidate.py).
"""

from __future__ import annotations

import threading
from math import isfinite
from typing import Any, Final

import numpy as np
from ai_edge_litert.interpreter import Interpreter
from numpy.typing import NDArray

from hansa_common.errors import BundleError
from hansa_common.features import Inputs

# Small enough that a block's activations stay in the cache, large enough that calls cost nothing.
BLOCK_ROWS: Final = 512
_ANY: Final = -1


class TfliteNetwork:
    """The network of one TFLite file."""

    def __init__(self, content: bytes, num_dense: int, num_embedded: int, name: str = "the TFLite file") -> None:
        """Read the file; `name` is what messages call it.

        Raises:
            BundleError: it is no TFLite file, or one for other inputs.
        """
        self._content, self._name = content, name
        self._lock = threading.Lock()
        one_row = self._interpreter()
        self._dense, self._ids = _input_indices(one_row, num_dense, num_embedded, name)
        self._output = _output_index(one_row, name)
        self._one_row = self._allocated(one_row, 1)
        self._row = Inputs(_tensor(one_row, self._dense, np.float32), _tensor(one_row, self._ids, np.int32))
        self._row_output = _tensor(one_row, self._output, np.float32).reshape(-1).data
        # Not `one_row.invoke`: it refuses while anybody looks into the interpreter's memory, which could be resized.
        # Nothing resizes this one: its sizes are set, and no network of ours has any that depend on values.
        self._invoke = one_row._interpreter.Invoke  # noqa: SLF001
        self._block: Interpreter | None = None

    @property
    def row(self) -> Inputs:
        """Where the row that `row_logit` scores is written: dense (1, num_dense), ids (1, num_embedded)."""
        return self._row

    def row_logit(self) -> float:
        """The logit of what stands in `row`; for one thread at a time.

        Raises:
            BundleError: it is not finite.
        """
        self._invoke()
        logit: float = self._row_output[0]
        if not isfinite(logit):
            raise BundleError(f"{self._name} gives a logit that is not finite")
        return logit

    def logits(self, inputs: Inputs) -> NDArray[np.float32]:
        """The logits of many rows, (rows,) float32.

        Raises:
            BundleError: one is not finite.
        """
        found = np.zeros(len(inputs), np.float32)
        with self._lock:
            for start in range(0, len(inputs), BLOCK_ROWS):
                stop = min(start + BLOCK_ROWS, len(inputs))
                found[start:stop] = self._block_logits(inputs.dense[start:stop], inputs.ids[start:stop])
        if not np.isfinite(found).all():
            raise BundleError(f"{self._name} gives logits that are not finite")
        return found

    def _block_logits(self, dense: NDArray[np.float32], ids: NDArray[np.int32]) -> NDArray[np.float32]:
        if self._block is None:
            self._block = self._allocated(self._interpreter(), BLOCK_ROWS)
        if self._dense is not None:
            self._block.set_tensor(self._dense, _filled_up(dense))
        if self._ids is not None:
            self._block.set_tensor(self._ids, _filled_up(ids))
        self._block.invoke()
        found: NDArray[np.float32] = self._block.get_tensor(self._output)[: len(dense), 0]
        return found

    def _interpreter(self) -> Interpreter:
        try:
            return Interpreter(model_content=self._content, num_threads=1)
        except (ValueError, RuntimeError) as error:
            raise BundleError(f"{self._name} is not a TFLite file: {error}") from error

    def _allocated(self, interpreter: Interpreter, num_rows: int) -> Interpreter:
        try:
            zeros = {
                part["index"]: np.zeros((num_rows, part["shape_signature"][1]), part["dtype"])
                for part in interpreter.get_input_details()
            }
            for index, rows in zeros.items():
                interpreter.resize_tensor_input(index, rows.shape)
            interpreter.allocate_tensors()
            for index, rows in zeros.items():
                interpreter.set_tensor(index, rows)
            # Only a network that was run shows the shape of what it gives.
            interpreter.invoke()
            found = interpreter.get_tensor(self._output)
        except (ValueError, RuntimeError) as error:
            raise BundleError(f"{self._name} cannot be run: {error}") from error
        if found.shape != (num_rows, 1):
            raise BundleError(f"{self._name} gives {found.shape} for {num_rows} rows, not one logit a row")
        return interpreter


def _input_indices(
    interpreter: Interpreter, num_dense: int, num_embedded: int, name: str
) -> tuple[int | None, int | None]:
    """Which tensors take dense and ids; None for the one that the network does not have."""
    # By kind: a model may have as many dense inputs as embedded ones.
    wanted = {kind: (_ANY, width) for width, kind in ((num_dense, np.float32), (num_embedded, np.int32)) if width}
    found: dict[Any, int] = {}
    shapes = []
    for part in interpreter.get_input_details():
        shape = tuple(int(size) for size in part["shape_signature"])
        shapes.append(f"{np.dtype(part['dtype'])} {shape}")
        found[part["dtype"]] = part["index"]
    asked = [f"{np.dtype(kind)} {shape}" for kind, shape in wanted.items()]
    if sorted(shapes) != sorted(asked):
        raise BundleError(f"{name} takes {', '.join(shapes) or 'nothing'}; the model takes {', '.join(asked)}")
    return found.get(np.float32), found.get(np.int32)


def _output_index(interpreter: Interpreter, name: str) -> int:
    outputs = interpreter.get_output_details()
    if len(outputs) != 1 or outputs[0]["dtype"] != np.float32:
        kinds = ", ".join(str(np.dtype(part["dtype"])) for part in outputs)
        raise BundleError(f"{name} gives {kinds or 'nothing'}; a model gives one float32 logit a row")
    return int(outputs[0]["index"])


def _tensor(interpreter: Interpreter, index: int | None, kind: type[Any]) -> NDArray[Any]:
    """A tensor of one row where the interpreter keeps it; an empty row where the network has none."""
    if index is None:
        return np.zeros((1, 0), kind)
    found: NDArray[Any] = interpreter.tensor(index)()
    return found


def _filled_up(rows: NDArray[Any]) -> NDArray[Any]:
    if len(rows) == BLOCK_ROWS:
        return np.ascontiguousarray(rows)
    block = np.zeros((BLOCK_ROWS, rows.shape[1]), rows.dtype)
    block[: len(rows)] = rows
    return block
