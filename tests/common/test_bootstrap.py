"""The vectorised paired bootstrap against resampling rows one set at a time with scikit-learn."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import average_precision_score, roc_auc_score

from hansa_common.bootstrap import paired_bootstrap


def slow_paired_bootstrap(scores_a, scores_b, labels, *, rng, resamples):
    positives, negatives = np.flatnonzero(labels), np.flatnonzero(~labels)

    def difference(rows, area):
        return area(labels[rows], scores_a[rows]) - area(labels[rows], scores_b[rows])

    drawn = [
        np.concatenate(
            [part[rng.integers(part.size, size=part.size)] for part in (positives, negatives)]
        )
        for _ in range(resamples)
    ]  # fmt: skip
    intervals = {}
    for name, area in (("roc_auc", roc_auc_score), ("pr_auc", average_precision_score)):
        low, high = np.quantile([difference(rows, area) for rows in drawn], [0.025, 0.975])
        intervals[name] = (difference(np.arange(labels.size), area), low, high)
    return intervals


def two_models(rng, num_rows, *, decimals=None):
    labels = rng.random(num_rows) < 0.2
    labels[:2] = [True, False]
    common = rng.normal(labels * 1.5, 1.0)
    pair = (common + rng.normal(0, 0.5, num_rows), common + rng.normal(0, 1.0, num_rows))
    return (*(s if decimals is None else np.round(s, decimals) for s in pair), labels)


def as_tuples(intervals):
    return {name: (i.estimate, i.low, i.high) for name, i in intervals.items()}


@pytest.mark.parametrize("decimals", [None, 0])
def test_intervals_equal_resampled_scikit_learn(decimals):
    scores_a, scores_b, labels = two_models(np.random.default_rng(1), 400, decimals=decimals)
    fast = paired_bootstrap(scores_a, scores_b, labels, rng=np.random.default_rng(2), resamples=60)
    slow = slow_paired_bootstrap(scores_a, scores_b, labels, rng=np.random.default_rng(2), resamples=60)
    for name, interval in as_tuples(fast).items():
        assert interval == pytest.approx(slow[name], abs=1e-12)


few_rows = st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4), st.booleans()), min_size=2, max_size=12)


@settings(max_examples=30)
@given(few_rows)
def test_intervals_equal_resampled_scikit_learn_on_any_few_rows(rows):
    scores_a, scores_b, labels = (np.array(column) for column in zip(*rows, strict=True))
    if labels.all() or not labels.any():
        with pytest.raises(ValueError, match="both classes"):
            paired_bootstrap(scores_a, scores_b, labels, rng=np.random.default_rng(0), resamples=2)
        return
    fast = paired_bootstrap(scores_a, scores_b, labels, rng=np.random.default_rng(0), resamples=5)
    slow = slow_paired_bootstrap(scores_a, scores_b, labels, rng=np.random.default_rng(0), resamples=5)
    for name, interval in as_tuples(fast).items():
        assert interval == pytest.approx(slow[name], abs=1e-12)


def test_a_model_does_not_differ_from_itself_on_another_scale():
    scores, _, labels = two_models(np.random.default_rng(3), 300)
    intervals = paired_bootstrap(scores, np.exp(scores), labels, rng=np.random.default_rng(0), resamples=50)
    assert as_tuples(intervals) == {"roc_auc": (0.0, 0.0, 0.0), "pr_auc": (0.0, 0.0, 0.0)}


def test_swapping_the_models_mirrors_the_interval():
    scores_a, scores_b, labels = two_models(np.random.default_rng(4), 300)
    there = paired_bootstrap(scores_a, scores_b, labels, rng=np.random.default_rng(7), resamples=200)
    back = paired_bootstrap(scores_b, scores_a, labels, rng=np.random.default_rng(7), resamples=200)
    for name, interval in there.items():
        mirrored = back[name]
        assert (interval.estimate, interval.low, interval.high) == pytest.approx(
            (-mirrored.estimate, -mirrored.high, -mirrored.low), abs=1e-12
        )


def test_interval_covers_the_true_difference_about_as_often_as_it_says():
    """Binormal scores have a closed-form ROC-AUC: Phi(shift / sqrt 2)."""
    truth = 0.8556 - 0.7602  # Phi(1.5 / sqrt 2) - Phi(1.0 / sqrt 2)
    rng, covered = np.random.default_rng(11), 0
    for _ in range(200):
        labels = np.arange(300) < 60
        noise = rng.normal(size=(2, labels.size))
        interval = paired_bootstrap(
            noise[0] + 1.5 * labels, noise[1] + labels, labels, rng=rng, resamples=200
        )["roc_auc"]  # fmt: skip
        covered += interval.low <= truth <= interval.high
    assert 180 <= covered <= 199


def test_equal_generators_give_equal_intervals():
    rows = two_models(np.random.default_rng(5), 200)
    first, second = (paired_bootstrap(*rows, rng=np.random.default_rng(9), resamples=30) for _ in range(2))
    assert first == second


@pytest.mark.parametrize(
    ("scores_a", "labels", "problem"),
    [
        ([0.1, 0.2], [1, 1], "both classes"),
        ([0.1, 0.2], [0, 0], "both classes"),
        ([0.1, np.nan], [0, 1], "NaN"),
        ([0.1], [0, 1], "equally long"),
    ],
)
def test_rows_without_a_difference_are_refused(scores_a, labels, problem):
    with pytest.raises(ValueError, match=problem):
        paired_bootstrap(scores_a, [0.0] * len(labels), labels, rng=np.random.default_rng(0), resamples=2)
