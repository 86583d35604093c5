"""Quality of scores without pooling them: integer histograms of scores by label, whose sum over merchants
gives the pooled ROC-AUC, PR-AUC, recall at few false positives, best F1, Brier score and reliability curve.

Promises: merging is addition; the same rows give the same histogram; each figure is what scikit-learn
gives for the pooled scores where scores that share a bin are equal, and scores that differ differ in bin.
Limit: distinct scores in one bin count as tied. A bin is 0.001 of a logit wide at 0, 0.1 % of the logit far
out, and everything beyond +-1000 shares the last one. Over thousands of rows that moves a figure by less than
0.001, but for two cases: scores that a model has hardly spread yet, and figures that stand on few rows. With 75
positives, recall at 1 % false positives moves in steps of 1/75 whatever the bins, and with 20 rows a single tie
between a positive and a negative shows.
Refuses NaN and infinite logits. Uncertainty of a difference is bootstrap.py's.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import ArrayLike, NDArray

Histogram = NDArray[np.int64]

NUM_BINS: Final = 16_384
HISTOGRAM_LENGTH: Final = 2 * NUM_BINS
MAX_LOGIT: Final = 1000.0
NUM_RELIABILITY_GROUPS: Final = 10
MAX_CURVE_POINTS: Final = 200

# Bins are uniform in asinh(logit): fine where a logit moves a probability, relative where it only ranks.
_REACH: Final = float(np.arcsinh(MAX_LOGIT))


def _bin_edges() -> NDArray[np.float64]:
    """Ascending logits, shape (NUM_BINS + 1,), from -inf to inf."""
    edges = np.sinh(np.linspace(-_REACH, _REACH, NUM_BINS + 1))
    # Each boundary of a reliability group is made a bin edge, so that the groups hold exactly their rows.
    shares = np.arange(1, NUM_RELIABILITY_GROUPS) / NUM_RELIABILITY_GROUPS
    boundaries = np.log(shares) - np.log1p(-shares)
    edges[np.abs(edges[:, None] - boundaries).argmin(axis=0)] = boundaries
    edges[0], edges[-1] = -np.inf, np.inf
    return edges


def scores_of(logits: NDArray[np.floating[Any]]) -> NDArray[np.float64]:
    """The probabilities that logits stand for, of any shape, as accurate near 0 as a float64 can be; none overflows.

    >>> scores_of(np.float32([-1000.0, -100.0, 0.0, 1000.0]))
    array([0.00000000e+00, 3.72007598e-44, 5.00000000e-01, 1.00000000e+00])
    """
    return np.exp(-np.logaddexp(0.0, -logits.astype(np.float64)))


_EDGES: Final = _bin_edges()
_CENTRES: Final = np.concatenate([[-MAX_LOGIT], (_EDGES[1:-2] + _EDGES[2:-1]) / 2, [MAX_LOGIT]])
_CENTRE_SCORES: Final = scores_of(_CENTRES)


@dataclass(frozen=True)
class Metrics:
    """Figures of one model on some rows. Scores and thresholds are probabilities; a row is predicted positive
    where its score is at least the threshold.

    `recall_at_1_fpr` is read off the ROC curve, linear between its points. `reliability` holds (mean score,
    observed rate, rows) for each tenth of the score range that has rows; `pr_curve` at most 200 (recall,
    precision) in order of recall.
    """

    num_rows: int
    num_positives: int
    roc_auc: float
    pr_auc: float
    recall_at_1_fpr: float
    recall_at_5_fpr: float
    best_f1: float
    best_f1_threshold: float
    brier: float
    reliability: tuple[tuple[float, float, int], ...]
    pr_curve: tuple[tuple[float, float], ...]

    def to_json(self) -> dict[str, Any]:
        """The same as a dictionary of plain numbers and lists."""
        values = asdict(self)
        return {
            **values,
            "reliability": [list(p) for p in self.reliability],
            "pr_curve": [list(p) for p in self.pr_curve],
        }


def score_histogram(logits: ArrayLike, labels: ArrayLike) -> Histogram:
    """Count scores by label and bin: logits (rows,), labels (rows,) of 0 and 1 -> (HISTOGRAM_LENGTH,) int64.

    The first NUM_BINS counts are negatives, the rest positives, each by ascending logit.

    >>> histogram = score_histogram([-2.0, 0.5, 3.0], [0, 0, 1])
    >>> histogram[:NUM_BINS].sum(), histogram[NUM_BINS:].sum()
    (np.int64(2), np.int64(1))

    Raises:
        ValueError: lengths differ, a logit is NaN or infinite, or a label is neither 0 nor 1.
    """
    logit, label = np.asarray(logits, np.float64), np.asarray(labels)
    if logit.ndim != 1 or logit.shape != label.shape:
        raise ValueError(
            f"logits of shape {logit.shape} and labels of shape {label.shape} must be equally long vectors"
        )
    if not np.isfinite(logit).all():
        raise ValueError(
            f"{int((~np.isfinite(logit)).sum())} of {logit.size} logits are NaN or infinite: the model has diverged; "
            "lower the learning rate"
        )
    positive = label == 1
    if not (positive | (label == 0)).all():
        raise ValueError("labels must be 0 or 1")
    return np.bincount(score_bins(logit) + NUM_BINS * positive, minlength=HISTOGRAM_LENGTH).astype(np.int64, copy=False)


def score_bins(logits: NDArray[np.float64]) -> NDArray[np.int64]:
    """The histogram's bin of each logit, of any shape: 0 to NUM_BINS - 1, by ascending logit."""
    position = (np.arcsinh(logits) / _REACH + 1.0) * (NUM_BINS / 2)
    guess = np.clip(position, 0, NUM_BINS - 1).astype(np.int64)
    # Off by one where an edge was moved, or where rounding fell on it.
    return guess + (logits >= _EDGES[guess + 1]) - (logits < _EDGES[guess])


def withhold(histogram: Histogram, min_positives: int) -> Histogram:
    """The histogram itself, or all zeros where it holds fewer positives than the agreement's floor.

    >>> withhold(score_histogram([0.0, 1.0], [0, 1]), min_positives=2).any()
    np.False_
    """
    return histogram if histogram[NUM_BINS:].sum() >= min_positives else np.zeros_like(histogram)


def check_histogram(vector: NDArray[np.int64], max_rows: int) -> None:
    """Refuse a received vector that no merchant with at most max_rows rows can have counted.

    Raises:
        ValueError: wrong dtype or shape, a negative count, or more than max_rows rows.
    """
    if vector.dtype != np.int64 or vector.shape != (HISTOGRAM_LENGTH,):
        raise ValueError(
            f"a score histogram is int64 of shape ({HISTOGRAM_LENGTH},), not {vector.dtype} of shape {vector.shape}"
        )
    if vector.min() < 0:
        raise ValueError(f"a score histogram holds the negative count {vector.min()}")
    # Each count first: a sum of huge counts could wrap round to something believable.
    if vector.max() > max_rows or vector.sum() > max_rows:
        raise ValueError(f"a score histogram counts more rows than the {max_rows} its merchant can have")


def metrics_from_histogram(histogram: Histogram) -> Metrics | None:
    """All figures of one histogram, or None where a class is absent (no rows, one class, withheld).

    PR-AUC is the average precision as scikit-learn defines it: the sum of precision over steps of recall,
    without interpolation; ROC-AUC counts a tied pair as one half.

    >>> metrics_from_histogram(score_histogram([-1.0, 2.0, -3.0, 1.0], [0, 1, 0, 1])).roc_auc
    1.0
    """
    negatives, positives = histogram[:NUM_BINS], histogram[NUM_BINS:]
    if not negatives.any() or not positives.any():
        return None
    # From the highest score down, so that cumulative counts are true and false positives at a threshold.
    bins = np.flatnonzero(negatives + positives)[::-1]
    tp, fp = np.cumsum(positives[bins]), np.cumsum(negatives[bins])
    num_positives, num_negatives = int(tp[-1]), int(fp[-1])
    recall, fpr, precision = tp / num_positives, fp / num_negatives, tp / (tp + fp)
    f1 = 2.0 * tp / (tp + fp + num_positives)
    best = int(np.argmax(f1))
    roc_x, roc_y = np.concatenate([[0.0], fpr]), np.concatenate([[0.0], recall])
    return Metrics(
        num_rows=num_positives + num_negatives,
        num_positives=num_positives,
        roc_auc=float(np.trapezoid(roc_y, roc_x)),
        pr_auc=float(np.sum(np.diff(recall, prepend=0.0) * precision)),
        recall_at_1_fpr=float(np.interp(0.01, roc_x, roc_y)),
        recall_at_5_fpr=float(np.interp(0.05, roc_x, roc_y)),
        best_f1=float(f1[best]),
        best_f1_threshold=float(scores_of(_EDGES[bins[best]])),
        brier=_brier(negatives, positives),
        reliability=_reliability(negatives, positives),
        pr_curve=_thinned(recall, precision),
    )


def decision_threshold(histogram: Histogram) -> float | None:
    """The score from which on a merchant should call a row positive: best F1 on the histogram's rows.

    None where a class is absent. Meant for validation rows: on test rows it would flatter itself.
    """
    metrics = metrics_from_histogram(histogram)
    return None if metrics is None else metrics.best_f1_threshold


def _brier(negatives: Histogram, positives: Histogram) -> float:
    squared = np.sum(negatives * _CENTRE_SCORES**2) + np.sum(positives * (1.0 - _CENTRE_SCORES) ** 2)
    return float(squared / (negatives.sum() + positives.sum()))


def _reliability(negatives: Histogram, positives: Histogram) -> tuple[tuple[float, float, int], ...]:
    rows = negatives + positives
    group = np.minimum((_CENTRE_SCORES * NUM_RELIABILITY_GROUPS).astype(np.int64), NUM_RELIABILITY_GROUPS - 1)
    count, observed, score = (
        np.bincount(group, weights, NUM_RELIABILITY_GROUPS) for weights in (rows, positives, rows * _CENTRE_SCORES)
    )
    return tuple(
        (float(score[g] / count[g]), float(observed[g] / count[g]), int(count[g])) for g in np.flatnonzero(count)
    )


def _thinned(recall: NDArray[np.float64], precision: NDArray[np.float64]) -> tuple[tuple[float, float], ...]:
    steps = np.flatnonzero(np.diff(recall, prepend=0.0))
    if steps.size > MAX_CURVE_POINTS:
        even = np.linspace(recall[steps[0]], 1.0, MAX_CURVE_POINTS)
        steps = steps[np.unique(np.searchsorted(recall[steps], even).clip(max=steps.size - 1))]
    return tuple((float(recall[i]), float(precision[i])) for i in steps)
