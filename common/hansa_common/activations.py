"""What flows through the network between its inputs and its logit: under which names, computed slowly and exactly,
counted in histograms whose sum over merchants tells the ranges that an int8 network needs.

name       tensor, (rows, width)
input      what the first hidden layer takes: dense inputs, then embedding rows
linear_i   hidden layer i before its norm and activation; only where these are not one step with the layer
hidden_i   hidden layer i after its activation

The last hidden layer has no name here: what it gives stays float in the int8 network (hansa_server.compression).

- Merging is addition, and every vector has the length that the specification fixes, so that secure aggregation can
  carry it.
- A bin that fewer than min_count rows reach is released as zero: however many units a row drives far out, that row
  alone tells nobody so.
- A range is cut off at quantiles of all values of its tensor, at the ends of bins: it is nobody's maximum.

Bins are uniform in asinh(value / FINEST): 0.014 * FINEST wide at 0, 1.4 % of the value far out; all beyond
+-MAX_VALUE shares the last one.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from types import MappingProxyType
from typing import Final

import numpy as np
from numpy.typing import NDArray

from hansa_common.agreement_sections import Activation
from hansa_common.errors import CompressionError
from hansa_common.features import Inputs
from hansa_common.model import LAYER_NORM_EPSILON, ModelSpec
from hansa_common.vectors import Vector, unflatten

Values = NDArray[np.float64]
Histograms = NDArray[np.int64]
Range = tuple[float, float]
Ranges = Mapping[str, Range]

INPUT: Final = "input"
NUM_BINS: Final = 2048
FINEST: Final = 0.01
MAX_VALUE: Final = 1e4
# A constant tensor still needs a step that int8 can count in.
MIN_WIDTH: Final = 0.01
_CHUNK_ROWS: Final = 1024


def _bin_edges() -> Values:
    """Ascending, (NUM_BINS + 1,); one of them is exactly 0, where relu ends."""
    reach = np.arcsinh(MAX_VALUE / FINEST)
    above = np.sinh(np.linspace(0.0, reach, NUM_BINS // 2 + 1)) * FINEST
    return np.concatenate([-above[:0:-1], above])


_EDGES: Final = _bin_edges()
_erf: Final = np.vectorize(math.erf, otypes=[np.float64])
_ACTIVATIONS: Final[Mapping[Activation, Callable[[Values], Values]]] = MappingProxyType(
    {
        "relu": lambda x: np.maximum(x, 0.0),
        "tanh": np.tanh,
        "gelu": lambda x: x * (1.0 + _erf(x / math.sqrt(2.0))) / 2.0,
    }
)


def is_one_step(spec: ModelSpec) -> bool:
    """Whether a hidden layer and its activation are one step, with no tensor of interest between them."""
    return spec.activation == "relu" and not spec.layer_norm


def activation_widths(spec: ModelSpec) -> dict[str, int]:
    """The width of each named tensor, in the network's order."""
    widths = {INPUT: spec.num_dense + sum(embedding.dim for embedding in spec.embeddings)}
    for i, num_units in enumerate(spec.hidden[:-1]):
        names = (f"hidden_{i}",) if is_one_step(spec) else (f"linear_{i}", f"hidden_{i}")
        widths |= dict.fromkeys(names, num_units)
    return widths


def forward(spec: ModelSpec, weights: Vector, inputs: Inputs) -> tuple[Values, dict[str, Values]]:
    """What the network computes, in float64 and without Keras: slow, and the reference for what is fast.

    weights: (num_params,)

    Returns:
        (rows,) logits; each tensor of `activation_widths`, (rows, width).
    """
    names_and_arrays = zip(spec.named_shapes, unflatten(weights, spec.shapes), strict=True)
    arrays = {name: array.astype(np.float64) for name, array in names_and_arrays}
    rows = [arrays[f"embedding_{i}.table"][inputs.ids[:, i]] for i in range(len(spec.embeddings))]
    x = np.concatenate([inputs.dense.astype(np.float64), *rows], axis=1)
    found = {INPUT: x}
    for i in range(len(spec.hidden)):
        x = found[f"linear_{i}"] = x @ arrays[f"hidden_{i}.kernel"] + arrays[f"hidden_{i}.bias"]
        if spec.layer_norm:
            x = _normalized(x) * arrays[f"norm_{i}.gain"] + arrays[f"norm_{i}.offset"]
        x = found[f"hidden_{i}"] = _ACTIVATIONS[spec.activation](x)
    logits = (x @ arrays["output.kernel"] + arrays["output.bias"])[:, 0]
    return logits, {name: found[name] for name in activation_widths(spec)}


def histograms_length(spec: ModelSpec) -> int:
    """The length of everyone's vector."""
    return len(activation_widths(spec)) * NUM_BINS


def activation_histograms(spec: ModelSpec, weights: Vector, inputs: Inputs, min_count: int) -> Histograms:
    """Count one merchant's activations: (histograms_length(spec),) int64, NUM_BINS for each named tensor.

    weights: (num_params,)

    Raises:
        ValueError: an activation is NaN or infinite; says which.
    """
    names = list(activation_widths(spec))
    values = np.zeros((len(names), NUM_BINS), np.int64)
    rows = np.zeros_like(values)
    for chunk in _chunks(inputs):
        _, activations = forward(spec, weights, chunk)
        for i, name in enumerate(names):
            bins = _bins(name, activations[name])
            values[i] += np.bincount(bins.ravel(), minlength=NUM_BINS)
            reached = np.zeros((len(chunk), NUM_BINS), np.bool_)
            reached[np.arange(len(chunk))[:, None], bins] = True
            rows[i] += reached.sum(axis=0)
    return np.where(rows >= min_count, values, 0).ravel()


def check_activation_histograms(spec: ModelSpec, vector: Histograms, num_rows: int) -> None:
    """Refuse a received vector that no merchant with that many rows can have counted.

    Raises:
        ValueError: wrong length, a negative count, or more values than the rows have.
    """
    expected = histograms_length(spec)
    if vector.dtype != np.int64 or vector.shape != (expected,):
        raise ValueError(f"activation histograms are int64 of shape ({expected},), not {vector.dtype} {vector.shape}")
    if vector.min() < 0:
        raise ValueError(f"the activation histograms hold the negative count {vector.min()}")
    for name, counts in _by_name(spec, vector).items():
        allowed = num_rows * activation_widths(spec)[name]
        # Each count first: a sum of huge counts could wrap round to something believable.
        if counts.max() > allowed or counts.sum() > allowed:
            raise ValueError(f"{name}: more than the {allowed} activations that {num_rows} rows have")


def ranges_from_histograms(spec: ModelSpec, merged: Histograms, quantile: float) -> dict[str, Range]:
    """The range (low, high) of each named tensor, low < high, from the sum of everyone's histograms: at most
    a share of 1 - quantile of the values lies below it, and as much above it.

    quantile: above 0.5, at most 1

    Raises:
        ValueError: the quantile is out of bounds.
        CompressionError: nothing was counted of a tensor; says of which.
    """
    if not 0.5 < quantile <= 1.0:  # noqa: PLR2004 - the half that the other end begins at
        raise ValueError(f"quantile {quantile} must be above 0.5 and at most 1")
    return {name: _range(name, counts, quantile) for name, counts in _by_name(spec, merged).items()}


def _range(name: str, counts: Histograms, quantile: float) -> Range:
    below = np.cumsum(counts)
    if not below[-1]:
        raise CompressionError(
            f"no merchant released an activation of {name!r}, so its range is unknown: each bin has fewer rows than "
            "the agreement's privacy.min_count; measure on more rows, or agree on a lower floor"
        )
    # In counts, rounded down, so that a share of exactly 1 - quantile may be cut off and no more.
    cut_off = math.floor((1.0 - quantile) * int(below[-1]) * (1.0 + 1e-12))
    first = int(np.searchsorted(below, cut_off, side="right"))
    last = int(np.searchsorted(below, below[-1] - cut_off, side="left"))
    low, high = float(_EDGES[first]), float(_EDGES[last + 1])
    return low, max(high, low + MIN_WIDTH)


def _by_name(spec: ModelSpec, vector: Histograms) -> dict[str, Histograms]:
    names = activation_widths(spec)
    return dict(zip(names, vector.reshape(len(names), NUM_BINS), strict=True))


def _bins(name: str, values: Values) -> NDArray[np.int64]:
    if not np.isfinite(values).all():
        raise ValueError(f"{name}: {int((~np.isfinite(values)).sum())} activations are NaN or infinite")
    return np.searchsorted(_EDGES[1:-1], values, side="right")


def _normalized(x: Values) -> Values:
    deviation = np.sqrt(x.var(axis=1, keepdims=True) + LAYER_NORM_EPSILON)
    return np.asarray((x - x.mean(axis=1, keepdims=True)) / deviation)


def _chunks(inputs: Inputs) -> Iterator[Inputs]:
    # The activations of all rows at once may not fit.
    for start in range(0, len(inputs), _CHUNK_ROWS):
        yield Inputs(inputs.dense[start : start + _CHUNK_ROWS], inputs.ids[start : start + _CHUNK_ROWS])
