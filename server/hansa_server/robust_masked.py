"""What is learned where masked sums are of groups: a rule across their means, and no sum smaller than a group's.

- A round's step is the rule's over the groups' mean updates; a group whose sum was abandoned, or is none that the
  agreed bounds allow, is left out, and with fewer groups than the rule needs the state stays as it is.
- Preprocessing is fitted to the median of what each group's statistics would fit.
- Figures on validation and test rows are of all groups' histograms together: they choose no model
  (robust_agreement.py).

Source: Velicheti et al., "Secure Byzantine-Robust Distributed Learning via Clustering" (2021).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import numpy as np

from hansa_common.masking import Ring
from hansa_common.messages import EvaluateOrder, StatisticsOrder
from hansa_common.metrics import HISTOGRAM_LENGTH, Histogram, Metrics, check_histogram, metrics_from_histogram
from hansa_common.record_types import Stage
from hansa_common.round_vector import RoundSum
from hansa_common.secure_layouts import evaluation_layout, round_layout, statistics_layout
from hansa_common.secure_messages import MaskableOrder
from hansa_common.shared_noise import longest_mean
from hansa_common.statistics import Statistics
from hansa_common.vectors import Vector
from hansa_server.algorithms import step
from hansa_server.masked_figures import IMPLAUSIBLE, check_sum_of_statistics, decoded_histogram
from hansa_server.masked_rounds import check_mean, masked_order
from hansa_server.masked_sums import SumAbandoned, Summed, masked_sums, named
from hansa_server.participants import Merchant, Run
from hansa_server.replies import Split
from hansa_server.robust_rounds import robust_step
from hansa_server.rounds import PlanState, Round
from hansa_server.run_events import ReplyReceived, RoundFinished, RoundStarted

Decoded = TypeVar("Decoded")


def run_grouped_round(run: Run, merchants: tuple[Merchant, ...], asked: Round) -> tuple[PlanState, RoundFinished]:
    """Run one round over these registered merchants, given in roster order."""
    began = run.exchange.clock.now()
    names = tuple(merchant.name for merchant in merchants)
    run.tell(RoundStarted(asked.number, asked.plan_index, names, asked.stage))
    agreement, what = run.agreement, f"round {asked.number}"
    layout = round_layout(agreement, asked.state.server.weights.size, asked.number)
    sums = masked_sums(
        run, merchants, what, masked_order(run, asked), layout.num_elements,
        on_reply=lambda name: run.tell(ReplyReceived(asked.number, name)),
    )  # fmt: skip

    def decode(total: Ring, num_merchants: int) -> RoundSum:
        found = layout.decode(total, num_merchants)
        check_histogram(found.counts, agreement.cohort.max_examples * num_merchants)
        check_mean(found, longest_mean(agreement, asked.plan.learning_rate, found.num_examples))
        return found

    known = _decoded(run, what, sums.of_groups, decode)
    is_enough = len(known) >= agreement.robustness.least_units
    finished = RoundFinished(
        round=asked.number,
        plan=asked.plan_index,
        seconds=run.exchange.clock.now() - began,
        cohort=names,
        dropped={name: why for summed in sums.of_groups for name, why in summed.dropped.items()},
        aggregated=is_enough,
        validation=_metrics([found.counts for _, found in known]) if is_enough else None,
        # Under [privacy.dp] no loss leaves a merchant, and what stands in its place is no figure.
        train_loss=_median_loss(known) if is_enough and agreement.privacy.dp is None else None,
        bytes_received=sums.bytes_received,
        bytes_sent=sums.bytes_sent,
        stage=asked.stage,
        abandoned="" if is_enough else "too-few-groups",
    )
    run.tell(finished)
    if not is_enough:
        return asked.state, finished
    groups = [str(group) for group, _ in known]
    decided = robust_step(agreement.robustness, groups, [found.mean_update for _, found in known])
    included = {name: reply for group, _ in known for name, reply in sums.of_groups[group].in_sum.items()}
    server = step(asked.state.server, asked.plan, decided.step)
    return PlanState(server, {**asked.state.included, **included}), finished


def grouped_statistics(run: Run, merchants: tuple[Merchant, ...]) -> list[Statistics]:
    """The statistics of each group that has a sum of them; none where too few have."""
    layout = statistics_layout(run.agreement)

    def order(_: Merchant, header: dict[str, Any]) -> MaskableOrder:
        return StatisticsOrder(**header)

    def decode(total: Ring, num_merchants: int) -> Statistics:
        values = layout.decode(total, num_merchants)
        check_sum_of_statistics(run.agreement, values[1:], int(values[0]))
        return np.asarray(values[1:], np.int64)

    sums = masked_sums(run, merchants, "statistics", order, layout.num_elements)
    known = _decoded(run, "statistics", sums.of_groups, decode)
    return [vector for _, vector in known] if len(known) >= run.agreement.robustness.least_units else []


def grouped_metrics(
    run: Run, merchants: tuple[Merchant, ...], split: Split, preprocessing: str, weights: Vector, stage: Stage
) -> Metrics | None:
    """What weights (num_params,) float32 do on one part of the merchants' rows, as far as groups tell of it."""
    layout = evaluation_layout(run.agreement)

    def order(_: Merchant, header: dict[str, Any]) -> MaskableOrder:
        return EvaluateOrder(**header, split=split, preprocessing=preprocessing, weights=weights, stage=stage)

    def decode(total: Ring, num_merchants: int) -> Histogram:
        return decoded_histogram(run.agreement, total, num_merchants)

    what = f"{split} evaluation"
    # The finished model's test is a run's last question.
    sums = masked_sums(run, merchants, what, order, layout.num_elements, is_last=split == "test")
    return _metrics([histogram for _, histogram in _decoded(run, what, sums.of_groups, decode)])


def _decoded(
    run: Run, what: str, sums: Sequence[Summed], decode: Callable[[Ring, int], Decoded]
) -> list[tuple[int, Decoded]]:
    """The groups that have a sum which merchants within the agreed bounds can have, by place."""
    known = []
    for group, summed in enumerate(sums):
        if summed.total is None:
            continue
        try:
            known.append((group, decode(summed.total, len(summed.in_sum))))
        except ValueError as error:
            run.tell(SumAbandoned(named(run, what, group), IMPLAUSIBLE, str(error)))
    return known


def _median_loss(known: Sequence[tuple[int, RoundSum]]) -> float | None:
    loss = float(np.median([found.mean_loss for _, found in known]))
    return loss if np.isfinite(loss) else None


def _metrics(histograms: Sequence[Histogram]) -> Metrics | None:
    total = np.zeros(HISTOGRAM_LENGTH, np.int64)
    for histogram in histograms:
        total += histogram
    return metrics_from_histogram(total)
