"""Figures of one model over all merchants' rows, from score histograms that add up; no score is seen here.

With fewer than cohort.min_merchants accepted replies there are no figures, for they would be about those few. Under
[privacy.dp] they are of noised histograms, or there are none; under masks, of the one sum that masked_figures.py gets.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from hansa_common import noised_histograms
from hansa_common.messages import EvaluateOrder, EvaluateReply, SharedMetrics
from hansa_common.metrics import HISTOGRAM_LENGTH, Metrics, metrics_from_histogram
from hansa_common.record_types import Reply, Stage
from hansa_common.vectors import Vector
from hansa_server.masked_figures import masked_metrics
from hansa_server.participants import Merchant, Run
from hansa_server.replies import Split, check_evaluate_reply, max_split_rows
from hansa_server.robust_masked import grouped_metrics


@dataclass(frozen=True)
class Evaluation:
    """The federation's figures (None: withheld, one class only, or too few replies), and each merchant's own
    where the agreement's share_metrics lets them leave.
    """

    metrics: Metrics | None
    shared: Mapping[str, SharedMetrics]


def evaluate(
    run: Run,
    merchants: tuple[Merchant, ...],
    split: Split,
    preprocessing: str,
    weights: Vector,
    stage: Stage = "train",
) -> Evaluation:
    """Ask these registered merchants, in roster order, what weights (num_params,) float32 do on one part of rows;
    `stage` is the one that made them.
    """
    if run.agreement.secure_aggregation.is_on:
        if split == "validation":
            run.sums.is_first_asked_to_score(weights)
        metrics_of = masked_metrics if run.agreement.robustness.groups is None else grouped_metrics
        return Evaluation(metrics_of(run, merchants, split, preprocessing, weights, stage), {})

    def order(merchant: Merchant) -> EvaluateOrder:
        header = run.header(merchant.name)
        return EvaluateOrder(**header, split=split, preprocessing=preprocessing, weights=weights, stage=stage)

    def check(merchant: Merchant, reply: Reply) -> EvaluateReply:
        max_examples = run.agreement.cohort.max_examples
        max_rows = max_split_rows(run.agreement.data, split, merchant.num_train_rows, max_examples)
        return check_evaluate_reply(reply, max_rows, run.agreement.privacy.dp)

    histogram = np.zeros(HISTOGRAM_LENGTH, np.int64)
    shared: dict[str, SharedMetrics] = {}
    num_accepted = 0
    for heard in run.ask(f"{split} evaluation", merchants, order, check):
        if heard.reply is None:
            continue
        num_accepted += 1
        histogram += heard.reply.histogram
        if heard.reply.metrics is not None and run.agreement.privacy.share_metrics:
            shared[heard.merchant.name] = heard.reply.metrics
    enough = num_accepted >= run.agreement.cohort.min_merchants
    dp = run.agreement.privacy.dp
    histogram = histogram if dp is None else noised_histograms.plausible(histogram, dp, num_accepted)
    return Evaluation(metrics_from_histogram(histogram) if enough else None, shared)
