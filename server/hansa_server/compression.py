"""The finished model as TFLite files: one float, one with an int8 body, and what was found in them when they were
opened again.

- The same specification, weights and ranges give the same bytes.
- No row is needed: only the ranges that the merchants' merged histograms tell (hansa_common.activations).
- A weight that is exactly zero is exactly zero in both files.
- The last layer stays float and gives a logit; the sigmoid is whoever scores' own. An int8 sigmoid would know 256
  scores, and most rows of a rare class would share one.
- What the last hidden layer gives stays float too, its kernel is int8: rows that differ little, as honest payments do,
  would else end at the same few steps (on creditcard a third of them), and a tie cannot be ranked.

The work is done in a child process, because importing tfmot changes the environment of the process that does it. This
module imports neither TensorFlow nor tfmot; compression_process.py is the child. Whether a file is good enough is
for those to judge who have labelled rows.
"""

from __future__ import annotations

import gzip
import json
import math
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final, Self

import numpy as np

from hansa_common import children
from hansa_common.activations import Range, Ranges, activation_widths
from hansa_common.errors import CompressionError
from hansa_common.model import ModelSpec
from hansa_common.vectors import Vector, num_params

MAX_SECONDS: Final = 900.0
# Beyond this the float file is not the same network: float32 in another order stays far below.
MAX_FLOAT_DIFFERENCE: Final = 1e-5

# The files through which parent and child speak.
REQUEST: Final = "request.json"
WEIGHTS: Final = "weights.npy"
FLOAT_FILE: Final = "float.tflite"
INT8_FILE: Final = "int8.tflite"
FINDINGS: Final = "findings.json"
FAILURE: Final = "failure.txt"
OUTPUT: Final = "output.txt"

_MAX_SHOWN_CHARS: Final = 300
# One result on every machine, and nothing on the terminal.
_ENVIRONMENT: Final = {
    "CUDA_VISIBLE_DEVICES": "-1",
    "PYTHONHASHSEED": "0",
    "PYTHONWARNINGS": "ignore",
    "TF_CPP_MIN_LOG_LEVEL": "3",
    "TF_USE_LEGACY_KERAS": "1",
}


@dataclass(frozen=True)
class KernelCount:
    """Zeros of one dense kernel, counted in the finished files. Int8 has more: it also rounds to zero."""

    num_weights: int
    float_zeros: int
    int8_zeros: int


@dataclass(frozen=True)
class CompressionReport:
    """What was found in the finished files.

    kernels: `layer.kernel` -> its zeros. ranges: activation -> (low, high) as the int8 file can express it, empty
    with fewer than two hidden layers. The differences are the largest ones between scores (probabilities) of a file and
    of the forward pass in float64, over `num_rows` made-up rows. `bytes` and `gzip_bytes` are of the int8 file,
    `float32_bytes` of all parameters as plain float32. `sparsity` is the share of zeros among the weights of all
    dense kernels, embedding tables aside, in the float file.
    """

    kernels: Mapping[str, KernelCount]
    ranges: Ranges
    num_rows: int
    float_score_difference: float
    int8_score_difference: float
    bytes: int
    gzip_bytes: int
    float_file_bytes: int
    float32_bytes: int
    sparsity: float

    def to_json(self) -> dict[str, Any]:
        """The same as plain numbers, lists and dictionaries."""
        return {**asdict(self), "ranges": {name: list(found) for name, found in self.ranges.items()}}

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> Self:
        """What `to_json` gave, read again."""
        kernels = {name: KernelCount(**count) for name, count in values["kernels"].items()}
        ranges = {name: (low, high) for name, (low, high) in values["ranges"].items()}
        return cls(**{**values, "kernels": kernels, "ranges": ranges})


@dataclass(frozen=True)
class Compressed:
    """The two files' bytes, and what was found in them. Without hidden layers the int8 file is the float one."""

    float_file: bytes
    int8_file: bytes
    report: CompressionReport


def compress(spec: ModelSpec, weights: Vector, ranges: Ranges, *, max_seconds: float = MAX_SECONDS) -> Compressed:
    """Make both files of one network; takes a child process about ten seconds, most of it TensorFlow's import.

    weights: (num_params,) finite; ranges: one for each of `activation_widths(spec)`, low < high

    Raises:
        CompressionError: weights or ranges are not this network's, or the child did not end well; says how.
    """
    _check(spec, weights, ranges)
    with tempfile.TemporaryDirectory(prefix="hansa-compress-") as name:
        folder = Path(name)
        request = {"spec": spec.model_dump(mode="json"), "ranges": {name: list(ranges[name]) for name in ranges}}
        (folder / REQUEST).write_text(json.dumps(request), encoding="utf-8")
        np.save(folder / WEIGHTS, np.asarray(weights, np.float32), allow_pickle=False)
        _run_child(folder, max_seconds)
        findings = json.loads((folder / FINDINGS).read_text(encoding="utf-8"))
        float_file, int8_file = (folder / FLOAT_FILE).read_bytes(), (folder / INT8_FILE).read_bytes()
    return Compressed(float_file, int8_file, CompressionReport.from_json(findings))


def gzip_size(content: bytes) -> int:
    """How many bytes gzip leaves, at its strongest."""
    return len(gzip.compress(content, 9, mtime=0))


def _check(spec: ModelSpec, weights: Vector, ranges: Ranges) -> None:
    expected = num_params(spec.shapes)
    if weights.shape != (expected,) or not np.isfinite(weights).all():
        raise CompressionError(f"the weights to compress are not {expected} finite numbers, as the network has")
    names = list(activation_widths(spec))
    if sorted(ranges) != sorted(names):
        raise CompressionError(f"ranges of {sorted(ranges)} were given, the network's activations are {names}")
    for name, bounds in ranges.items():
        _check_range(name, bounds)


def _check_range(name: str, bounds: Range) -> None:
    low, high = bounds
    if not (math.isfinite(low) and math.isfinite(high) and low < high):
        raise CompressionError(
            f"the range of {name!r} is {low} to {high}: a range has two finite ends, the lower one first; merge the "
            "merchants' activation histograms again"
        )


def _run_child(folder: Path, max_seconds: float) -> None:
    command = [sys.executable, "-m", "hansa_server.compression_process", str(folder)]
    # Whatever ends the block, an interrupt too, ends the child and what that started.
    with children.running("compression", command, {**os.environ, **_ENVIRONMENT}, log=folder / OUTPUT) as child:
        try:
            code = child.process.wait(max_seconds)
        except subprocess.TimeoutExpired:
            raise CompressionError(
                f"compressing the model took longer than {max_seconds:.0f} s and was stopped; the machine may be busy "
                "or short of memory"
            ) from None
    if code or not (folder / FINDINGS).exists():
        raise CompressionError(_reason(folder, code))


def _reason(folder: Path, code: int) -> str:
    """One line: what the child itself said, or how it ended."""
    told = folder / FAILURE
    if told.exists():
        return told.read_text(encoding="utf-8")
    lines = [line for line in (folder / OUTPUT).read_bytes().decode(errors="replace").splitlines() if line.strip()]
    last = f"; its last line: {lines[-1].strip()[:_MAX_SHOWN_CHARS]}" if lines else ""
    return f"the process that compresses the model {children.how_it_ended(code)}{last}"
