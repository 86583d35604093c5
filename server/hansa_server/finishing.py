"""The finished model made small: activation ranges from the merchants, files from a child process, and the merchants'
judgement, without which nothing is released. It is made from the pruned weights where there are some, and judged beside
the kept ones in either case.

ranges of merged histograms -> compression.compress -> candidate, judged on validation rows -> its figures on test rows

| case                                                                  | outcome                               |
|-----------------------------------------------------------------------|---------------------------------------|
| pooled PR-AUC falls by more than compression.max_pr_auc_loss          | not released, with both figures       |
| a merchant's own falls by more than max_merchant_pr_auc_loss          | not released, naming the merchant     |
| fewer than cohort.min_merchants answer, or figures are withheld       | not released: nobody could judge      |
| no ranges, or the child fails                                         | not released, with its reason         |

The float model stays as it is in every case.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from hansa_common.activations import check_activation_histograms, histograms_length, ranges_from_histograms
from hansa_common.errors import CompressionError, ReplyError
from hansa_common.messages import MAX_RANGE_ROWS, CandidateOrder, CandidateReply, RangesOrder, RangesReply
from hansa_common.metrics import HISTOGRAM_LENGTH, Metrics, metrics_from_histogram
from hansa_common.model import ModelSpec
from hansa_common.record_types import Reply
from hansa_common.vectors import Vector
from hansa_server.compression import Compressed, CompressionReport, compress
from hansa_server.participants import Merchant, Run
from hansa_server.pruning_rounds import NOT_BEGUN, Pruned, Pruning, Stages
from hansa_server.replies import Split, check_histogram_of, max_split_rows
from hansa_server.run_events import CandidateJudged, CompressionStarted, areas

Compress = Callable[[ModelSpec, Vector, Any], Compressed]


@dataclass(frozen=True)
class Judgement:
    """What the merchants found on one part of their rows; a figure is None where withheld or too few answered."""

    original: Metrics | None
    candidate: Metrics | None
    refused_by: tuple[str, ...]

    @property
    def pr_auc_loss(self) -> float | None:
        """By how much the candidate is worse; below zero where it is better."""
        if self.original is None or self.candidate is None:
            return None
        return self.original.pr_auc - self.candidate.pr_auc


@dataclass(frozen=True)
class Finished:
    """The small model: its files and what was found in them, where they were made, and the weights (num_params,) that
    are in them; `refusal` says why it is not released, and is empty where it is. `test` is known of a released one
    only.
    """

    refusal: str
    weights: Vector
    pruning: Pruned | None = None
    compressed: Compressed | None = None
    validation: Judgement | None = None
    test: Judgement | None = None

    @property
    def released(self) -> Compressed | None:
        """The files to ship, None where the float model is all there is."""
        return None if self.refusal else self.compressed

    def to_json(self) -> dict[str, Any]:
        """The parts of metrics.json that tell of it: `compression`, and `compressed` where it is released."""
        told: dict[str, Any] = {"released": not self.refusal, "reason": self.refusal}
        if self.pruning is not None:
            told["pruning"] = self.pruning.to_json()
        if self.validation is not None:
            told["validation"] = {
                "original": areas(self.validation.original),
                "candidate": areas(self.validation.candidate),
                "refused_by": list(self.validation.refused_by),
            }
        if self.compressed is not None:
            told["found"] = self.compressed.report.to_json()
        if self.released is None or self.test is None:
            return {"compression": told}
        return {
            "compression": told,
            "compressed": areas(self.test.candidate) or {"roc_auc": None, "pr_auc": None},
            "bundle": _sizes(self.released.report),
        }


@dataclass(frozen=True)
class Trained:
    """The model that a run has kept, (num_params,) float32, with what it is gone on from: its preprocessing, the plan
    that made it, and how many rounds the run has had.
    """

    weights: Vector
    preprocessing: str
    plan_index: int
    num_rounds: int


def finish(
    run: Run, merchants: tuple[Merchant, ...], spec: ModelSpec, trained: Trained, stages: Stages = NOT_BEGUN
) -> Finished:
    """Make a run's model small over its registered merchants, pruned before where its agreement says so; of that,
    `stages` is what has been done.
    """
    pruning = None
    if run.agreement.compression.sparsity:
        rounds = Pruning(run, merchants, spec, trained.preprocessing, trained.plan_index, trained.num_rounds)
        pruning = rounds.pruned(trained.weights, stages)
    return Finishing(run, merchants, spec, trained.preprocessing).finished(trained.weights, pruning)


@dataclass(frozen=True)
class Finishing:
    """The finishing of one model over the merchants of its run."""

    run: Run
    merchants: tuple[Merchant, ...]
    spec: ModelSpec
    preprocessing: str
    compress: Compress = field(default=compress)

    def finished(self, weights: Vector, pruning: Pruned | None = None) -> Finished:
        """Make the model of these weights (num_params,), or of what pruning left of them, small and have it judged."""
        self.run.tell(CompressionStarted())
        small = weights if pruning is None or pruning.weights is None else pruning.weights
        finished = replace(self._finished(weights, small), pruning=pruning)
        loss = None if finished.validation is None else finished.validation.pr_auc_loss
        size = None if finished.compressed is None else finished.compressed.report.bytes
        self.run.tell(CandidateJudged(finished.refusal, loss, size))
        return finished

    def _finished(self, weights: Vector, small: Vector) -> Finished:
        try:
            ranges = ranges_from_histograms(
                self.spec, self._histograms(small), self.run.agreement.compression.range_quantile
            )
            compressed = self.compress(self.spec, small, ranges)
        except CompressionError as error:
            return Finished(str(error), small)
        judgement = self._judged("validation", weights, compressed.int8_file)
        refusal = self._refusal(judgement)
        if refusal:
            return Finished(refusal, small, None, compressed, judgement)
        return Finished("", small, None, compressed, judgement, self._judged("test", weights, compressed.int8_file))

    def _histograms(self, weights: Vector) -> np.ndarray[Any, np.dtype[np.int64]]:
        """The merchants' activation histograms together."""

        def check(merchant: Merchant, reply: Reply) -> RangesReply:
            if not isinstance(reply, RangesReply):
                raise ReplyError("wrong-kind", f"ranges were asked for, {reply.KIND} came")
            try:
                check_activation_histograms(self.spec, reply.histograms, min(MAX_RANGE_ROWS, merchant.num_train_rows))
            except ValueError as error:
                raise ReplyError("histogram", str(error)) from None
            return reply

        def order(merchant: Merchant) -> RangesOrder:
            return RangesOrder(**self.run.header(merchant.name), preprocessing=self.preprocessing, weights=weights)

        merged, num_replies = np.zeros(histograms_length(self.spec), np.int64), 0
        for heard in self.run.ask("ranges", self.merchants, order, check):
            if heard.reply is not None:
                merged, num_replies = merged + heard.reply.histograms, num_replies + 1
        least = self.run.agreement.cohort.min_merchants
        if num_replies < least:
            raise CompressionError(
                f"{num_replies} merchants sent activation histograms, cohort.min_merchants is {least}"
            )
        return merged

    def _judged(self, split: Split, weights: Vector, network: bytes) -> Judgement:
        agreement, content = self.run.agreement, np.frombuffer(network, np.uint8)

        def order(merchant: Merchant) -> CandidateOrder:
            return CandidateOrder(
                **self.run.header(merchant.name),
                split=split,
                preprocessing=self.preprocessing,
                weights=weights,
                network=content,
            )

        def check(merchant: Merchant, reply: Reply) -> CandidateReply:
            if not isinstance(reply, CandidateReply):
                raise ReplyError("wrong-kind", f"a judgement was asked for, {reply.KIND} came")
            max_rows = max_split_rows(agreement.data, split, merchant.num_train_rows, agreement.cohort.max_examples)
            check_histogram_of(reply.histogram, max_rows)
            check_histogram_of(reply.candidate, max_rows)
            return reply

        original, candidate = np.zeros((2, HISTOGRAM_LENGTH), np.int64)
        num_replies, refused_by = 0, []
        for heard in self.run.ask(f"{split} judgement", self.merchants, order, check):
            if heard.reply is None:
                continue
            num_replies += 1
            original += heard.reply.histogram
            candidate += heard.reply.candidate
            if not heard.reply.acceptable:
                refused_by.append(heard.merchant.name)
        if num_replies < agreement.cohort.min_merchants:
            return Judgement(None, None, tuple(refused_by))
        return Judgement(metrics_from_histogram(original), metrics_from_histogram(candidate), tuple(refused_by))

    def _refusal(self, judgement: Judgement) -> str:
        allowed, reasons = self.run.agreement.compression, []
        if judgement.refused_by:
            reasons.append(
                f"{', '.join(judgement.refused_by)} would lose more than {allowed.max_merchant_pr_auc_loss:g} PR-AUC "
                "on their own validation rows"
            )
        original, candidate = judgement.original, judgement.candidate
        if original is None or candidate is None:
            reasons.append("too few merchants could judge it on validation rows")
        elif (loss := original.pr_auc - candidate.pr_auc) > allowed.max_pr_auc_loss:
            reasons.append(
                f"validation PR-AUC would fall by {loss:.3g}, from {original.pr_auc:.4f} to {candidate.pr_auc:.4f}, "
                f"allowed are {allowed.max_pr_auc_loss:g}"
            )
        return "; ".join(reasons)


def _sizes(report: CompressionReport) -> dict[str, float]:
    """The file's sizes in bytes, and the share of zeros in dense kernels."""
    return {
        "bytes": report.bytes,
        "gzip_bytes": report.gzip_bytes,
        "float32_bytes": report.float32_bytes,
        "sparsity": report.sparsity,
    }
