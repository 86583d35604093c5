"""From the agreement's seed to generators: each purpose has a stream of its own, the same everywhere and for ever."""

from __future__ import annotations

import hashlib
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hansa_common.randomness import derived_seed, generator

seeds = st.integers(0, 2**63 - 1)
purposes = st.lists(st.text(max_size=6) | st.integers(-(2**70), 2**70), max_size=4).map(tuple)

# Another value for any of these would change every model that was ever trained. They come from, for the second:
# printf 'hansa-seed-1\0\0\0\5int:0\0\0\0\13str:shuffle\0\0\0\11str:alpha\0\0\0\5int:1' | sha256sum | head -c16
GOLDEN = {
    (0,): 0x9E9427C11015E5D9,
    (0, "shuffle", "alpha", 1): 0x5F390B404D5688DE,
    (2**63 - 1, "initial weights", "gewöhnlich"): 0x8E097393E84F1FC7,
}


def by_hand(*parts):
    """The definition: SHA-256 of a tag and of each part's type and text, each after its length in four bytes."""
    texts = [f"{'str' if isinstance(part, str) else 'int'}:{part}".encode() for part in parts]
    content = b"hansa-seed-1" + b"".join(len(text).to_bytes(4, "big") + text for text in texts)
    return int(hashlib.sha256(content).hexdigest()[:16], 16)


@given(seeds, purposes)
def test_seed_is_derived_as_defined(seed, purpose):
    assert derived_seed(seed, *purpose) == by_hand(seed, *purpose)


@pytest.mark.parametrize("parts", GOLDEN)
def test_derived_seeds_are_the_golden_ones(parts):
    assert derived_seed(*parts) == GOLDEN[parts]


@given(seeds, purposes, seeds, purposes)
def test_other_seed_or_purpose_is_another_stream(seed, purpose, other_seed, other_purpose):
    same = (seed, *purpose) == (other_seed, *other_purpose)
    assert (derived_seed(seed, *purpose) == derived_seed(other_seed, *other_purpose)) == same


def test_purposes_that_read_alike_are_different():
    alike = [
        (0, "ab", "c"), (0, "a", "bc"), (0, "abc"), (0, "abc", ""), (0, "", "abc"),
        (0, 1), (0, "1"), (0, "int:1"), (0, 0, 1), (1, 0), (0, "0", "1"), (0, 10), (0, 1, 0), (0, -1),
    ]  # fmt: skip
    assert len({derived_seed(*parts) for parts in alike}) == len(alike)


def test_generator_draws_what_numpys_pcg64_draws_from_the_derived_seed():
    expected = np.random.Generator(np.random.PCG64(by_hand(7, "split", "alpha"))).normal(size=100)
    np.testing.assert_array_equal(generator(7, "split", "alpha").normal(size=100), expected)


def test_drawing_for_one_purpose_does_not_shift_another():
    untouched = generator(3, "b").random(5)
    generator(3, "a").random(1000)
    np.testing.assert_array_equal(generator(3, "b").random(5), untouched)


def test_streams_of_neighbouring_purposes_are_not_correlated():
    draws = np.stack([generator(0, "dropout", round_number).normal(size=2000) for round_number in range(20)])
    correlations = np.corrcoef(draws)[np.triu_indices(20, 1)]
    # 190 correlations of independent streams: five standard deviations of 1 / sqrt(2000).
    assert np.abs(correlations).max() < 5 / np.sqrt(2000)


def test_seed_is_the_same_in_another_process():
    """Python salts its own hashes in each process; these are not its own."""
    script = "from hansa_common.randomness import derived_seed; print(derived_seed(5, 'cohort', 3))"
    told = subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True)
    assert int(told.stdout) == derived_seed(5, "cohort", 3)
