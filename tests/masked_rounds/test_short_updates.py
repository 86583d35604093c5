"""Updates in few bits under masks: their sum is the plain sum to the bit, whoever drops out, and nothing is read of it
where merchants were asked otherwise."""

import hashlib

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from hansa_common.errors import ReplyError, RoundAbandonedError
from hansa_common.rotation import Rotation
from hansa_common.secure_thresholds import secure_thresholds
from hansa_common.short_round import ShortRoundVector
from hansa_common.short_updates import ShortUpdates
from hansa_server.unmasking import MaskedSum, unmasked_sum

NUM_PARAMS, MAX_EXAMPLES = 40, 1000
STAYS = 4


def layout_of(num_merchants, bits, seed=0):
    updates = ShortUpdates(Rotation(NUM_PARAMS, seed), bits, 1.0, MAX_EXAMPLES, num_merchants)
    return ShortRoundVector(updates, 5, MAX_EXAMPLES)


def encoded(layout, num_merchants, seed=0):
    """Vectors of merchants in one direction and at the bounds, so that every sum is as far out as it can be."""
    draw = np.random.default_rng(seed)
    updates = np.full((num_merchants, NUM_PARAMS), 0.999 / np.sqrt(NUM_PARAMS), np.float32)
    rows = draw.integers(1, MAX_EXAMPLES, num_merchants, endpoint=True)
    rows[: num_merchants // 2] = MAX_EXAMPLES
    counts = draw.integers(0, MAX_EXAMPLES, (num_merchants, 5), endpoint=True)
    vectors = [
        layout.encode(update, 0.5, int(n), c, draw) for update, n, c in zip(updates, rows, counts, strict=True)
    ]  # fmt: skip
    return np.stack(vectors), updates, rows, counts


@st.composite
def courses(draw):
    """How many merchants, in how many bits, and the step from which on each is absent: one more than is tolerated at
    most."""
    num_merchants = draw(st.integers(3, 50))
    limits = secure_thresholds(num_merchants)
    leaving = draw(st.sets(st.integers(0, num_merchants - 1), max_size=limits.dropouts + 1))
    leaves_at = [draw(st.integers(0, STAYS - 1)) if i in leaving else STAYS for i in range(num_merchants)]
    return limits, draw(st.integers(2, 8)), leaves_at


@settings(max_examples=10, deadline=None)
@given(course=courses(), seed=st.integers(0, 2**32))
@example(course=(secure_thresholds(3), 8, [STAYS] * 3), seed=0)
@example(course=(secure_thresholds(50), 8, [i % 5 if i < 24 else STAYS for i in range(50)]), seed=1)
@example(course=(secure_thresholds(10), 2, [2, 2, 3, 3, *[STAYS] * 6]), seed=2)
def test_sum_of_updates_in_few_bits_is_the_plain_sum_or_the_round_is_abandoned(cohort_of, course, seed):
    limits, bits, leaves_at = course
    num_merchants = len(leaves_at)
    layout = layout_of(num_merchants, bits, seed)
    vectors, updates, rows, counts = encoded(layout, num_merchants, seed)
    absent = tuple({place for place, left in enumerate(leaves_at) if left == step} for step in range(STAYS))
    needed = [*[limits.least] * 3, limits.threshold]
    is_known = all(sum(left > step for left in leaves_at) >= least for step, least in enumerate(needed))
    cohort = cohort_of(num_merchants, limits, seed)
    if not is_known:
        with pytest.raises(RoundAbandonedError):
            cohort.total(vectors, absent)
        return
    total = cohort.total(vectors, absent)
    in_sum = [place for place, left in enumerate(leaves_at) if left > 2]
    np.testing.assert_array_equal(total, vectors[in_sum].sum(axis=0, dtype=np.uint32))
    found = layout.decode(total, len(in_sum))
    assert found.num_examples == rows[in_sum].sum()
    np.testing.assert_array_equal(found.counts, counts[in_sum].sum(axis=0))
    # What is cut off shortens, and is no part of that bound.
    expected = np.average(updates[in_sum].astype(np.float64), axis=0, weights=rows[in_sum])
    assert np.linalg.norm(found.mean_update - expected) <= found.most_error + 0.2 * np.linalg.norm(expected)


def test_nothing_is_read_of_a_sum_in_few_bits_where_one_was_asked_otherwise(cohort_of, order_hash):
    """Different weights to one merchant, whose update alone would be in the sum (Pasquini et al., 2022)."""
    layout, cohort = layout_of(5, 4), cohort_of(5)
    vectors = encoded(layout, 5)[0]
    offers = cohort.offers(cohort.keys())
    adding = MaskedSum(offers, layout.num_elements)
    for place, name in enumerate(cohort.session.cohort):
        asked = hashlib.sha256(b"another order").digest() if place == 2 else order_hash
        adding.add(name, cohort.mask(name, offers.inbox(name), vectors[place], asked))
    closed = adding.close()
    total, _ = unmasked_sum(closed, order_hash, cohort.openings(closed))
    with pytest.raises(ValueError, match="it is not one of this cohort's vectors"):
        layout.decode(total, 5)


@pytest.mark.parametrize("change", [lambda v: v[:-1], lambda v: np.append(v, v[:1]), lambda v: v.view(np.uint8)])
def test_vector_of_another_length_is_not_added_and_its_merchant_is_told_of(cohort_of, order_hash, change):
    layout, cohort = layout_of(5, 8), cohort_of(5)
    vectors = encoded(layout, 5)[0]
    offers = cohort.offers(cohort.keys())
    adding = MaskedSum(offers, layout.num_elements)
    for place, name in enumerate(cohort.session.cohort):
        masked = cohort.mask(name, offers.inbox(name), vectors[place])
        if place != 3:
            adding.add(name, masked)
            continue
        changed = change(masked)
        said = f"a vector of {changed.size} elements, the sum has {layout.num_elements}"
        with pytest.raises(ReplyError, match=said) as refused:
            adding.add(name, changed)
        assert refused.value.reason == "wrong-length"
    closed = adding.close()
    assert closed.dropped == {"merchant 3": "wrong-length"}
    total, _ = unmasked_sum(closed, order_hash, cohort.openings(closed))
    np.testing.assert_array_equal(total, np.delete(vectors, 3, axis=0).sum(axis=0, dtype=np.uint32))


def test_masked_bytes_of_an_update_in_few_bits_are_pinned(cohort_of):
    cohort = cohort_of(4, seed=2026)
    vectors = encoded(layout_of(4, 8, seed=2026), 4, seed=2026)[0]
    offers = cohort.offers(cohort.keys())
    masked = cohort.mask("merchant 0", offers.inbox("merchant 0"), vectors[0])
    found = [hashlib.sha256(vector.astype("<u4").tobytes()).hexdigest()[:32] for vector in (vectors[0], masked)]
    assert found == PINNED


PINNED = ["0ba2c2654989ed5967f388d8cc50bac0", "2f6425c256be00ddca49c7277606b80f"]
