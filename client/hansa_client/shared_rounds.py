"""A round under shared noise: what a merchant's rows say in one step, before its share of the noise is added.

- The update is -learning_rate / expected rows times the sum of clipped gradients of the units whose coins came up, less
  what penalties ask for, which depends on no row; shortened to the share's `most_norm`. How far a unit moves it is said
  in shared_noise.py.
- It hides nobody. It goes nowhere but into a masked sum, after masked_sums.py has added this merchant's share.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from hansa_client.data import MerchantTable
from hansa_client.gradient_sums import GradientSums
from hansa_client.private_rounds import units_of
from hansa_common.agreement import Agreement
from hansa_common.features import Inputs
from hansa_common.model import ModelSpec
from hansa_common.privacy_agreement import DifferentialPrivacy
from hansa_common.privacy_noise import PrivacyRandom
from hansa_common.shared_noise import noise_share_of
from hansa_common.vectors import Vector, l2_norm, unflatten


def shared_update(
    sums: GradientSums,
    spec: ModelSpec,
    agreement: Agreement,
    table: MerchantTable,
    inputs: Inputs,
    weights: Vector,
    random: PrivacyRandom,
    *,
    learning_rate: float,
    should_stop: Callable[[], bool],
) -> Vector:
    """The update (num_params,) of one step from these weights, without noise; `inputs` are the table's training rows.

    Raises:
        ValueError: the agreement has no shared noise, or a unit more rows than was agreed on: what is promised would
            not hold.
        DeadlineError: should_stop said so.
    """
    dp, most_norm = agreement.privacy.dp, noise_share_of(agreement, learning_rate).most_norm
    if dp is None:
        raise ValueError("the agreement has no [privacy.dp]")
    is_chosen = _chosen(units_of(table), dp, random)
    row_norm = dp.max_norm / dp.max_rows_per_entity
    summed = sums.chosen(weights, inputs, table.labels[table.train], is_chosen, row_norm, should_stop)
    gradient = summed / (dp.sampling_rate * len(is_chosen)) + _penalty_gradient(spec, weights)
    return shortened(-learning_rate * gradient, most_norm).astype(np.float32)


def shortened(vector: NDArray[np.float64], most_norm: float) -> NDArray[np.float64]:
    """The nearest vector that is no longer than `most_norm`; of two vectors, these are no further apart."""
    norm = l2_norm(vector)
    return vector if norm <= most_norm else vector * (most_norm / norm)


def _chosen(units: NDArray[np.int64], dp: DifferentialPrivacy, random: PrivacyRandom) -> NDArray[np.bool_]:
    """(rows,) whether the coin of a row's unit came up."""
    num_rows_of = np.bincount(units)
    largest = int(num_rows_of.max(initial=0))
    if largest > dp.max_rows_per_entity:
        raise ValueError(f"a unit has {largest} rows, {dp.max_rows_per_entity} are what its noise is for")
    is_in = np.zeros(num_rows_of.size, np.bool_)
    is_in[random.sample(num_rows_of.size, dp.sampling_rate)] = True
    return is_in[units]


def _penalty_gradient(spec: ModelSpec, weights: Vector) -> NDArray[np.float64]:
    values = [value.astype(np.float64) for value in unflatten(weights, spec.shapes)]
    parts = [
        spec.l1 * np.sign(value) + 2.0 * spec.l2 * value if name.endswith(".kernel") else np.zeros_like(value)
        for name, value in zip(spec.named_shapes, values, strict=True)
    ]
    return np.concatenate([part.ravel() for part in parts])
