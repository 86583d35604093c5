"""What the coordinator learns of rows besides updates, where everything is masked: sums over those who took part.

Statistics come once a run, and the scores of a model on one part of the rows once; merchants refuse them a second time.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from hansa_common import noised_histograms
from hansa_common.agreement import Agreement
from hansa_common.masking import Ring
from hansa_common.messages import EvaluateOrder, StatisticsOrder
from hansa_common.metrics import Histogram, Metrics, check_histogram, metrics_from_histogram
from hansa_common.record_types import Stage
from hansa_common.secure_layouts import evaluation_layout, statistics_layout
from hansa_common.secure_messages import MaskableOrder
from hansa_common.statistics import NUM_ROW_COUNTS, Statistics, check_statistics
from hansa_common.vectors import Vector
from hansa_server.masked_sums import SumAbandoned, masked_sums
from hansa_server.participants import Merchant, Run
from hansa_server.replies import Split

IMPLAUSIBLE = "implausible"


@dataclass(frozen=True)
class MaskedStatistics:
    """The statistics of these merchants together, and how many training rows they have."""

    merchants: tuple[Merchant, ...]
    statistics: Statistics
    num_train_rows: int


def masked_statistics(run: Run, merchants: tuple[Merchant, ...]) -> MaskedStatistics | None:
    """Gather the statistics of merchants that were introduced; None where there is no sum, which is told."""
    layout = statistics_layout(run.agreement)

    def order(_: Merchant, header: dict[str, Any]) -> MaskableOrder:
        return StatisticsOrder(**header)

    summed = masked_sums(run, merchants, "statistics", order, layout.num_elements).of_roster
    if summed.total is None:
        return None
    try:
        values = layout.decode(summed.total, len(summed.in_sum))
        num_train_rows, vector = int(values[0]), values[1:]
        check_sum_of_statistics(run.agreement, vector, num_train_rows)
    except ValueError as error:
        run.tell(SumAbandoned("statistics", IMPLAUSIBLE, str(error)))
        return None
    in_sum = tuple(merchant for merchant in merchants if merchant.name in summed.in_sum)
    return MaskedStatistics(in_sum, vector, num_train_rows)


def check_sum_of_statistics(agreement: Agreement, vector: Statistics, num_train_rows: int) -> None:
    """Refuse a sum that no merchants with that many training rows together can have counted.

    Raises:
        ValueError: it is none.
    """
    rows, positives = vector[:NUM_ROW_COUNTS].tolist()
    if agreement.privacy.dp is not None:
        # Noise may make anything else of the rest, and what is fitted to it is brought back to what rows can have.
        if rows != num_train_rows:
            raise ValueError(f"statistics of {rows} rows, of {num_train_rows} rows")
        return
    # A merchant with few rows has released its count as zero.
    if not 0 <= positives <= rows <= num_train_rows:
        raise ValueError(f"{positives} of {rows} rows positive, of {num_train_rows} rows")
    checked = vector.copy()
    checked[0] = num_train_rows
    check_statistics(agreement, checked, num_train_rows)


def decoded_histogram(agreement: Agreement, total: Ring, num_merchants: int) -> Histogram:
    """The sum of so many merchants' score histograms.

    Raises:
        ValueError: it is none that they can have.
    """
    histogram, dp = evaluation_layout(agreement).decode(total, num_merchants), agreement.privacy.dp
    if dp is not None:
        return noised_histograms.plausible(histogram, dp, num_merchants)
    check_histogram(histogram, agreement.cohort.max_examples * num_merchants)
    return histogram


def masked_metrics(
    run: Run, merchants: tuple[Merchant, ...], split: Split, preprocessing: str, weights: Vector, stage: Stage
) -> Metrics | None:
    """What weights (num_params,) float32 do on one part of the merchants' rows; None where there is no sum, which is
    told, or it is withheld.
    """
    layout = evaluation_layout(run.agreement)

    def order(_: Merchant, header: dict[str, Any]) -> MaskableOrder:
        return EvaluateOrder(**header, split=split, preprocessing=preprocessing, weights=weights, stage=stage)

    what = f"{split} evaluation"
    # The finished model's test is a run's last question.
    summed = masked_sums(run, merchants, what, order, layout.num_elements, is_last=split == "test").of_roster
    if summed.total is None:
        return None
    try:
        histogram = decoded_histogram(run.agreement, summed.total, len(summed.in_sum))
    except ValueError as error:
        run.tell(SumAbandoned(what, IMPLAUSIBLE, str(error)))
        return None
    return metrics_from_histogram(histogram)
