"""One local step, in words that every Keras backend shares, and what a compiled program of such steps must offer.

A step takes `batch_size` rows. Its loss is the mean over the batch's real rows of the row losses, as Keras weighs
them (class weight, then the sum over the number of rows), plus the kernels' penalties. Its gradient is corrected,

    g + correction [SCAFFOLD: c - c_i] + proximal_mu * (w - incoming w) [FedProx],

and goes to an ordinary Keras optimizer. After the optimizer's step every weight is multiplied by its mask: by one,
which changes no bit, or by zero where it is pruned. Gradients of embedding tables are dense: every row of a table takes
part in every optimizer step, so that Adam's moments decay for ids that a batch does not hold. (Keras itself updates
such rows lazily; for SGD the two are equal, for Adam they are not.)

Which rows are in which batch is training_loop.py's; tensorflow_program.py and jax_program.py compile.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final, Protocol

import numpy as np
from numpy.typing import NDArray

from hansa_common.agreement_sections import Model, Plan
from hansa_common.features import Inputs
from hansa_common.model import ModelSpec
from hansa_common.randomness import derived_seed
from hansa_common.vectors import Vector

# Small float16 gradients would vanish; a power of two scales them without rounding.
_FLOAT16_LOSS_SCALE: Final = 1024.0


@dataclass(frozen=True)
class PaddedRows:
    """Rows in the order of their batches, at the beginning of arrays that have room for the largest merchant's.

    `num_rows` are real; zeros fill up the last batch, and what stands behind it no step may look at.
    """

    inputs: Inputs
    labels: NDArray[np.float32]
    num_rows: int


@dataclass(frozen=True)
class Steps:
    """Some steps of an epoch; with `is_first`, weights and optimizer begin anew before them.

    `loss_sum` is what `Program.run` returned for the epoch's steps before them, or 0.
    """

    first: int
    number: int
    is_first: bool
    loss_sum: float


@dataclass(frozen=True)
class LocalStart:
    """What local training starts from: weights, correction and mask (num_params,), and the seed of dropout."""

    weights: Vector
    correction: Vector
    mask: Vector
    dropout_seed: int

    def dropout_state(self, place: int) -> NDArray[np.uint32]:
        """(seed, step 0) of the layer of dropout at this place."""
        return np.array([derived_seed(self.dropout_seed, "layer", place) & 0xFFFF_FFFF, 0], np.uint32)


class Program(Protocol):
    """Compiled steps of one model and plan; keeps weights and optimizer from one call to the next."""

    def run(self, start: LocalStart, rows: PaddedRows, steps: Steps) -> float:
        """Do some steps, and return `loss_sum` with the batches' mean losses added, each once for each of its rows."""
        ...

    def weights(self) -> Vector:
        """The weights after the last step, (num_params,) float32."""
        ...

    def logits(self, weights: Vector, inputs: Inputs) -> NDArray[np.float32]:
        """(rows,) logits; each number of rows is compiled once."""
        ...


@dataclass(frozen=True)
class StepSettings:
    """What a step is made of."""

    spec: ModelSpec
    model: Model
    plan: Plan

    @property
    def proximal_mu(self) -> float:
        """FedProx's pull to the incoming weights; 0 for other algorithms."""
        return self.plan.proximal_mu if self.plan.algorithm == "fedprox" else 0.0

    @property
    def loss_scale(self) -> float:
        """The factor of the loss that gradients are divided by again."""
        return _FLOAT16_LOSS_SCALE if self.model.precision == "mixed_float16" else 1.0

    def optimizer(self) -> Any:
        """A new Keras optimizer."""
        import keras

        rate = self.plan.learning_rate
        match self.plan.optimizer:
            case "sgd":
                return keras.optimizers.SGD(rate)
            case "momentum":
                return keras.optimizers.SGD(rate, momentum=self.plan.momentum)
            case "adam":
                return keras.optimizers.Adam(rate)

    def row_losses(self, logits: Any, labels: Any) -> Any:
        """(rows,) losses of logits (rows,) and labels (rows,) of 0 and 1, in the backend's tensors."""
        from keras import ops

        # The logit of the wrong class: its softplus is the cross-entropy, and smooth at zero too.
        wrong = logits * (1.0 - 2.0 * labels)
        losses = ops.softplus(wrong)
        if self.model.loss == "focal":
            # Lin et al., "Focal Loss for Dense Object Detection" (2017): sigmoid(wrong) ** gamma, by its logarithm,
            # since the power's derivative is not finite where the sigmoid is rounded to zero.
            losses *= ops.exp(-self.model.focal_gamma * ops.softplus(-wrong))
        if self.model.positive_weight != 1.0:
            losses *= 1.0 + (self.model.positive_weight - 1.0) * labels
        return losses


def seed_states(model: Any) -> list[Any]:
    """The variables, (seed, step), that the layers of dropout draw their masks from."""
    return [layer.seed_state for layer in model.layers if hasattr(layer, "seed_state")]
