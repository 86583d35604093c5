"""What happens in a run, as frozen records that a display or a log can use. None holds a row, an update or a key.

`line` says it in one sentence; `level` is logging's. A word that came from a node is shown quoted and escaped.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from hansa_common.metrics import Metrics
from hansa_common.record_types import Stage


@dataclass(frozen=True)
class Event:
    """Base of what happens in a run."""

    @property
    def level(self) -> int:
        """How much it matters, as logging counts it."""
        return logging.INFO

    @property
    def line(self) -> str:
        """What happened, in one line."""
        raise NotImplementedError


@dataclass(frozen=True)
class RunStarted(Event):
    """The run waits for its merchants. Where it goes on from a checkpoint, `num_rounds_done` of its rounds are done."""

    run_id: str
    agreement_name: str
    fingerprint: str
    roster: tuple[str, ...]
    num_rounds: int
    num_rounds_done: int | None = None

    @property
    def line(self) -> str:
        who = _merchants(len(self.roster)) if self.roster else "merchants"
        done = "" if self.num_rounds_done is None else f" goes on after round {self.num_rounds_done}"
        return f"{self.agreement_name}: agreement {self.fingerprint[:12]}, run {self.run_id}{done}; waiting for {who}"


@dataclass(frozen=True)
class NodeRefused(Event):
    """A node does not take part, at least for now."""

    node_id: int
    reason: str
    claimed_name: str = ""

    @property
    def level(self) -> int:
        return logging.WARNING

    @property
    def line(self) -> str:
        name = f" that calls itself {self.claimed_name!r}" if self.claimed_name else ""
        return f"node {self.node_id}{name} is not taken: {self.reason}"


@dataclass(frozen=True)
class MerchantIntroduced(Event):
    """A node has said whose it is, and that this merchant approved the run's agreement."""

    node_id: int
    name: str
    version: str

    @property
    def level(self) -> int:
        return logging.DEBUG

    @property
    def line(self) -> str:
        return f"node {self.node_id} is {self.name!r}, with Hansa {self.version!r}"


@dataclass(frozen=True)
class MerchantsIntroduced(Event):
    """These merchants take part, on these devices; those of the roster who did not come are missing."""

    names: tuple[str, ...]
    missing: tuple[str, ...]
    devices: tuple[str, ...] = ()

    @property
    def line(self) -> str:
        missing = f"; missing: {', '.join(self.missing)}" if self.missing else ""
        devices = f"; computing with {', '.join(map(repr, self.devices))}" if self.devices else ""
        return f"{_merchants(len(self.names))}: {', '.join(self.names)}{missing}{devices}"


@dataclass(frozen=True)
class ReplyDropped(Event):
    """A merchant's reply to one order is left out."""

    merchant: str
    stage: str
    reason: str
    detail: str = ""

    @property
    def level(self) -> int:
        return logging.WARNING

    @property
    def line(self) -> str:
        return f"{self.stage}: {self.merchant} is left out, {self.reason}" + (self.detail and f" ({self.detail})")


@dataclass(frozen=True)
class RoundStarted(Event):
    """A round's orders go out."""

    round: int
    plan: int
    cohort: tuple[str, ...]
    stage: Stage = "train"

    @property
    def level(self) -> int:
        return logging.DEBUG

    @property
    def line(self) -> str:
        return f"round {self.round}: asking {_merchants(len(self.cohort))}"


@dataclass(frozen=True)
class ReplyReceived(Event):
    """One merchant of the round is done with, dropped or not."""

    round: int
    merchant: str

    @property
    def level(self) -> int:
        return logging.DEBUG

    @property
    def line(self) -> str:
        return f"round {self.round}: {self.merchant} answered"


@dataclass(frozen=True)
class RoundFinished(Event):
    """A round is over. `validation` is of the model that came in, None where withheld or too few replied; `selected`
    names those of whose updates alone the step was made, where the agreed rule selects; `abandoned` is the word for why
    there is no masked sum, where that is why nothing was aggregated.
    """

    round: int
    plan: int
    seconds: float
    cohort: tuple[str, ...]
    dropped: Mapping[str, str]
    aggregated: bool
    validation: Metrics | None
    train_loss: float | None
    bytes_received: int
    bytes_sent: int
    stage: Stage = "train"
    selected: tuple[str, ...] = ()
    abandoned: str = ""

    @property
    def level(self) -> int:
        return logging.INFO if self.aggregated else logging.WARNING

    @property
    def line(self) -> str:
        replies = f"{len(self.cohort) - len(self.dropped)} of {_merchants(len(self.cohort))}"
        came_in = "withheld" if self.validation is None else f"{self.validation.pr_auc:.4f}"
        outcome = "" if self.aggregated else f"; {self.abandoned or 'too few replies'}, the last model stays"
        stage = "" if self.stage == "train" else f"{self.stage}, "
        selected = f", made of the update of {', '.join(self.selected)} alone" if self.selected else ""
        return (
            f"{stage}round {self.round}: {replies}, validation PR-AUC of the incoming model {came_in}, "
            f"{self.seconds:.1f} s, {traffic(self.bytes_received, self.bytes_sent)}{selected}{outcome}"
        )

    def to_json(self) -> dict[str, Any]:
        """The round's entry in metrics.json and its line in rounds.jsonl."""
        return {
            "round": self.round,
            "stage": self.stage,
            "plan": self.plan,
            "seconds": self.seconds,
            "cohort": list(self.cohort),
            "dropped": dict(self.dropped),
            "selected": list(self.selected),
            "aggregated": self.aggregated,
            "abandoned": self.abandoned,
            "validation": areas(self.validation),
            "train_loss": self.train_loss,
            "bytes_received": self.bytes_received,
            "bytes_sent": self.bytes_sent,
        }


@dataclass(frozen=True)
class ModelValidated(Event):
    """The model after a round, and the best so far of its plan."""

    model_round: int
    pr_auc: float
    best_round: int
    best_pr_auc: float

    @property
    def level(self) -> int:
        return logging.DEBUG

    @property
    def line(self) -> str:
        return f"model after round {self.model_round}: validation PR-AUC {self.pr_auc:.4f}"


@dataclass(frozen=True)
class PlanChosen(Event):
    """Of several candidates, this one goes on."""

    plan: int
    algorithm: str
    pr_auc: float | None

    @property
    def line(self) -> str:
        figure = "validation withheld" if self.pr_auc is None else f"validation PR-AUC {self.pr_auc:.4f}"
        return f"plan {self.plan + 1} ({self.algorithm}) goes on: {figure}"


@dataclass(frozen=True)
class StoppedEarly(Event):
    """Further rounds no longer improved the model."""

    round: int
    best_round: int

    @property
    def line(self) -> str:
        return f"stopped after round {self.round}: nothing better since round {self.best_round}"


@dataclass(frozen=True)
class PruningStarted(Event):
    """The kept model is trained on, pruned and, for comparison, as it is."""

    sparsity: float
    num_rounds: int

    @property
    def line(self) -> str:
        return (
            f"pruning {self.sparsity:.0%} of the hidden kernels in {self.num_rounds} rounds, {self.num_rounds} more at "
            "that, and as many without"
        )


@dataclass(frozen=True)
class ModelPruned(Event):
    """The rounds of pruning are over; `reason` says why nothing was pruned, and is empty where something was."""

    reason: str
    pr_auc: float | None
    control_pr_auc: float | None

    @property
    def level(self) -> int:
        return logging.WARNING if self.reason else logging.INFO

    @property
    def line(self) -> str:
        if self.reason:
            return f"the model is not pruned: {self.reason}"
        pruned, control = ("withheld" if f is None else f"{f:.4f}" for f in (self.pr_auc, self.control_pr_auc))
        return f"pruned: validation PR-AUC {pruned}, after the same rounds without masks {control}"


@dataclass(frozen=True)
class CompressionStarted(Event):
    """The kept model is made small."""

    @property
    def line(self) -> str:
        return "making the model small: activation ranges, int8, and the merchants' judgement"


@dataclass(frozen=True)
class CandidateJudged(Event):
    """The merchants have judged the small model; `refusal` is empty where it is released."""

    refusal: str
    pr_auc_loss: float | None
    num_bytes: int | None

    @property
    def level(self) -> int:
        return logging.WARNING if self.refusal else logging.INFO

    @property
    def line(self) -> str:
        if self.refusal:
            return f"the small model is not released: {self.refusal}; the float model remains"
        change = -(self.pr_auc_loss or 0.0)
        return f"the small model is released: {self.num_bytes:,} bytes, validation PR-AUC {change:+.4f}"


@dataclass(frozen=True)
class RunFinished(Event):
    """The kept model and its figures on the federation's test rows."""

    best_round: int
    test: Metrics | None

    @property
    def line(self) -> str:
        if self.test is None:
            return f"model after round {self.best_round} kept; its test figures are withheld"
        return (
            f"model after round {self.best_round} kept: test PR-AUC {self.test.pr_auc:.4f}, "
            f"ROC-AUC {self.test.roc_auc:.4f}"
        )


@dataclass(frozen=True)
class DeliveryStarted(Event):
    """The finished bundle is to go out; `outstanding` do not have it yet, and others of the run may get it again."""

    bundle_id: str
    outstanding: tuple[str, ...]

    @property
    def line(self) -> str:
        return f"delivering bundle {self.bundle_id[:12]}; waiting for {', '.join(self.outstanding)}"


@dataclass(frozen=True)
class DeliveryFinished(Event):
    """The merchants who have the bundle now; for others, why they have not."""

    delivered: tuple[str, ...]
    missing: Mapping[str, str]

    @property
    def level(self) -> int:
        return logging.WARNING if self.missing else logging.INFO

    @property
    def line(self) -> str:
        missing = ", ".join(f"{name} ({word})" for name, word in self.missing.items())
        return f"the bundle is at {', '.join(self.delivered) or 'nobody'}" + (missing and f"; not at {missing}")


def areas(metrics: Metrics | None) -> dict[str, float] | None:
    """The two figures that are shown everywhere, or None.

    >>> areas(None) is None
    True
    """
    return None if metrics is None else {"roc_auc": metrics.roc_auc, "pr_auc": metrics.pr_auc}


def traffic(bytes_received: int, bytes_sent: int) -> str:
    """What went to and fro, in the coordinator's words.

    >>> traffic(1_234_567, 20_000)
    '1.23 MB received, 0.02 MB sent'
    """
    return f"{bytes_received / 1e6:.2f} MB received, {bytes_sent / 1e6:.2f} MB sent"


def _merchants(count: int) -> str:
    return f"{count} merchant" + ("" if count == 1 else "s")
