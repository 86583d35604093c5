"""Local training under differential privacy: steps whose rows are chosen by coins, clipped, and drowned in noise.

- What leaves is what the steps leave of the weights: no loss, no count of what a step's coins chose.
- Whoever takes part in a step is a *unit*, a row or all rows of one customer, by one coin of probability
  `sampling_rate`. A unit moves a step's sum by at most `max_norm`: where it has up to k rows, each is clipped to
  max_norm / k. The noise has `noise_multiplier` * max_norm standard deviations in each coordinate. That is the sampled
  Gaussian mechanism, `num_steps` times, which privacy.py accounts for.
- Compiled once for a model and a plan, up to a capacity; in chunks, between which it can be stopped.

Sources: Abadi et al., "Deep Learning with Differential Privacy" (2016); Mironov et al., "Renyi Differential Privacy of
the Sampled Gaussian Mechanism" (2019).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from hansa_client.private_program import BLOCK_ROWS, PrivateProgram, PrivateSettings, SampledSteps
from hansa_client.training_loop import TrainingOutcome, backend
from hansa_client.training_program import LocalStart, StepSettings
from hansa_common.agreement_sections import Model, Plan
from hansa_common.errors import DeadlineError
from hansa_common.features import Inputs
from hansa_common.model import ModelSpec
from hansa_common.privacy_noise import PrivacyRandom
from hansa_common.vectors import Vector, num_params

MAX_CHUNK_STEPS: Final = 128
# The noise of a chunk's steps is made before them: 16 MiB of it at most, where one step alone does not need more.
MAX_NOISE_VALUES: Final = 1 << 22


@dataclass(frozen=True)
class PrivateWork:
    """How much work is done, and what hides a unit in it."""

    num_steps: int
    sampling_rate: float
    max_norm: float
    noise_multiplier: float
    max_rows_per_unit: int = 1


class PrivateTraining:
    """Trains one model under one plan, privately."""

    def __init__(self, spec: ModelSpec, model: Model, plan: Plan, *, capacity_rows: int) -> None:
        """Build the program; it compiles at its first use.

        Raises:
            UsageError: Keras' backend is neither TensorFlow nor JAX.
        """
        self._program = _new_program(StepSettings(spec, model, plan))
        self._learning_rate = plan.learning_rate
        self._num_params = num_params(spec.shapes)
        # A step may choose every row, so one chunk has room for all: and then for many steps of fewer.
        self._num_blocks = math.ceil(max(1, capacity_rows) / BLOCK_ROWS)
        self._chunk_steps = min(MAX_CHUNK_STEPS, max(1, MAX_NOISE_VALUES // self._num_params))
        capacity = self._num_blocks * BLOCK_ROWS
        self._dense = np.zeros((capacity, spec.num_dense), np.float32)
        self._ids = np.zeros((capacity, len(spec.embeddings)), np.int32)
        self._labels, self._is_real = np.zeros((2, capacity), np.float32)
        self._noise = np.zeros((self._chunk_steps, self._num_params), np.float32)
        self._block_ends = np.zeros(self._chunk_steps + 1, np.int32)

    def train(
        self,
        weights: Vector,
        inputs: Inputs,
        labels: NDArray[np.uint8],
        work: PrivateWork,
        random: PrivacyRandom,
        *,
        units: NDArray[np.int64],
        correction: Vector | None,
        dropout_seed: int,
        should_stop: Callable[[], bool],
        mask: Vector | None = None,
        learning_rate: float | None = None,
    ) -> TrainingOutcome:
        """Train from weights (num_params,) float32; `units` (rows,) says to which unit, from 0 on, each row belongs.

        `correction` and `mask` are (num_params,), and as in training_loop.py; a learning rate that is not given is the
        plan's. The outcome has no loss.

        Raises:
            ValueError: a unit has more rows than the work allows: what is promised would not hold.
            DeadlineError: should_stop said so between two chunks.
        """
        drawn = _draws(units, work, random)
        nothing, ones = np.zeros(self._num_params, np.float32), np.ones(self._num_params, np.float32)
        start = LocalStart(
            weights, nothing if correction is None else correction, ones if mask is None else mask, dropout_seed
        )
        rate = self._learning_rate if learning_rate is None else learning_rate
        private = PrivateSettings(work.max_norm / work.max_rows_per_unit, work.sampling_rate * len(inputs), rate)
        done = 0
        while done < work.num_steps:
            if should_stop():
                raise DeadlineError("local training was stopped between two chunks: its deadline, or a shutdown")
            number = self._fitting(drawn[done:])
            steps = self._chunk(drawn[done : done + number], inputs, labels, is_first=done == 0)
            for step in range(number):
                noise = random.gaussians(self._num_params)
                np.multiply(noise, work.noise_multiplier * work.max_norm, out=self._noise[step], casting="same_kind")
            self._program.run(start, private, steps)
            done += number
        return TrainingOutcome(self._program.weights(), done, 0.0)

    def _fitting(self, drawn: Sequence[NDArray[np.int64]]) -> int:
        """How many of the next steps fit in the buffers."""
        number, num_blocks = 0, 0
        for rows in drawn[: self._chunk_steps]:
            num_blocks += _num_blocks(rows)
            if number and num_blocks > self._num_blocks:
                break
            number += 1
        return number

    def _chunk(
        self, drawn: Sequence[NDArray[np.int64]], inputs: Inputs, labels: NDArray[np.uint8], *, is_first: bool
    ) -> SampledSteps:
        """These steps in the buffers that every chunk uses."""
        block = 0
        for step, rows in enumerate(drawn):
            begin, end = block * BLOCK_ROWS, block * BLOCK_ROWS + len(rows)
            block += _num_blocks(rows)
            np.take(inputs.dense, rows, axis=0, out=self._dense[begin:end])
            np.take(inputs.ids, rows, axis=0, out=self._ids[begin:end])
            self._labels[begin:end], self._is_real[begin:end] = labels[rows], 1
            for buffer in (self._dense, self._ids, self._labels, self._is_real):
                buffer[end : block * BLOCK_ROWS] = 0
            self._block_ends[step + 1] = block
        buffers = Inputs(self._dense, self._ids), self._labels, self._is_real, self._block_ends, self._noise
        return SampledSteps(*buffers, number=len(drawn), is_first=is_first)


def _draws(units: NDArray[np.int64], work: PrivateWork, random: PrivacyRandom) -> list[NDArray[np.int64]]:
    """The rows of each step: those of the units whose coins came up."""
    num_rows_of = np.bincount(units)
    largest = int(num_rows_of.max(initial=0))
    if largest > work.max_rows_per_unit:
        raise ValueError(f"a unit has {largest} rows, {work.max_rows_per_unit} are what its noise is for")

    def rows(chosen: NDArray[np.int64]) -> NDArray[np.int64]:
        is_in = np.zeros(num_rows_of.size, np.bool_)
        is_in[chosen] = True
        return np.flatnonzero(is_in[units])

    return [rows(random.sample(num_rows_of.size, work.sampling_rate)) for _ in range(work.num_steps)]


def _num_blocks(rows: NDArray[np.int64]) -> int:
    return math.ceil(len(rows) / BLOCK_ROWS)


def _new_program(settings: StepSettings) -> PrivateProgram:
    if backend() == "jax":
        from hansa_client.jax_private_program import JaxPrivateProgram

        return JaxPrivateProgram(settings)
    from hansa_client.tensorflow_private_program import TensorFlowPrivateProgram

    return TensorFlowPrivateProgram(settings)
