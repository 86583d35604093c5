"""Masks as arithmetic: they cancel in the sum of whoever masked alike, hide one vector, and leave a mean exact."""

import hashlib

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from hypothesis import given, settings
from hypothesis import strategies as st

from hansa_common.masking import (
    MAX_EXAMPLES,
    NUM_COUNT_ELEMENTS,
    FixedPoint,
    add_stream,
    mask,
    pair_key,
    subtract_stream,
    unmask_dropped,
    unmask_self,
)


class Cohort:
    """Merchants with keys of their own, and the masks that they share."""

    def __init__(self, num_merchants: int, seed: int, contexts: list[bytes] | None = None) -> None:
        draw = np.random.default_rng(seed).bytes
        private = [X25519PrivateKey.from_private_bytes(draw(32)) for _ in range(num_merchants)]
        public = [key.public_key().public_bytes_raw() for key in private]
        contexts = contexts or [b"order"] * num_merchants
        self.self_keys = [draw(32) for _ in range(num_merchants)]
        self.pair_keys = [
            {j: pair_key(private[i], public[j], contexts[i]) for j in range(num_merchants) if j != i}
            for i in range(num_merchants)
        ]

    def masked(self, place: int, vector: np.ndarray) -> np.ndarray:
        masked = vector.copy()
        mask(masked, place, self.self_keys[place], self.pair_keys[place])
        return masked

    def unmasked(self, masked_sum: np.ndarray, dropped: list[int]) -> np.ndarray:
        result = masked_sum.copy()
        present = [place for place in range(len(self.self_keys)) if place not in dropped]
        for place in present:
            unmask_self(result, self.self_keys[place])
        for place in dropped:
            unmask_dropped(result, place, {other: self.pair_keys[place][other] for other in present})
        return result


def ring_sum(vectors):
    return np.sum(np.stack(vectors), axis=0, dtype=np.uint32)


@settings(max_examples=30, deadline=None)
@given(num_merchants=st.integers(3, 50), seed=st.integers(0, 2**32), data=st.data())
def test_masked_sum_equals_plain_sum_whoever_drops(num_merchants, seed, data):
    dropped = sorted(data.draw(st.sets(st.integers(0, num_merchants - 1), max_size=num_merchants - 1)))
    present = [place for place in range(num_merchants) if place not in dropped]
    vectors = np.random.default_rng(seed).integers(0, 2**32, (num_merchants, 9), dtype=np.uint32)
    cohort = Cohort(num_merchants, seed)
    masked_sum = ring_sum([cohort.masked(place, vectors[place]) for place in present])
    np.testing.assert_array_equal(cohort.unmasked(masked_sum, dropped), ring_sum(vectors[present]))


def test_masks_of_merchants_with_different_orders_do_not_cancel():
    vectors = np.zeros((3, 1000), np.uint32)
    cohort = Cohort(3, 0, contexts=[b"weights A", b"weights A", b"weights B"])
    masked_sum = ring_sum([cohort.masked(place, vectors[place]) for place in range(3)])
    # Zeros went in: where the masks cancel, zeros come out.
    assert np.count_nonzero(cohort.unmasked(masked_sum, [])) > 990


def test_a_masked_vector_says_nothing_without_its_own_key_even_if_all_pairs_are_known():
    cohort = Cohort(3, 0)
    masked = cohort.masked(0, np.zeros(100_000, np.uint32))
    for key in cohort.pair_keys[0].values():
        subtract_stream(masked, key)
    # What is left is the own stream: uniform over the ring.
    counts = np.bincount(masked >> 28, minlength=16)
    assert abs(counts - 6250).max() < 5 * np.sqrt(6250)
    subtract_stream(masked, cohort.self_keys[0])
    assert not masked.any()


def test_both_sides_of_a_pair_derive_one_key_and_a_third_derives_another():
    keys = [X25519PrivateKey.generate() for _ in range(3)]
    public = [key.public_key().public_bytes_raw() for key in keys]
    assert pair_key(keys[0], public[1], b"c") == pair_key(keys[1], public[0], b"c")
    assert pair_key(keys[0], public[1], b"c") != pair_key(keys[0], public[1], b"d")
    assert pair_key(keys[0], public[1], b"c") != pair_key(keys[0], public[2], b"c")


def test_a_public_key_of_low_order_is_refused():
    with pytest.raises(ValueError, match="shared key"):
        pair_key(X25519PrivateKey.generate(), bytes(32), b"c")


@pytest.mark.parametrize("size", [0, 1, 65_535, 65_536, 65_537, 200_000])
def test_adding_and_subtracting_a_stream_leaves_the_vector(size):
    vector = np.arange(size, dtype=np.uint32)
    masked = vector.copy()
    add_stream(masked, bytes(32))
    assert size < 2 or not np.array_equal(masked, vector)
    subtract_stream(masked, bytes(32))
    np.testing.assert_array_equal(masked, vector)


def test_a_piece_of_a_stream_does_not_depend_on_the_length_of_the_vector():
    short, long = np.zeros(70_000, np.uint32), np.zeros(200_000, np.uint32)
    add_stream(short, bytes(32))
    add_stream(long, bytes(32))
    np.testing.assert_array_equal(short, long[: short.size])


def test_the_stream_is_chacha20_as_rfc_8439_gives_it():
    # Appendix A.1, test vector 1: key, nonce and counter of zeros.
    stream = np.zeros(4, np.uint32)
    add_stream(stream, bytes(32))
    assert stream.astype("<u4").tobytes() == bytes.fromhex("76b8e0ada0f13d90405d6ae55386bd28")


def test_the_bytes_of_a_masked_vector_are_pinned():
    masked = Cohort(4, 7).masked(2, FixedPoint(1.0, 1000, 4).encode(np.linspace(-1, 1, 50, dtype=np.float32), 321))
    digest = hashlib.sha256(masked.astype("<u4").tobytes()).hexdigest()
    assert digest == "9e21e57a6f1fbc284c7d8431379cacde7814e790eb3232e8767c43eeb4103f3f"


@settings(max_examples=40, deadline=None)
@given(
    num_merchants=st.integers(1, 60),
    max_norm=st.floats(1e-3, 1e4),
    max_examples=st.integers(1, MAX_EXAMPLES),
    seed=st.integers(0, 2**32),
)
def test_a_decoded_mean_is_the_weighted_mean_within_the_stated_error(num_merchants, max_norm, max_examples, seed):
    rng = np.random.default_rng(seed)
    fixed = FixedPoint(max_norm, max_examples, num_merchants)
    updates = (rng.uniform(-1, 1, (num_merchants, 20)) * max_norm).astype(np.float32)
    updates = np.clip(updates, -np.nextafter(np.float32(max_norm), 0), np.nextafter(np.float32(max_norm), 0))
    counts = rng.integers(1, max_examples, num_merchants, endpoint=True)
    total = ring_sum([fixed.encode(u, int(n)) for u, n in zip(updates, counts, strict=True)])
    mean, num_examples = fixed.decode_mean(total)
    assert num_examples == counts.sum()
    expected = np.average(updates.astype(np.float64), axis=0, weights=counts)
    allowed = fixed.mean_error(num_merchants, num_examples) + 1e-12 * max_norm
    assert np.abs(mean - expected).max() <= allowed


@pytest.mark.parametrize("sign", [-1.0, 1.0])
@pytest.mark.parametrize("num_merchants", [1, 2, 3, 50, 1000])
def test_the_largest_sum_that_is_allowed_does_not_wrap_around(num_merchants, sign):
    fixed = FixedPoint(1.0, 100, num_merchants)
    encoded = fixed.encode(np.full(2, sign, np.float32), 100)
    total = (encoded.astype(np.uint64) * num_merchants % 2**32).astype(np.uint32)
    mean, num_examples = fixed.decode_mean(total)
    assert num_examples == 100 * num_merchants
    np.testing.assert_allclose(mean, sign, atol=fixed.mean_error(num_merchants, num_examples) + 1e-12)


def test_one_step_more_of_scale_would_wrap_around():
    # Half the ring is used to the last step but for the room that rounding needs.
    fixed = FixedPoint(1.0, 1, 3)
    assert 2**31 - 3 * 2 <= 3 * round(fixed.scale) <= 2**31 - 1


@pytest.mark.parametrize("value", [1.0000001, -2.0, np.inf, np.nan])
def test_an_update_beyond_the_norm_or_not_finite_is_never_encoded(value):
    with pytest.raises(ValueError, match="a coordinate of the update"):
        FixedPoint(1.0, 10, 3).encode(np.array([0, value], np.float32), 5)


@pytest.mark.parametrize("num_examples", [0, -1, 11])
def test_a_count_beyond_the_agreed_one_is_never_encoded(num_examples):
    with pytest.raises(ValueError, match="allowed are 1 to 10"):
        FixedPoint(1.0, 10, 3).encode(np.zeros(1, np.float32), num_examples)


def test_a_sum_that_still_has_masks_in_it_is_not_decoded():
    cohort, fixed = Cohort(3, 0), FixedPoint(1.0, 10, 3)
    vectors = [cohort.masked(place, fixed.encode(np.zeros(4, np.float32), 5)) for place in range(3)]
    with pytest.raises(ValueError, match="not one of this cohort's vectors"):
        fixed.decode_mean(ring_sum(vectors))


def test_the_count_stands_in_the_last_elements():
    encoded = FixedPoint(1.0, MAX_EXAMPLES, 3).encode(np.zeros(4, np.float32), 3 * 2**15 + 7)
    assert encoded[-NUM_COUNT_ELEMENTS:].tolist() == [7, 3]


@pytest.mark.parametrize(
    ("max_norm", "max_examples", "max_merchants"),
    [
        (0.0, 1, 1),
        (np.inf, 1, 1),
        (np.nan, 1, 1),
        (1.0, 0, 1),
        (1.0, MAX_EXAMPLES + 1, 1),
        (1.0, 1, 0),
        (1.0, 1, 65_537),
    ],
)
def test_bounds_for_which_no_sum_is_safe_are_refused(max_norm, max_examples, max_merchants):
    with pytest.raises(ValueError, match=r"no fixed point for|a sum has 1 to"):
        FixedPoint(max_norm, max_examples, max_merchants)
