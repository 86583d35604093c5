"""Shares of a secret: so many give it back, fewer say nothing, and a changed one is found."""

import itertools
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hansa_common.secret_sharing import PRIME, SECRET_BYTES, SHARE_BYTES, combine, split


def seeded(seed: int):
    return random.Random(seed).randbytes


@settings(max_examples=40, deadline=None)
@given(secret=st.binary(min_size=SECRET_BYTES, max_size=SECRET_BYTES), data=st.data())
def test_any_threshold_of_the_shares_gives_the_secret_back(secret, data):
    num_shares = data.draw(st.integers(1, 50))
    threshold = data.draw(st.integers(1, num_shares))
    shares = split(secret, num_shares, threshold)
    kept = data.draw(st.permutations(range(num_shares)))[:threshold]
    assert combine({place: shares[place] for place in kept}, threshold) == secret


def test_fewer_shares_than_the_threshold_are_consistent_with_every_secret():
    # Two of three shares, and for any secret the third that would give it: nothing is ruled out.
    shares = split(bytes(range(32)), 3, 3, seeded(1))
    for other in (bytes(32), bytes([255] * 32)):
        values = [(0, int.from_bytes(other, "big")), *((p + 1, int.from_bytes(shares[p], "big")) for p in (0, 1))]
        third = sum(value * _weight(x, 3, values) for x, value in values) % PRIME
        given = {0: shares[0], 1: shares[1], 2: third.to_bytes(SHARE_BYTES, "big")}
        assert combine(given, 3) == other


def _weight(x: int, at: int, values: list[tuple[int, int]]) -> int:
    weight = 1
    for other, _ in values:
        if other != x:
            weight = weight * (at - other) * pow(x - other, -1, PRIME) % PRIME
    return weight


def test_with_too_few_shares_nothing_is_given_back():
    shares = split(bytes(32), 5, 3)
    with pytest.raises(ValueError, match="2 shares are there, 3 are needed"):
        combine({0: shares[0], 4: shares[4]}, 3)


def test_a_changed_share_never_gives_the_secret_back():
    secret = bytes(range(32))
    shares = split(secret, 4, 3, seeded(2))
    for place, position in itertools.product((0, 1, 2), (0, 10, 65)):
        changed = bytearray(shares[place])
        changed[position] ^= 1
        try:
            found = combine({**{p: shares[p] for p in (0, 1, 2)}, place: bytes(changed)}, 3)
        except ValueError:
            continue
        assert found != secret


@pytest.mark.parametrize("secret", [b"", bytes(31), bytes(33)])
def test_a_secret_of_another_length_is_refused(secret):
    with pytest.raises(ValueError, match="a secret has 32 bytes"):
        split(secret, 3, 2)


@pytest.mark.parametrize(("num_shares", "threshold"), [(3, 0), (3, 4), (0, 0)])
def test_a_threshold_that_no_shares_can_reach_is_refused(num_shares, threshold):
    with pytest.raises(ValueError, match="a threshold is between 1"):
        split(bytes(32), num_shares, threshold)


@pytest.mark.parametrize("share", [b"", bytes(65), bytes([255] * 66)])
def test_what_is_no_share_is_refused(share):
    with pytest.raises(ValueError, match="a share is 66 bytes"):
        combine({0: share}, 1)


def test_two_splits_of_one_secret_share_nothing():
    assert set(split(bytes(32), 3, 2)).isdisjoint(split(bytes(32), 3, 2))


def test_the_shares_of_a_known_polynomial_are_known():
    # 5 + 7x at 1, 2, 3.
    shares = split((5).to_bytes(32, "big"), 3, 2, lambda size: (7).to_bytes(size, "big"))
    assert [int.from_bytes(share, "big") for share in shares] == [12, 19, 26]
