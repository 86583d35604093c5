"""Score histograms against scikit-learn on the pooled scores, and what a histogram may not be."""

import json
import time

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.calibration import calibration_curve
from sklearn.metrics import (
    average_precision_score,
    brier_score_loss,
    f1_score,
    precision_recall_curve,
    roc_auc_score,
    roc_curve,
)

from hansa_common.metrics import (
    HISTOGRAM_LENGTH,
    MAX_CURVE_POINTS,
    NUM_BINS,
    check_histogram,
    decision_threshold,
    metrics_from_histogram,
    score_histogram,
    withhold,
)

SHARP = ("roc_auc", "pr_auc", "recall_at_1_fpr", "recall_at_5_fpr", "best_f1", "brier")


def probabilities(logits):
    return np.exp(-np.logaddexp(0.0, -np.asarray(logits, np.float64)))


def figures_by_scikit_learn(logits, labels):
    fpr, tpr, _ = roc_curve(labels, logits)
    precision, recall, _ = precision_recall_curve(labels, logits)
    return {
        "roc_auc": roc_auc_score(labels, logits),
        "pr_auc": average_precision_score(labels, logits),
        "recall_at_1_fpr": np.interp(0.01, fpr, tpr),
        "recall_at_5_fpr": np.interp(0.05, fpr, tpr),
        "best_f1": (2 * precision * recall / np.maximum(precision + recall, 1e-12)).max(),
        "brier": brier_score_loss(labels, probabilities(logits)),
    }


def balanced(rng):
    labels = rng.random(20_000) < 0.5
    return rng.normal(np.where(labels, 0.7, -0.7), 1.2), labels


def rare(rng):
    """75 frauds in 57,000 payments, a fifth of them hidden among the rest."""
    labels = np.arange(57_000) < 75
    hidden = rng.random(labels.size) < 0.2
    return rng.normal(np.where(labels, np.where(hidden, -6.0, 2.0), -8.0), np.where(labels, 3.0, 2.0)), labels


def saturated(rng):
    """Logits in the hundreds: every probability is 0 or 1, yet the order is there."""
    labels = rng.random(57_000) < 0.05
    return 60.0 * rng.normal(np.where(labels, 1.0, -1.5)), labels


def tied(rng):
    """A model that knows eleven answers."""
    labels = rng.random(5000) < 0.3
    return np.round(rng.normal(np.where(labels, 0.7, -0.7), 1.5)).clip(-5, 5), labels


def tiny(rng):
    labels = np.arange(60) < 20
    return rng.normal(np.where(labels, 0.7, -0.7), 1.2), labels


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("rows", [balanced, rare, saturated, tied])
def test_figures_are_within_a_thousandth_of_scikit_learn(rows, seed):
    logits, labels = rows(np.random.default_rng(seed))
    logits = logits.astype(np.float32)
    metrics = metrics_from_histogram(score_histogram(logits, labels))
    assert {name: getattr(metrics, name) for name in SHARP} == pytest.approx(
        figures_by_scikit_learn(logits, labels), abs=1e-3
    )
    assert (metrics.num_rows, metrics.num_positives) == (labels.size, labels.sum())


def test_figures_of_tiny_data_are_within_a_thousandth_on_average():
    """One tie between a positive and a negative is 1/1600 of ROC-AUC and up to 1/40 of PR-AUC here."""
    errors = []
    for seed in range(40):
        logits, labels = tiny(np.random.default_rng(seed))
        metrics, expected = (
            metrics_from_histogram(score_histogram(logits, labels)),
            figures_by_scikit_learn(logits, labels),
        )
        errors.append([abs(getattr(metrics, name) - expected[name]) for name in SHARP])
    assert (np.mean(errors, axis=0) < 1e-3).all()


@given(st.lists(st.tuples(st.floats(-0.01, 0.01), st.booleans()), min_size=2, max_size=40))
def test_roc_auc_is_off_by_at_most_half_of_the_pairs_that_share_a_bin(rows):
    logits, labels = np.array([r[0] for r in rows]), np.array([r[1] for r in rows])
    histogram = score_histogram(logits, labels)
    metrics = metrics_from_histogram(histogram)
    if metrics is not None:
        shared = np.dot(histogram[:NUM_BINS], histogram[NUM_BINS:]) / (labels.sum() * (~labels).sum())
        assert abs(metrics.roc_auc - roc_auc_score(labels, logits)) <= shared / 2 + 1e-12


# Quarters are further apart than any bin below a logit of 250 is wide, tens below 1000.
apart = st.one_of(st.integers(-1000, 1000).map(lambda n: n / 4), st.integers(-99, 99).map(lambda n: n * 10.0))


@given(st.lists(st.tuples(apart, st.booleans()), min_size=2, max_size=60))
def test_figures_are_exact_where_scores_that_differ_differ_in_bin(rows):
    logits, labels = np.array([r[0] for r in rows]), np.array([r[1] for r in rows])
    metrics = metrics_from_histogram(score_histogram(logits, labels))
    if labels.all() or not labels.any():
        assert metrics is None
        return
    expected = figures_by_scikit_learn(logits, labels)
    for name in ("roc_auc", "pr_auc", "recall_at_1_fpr", "recall_at_5_fpr", "best_f1"):
        assert getattr(metrics, name) == pytest.approx(expected[name], abs=1e-12)


@given(st.lists(st.tuples(st.floats(-2e3, 2e3), st.booleans()), min_size=2, max_size=40), st.integers(2, 5))
def test_histograms_of_merchants_add_up_to_the_pooled_one(rows, num_merchants):
    logits, labels = np.array([r[0] for r in rows]), np.array([r[1] for r in rows])
    merged = sum(score_histogram(logits[i::num_merchants], labels[i::num_merchants]) for i in range(num_merchants))
    np.testing.assert_array_equal(merged, score_histogram(logits, labels))


@given(st.lists(st.floats(-1.5e3, 1.5e3), min_size=2, max_size=40))
def test_bins_keep_the_order_of_logits(logits):
    bins = [int(score_histogram([logit], [0]).argmax()) for logit in sorted(logits)]
    assert bins == sorted(bins)


@pytest.mark.parametrize("rows", [balanced, tied])
def test_reliability_curve_is_scikit_learns_calibration_curve(rows):
    logits, labels = rows(np.random.default_rng(5))
    scores = probabilities(logits)
    observed, mean_score = calibration_curve(labels, scores, n_bins=10)
    groups = metrics_from_histogram(score_histogram(logits, labels)).reliability
    np.testing.assert_allclose([g[0] for g in groups], mean_score, atol=1e-3)
    np.testing.assert_allclose([g[1] for g in groups], observed, atol=1e-12)
    counts = np.histogram(scores, np.linspace(0, 1, 11))[0]
    assert [g[2] for g in groups] == list(counts[counts > 0])


@pytest.mark.parametrize("rows", [balanced, rare, tied, tiny])
def test_best_f1_is_reached_at_its_threshold(rows):
    logits, labels = rows(np.random.default_rng(1))
    histogram = score_histogram(logits, labels)
    threshold = decision_threshold(histogram)
    metrics = metrics_from_histogram(histogram)
    assert threshold == metrics.best_f1_threshold
    assert f1_score(labels, probabilities(logits) >= threshold) == pytest.approx(metrics.best_f1, abs=1e-12)


def test_threshold_is_zero_where_calling_everything_positive_is_best():
    assert decision_threshold(score_histogram([-2000.0, 1.0, 1.0], [1, 1, 0])) == 0.0


def test_pr_curve_is_short_and_still_encloses_the_average_precision():
    logits, labels = balanced(np.random.default_rng(2))
    metrics = metrics_from_histogram(score_histogram(logits, labels))
    recall, precision = np.array(metrics.pr_curve).T
    assert recall.size <= MAX_CURVE_POINTS
    assert (np.diff(recall) > 0).all()
    assert recall[-1] == 1.0
    assert np.sum(np.diff(recall, prepend=0.0) * precision) == pytest.approx(metrics.pr_auc, abs=0.01)


def test_metrics_are_plain_json():
    metrics = metrics_from_histogram(score_histogram(*balanced(np.random.default_rng(3))))
    values = metrics.to_json()
    assert json.loads(json.dumps(values, allow_nan=False)) == values
    assert values["pr_auc"] == metrics.pr_auc


def test_histogram_below_the_floor_of_positives_is_withheld_whole():
    histogram = score_histogram([0.0, 1.0, 2.0, 3.0], [0, 1, 1, 1])
    np.testing.assert_array_equal(withhold(histogram, 3), histogram)
    withheld = withhold(histogram, 4)
    assert withheld.dtype == np.int64
    assert withheld.shape == (HISTOGRAM_LENGTH,)
    assert not withheld.any()
    assert metrics_from_histogram(withheld) is None


@pytest.mark.parametrize("labels", [[0, 0, 0], [1, 1, 1]])
def test_one_class_has_no_figures_and_no_threshold(labels):
    histogram = score_histogram([0.0, 1.0, 2.0], labels)
    assert metrics_from_histogram(histogram) is None
    assert decision_threshold(histogram) is None


def test_no_rows_have_no_figures():
    assert metrics_from_histogram(score_histogram([], [])) is None


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_diverged_logits_are_refused(bad):
    with pytest.raises(ValueError, match="1 of 3 logits are NaN or infinite"):
        score_histogram(np.array([0.0, bad, 1.0], np.float32), [0, 1, 0])


@pytest.mark.parametrize(("logits", "labels"), [([0.0], [0, 1]), ([[0.0], [1.0]], [[0], [1]]), ([0.0, 1.0], [0, 2])])
def test_rows_that_do_not_fit_are_refused(logits, labels):
    with pytest.raises(ValueError, match=r"equally long|must be 0 or 1"):
        score_histogram(logits, labels)


def forged(**counts):
    vector = np.zeros(HISTOGRAM_LENGTH, np.int64)
    for place, count in counts.items():
        vector[int(place[1:])] = count
    return vector


@pytest.mark.parametrize(
    "vector",
    [
        np.zeros(HISTOGRAM_LENGTH - 1, np.int64),
        np.zeros(NUM_BINS, np.int64),
        np.zeros((2, NUM_BINS), np.int64),
        np.zeros(HISTOGRAM_LENGTH, np.float64),
        forged(_5=-1, _6=3),
        forged(_5=60, _6=41),
        forged(_0=2**63 - 1, _1=2**63 - 1, _2=3),  # wraps round to a sum of 1
    ],
)
def test_forged_histogram_is_refused(vector):
    with pytest.raises(ValueError, match="score histogram"):
        check_histogram(vector, max_rows=100)


def test_honest_and_withheld_histograms_are_accepted():
    histogram = score_histogram(np.arange(100.0), np.arange(100) % 2)
    check_histogram(histogram, max_rows=100)
    check_histogram(np.zeros_like(histogram), max_rows=0)


def test_counting_ten_thousand_rows_takes_less_than_a_millisecond():
    logits, labels = (part[:10_000] for part in balanced(np.random.default_rng(4)))
    logits, labels = logits.astype(np.float32), labels.astype(np.uint8)
    seconds = []
    for _ in range(50):
        start = time.perf_counter()
        score_histogram(logits, labels)
        seconds.append(time.perf_counter() - start)
    assert min(seconds) < 1e-3
