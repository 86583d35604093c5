"""A merchant's answer to the coordinator's orders: statistics, updates and score histograms, made from its rows.

- The bytes of an answer depend on the order, the agreement, the merchant's name and its rows: on no process, no
  run, and no other merchant that shares the process.
- A SCAFFOLD variate is kept before the reply that proposes it can leave.
- The merchant's own figures and threshold are computed here and kept here; the agreement says if others see them.

One order at a time, and permitted before: a trainer is not for two threads, and guarded_trainer.py stands before it.
SCAFFOLD's variate is variates.py's; its own figures are own_figures.py's; a delivered bundle is delivery.py's; local
training is training_loop.py's.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import count
from pathlib import Path
from typing import Final, Literal

import numpy as np
from numpy.typing import NDArray

from hansa_client.data import MerchantTable
from hansa_client.delivery import Inbox
from hansa_client.halting import Halt
from hansa_client.judging import compared, range_histograms
from hansa_client.masked_sums import MaskedSums
from hansa_client.own_figures import OwnFigures
from hansa_client.private_rounds import private_work, system_noise, train_privately
from hansa_client.programs import Programs
from hansa_client.releases import DrawNoise, releases_of
from hansa_client.shared_rounds import shared_update
from hansa_client.splits import Rows
from hansa_client.training_loop import TrainingOutcome
from hansa_client.variates import Variate, VariateStore, control_delta, name_in_stage
from hansa_common import __version__, statistics
from hansa_common.agreement import Agreement
from hansa_common.agreement_sections import Plan
from hansa_common.errors import MerchantError, MessageError, PolicyError
from hansa_common.features import FittedPreprocessing, Inputs
from hansa_common.messages import (
    CandidateOrder,
    CandidateReply,
    Delivered,
    DeliverOrder,
    EvaluateOrder,
    EvaluateReply,
    IntroduceOrder,
    Introduction,
    RangesOrder,
    RangesReply,
    RoundOrder,
    RoundReply,
    StatisticsOrder,
    StatisticsReply,
    encode,
    message_hash,
)
from hansa_common.metrics import HISTOGRAM_LENGTH, Histogram, score_histogram
from hansa_common.privacy_costs import check_affordable
from hansa_common.pruning import permitted_mask
from hansa_common.randomness import derived_seed, generator
from hansa_common.record_types import Order, Record
from hansa_common.secure_messages import KeysOrder, MaskableOrder, UnmaskOrder
from hansa_common.shared_noise import is_shared
from hansa_common.vectors import Vector, num_params

Part = Literal["train", "validation", "test"]
_NO_CONTROL: Final = np.zeros(0, np.float32)


class MerchantTrainer:
    """One merchant under one agreement, in whatever process; implements guarded_trainer.Worker."""

    def __init__(
        self,
        agreement: Agreement,
        merchant: str,
        table: MerchantTable,
        *,
        hash_key: bytes | None,
        state: VariateStore,
        programs: Programs,
        out: Path | None = None,
        sums: MaskedSums | None = None,
        draw_noise: DrawNoise = system_noise,
    ) -> None:
        """Take the merchant's rows; in the folder `out` its own figures and bundle are kept (None: nowhere). `sums` is
        its part in masked sums, where the agreement has them. Noise under [privacy.dp] is the operating system's, but
        in a simulation.

        Raises:
            AgreementError: a run would cost more privacy than the agreement promises.
        """
        check_affordable(agreement)
        self.table = table
        self.own_figures: OwnFigures | None = None
        self._agreement = agreement
        self._merchant = merchant
        self._hash_key = hash_key
        self._state = state
        self._programs = programs
        self._out = out
        self._sums = sums
        self._draw_noise = draw_noise
        self._releases = releases_of(agreement, draw_noise)
        self._preprocessing = ""
        self._rows: dict[Part, Rows] = {"train": table.train, "validation": table.validation, "test": table.test}
        self._inputs: dict[Part, Inputs] = {}

    def work(self, order: Order, order_hash: str, halt: Halt) -> bytes:
        """The encoded reply to a permitted order; training, scoring and preparing rows stop where `halt` says so.

        Raises:
            HansaError: it cannot be done, or not before its deadline.
        """
        halt.check()
        if isinstance(order, KeysOrder | UnmaskOrder):
            return encode(self._masked_sums.answer(order, order_hash))
        if isinstance(order, MaskableOrder) and order.masking is not None:
            self._masked_sums.check_under_way(order)
        if isinstance(order, RoundOrder):
            return self._round(order, order_hash, halt)
        return encode(self._short_answer(order, order_hash, halt))

    def _short_answer(self, order: Order, order_hash: str, halt: Halt) -> Record:
        match order:
            case IntroduceOrder():
                return self._introduction(order_hash)
            case StatisticsOrder():
                return self._leaving(order, self._statistics(order_hash))
            case EvaluateOrder():
                return self._leaving(order, self._evaluation(order, order_hash, halt))
            case RangesOrder():
                return self._ranges(order, order_hash, halt)
            case CandidateOrder():
                return self._judgement(order, order_hash, halt)
            case DeliverOrder():
                return self._delivery(order, order_hash, halt)
        raise MessageError(f"{order.KIND} is not an order that a merchant knows")

    def _leaving(self, order: MaskableOrder, reply: StatisticsReply | RoundReply | EvaluateReply) -> Record:
        """The reply as it leaves: masked where that is asked for."""
        return reply if order.masking is None else self._masked_sums.masked(order, reply)

    @property
    def _masked_sums(self) -> MaskedSums:
        if self._sums is None:
            raise PolicyError("the order is about a masked sum, and this trainer takes part in none")
        return self._sums

    def _introduction(self, order_hash: str) -> Introduction:
        backend, device = self._programs.device
        return Introduction(
            merchant=self._merchant, order_hash=order_hash, hansa_version=__version__, backend=backend, device=device
        )

    def _statistics(self, order_hash: str) -> StatisticsReply:
        rows = self.table.train
        columns = {name: values[rows] for name, values in self.table.columns.items()}
        vector = statistics.measure(self._agreement, columns, self.table.labels[rows])
        return StatisticsReply(
            merchant=self._merchant,
            order_hash=order_hash,
            statistics=self._releases.statistics(vector),
            num_train_rows=len(rows),
        )

    def _ranges(self, order: RangesOrder, order_hash: str, halt: Halt) -> RangesReply:
        weights = self._checked("weights", order.weights)
        self._prepare(order.preprocessing, halt)
        floor = self._agreement.privacy.min_count
        counted = range_histograms(self._programs.spec, weights, self._inputs["train"], floor)
        return RangesReply(merchant=self._merchant, order_hash=order_hash, histograms=counted)

    def _judgement(self, order: CandidateOrder, order_hash: str, halt: Halt) -> CandidateReply:
        weights = self._checked("weights", order.weights)
        self._prepare(order.preprocessing, halt)
        inputs, labels = self._inputs[order.split], self.table.labels[getattr(self.table, order.split)]
        logits = self._programs.scoring().logits(weights, inputs, halt.is_due)
        found = compared(logits, order.network, inputs, labels, halt)
        return CandidateReply(
            merchant=self._merchant,
            order_hash=order_hash,
            histogram=self._releases.histogram(found.original, f"{order.split} original"),
            candidate=self._releases.histogram(found.candidate, f"{order.split} candidate"),
            acceptable=found.pr_auc_loss <= self._agreement.compression.max_merchant_pr_auc_loss,
        )

    def _delivery(self, order: DeliverOrder, order_hash: str, halt: Halt) -> Delivered:
        if self._out is None:
            raise PolicyError("the order brings a bundle, and this trainer has no folder to keep one in")
        inbox = Inbox(self._out, self._agreement)
        arrived = inbox.opened(order.bundle)
        self._prepare(arrived.bundle.preprocessing.to_json(), halt)
        labels = self.table.labels[self._rows["validation"]]
        inbox.keep(arrived, arrived.decided(self._inputs["validation"], labels))
        return Delivered(merchant=self._merchant, order_hash=order_hash)

    def _round(self, order: RoundOrder, order_hash: str, halt: Halt) -> bytes:
        weights = self._checked("weights", order.weights)
        scaffold = self._agreement.training.plans[order.plan].algorithm == "scaffold"
        control = self._checked("control", order.control) if scaffold else _NO_CONTROL
        if not scaffold and len(order.control) > 0:
            raise PolicyError(f"the order brings a control variate, plan {order.plan} has none")
        agreed, pruned = self._agreement.compression.sparsity, order.stage == "prune"
        mask = permitted_mask(self._programs.spec, order.masks, weights, agreed) if pruned else None
        self._prepare(order.preprocessing, halt)
        validation = np.zeros(HISTOGRAM_LENGTH, np.int64)
        if order.asks_scores:
            validation = self._releases.of_round(lambda: self._histogram(weights, "validation", halt))
        variate = self._variate(order) if scaffold else _NO_CONTROL
        update, outcome = self._updated(order, weights, control - variate if scaffold else None, mask, halt)
        delta = self._control_delta(order, control, update, outcome.num_steps) if scaffold else _NO_CONTROL
        trained = RoundReply(
            merchant=self._merchant,
            order_hash=order_hash,
            round=order.round,
            num_examples=len(self.table.train),
            update=_finite("update", update),
            control_delta=_finite("control_delta", delta),
            validation=validation,
            train_loss=outcome.mean_loss,
        )
        reply = encode(self._leaving(order, trained))
        if scaffold:
            proposal = Variate(order.round, message_hash(weights.tobytes()), message_hash(reply), variate + delta)
            self._state.propose(name_in_stage(order.run_id, order.stage), order.plan, proposal)
        return reply

    def _updated(
        self, order: RoundOrder, weights: Vector, correction: Vector | None, mask: Vector | None, halt: Halt
    ) -> tuple[Vector, TrainingOutcome]:
        """The update, and what else came of training."""
        if is_shared(self._agreement):
            return self._shared_update(order, weights, halt), TrainingOutcome(weights, 1, 0.0)
        outcome = self._train(order, weights, correction, mask, halt)
        return outcome.weights - weights, outcome

    def _train(
        self,
        order: RoundOrder,
        weights: Vector,
        correction: Vector | None,
        mask: Vector | None,
        halt: Halt,
    ) -> TrainingOutcome:
        if self._agreement.privacy.dp is not None:
            return self._train_privately(order, weights, correction, halt)
        training = self._programs.training(order.plan)
        purpose = (self._merchant, order.plan, order.round)
        plan = self._agreement.training.plans[order.plan]
        return training.train(
            weights,
            self._inputs["train"],
            self.table.labels[self.table.train],
            self._epochs(plan, *purpose),
            correction=correction,
            mask=mask,
            dropout_seed=derived_seed(self._agreement.seed, "dropout", *purpose),
            should_stop=halt.is_due,
            max_steps=plan.local_steps,
        )

    def _epochs(self, plan: Plan, *purpose: str | int) -> Iterator[NDArray[np.int64]]:
        """Orders of the training rows: one for each local epoch, or as many as the local steps take."""
        shuffle = generator(self._agreement.seed, "shuffle", *purpose)
        for _ in count() if plan.local_steps is not None else range(plan.local_epochs):
            yield shuffle.permutation(len(self.table.train))

    def _train_privately(
        self, order: RoundOrder, weights: Vector, correction: Vector | None, halt: Halt
    ) -> TrainingOutcome:
        return train_privately(
            self._programs.private_training(order.plan),
            private_work(self._agreement, order.plan),
            self.table,
            self._inputs["train"],
            weights,
            self._draw_noise(f"round {order.round}"),
            correction=correction,
            learning_rate=self._agreement.training.plans[order.plan].learning_rate,
            should_stop=halt.is_due,
        )

    def _shared_update(self, order: RoundOrder, weights: Vector, halt: Halt) -> Vector:
        """Without noise: this merchant's share is added to the masked vector, and in the clear it does not leave."""
        return shared_update(
            self._programs.gradient_sums(),
            self._programs.spec,
            self._agreement,
            self.table,
            self._inputs["train"],
            weights,
            self._draw_noise(f"round {order.round}"),
            learning_rate=self._agreement.training.plans[order.plan].learning_rate,
            should_stop=halt.is_due,
        )

    def _variate(self, order: RoundOrder) -> Vector:
        committed = self._state.begin(name_in_stage(order.run_id, order.stage), order.plan, order.included)
        if committed is None:
            return np.zeros_like(order.weights)
        return self._checked("stored variate", committed)

    def _control_delta(self, order: RoundOrder, control: Vector, update: Vector, num_steps: int) -> Vector:
        learning_rate = self._agreement.training.plans[order.plan].learning_rate
        return control_delta(control, update, num_steps, learning_rate)

    def _evaluation(self, order: EvaluateOrder, order_hash: str, halt: Halt) -> EvaluateReply:
        weights = self._checked("weights", order.weights)
        self._prepare(order.preprocessing, halt)
        histogram = self._histogram(weights, order.split, halt)
        shared = None
        # What only stands beside the finished model has no say in this merchant's figures and threshold.
        if order.split == "test" and order.stage == "train":
            self.own_figures = self._own_figures(order.run_id, self._histogram(weights, "validation", halt), histogram)
            shared = self.own_figures.shared(self._agreement.privacy)
        released = self._releases.histogram(histogram, f"{order.split} of {order.stage}")
        return EvaluateReply(merchant=self._merchant, order_hash=order_hash, histogram=released, metrics=shared)

    def _own_figures(self, run_id: str, validation: Histogram, test: Histogram) -> OwnFigures:
        figures = OwnFigures.measure(run_id, validation, test)
        if self._out is not None:
            figures.keep(self._out, self._merchant, self._agreement.fingerprint)
        return figures

    def _checked(self, name: str, vector: Vector) -> Vector:
        expected = num_params(self._programs.spec.shapes)
        if len(vector) != expected:
            raise MessageError(f"{name} has {len(vector)} numbers, the agreed model has {expected}")
        if not np.isfinite(vector).all():
            raise MessageError(f"{name} holds a number that is not finite")
        return vector

    def _prepare(self, preprocessing: str, halt: Halt) -> None:
        """Turn the rows into inputs, unless the last order came with the same preprocessing."""
        if preprocessing == self._preprocessing:
            return
        fitted = FittedPreprocessing.from_json(preprocessing)
        if fitted.features != self._agreement.features:
            raise PolicyError("the order's preprocessing is for other features than the agreement's")
        inputs = fitted.transform(self.table.columns, self._hash_key)
        self._inputs = {part: inputs.take(rows) for part, rows in self._rows.items()}
        self._preprocessing = preprocessing
        halt.check()

    def _histogram(self, weights: Vector, part: Part, halt: Halt) -> Histogram:
        logits = self._programs.scoring().logits(weights, self._inputs[part], halt.is_due)
        if self._agreement.privacy.dp is not None:
            # That some row overflows must not show, in a refusal least of all.
            logits = np.nan_to_num(logits)
        return score_histogram(logits, self.table.labels[self._rows[part]])


def _finite(name: str, vector: Vector) -> Vector:
    if not np.isfinite(vector).all():
        raise MerchantError(f"training diverged: {name} holds a number that is not finite; lower the learning rate")
    return vector
