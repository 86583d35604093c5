"""A round's training under [privacy.dp]: the agreed work over one merchant's units, with noise that nobody can foresee.

- A unit is a training row, or all training rows of one customer; how many rows it may have data.py sees to.
- The noise is the operating system's (`system_noise`), afresh for each order. Only a simulation draws it from a seed
  (`seeded_noise`), where the same scenario must leave the same bytes and nobody's rows are at stake.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from hansa_client.data import MerchantTable
from hansa_client.private_training import PrivateTraining, PrivateWork
from hansa_client.releases import DrawNoise
from hansa_client.training_loop import TrainingOutcome
from hansa_common.agreement import Agreement
from hansa_common.features import Inputs
from hansa_common.privacy_noise import PrivacyRandom
from hansa_common.vectors import Vector


def private_work(agreement: Agreement, plan: int) -> PrivateWork:
    """What a round under this plan does, and what hides a unit in it.

    Raises:
        ValueError: the agreement has no [privacy.dp], or the plan no local_steps.
    """
    dp, num_steps = agreement.privacy.dp, agreement.training.plans[plan].local_steps
    if dp is None or num_steps is None:
        raise ValueError("private work needs [privacy.dp] and local_steps")
    return PrivateWork(
        num_steps=num_steps,
        sampling_rate=dp.sampling_rate,
        max_norm=dp.max_norm,
        noise_multiplier=dp.noise_multiplier,
        max_rows_per_unit=dp.max_rows_per_entity,
    )


def train_privately(
    training: PrivateTraining,
    work: PrivateWork,
    table: MerchantTable,
    inputs: Inputs,
    weights: Vector,
    random: PrivacyRandom,
    *,
    correction: Vector | None,
    learning_rate: float,
    should_stop: Callable[[], bool],
) -> TrainingOutcome:
    """Train from weights (num_params,) on the table's training rows, whose inputs these are; the outcome has no loss.

    Raises:
        DeadlineError: should_stop said so.
    """
    return training.train(
        weights,
        inputs,
        table.labels[table.train],
        work,
        random,
        units=units_of(table),
        correction=correction,
        # No layer drops anything: an agreement with [privacy.dp] has no dropout.
        dropout_seed=0,
        learning_rate=learning_rate,
        should_stop=should_stop,
    )


def units_of(table: MerchantTable) -> NDArray[np.int64]:
    """(training rows,) to which unit each belongs, from 0 on."""
    if table.entities is None:
        return np.arange(len(table.train), dtype=np.int64)
    return np.unique(table.entities[table.train], return_inverse=True)[1].astype(np.int64)


def system_noise(_purpose: str) -> PrivacyRandom:
    """Random numbers under a key that is nowhere else."""
    return PrivacyRandom.from_system()


def seeded_noise(seed: int, merchant: str) -> DrawNoise:
    """The random numbers of a simulated merchant, the same for the same purpose: they hide nothing."""

    def draw(purpose: str) -> PrivacyRandom:
        return PrivacyRandom(hashlib.sha256(repr((seed, merchant, purpose)).encode()).digest())

    return draw
