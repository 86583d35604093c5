"""Local training: some epochs or steps over one merchant's rows from given weights, as a function of its arguments.

- Same arguments, same bytes, whatever the capacity and whatever was trained before.
- Compiled once for a model and a plan, whatever the number of rows, up to a capacity; its buffers hold the capacity.
- In chunks of about CHUNK_SECONDS, between which it can be stopped. How rows are cut into chunks changes no byte.

The backend is Keras' own (`KERAS_BACKEND`): TensorFlow, or JAX. What a step is, training_program.py says.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Final, TypeVar

import numpy as np
from numpy.typing import NDArray

from hansa_client import native_output
from hansa_client.training_program import LocalStart, PaddedRows, Program, Steps, StepSettings
from hansa_common.agreement_sections import Model, Plan
from hansa_common.errors import DeadlineError, UsageError
from hansa_common.features import Inputs
from hansa_common.model import ModelSpec
from hansa_common.vectors import Vector

CHUNK_SECONDS: Final = 0.5
# From one step on, since nothing is known of its cost.
MAX_CHUNK_GROWTH: Final = 16
# Rows are scored in blocks of these sizes, so that three compiled programs serve every number of rows.
SCORING_BLOCKS: Final = (8192, 1024, 128)
BACKENDS: Final = ("tensorflow", "jax")

Number = TypeVar("Number", np.float32, np.int32)


@dataclass(frozen=True)
class TrainingOutcome:
    """Weights (num_params,) after num_steps steps, and the mean of the batches' losses by rows."""

    weights: Vector
    num_steps: int
    mean_loss: float


class LocalTraining:
    """Trains and scores one model under one plan."""

    def __init__(self, spec: ModelSpec, model: Model, plan: Plan, *, capacity_rows: int) -> None:
        """Build the program; it compiles at its first use.

        Raises:
            UsageError: Keras' backend is neither TensorFlow nor JAX.
        """
        self._program = _new_program(StepSettings(spec, model, plan))
        self._batch_size = plan.batch_size
        num_padded = math.ceil(max(1, capacity_rows) / plan.batch_size) * plan.batch_size
        self._dense = np.zeros((num_padded, spec.num_dense), np.float32)
        self._ids = np.zeros((num_padded, len(spec.embeddings)), np.int32)
        self._labels = np.zeros(num_padded, np.float32)
        self._no_correction = self._no_mask = np.zeros(0, np.float32)
        self._chunk_steps = 1
        self._is_compiled = False

    def train(
        self,
        weights: Vector,
        inputs: Inputs,
        labels: NDArray[np.uint8],
        epochs: Iterable[NDArray[np.int64]],
        *,
        correction: Vector | None,
        dropout_seed: int,
        should_stop: Callable[[], bool],
        mask: Vector | None = None,
        max_steps: int | None = None,
    ) -> TrainingOutcome:
        """Train from weights (num_params,) float32, one epoch for each order (rows,) of the rows in epochs, and at most
        max_steps: the last epoch ends where these do, and no further order is asked for.

        `correction` (num_params,) is added to every gradient. A last batch that is not full counts its own rows only.
        `mask` (num_params,) of ones and zeros holds weights at zero after every step, whatever the optimizer remembers.

        Raises:
            DeadlineError: should_stop said so between two chunks.
        """
        self._make_neutral(weights.size)
        correction = self._no_correction if correction is None else correction
        start = LocalStart(weights, correction, self._no_mask if mask is None else mask, dropout_seed)
        steps_of_epoch = math.ceil(len(inputs) / self._batch_size)
        num_steps, num_seen, loss_sum = 0, 0, 0.0
        for order in epochs:
            rows = self._padded(inputs, labels, order)
            left = steps_of_epoch if max_steps is None else min(steps_of_epoch, max_steps - num_steps)
            done, epoch_loss = 0, 0.0
            while done < left:
                if should_stop():
                    raise DeadlineError("local training was stopped between two chunks: its deadline, or a shutdown")
                number = min(self._chunk_steps, left - done)
                # The epoch's sum goes in and out: sums of chunks would depend on where the chunks were cut.
                epoch_loss = self._timed(start, rows, Steps(done, number, num_steps + done == 0, epoch_loss))
                done += number
            loss_sum, num_steps = loss_sum + epoch_loss, num_steps + left
            num_seen += min(len(inputs), left * self._batch_size)
            if num_steps == max_steps:
                break
        return TrainingOutcome(self._program.weights(), num_steps, loss_sum / num_seen)

    def logits(
        self, weights: Vector, inputs: Inputs, should_stop: Callable[[], bool] = lambda: False
    ) -> NDArray[np.float32]:
        """Score rows: (rows,) logits of a model with weights (num_params,).

        Raises:
            DeadlineError: should_stop said so between two blocks of rows.
        """
        found, done = np.empty(len(inputs), np.float32), 0
        while done < len(inputs):
            if should_stop():
                raise DeadlineError("scoring was stopped between two blocks of rows: its deadline, or a shutdown")
            left = len(inputs) - done
            size = next((block for block in SCORING_BLOCKS if block <= left), SCORING_BLOCKS[-1])
            block = Inputs(_block(inputs.dense, done, size), _block(inputs.ids, done, size))
            found[done : done + size] = self._program.logits(weights, block)[:left]
            done += size
        return found

    def _timed(self, start: LocalStart, rows: PaddedRows, steps: Steps) -> float:
        began = time.monotonic()
        loss = self._program.run(start, rows, steps)
        seconds = time.monotonic() - began
        # The last chunk of an epoch can be short, and says too little of what would fit; too long is too long.
        if self._is_compiled and (steps.number == self._chunk_steps or seconds > CHUNK_SECONDS):
            fitting = int(steps.number * CHUNK_SECONDS / max(seconds, 1e-9))
            self._chunk_steps = min(max(1, fitting), MAX_CHUNK_GROWTH * self._chunk_steps)
        self._is_compiled = True
        return loss

    def _padded(self, inputs: Inputs, labels: NDArray[np.uint8], order: NDArray[np.int64]) -> PaddedRows:
        """The rows in this order, in the buffers that every epoch uses; what is behind the last batch no step
        looks at.
        """
        num_rows = len(order)
        end_of_batch = math.ceil(num_rows / self._batch_size) * self._batch_size
        np.take(inputs.dense, order, axis=0, out=self._dense[:num_rows])
        np.take(inputs.ids, order, axis=0, out=self._ids[:num_rows])
        self._labels[:num_rows] = labels[order]
        for buffer in (self._dense, self._ids, self._labels):
            # Of weight zero; but rows of an earlier call could overflow, and zero times infinity is not zero.
            buffer[num_rows:end_of_batch] = 0
        return PaddedRows(Inputs(self._dense, self._ids), self._labels, num_rows)

    def _make_neutral(self, size: int) -> None:
        """A correction and a mask that change nothing, made once."""
        if self._no_correction.size != size:
            self._no_correction, self._no_mask = np.zeros(size, np.float32), np.ones(size, np.float32)


def describe_device() -> tuple[str, str]:
    """Keras' backend, and the device it computes on.

    Raises:
        UsageError: the backend is neither TensorFlow nor JAX.
    """
    with native_output.kept_back():
        if backend() == "jax":
            from hansa_client import jax_program

            return "jax", jax_program.device_name()
        from hansa_client import tensorflow_devices

        return "tensorflow", tensorflow_devices.device_name()


def _new_program(settings: StepSettings) -> Program:
    if backend() == "jax":
        from hansa_client.jax_program import JaxProgram

        return JaxProgram(settings)
    from hansa_client.tensorflow_program import TensorFlowProgram

    return TensorFlowProgram(settings)


def backend() -> str:
    """Keras' backend.

    Raises:
        UsageError: it is neither TensorFlow nor JAX.
    """
    import keras

    name = str(keras.backend.backend())
    if name not in BACKENDS:
        raise UsageError(f"KERAS_BACKEND is {name!r}; Hansa trains on {' or '.join(BACKENDS)}")
    return name


def _block(rows: NDArray[Number], first: int, size: int) -> NDArray[Number]:
    """Rows first to first + size, padded with zeros where there are fewer."""
    part = rows[first : first + size]
    return np.ascontiguousarray(part) if len(part) == size else np.pad(part, ((0, size - len(part)), (0, 0)))
