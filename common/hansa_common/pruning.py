"""Which weights of a network are pruned, how many of them in which round, and how a choice travels. Pure functions.

Hidden kernels are pruned, each by itself, its smallest magnitudes first. Embedding tables are not, for their rows are
rare rather than superfluous; nor is the output's kernel, whose weights are few and tell scores apart; nor biases and
norms. A mask is (num_params,) float32 of 1 (kept) and 0 (pruned). On the wire it is one bit for each weight of the
hidden kernels, in order, and nothing where nothing is pruned.

Sources:
    schedule          Zhu and Gupta, "To prune, or not to prune: exploring the efficacy of pruning for model
                      compression" (2017): a cubic way from no zeros to the agreed share of them
    magnitudes        Han et al., "Learning both Weights and Connections for Efficient Neural Networks" (2015)
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from hansa_common.errors import MessageError, PolicyError
from hansa_common.model import ModelSpec
from hansa_common.vectors import Vector, num_params, unflatten

Packed = NDArray[np.uint8]


def is_prunable(name: str) -> bool:
    """Whether the weights of this name, as `ModelSpec.named_shapes` has it, are pruned.

    >>> is_prunable("hidden_0.kernel"), is_prunable("hidden_0.bias"), is_prunable("output.kernel")
    (True, False, False)
    """
    return name.startswith("hidden_") and name.endswith(".kernel")


def num_pruned(num_weights: int, sparsity: float) -> int:
    """How many of a kernel's weights are zero at a sparsity: the nearest whole number.

    >>> num_pruned(10, 0.8), num_pruned(7, 0.5), num_pruned(3, 0.0)
    (8, 4, 0)
    """
    return int(num_weights * sparsity + 0.5)


def scheduled_sparsity(final: float, pruning_round: int, num_rounds: int) -> float:
    """The sparsity in round 1 to num_rounds; in the last one it is `final`, exactly.

    >>> [round(scheduled_sparsity(0.8, t, 4), 4) for t in (1, 2, 3, 4)]
    [0.4625, 0.7, 0.7875, 0.8]
    """
    return final * (1.0 - (1.0 - pruning_round / num_rounds) ** 3)


def magnitude_mask(spec: ModelSpec, weights: Vector, sparsity: float) -> Vector:
    """A mask that prunes the smallest magnitudes of each hidden kernel; of equal ones the first in the kernel.

    weights: (num_params,). A weight that is zero already goes before all others, so that masks of growing sparsity
    only grow where the pruned weights were held at zero.
    """
    mask = np.ones_like(weights)
    for name, kernel, part in zip(
        spec.named_shapes, unflatten(weights, spec.shapes), unflatten(mask, spec.shapes), strict=True
    ):
        if is_prunable(name):
            order = np.argsort(np.abs(kernel), axis=None, kind="stable")
            part.reshape(-1)[order[: num_pruned(kernel.size, sparsity)]] = 0.0
    return mask


def masked(weights: Vector, mask: Vector) -> Vector:
    """(num_params,) weights with plain zeros where they are pruned: a product could leave -0."""
    return np.where(mask > 0, weights, np.float32(0.0))


def pack_mask(spec: ModelSpec, mask: Vector) -> Packed:
    """A mask as bits, (ceil(prunable weights / 8),) uint8; what is left of the last byte is zero."""
    parts = zip(spec.named_shapes, unflatten(mask, spec.shapes), strict=True)
    kept = [part.ravel() > 0 for name, part in parts if is_prunable(name)]
    return np.packbits(np.concatenate(kept)) if kept else np.zeros(0, np.uint8)


def unpack_mask(spec: ModelSpec, packed: Packed) -> Vector:
    """What `pack_mask` gave, as a mask (num_params,) again.

    Raises:
        MessageError: it has not this network's length, or bits behind its last weight.
    """
    num_weights = sum(num_params((shape,)) for name, shape in spec.named_shapes.items() if is_prunable(name))
    expected = -(-num_weights // 8)
    if packed.shape != (expected,):
        raise MessageError(f"masks has {packed.size} bytes, the {num_weights} prunable weights take {expected}")
    bits = np.unpackbits(packed)
    if bits[num_weights:].any():
        raise MessageError(f"masks goes on behind the last of {num_weights} prunable weights")
    mask, start = np.ones(num_params(spec.shapes), np.float32), 0
    for name, part in zip(spec.named_shapes, unflatten(mask, spec.shapes), strict=True):
        if is_prunable(name):
            part[...] = bits[start : start + part.size].reshape(part.shape)
            start += part.size
    return mask


def permitted_mask(spec: ModelSpec, packed: Packed, weights: Vector, max_sparsity: float) -> Vector:
    """The mask (num_params,) that an order brings along with weights (num_params,).

    Raises:
        MessageError: it is no mask of this network, or the weights are not zero where it prunes.
        PolicyError: it prunes more of a kernel than agreed.
    """
    mask = unpack_mask(spec, packed)
    for name, part in zip(spec.named_shapes, unflatten(mask, spec.shapes), strict=True):
        zeros, most = part.size - np.count_nonzero(part), num_pruned(part.size, max_sparsity)
        if zeros > most:
            raise PolicyError(
                f"the order prunes {zeros} of the {part.size} weights of {name}; at the agreed sparsity of "
                f"{max_sparsity:g} that are at most {most}"
            )
    if weights[mask == 0].any():
        raise MessageError("weights holds other numbers than zero where masks prunes them")
    return mask
