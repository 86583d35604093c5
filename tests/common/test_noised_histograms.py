"""Histograms of scores with noise: one row's reach, the noise, and figures taken from many merchants' sums."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hansa_common.metrics import HISTOGRAM_LENGTH, NUM_BINS, metrics_from_histogram, score_histogram
from hansa_common.noised_histograms import NUM_GROUPS, check_noised, deviation, noised, plausible
from hansa_common.privacy_agreement import DifferentialPrivacy
from hansa_common.privacy_noise import PrivacyRandom

DP = DifferentialPrivacy(epsilon=8, noise_multiplier=1.0, sampling_rate=0.1, evaluation_noise_multiplier=3.0)
WITHHELD = DifferentialPrivacy(epsilon=8, noise_multiplier=1.0, sampling_rate=0.1)
NO_NOISE = np.zeros(2 * NUM_GROUPS)


def scored(size: int, seed: int = 1):
    random = np.random.default_rng(seed)
    labels = (random.random(size) < 0.3).astype(np.uint8)
    return random.normal(2.0 * labels - 1.0, 1.5), labels


@given(st.floats(-2000, 2000), st.integers(0, 1))
def test_one_row_is_counted_once_on_its_own_side(logit: float, label: int) -> None:
    released = noised(score_histogram([logit], [label]), DP, NO_NOISE)
    assert released.sum() == 1
    assert np.linalg.norm(released) == 1
    assert released[label * NUM_BINS : (label + 1) * NUM_BINS].sum() == 1


def test_noise_has_the_stated_deviation_for_a_unit_of_several_rows() -> None:
    dp = DP.model_copy(update={"entity_column": "card", "max_rows_per_entity": 4})
    nothing = np.zeros(HISTOGRAM_LENGTH, np.int64)
    random = PrivacyRandom(bytes(32))
    drawn = np.concatenate([noised(nothing, dp, random.gaussians(2 * NUM_GROUPS)) for _ in range(100)])
    counts = drawn[drawn != 0]
    assert deviation(dp) == 12.0
    assert np.sqrt(np.square(counts).sum() / (100 * 2 * NUM_GROUPS)) == pytest.approx(12.0, rel=0.03)


def test_figures_of_groups_are_near_those_of_rows() -> None:
    logits, labels = scored(20_000)
    exact = metrics_from_histogram(score_histogram(logits, labels))
    random = PrivacyRandom(bytes(32))
    parts = np.array_split(np.arange(20_000), 5)
    released = sum(
        noised(score_histogram(logits[rows], labels[rows]), DP, random.gaussians(2 * NUM_GROUPS)) for rows in parts
    )
    coarse = metrics_from_histogram(plausible(released, DP, 5))
    assert coarse.roc_auc == pytest.approx(exact.roc_auc, abs=0.01)
    assert coarse.pr_auc == pytest.approx(exact.pr_auc, abs=0.035)


def test_noise_alone_is_no_figure() -> None:
    nothing = np.zeros(HISTOGRAM_LENGTH, np.int64)
    random = PrivacyRandom(bytes(range(32)))
    told = [plausible(noised(nothing, DP, random.gaussians(2 * NUM_GROUPS)), DP, 1) for _ in range(200)]
    assert not np.any(told)


def test_figures_that_noise_would_decide_are_not_told() -> None:
    exact = score_histogram(*scored(300))
    random = PrivacyRandom(bytes(32))
    told = [plausible(noised(exact, DP, random.gaussians(2 * NUM_GROUPS)), DP, 1) for _ in range(20)]
    assert [metrics_from_histogram(one) for one in told] != [None] * 20
    loud = DP.model_copy(update={"evaluation_noise_multiplier": 20.0})
    told = [plausible(noised(exact, loud, random.gaussians(2 * NUM_GROUPS)), loud, 1) for _ in range(20)]
    assert [metrics_from_histogram(one) for one in told] == [None] * 20


def test_what_a_merchant_sends_is_believed() -> None:
    released = noised(score_histogram(*scored(100)), DP, PrivacyRandom(bytes(32)).gaussians(2 * NUM_GROUPS))
    check_noised(released, DP, 100)
    check_noised(np.zeros(HISTOGRAM_LENGTH, np.int64), WITHHELD, 100)


@pytest.mark.parametrize(
    ("change", "dp", "problem"),
    [
        (lambda told: told[:-1], DP, "shape"),
        (lambda told: told.astype(np.int32), DP, "int64"),
        (lambda told: told * 1000, DP, "more than 100 rows"),
        (lambda told: np.roll(told, 1), DP, "nothing leaves"),
        (lambda told: told, WITHHELD, "nothing leaves"),
    ],
)
def test_histograms_that_no_merchant_sends_are_refused(change, dp, problem: str) -> None:
    released = noised(score_histogram(*scored(100)), DP, NO_NOISE)
    with pytest.raises(ValueError, match=problem):
        check_noised(change(released), dp, 100)
