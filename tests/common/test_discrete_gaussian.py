"""Discrete Gaussians against their definition: probabilities, moments, and what decides where float64 cannot."""

from __future__ import annotations

import time

import numpy as np
import pytest
from scipy import stats

from hansa_common import discrete_gaussian
from hansa_common.discrete_gaussian import MAX_DEVIATION, discrete_gaussians
from hansa_common.privacy_noise import PrivacyRandom

KEY = bytes(range(32))


def probabilities(deviation: int, values: np.ndarray) -> np.ndarray:
    """Those of the definition."""
    reach = np.arange(-40 * deviation, 40 * deviation + 1, dtype=np.float64)
    return (
        np.exp(-(values.astype(np.float64) ** 2) / (2 * deviation**2)) / np.exp(-(reach**2) / (2 * deviation**2)).sum()
    )


def p_value(drawn: np.ndarray, deviation: int) -> float:
    """Of a chi-square test against the definition, with what is rare taken together at each end."""
    end = int(3.5 * deviation)
    values = np.arange(-end, end + 1)
    counts = np.array([(drawn < -end).sum(), *(np.sum(drawn == value) for value in values), (drawn > end).sum()])
    within = probabilities(deviation, values)
    beyond = (1.0 - within.sum()) / 2
    return float(stats.chisquare(counts, np.array([beyond, *within, beyond]) * drawn.size).pvalue)


@pytest.mark.parametrize("deviation", [1, 2, 3, 10, 57])
def test_numbers_have_the_probabilities_of_the_definition(deviation: int) -> None:
    drawn = discrete_gaussians(PrivacyRandom(KEY), deviation, 200_000)
    assert p_value(drawn, deviation) > 1e-3
    # The test can tell: a rounded Gaussian of a slightly other deviation does not pass.
    other = np.rint(np.random.default_rng(1).normal(0, 1.02 * deviation, drawn.size)).astype(np.int64)
    assert p_value(other, deviation) < 1e-3


@pytest.mark.parametrize("deviation", [8, 1000, 3_000_000, MAX_DEVIATION])
def test_numbers_have_the_moments_of_a_gaussian(deviation: int) -> None:
    number = 200_000
    scaled = discrete_gaussians(PrivacyRandom(KEY), deviation, number) / deviation
    for power, expected, variance in ((1, 0, 1), (2, 1, 2), (3, 0, 15), (4, 3, 96)):
        assert abs(np.mean(scaled**power) - expected) < 4.5 * np.sqrt(variance / number)
    assert stats.kstest(scaled[:20_000], "norm").pvalue > 1e-3 or deviation < 100
    assert abs(np.corrcoef(scaled[:-1], scaled[1:])[0, 1]) < 4.5 / np.sqrt(number)


def test_every_digit_is_random_and_not_only_the_leading_ones() -> None:
    drawn = discrete_gaussians(PrivacyRandom(KEY), 1 << 20, 100_000)
    assert stats.chisquare(np.bincount(drawn % 64, minlength=64)).pvalue > 1e-3


def test_what_float64_cannot_decide_is_decided_as_the_definition_says(monkeypatch) -> None:
    # No comparison is left to float64, and none to the table.
    monkeypatch.setattr(discrete_gaussian, "_FLOAT_ERROR", 2.0**70)
    monkeypatch.setattr(discrete_gaussian, "_TABLED", np.zeros(1, np.uint64))
    assert p_value(discrete_gaussians(PrivacyRandom(KEY), 2, 4_000), 2) > 1e-3


def test_decimals_and_float64_decide_alike_where_both_can(monkeypatch) -> None:
    random = PrivacyRandom(KEY)
    words, k, j = random.words(2_000), np.arange(2_000) % 4, np.arange(2_000) % 1000
    by_floats = discrete_gaussian._chances(words, k, j, 1000, random)
    multiples = discrete_gaussian._multiples(words, random)
    monkeypatch.setattr(discrete_gaussian, "_FLOAT_ERROR", 2.0**70)
    monkeypatch.setattr(discrete_gaussian, "_TABLED", np.zeros(1, np.uint64))
    assert (discrete_gaussian._chances(words, k, j, 1000, random) == by_floats).all()
    assert (discrete_gaussian._multiples(words, random) == multiples).all()


@pytest.mark.parametrize("k", range(discrete_gaussian._MOST_TABLED))
def test_word_that_a_probability_begins_with_is_decided_by_the_bits_that_follow(k: int) -> None:
    word = discrete_gaussian._TABLED[k : k + 1]
    found = {int(discrete_gaussian._multiples(word, PrivacyRandom(bytes([key]) * 32))[0]) for key in range(40)}
    assert found == {k, k + 1}
    assert discrete_gaussian._multiples(word - np.uint64(1), PrivacyRandom(KEY)) == k


def test_multiples_beyond_the_table_are_drawn_too() -> None:
    words = np.array([2**64 - 1] * 50, np.uint64)
    assert discrete_gaussian._multiples(words, PrivacyRandom(KEY)).min() >= 9


def test_no_remainder_is_likelier_for_how_32_bits_are_divided() -> None:
    deviation = 66_500_000
    remainders = np.abs(discrete_gaussians(PrivacyRandom(KEY), deviation, 1_000_000)) % deviation
    # Of 2^32 numbers some remainders would have 65, and the others 64.
    first, following = (-(-(remainders + more) * 2**32 // deviation) for more in (0, 1))
    expected = 2**32 / deviation - 64
    share = np.mean(following - first == 65)
    assert abs(share - expected) < 4.5 * np.sqrt(expected * (1 - expected) / remainders.size)


def test_same_key_gives_the_same_numbers_and_another_others() -> None:
    first, again, other = (discrete_gaussians(PrivacyRandom(key), 500, 30_000) for key in (KEY, KEY, bytes(32)))
    assert (first == again).all()
    assert (first != other).mean() > 0.99


@pytest.mark.parametrize("number", [0, 1, 7, 8192, 8193])
def test_as_many_are_drawn_as_are_asked_for(number: int) -> None:
    assert discrete_gaussians(PrivacyRandom(KEY), 40, number).shape == (number,)


def test_a_million_take_less_than_two_seconds() -> None:
    began = time.process_time()
    discrete_gaussians(PrivacyRandom(KEY), 20_000, 1_000_000)
    assert time.process_time() - began < 2.0


@pytest.mark.parametrize("deviation", [0, -3, MAX_DEVIATION + 1])
def test_deviation_out_of_bounds_is_refused(deviation: int) -> None:
    with pytest.raises(ValueError, match="deviation"):
        discrete_gaussians(PrivacyRandom(KEY), deviation, 1)
