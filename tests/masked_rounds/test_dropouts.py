"""Whoever drops out, and when: the sum is that of the vectors in it, to the bit, or there is none and a reason."""

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from hansa_common.errors import ReplayError, ReplyError, RoundAbandonedError
from hansa_common.masking import FixedPoint
from hansa_common.secure_keys import KeyHistory, sign_keys
from hansa_common.secure_rows import rows_from_bytes, rows_to_bytes
from hansa_common.secure_thresholds import secure_thresholds
from hansa_server.unmasking import MaskedSum, decoded_mean, gather_keys, gather_offers, unmasked_sum

STAYS = 4
REASONS = ("too-few-keys", "too-few-shares", "too-few-vectors", "too-few-openings")


def expected_end(leaves_at, limits):
    """What the protocol must come to: a reason, or None. By counts alone."""
    for step, reason in enumerate(REASONS):
        needed = limits.threshold if reason == "too-few-openings" else limits.least
        if sum(left > step for left in leaves_at) < needed:
            return reason
    return None


@st.composite
def courses(draw):
    """Thresholds that hold, and the step from which on each merchant is absent."""
    num_merchants = draw(st.integers(3, 50))
    colluders = draw(st.integers(0, num_merchants - 2))
    threshold = draw(st.integers((num_merchants + colluders) // 2 + 1, num_merchants))
    limits = secure_thresholds(num_merchants, colluders, threshold, draw(st.integers(1, num_merchants)))
    # One more than is tolerated, at most.
    leaving = draw(st.sets(st.integers(0, num_merchants - 1), max_size=limits.dropouts + 1))
    return limits, [draw(st.integers(0, STAYS - 1)) if i in leaving else STAYS for i in range(num_merchants)]


@settings(max_examples=15, deadline=None)
@given(course=courses(), seed=st.integers(0, 2**32))
@example(course=(secure_thresholds(3, 1), [STAYS] * 3), seed=0)
@example(course=(secure_thresholds(3), [STAYS, 2, STAYS]), seed=0)
@example(course=(secure_thresholds(50), [i % 5 if i < 24 else STAYS for i in range(50)]), seed=1)
def test_the_sum_is_the_plain_sum_or_the_round_is_abandoned_with_its_reason(cohort_of, ring_vectors, course, seed):
    limits, leaves_at = course
    vectors = ring_vectors(len(leaves_at), seed=seed)
    absent = tuple({place for place, left in enumerate(leaves_at) if left == step} for step in range(STAYS))
    reason = expected_end(leaves_at, limits)
    cohort = cohort_of(len(leaves_at), limits, seed)
    if reason is None:
        in_sum = [place for place, left in enumerate(leaves_at) if left > 2]
        np.testing.assert_array_equal(cohort.total(vectors, absent), vectors[in_sum].sum(axis=0, dtype=np.uint32))
    else:
        with pytest.raises(RoundAbandonedError) as abandoned:
            cohort.total(vectors, absent)
        assert abandoned.value.reason == reason


@pytest.mark.parametrize("num_merchants", range(3, 12))
@pytest.mark.parametrize("step", range(STAYS))
def test_as_many_dropouts_as_are_tolerated_and_not_one_more(cohort_of, ring_vectors, num_merchants, step):
    limits = secure_thresholds(num_merchants)
    vectors = ring_vectors(num_merchants)

    def end(num_leaving):
        absent = tuple(set(range(num_leaving)) if step == at else set() for at in range(STAYS))
        return cohort_of(num_merchants, limits).total(vectors, absent)

    # Those who have masked may be more than are needed to open their sum.
    most = limits.dropouts if step < STAYS - 1 else num_merchants - limits.threshold
    assert end(most).size == vectors.shape[1]
    with pytest.raises(RoundAbandonedError, match="the masked sum 1 is abandoned") as abandoned:
        end(most + 1)
    assert abandoned.value.reason == REASONS[step]


def test_later_sums_of_the_same_merchants_are_right_too(cohort_of, ring_vectors):
    cohort = cohort_of(4)
    for number in (1, 2, 5):
        cohort = cohort.at_round(number)
        vectors = ring_vectors(4, seed=number)
        absent = (set(), set(), {number % 4}, set())
        expected = np.delete(vectors, number % 4, axis=0).sum(axis=0, dtype=np.uint32)
        np.testing.assert_array_equal(cohort.total(vectors, absent), expected)


def test_the_mean_of_updates_is_the_plain_mean_within_the_stated_error(cohort_of):
    rng, cohort = np.random.default_rng(5), cohort_of(5)
    fixed = FixedPoint(2.0, 1000, 5)
    updates, counts = rng.uniform(-1.9, 1.9, (5, 40)).astype(np.float32), rng.integers(1, 1000, 5, endpoint=True)
    vectors = np.stack([fixed.encode(update, int(count)) for update, count in zip(updates, counts, strict=True)])
    mean, num_examples = decoded_mean(cohort.session, fixed, cohort.total(vectors, ((), (), {3}, ())))
    left = [0, 1, 2, 4]
    assert num_examples == counts[left].sum()
    expected = np.average(updates[left].astype(np.float64), axis=0, weights=counts[left])
    assert np.abs(mean - expected).max() <= fixed.mean_error(4, num_examples)


def closed_of(cohort, vectors, absent=()):
    return cohort.closed(cohort.offers(cohort.keys()), vectors, absent)


def test_who_dropped_out_is_told_with_the_step(cohort_of, ring_vectors):
    cohort = cohort_of(10)
    closed = cohort.closed(cohort.offers(cohort.keys({1}), {1, 2}), ring_vectors(10), {1, 2, 3})
    assert closed.dropped == {"merchant 1": "silent", "merchant 2": "silent", "merchant 3": "silent"}
    assert closed.in_sum == (0, 4, 5, 6, 7, 8, 9)


def refused(action, *args):
    with pytest.raises(ReplyError) as error:
        action(*args)
    return error.value.reason


def test_a_vector_that_comes_late_twice_from_a_stranger_or_too_long_is_not_added(cohort_of, ring_vectors, order_hash):
    cohort, vectors = cohort_of(4), ring_vectors(4)
    offers = cohort.offers(cohort.keys({3}), {3})
    adding = MaskedSum(offers, 9)
    masked = {name: cohort.mask(name, offers.inbox(name), vectors[i]) for i, name in enumerate(cohort.present({3}))}
    assert refused(adding.add, "merchant 3", vectors[3]) == "stranger"
    assert refused(adding.add, "nobody", vectors[3]) == "stranger"
    assert refused(adding.add, "merchant 0", masked["merchant 0"][:-1]) == "wrong-length"
    assert refused(adding.add, "merchant 0", masked["merchant 0"].astype(np.int64)) == "wrong-length"
    for name, vector in masked.items():
        adding.add(name, vector)
    assert refused(adding.add, "merchant 0", masked["merchant 0"]) == "twice"
    closed = adding.close()
    assert refused(adding.add, "merchant 1", masked["merchant 1"]) == "late"
    total, _ = unmasked_sum(closed, order_hash, cohort.openings(closed))
    np.testing.assert_array_equal(total, vectors[:3].sum(axis=0, dtype=np.uint32))


def signed_key(cohort, mask_key):
    return sign_keys(cohort.session, 2, mask_key, bytes(range(32)), cohort.identity("merchant 2")).to_bytes()


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (lambda cohort: cohort.advertise("merchant 2")[1:], "malformed"),
        (lambda cohort: cohort.advertise("merchant 1"), "not-signed"),
        (lambda cohort: cohort.advertise("merchant 2")[:-1] + b"\0", "not-signed"),
        (lambda cohort: signed_key(cohort, cohort.states["merchant 0"].advertisement.mask_key), "key"),
        (lambda cohort: signed_key(cohort, bytes(32)), "key"),
    ],
    ids=["no keys", "another's", "altered", "copied", "of low order"],
)
def test_keys_that_do_not_hold_leave_their_merchant_out_and_the_others_go_on(cohort_of, ring_vectors, content, reason):
    cohort = cohort_of(5)
    replies = {name: cohort.advertise(name) for name in cohort.session.cohort}
    keys = gather_keys(cohort.session, cohort.identities, KeyHistory(), {**replies, "merchant 2": content(cohort)})
    assert keys.dropped == {"merchant 2": reason}
    assert cohort.closed(cohort.offers(keys, {2}), ring_vectors(5)).in_sum == (0, 1, 3, 4)


def test_a_key_of_an_earlier_round_leaves_its_merchant_out(cohort_of):
    first = cohort_of(4)
    keys = first.keys()
    later = first.at_round(2)
    again = signed_key(later, keys.advertisements[2].mask_key)
    replies = {name: later.advertise(name) for name in later.session.cohort}
    found = gather_keys(later.session, later.identities, keys.history, {**replies, "merchant 2": again})
    assert found.dropped == {"merchant 2": "key"}
    with pytest.raises(ReplayError, match="the masked sum 2 of run 'run-1' was there"):
        gather_keys(later.session, later.identities, found.history, replies)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda offer: offer[:31], "malformed"),
        (lambda offer: offer + b"\0", "malformed"),
        (lambda offer: offer[:-162], "shares"),
        (lambda offer: offer[:32], "shares"),
    ],
)
def test_shares_that_do_not_hold_leave_their_merchant_out(cohort_of, change, reason):
    cohort = cohort_of(5)
    keys = cohort.keys()
    replies = {name: cohort.share(name, keys.table()) for name in cohort.session.cohort}
    offers = gather_offers(keys, {**replies, "merchant 4": change(replies["merchant 4"])})
    assert offers.dropped == {"merchant 4": reason}
    assert sorted(offers.taking_part) == [0, 1, 2, 3]


@pytest.mark.parametrize("absent", [(), (2,)])
def test_shares_that_are_not_those_handed_out_end_the_round(cohort_of, ring_vectors, order_hash, absent):
    cohort = cohort_of(4)
    closed = closed_of(cohort, ring_vectors(4), absent)
    openings = cohort.openings(closed)
    rows = rows_from_bytes(openings["merchant 0"], 66, 4)
    rows[2] = bytes([0, *rows[2][1:-1], rows[2][-1] ^ 1])
    with pytest.raises(RoundAbandonedError, match="what was opened of 'merchant 2'") as abandoned:
        unmasked_sum(closed, order_hash, {**openings, "merchant 0": rows_to_bytes(rows)})
    assert abandoned.value.reason == "shares-inconsistent"


def test_openings_of_too_few_places_do_not_count_but_the_others_suffice(cohort_of, ring_vectors, order_hash):
    cohort, vectors = cohort_of(5), ring_vectors(5)
    closed = closed_of(cohort, vectors)
    openings = cohort.openings(closed)
    total, silent = unmasked_sum(
        closed, order_hash, {**openings, "merchant 1": b"x", "merchant 3": openings["merchant 3"][:-68]}
    )
    assert silent == {"merchant 1": "malformed", "merchant 3": "shares"}
    np.testing.assert_array_equal(total, vectors.sum(axis=0, dtype=np.uint32))


def test_a_sum_of_something_else_than_updates_is_abandoned(cohort_of, ring_vectors):
    cohort = cohort_of(3)
    with pytest.raises(RoundAbandonedError, match="is not one of this cohort's vectors") as abandoned:
        decoded_mean(cohort.session, FixedPoint(1.0, 10, 3), cohort.total(ring_vectors(3)))
    assert abandoned.value.reason == "implausible"
