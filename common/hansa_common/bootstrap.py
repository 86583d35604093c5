"""How sure a difference between two models is: paired bootstrap intervals of ROC-AUC and PR-AUC.

Both models score the same rows, and each resample draws the same rows for both, so what the rows have in
common cancels (Efron and Tibshirani, An Introduction to the Bootstrap, 1993). Positives and negatives are
drawn separately: every resample has both, as many as the test rows. Scores stay where they are; only three
numbers per figure leave.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Final

import numpy as np
from numpy.typing import ArrayLike, NDArray

CONFIDENCE: Final = 0.95

Areas = tuple[float, float]


@dataclass(frozen=True)
class Interval:
    """A difference on all rows, and the 95 % percentile interval of it over the resamples."""

    estimate: float
    low: float
    high: float

    def to_json(self) -> dict[str, float]:
        """The same as a dictionary of plain numbers."""
        return asdict(self)


def paired_bootstrap(
    scores_a: ArrayLike,
    scores_b: ArrayLike,
    labels: ArrayLike,
    *,
    rng: np.random.Generator,
    resamples: int = 1000,
) -> dict[str, Interval]:
    """Intervals of `a - b` for `roc_auc` and `pr_auc`; scores (rows,) of two models on the same rows, labels (rows,).

    Any increasing scale serves as scores (logits or probabilities). 57,000 rows and 1000 resamples take 1 to 7 s,
    least where positives are rare.

    >>> labels = np.array([0, 0, 1, 1])
    >>> paired_bootstrap(labels, -labels, labels, rng=np.random.default_rng(0), resamples=10)["roc_auc"]
    Interval(estimate=1.0, low=1.0, high=1.0)

    Raises:
        ValueError: lengths differ, a score is NaN, or the labels hold one class only.
    """
    label = np.asarray(labels).astype(bool)
    ranked_a, ranked_b = _RankedRows(scores_a, label), _RankedRows(scores_b, label)
    num_positives, num_negatives = int(label.sum()), int((~label).sum())
    differences = np.empty((resamples, 2))
    for row in differences:
        positives = np.bincount(rng.integers(num_positives, size=num_positives), minlength=num_positives)
        negatives = np.bincount(rng.integers(num_negatives, size=num_negatives), minlength=num_negatives)
        row[:] = np.subtract(ranked_a.areas(positives, negatives), ranked_b.areas(positives, negatives))
    once = np.ones(num_positives), np.ones(num_negatives)
    estimate = np.subtract(ranked_a.areas(*once), ranked_b.areas(*once))
    tail = (1.0 - CONFIDENCE) / 2.0
    low, high = np.quantile(differences, [tail, 1.0 - tail], axis=0)
    return {
        name: Interval(float(estimate[i]), float(low[i]), float(high[i]))
        for i, name in enumerate(("roc_auc", "pr_auc"))
    }


class _RankedRows:
    """One model's rows in groups from the highest score down: one group for each score that a positive has,
    one for all negatives between two such scores. Finer order among negatives changes neither area.
    """

    def __init__(self, scores: ArrayLike, label: NDArray[np.bool_]) -> None:
        score = np.asarray(scores, np.float64)
        if score.ndim != 1 or score.shape != label.shape:
            raise ValueError(f"scores of shape {score.shape} and labels of shape {label.shape} must be equally long")
        if np.isnan(score).any():
            raise ValueError("a score is NaN: the model has diverged, and no interval says by how much")
        if label.all() or not label.any():
            raise ValueError("an interval needs rows of both classes")
        steps = np.unique(score[label])
        group = 2 * steps.size - np.searchsorted(steps, score, "left") - np.searchsorted(steps, score, "right")
        self._num_groups = 2 * steps.size + 1
        self._positive_group, self._negative_group = group[label], group[~label]

    def areas(self, positives: NDArray[np.generic], negatives: NDArray[np.generic]) -> Areas:
        """ROC-AUC and average precision, each row counted as often as its weight says."""
        step_tp = np.bincount(self._positive_group, positives, self._num_groups)
        step_fp = np.bincount(self._negative_group, negatives, self._num_groups)
        tp, fp = np.cumsum(step_tp), np.cumsum(step_fp)
        roc_auc = np.dot(step_tp, fp[-1] - fp + step_fp / 2.0) / (tp[-1] * fp[-1])
        pr_auc = np.dot(step_tp, tp / np.maximum(tp + fp, 1.0)) / tp[-1]
        return float(roc_auc), float(pr_auc)
