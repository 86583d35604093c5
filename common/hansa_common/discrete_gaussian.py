"""Whole numbers with the probabilities of a discrete Gaussian, exactly, from random bits.

P(x) is proportional to exp(-x^2 / 2 s^2) for every whole x, with a whole number s, `deviation`, about which the
variance is s^2 (below it, by nothing that float64 could hold from s = 4 on).

How: |x| = k s + j with j below s. k is drawn by exp(-k^2 / 2), j uniformly, and the two are kept with the chance
exp(-j (2 k s + j) / 2 s^2), which makes exp(-x^2 / 2 s^2) of the product; the sign is a coin, and -0 is drawn anew.

- No probability is rounded. A uniform number is 64 bits of the stream, and as many more as it takes: where float64
  cannot tell on which side of a probability it lies, decimals of growing length do. That happens about once in 2^40.
- In arrays: a million in about a tenth of a second.

Sources: Canonne, Kamath and Steinke, "The Discrete Gaussian for Differential Privacy" (2020), for what it is used for;
Karney, "Sampling Exactly from the Normal Distribution" (2016), for the decomposition.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from decimal import Decimal, localcontext
from functools import partial
from typing import Final

import numpy as np
from numpy.typing import NDArray

from hansa_common.privacy_noise import PrivacyRandom

MAX_DEVIATION: Final = 1 << 26
_WORD_BITS: Final = 64
# Pieces that stay in cache. Of the candidates seven tenths are kept.
_CHUNK: Final = 1 << 13
_SPARE: Final = 64
# By more than this part float64 is never off: a quotient, an exponential and a word of 64 bits.
_FLOAT_ERROR: Final = 2.0**-40
_MOST_TABLED: Final = 8
_DECIMAL_DIGITS_PER_BIT: Final = 0.302
_SPARE_DIGITS: Final = 25

# A probability to so many decimal digits.
_Probability = Callable[[int], Decimal]


def discrete_gaussians(random: PrivacyRandom, deviation: int, number: int) -> NDArray[np.int64]:
    """(number,) independent discrete Gaussians of this deviation.

    Raises:
        ValueError: the deviation is not from 1 to MAX_DEVIATION.
    """
    if not 1 <= deviation <= MAX_DEVIATION:
        raise ValueError(f"the deviation of a discrete Gaussian is from 1 to {MAX_DEVIATION}, not {deviation}")
    values = np.empty(number, np.int64)
    done = 0
    while done < number:
        kept = _kept(random, deviation, min(number - done, _CHUNK))
        values[done : done + kept.size] = kept
        done += kept.size
    return values


def _kept(random: PrivacyRandom, deviation: int, most: int) -> NDArray[np.int64]:
    """Some discrete Gaussians, `most` or, rarely, fewer."""
    for_k, for_chance, for_rest = random.words(3 * (most * 3 // 2 + _SPARE)).reshape(3, -1)
    scaled = (for_rest >> np.uint64(32)) * np.uint64(deviation)
    k, j = _multiples(for_k, random), (scaled >> np.uint64(32)).astype(np.int64)
    # Lemire's: of 2^32 numbers so many are too many for each j to have as many as the others.
    is_even = (scaled & np.uint64(2**32 - 1)) >= np.uint64(2**32 % deviation)
    is_negative = (for_rest & np.uint64(1)).astype(np.bool_)
    is_kept = _chances(for_chance, k, j, deviation, random) & is_even & ~(is_negative & (k == 0) & (j == 0))
    places = np.flatnonzero(is_kept)[:most]
    values: NDArray[np.int64] = (k * deviation + j)[places]
    np.negative(values, out=values, where=is_negative[places])
    return values


def _multiples(words: NDArray[np.uint64], random: PrivacyRandom) -> NDArray[np.int64]:
    """Whole numbers k from 0 on, each with a probability that is proportional to exp(-k^2 / 2)."""
    k = np.searchsorted(_TABLED, words, side="right").astype(np.int64)
    for place in np.flatnonzero(np.isin(words, _TABLED) | (words > _TABLED[-1])):
        uniform, found = _Uniform(int(words[place]), random), 0
        while not uniform.is_below(partial(_up_to, found)):
            found += 1
        k[place] = found
    return k


def _chances(
    words: NDArray[np.uint64], k: NDArray[np.int64], j: NDArray[np.int64], deviation: int, random: PrivacyRandom
) -> NDArray[np.bool_]:
    """Whether uniform numbers that begin with these words are below exp(-j (2 k s + j) / 2 s^2)."""
    numerators, denominator = j * (2 * k * deviation + j), 2 * deviation**2
    limits = np.exp(numerators / -denominator) * 2.0**_WORD_BITS
    # A word stands for all numbers up to the next one.
    uniforms, errors = words.astype(np.float64), limits * _FLOAT_ERROR + 1.0
    is_below: NDArray[np.bool_] = (uniforms < limits - errors) | (numerators == 0)
    for place in np.flatnonzero(~is_below & (uniforms <= limits + errors)):
        chance = partial(_exponential, int(numerators[place]), denominator)
        is_below[place] = _Uniform(int(words[place]), random).is_below(chance)
    return is_below


class _Uniform:
    """A uniform number from 0 to 1 that begins with 64 bits; more are drawn as comparisons need them."""

    def __init__(self, word: int, random: PrivacyRandom) -> None:
        self._bits, self._num_bits, self._random = word, _WORD_BITS, random

    def is_below(self, probability: _Probability) -> bool:
        """Whether it is below a probability, whose digits are asked for as they are needed."""
        while True:
            digits = int(self._num_bits * _DECIMAL_DIGITS_PER_BIT) + _SPARE_DIGITS
            with localcontext() as context:
                context.prec = digits
                limit = probability(digits) * 2**self._num_bits
            # The digits that are missing of the probability move the limit by far less than one.
            if self._bits + 2 <= limit:
                return True
            if self._bits >= limit + 1:
                return False
            self._bits = self._bits << _WORD_BITS | int(self._random.words(1)[0])
            self._num_bits += _WORD_BITS


def _exponential(numerator: int, denominator: int, _digits: int) -> Decimal:
    return (Decimal(-numerator) / denominator).exp()


def _up_to(k: int, digits: int) -> Decimal:
    """The probability of a multiple of at most k."""
    # Beyond it there is less than the last digit.
    last = math.isqrt(int(2 * digits * math.log(10))) + 3
    weights = [(Decimal(-place * place) / 2).exp() for place in range(max(last, k) + 1)]
    return sum(weights[: k + 1], Decimal(0)) / sum(weights)


def _tabled() -> NDArray[np.uint64]:
    """(_MOST_TABLED,) the 64 bits with which the probabilities of at most 0, 1, 2, ... begin."""
    digits = 60
    with localcontext() as context:
        context.prec = digits
        return np.array([int(_up_to(k, digits) * 2**_WORD_BITS) for k in range(_MOST_TABLED)], np.uint64)


_TABLED: Final = _tabled()
