"""What a coordinator, or a merchant beside it, may try against a masked sum: orders that differ, requests that must not
be answered, masks that could be guessed. Each fails, and most are refused.
"""

import hashlib
from dataclasses import replace

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from hansa_common import masking, secure_round
from hansa_common.errors import MessageError, PolicyError, ReplayError, RoundAbandonedError
from hansa_common.messages import RoundOrder
from hansa_common.secret_sharing import combine
from hansa_common.secure_keys import Advertisement, keys_from_bytes, keys_to_bytes, mask_context
from hansa_common.secure_messages import Masking
from hansa_common.secure_rows import rows_from_bytes, rows_to_bytes
from hansa_common.secure_thresholds import secure_thresholds
from hansa_server.unmasking import unmasked_sum


def order_of(**changes):
    values = {
        "run_id": "run-1",
        "sequence": 7,
        "recipient": "merchant 0",
        "fingerprint": "ab" * 32,
        "deadline_seconds": 60.0,
        "round": 1,
        "plan": 0,
        "cohort": ("merchant 0", "merchant 1", "merchant 2"),
        "preprocessing": '{"a":1}',
        "weights": np.arange(6, dtype=np.float32),
        "control": np.arange(6, dtype=np.float32) / 7,
        "included": "",
    }
    return RoundOrder(**{**values, **changes})


OTHERWISE = {
    "run_id": "run-2",
    "sequence": 8,
    "fingerprint": "cd" * 32,
    "deadline_seconds": 61.0,
    "round": 2,
    "plan": 1,
    "cohort": ("merchant 0", "merchant 1", "merchant 3"),
    "preprocessing": '{"a":2}',
    "weights": np.arange(6, dtype=np.float32) + 1,
    "control": np.zeros(6, np.float32),
    "stage": "prune",
    "masks": np.ones(1, np.uint8),
    "masking": Masking(sum=2, next_sum=3),
    "asks_scores": False,
    "counted": (0, 2),
}


# Different orders to different merchants (Pasquini et al.).


def test_an_order_is_the_same_for_everyone_but_for_its_recipient():
    own = {"included": "ef" * 32, "shares": np.ones(3, np.uint8)}
    hashes = {secure_round.common_order_hash(order_of(recipient=f"merchant {i}", **own)) for i in range(3)}
    assert hashes == {secure_round.common_order_hash(order_of())}
    assert set(OTHERWISE) == RoundOrder.model_fields.keys() - {"recipient", "included", "shares"}


def test_an_order_is_the_same_for_those_whose_next_sum_is_another_and_not_for_those_of_another_sum():
    hashes = [
        secure_round.common_order_hash(order_of(masking=Masking(sum=number, next_sum=next_number)))
        for number, next_number in ((1, 0), (1, 4), (1, 5), (2, 5))
    ]
    assert hashes[0] == hashes[1] == hashes[2] != hashes[3]


@pytest.mark.parametrize("field", OTHERWISE)
def test_nothing_is_read_of_a_sum_over_orders_that_differ(cohort_of, order_hash, field):
    common = secure_round.common_order_hash(order_of())
    victims = secure_round.common_order_hash(order_of(**{field: OTHERWISE[field]}))
    cohort, zeros = cohort_of(3), np.zeros((3, 1000), np.uint32)
    offers = cohort.offers(cohort.keys())
    hashes = (victims, common, common)
    masked = [
        cohort.mask(name, offers.inbox(name), zeros[i], hashes[i]) for i, name in enumerate(cohort.session.cohort)
    ]
    # The coordinator takes off every mask that it can know, for either order: what is left is masked still.
    secrets = {
        place: combine({i: cohort.states[name].held[place].of_self_secret for i, name in enumerate(cohort.states)}, 2)
        for place in range(3)
    }
    total = np.sum(masked, axis=0, dtype=np.uint32)
    for place, known in enumerate(hashes):
        context = mask_context(cohort.session, known, offers.taking_part)
        masking.unmask_self(total, masking.self_key(secrets[place], context))
    assert np.count_nonzero(total) > 990


def test_masks_depend_on_who_takes_part_and_under_which_keys(cohort_of, order_hash):
    cohort = cohort_of(4)
    keys = dict(cohort.keys().advertisements)
    resigned = replace(keys[3], share_key=keys[0].share_key)
    others = ({place: keys[place] for place in (0, 1, 2)}, {**keys, 0: keys[1], 1: keys[0]}, {**keys, 3: resigned})
    contexts = {mask_context(cohort.session, order_hash, taking_part) for taking_part in (keys, *others)}
    assert len(contexts | {mask_context(cohort.at_round(2).session, order_hash, keys)}) == 5


def test_nothing_is_read_of_one_who_was_told_of_fewer_that_take_part(cohort_of, order_hash):
    """Whose masks are only with a few, of whom all others, who are told that everyone takes part, open masks' keys."""
    cohort, everyone = cohort_of(10), set(range(10))
    limits, offers = cohort.session.thresholds, cohort.offers(cohort.keys())

    def masked(place, told):
        inbox = rows_to_bytes({other: offers.offers[other].sealed[place] for other in told - {place}})
        return cohort.mask(f"merchant {place}", inbox, np.zeros(5, np.uint32))

    masked(0, set(range(limits.least)))
    openings = dict.fromkeys(range(1, limits.least), 0)
    for opener in range(1, 10):
        masked(opener, everyone)
        fewest = sorted(openings.keys() - {opener}, key=openings.__getitem__)
        left_out = set(fewest[: limits.num_merchants - limits.least])
        cohort.unmask(f"merchant {opener}", everyone - left_out)
        openings.update({place: openings[place] + 1 for place in left_out})
    assert min(openings.values()) < limits.threshold


# Too few, twice, or both halves.


def masked_cohort(cohort, num_elements=5):
    offers = cohort.offers(cohort.keys())
    zeros = np.zeros((len(cohort.session.cohort), num_elements), np.uint32)
    return cohort.closed(offers, zeros)


def test_no_step_is_taken_for_fewer_than_the_least_cohort(cohort_of, order_hash):
    cohort = cohort_of(5, secure_thresholds(5, 1, min_merchants=4)).advertise_all()
    keys = {place: cohort.states[name].advertisement for place, name in enumerate(cohort.session.cohort)}
    said = "is asked for 3 merchants; allowed are 4 at least"
    with pytest.raises(PolicyError, match=said):
        cohort.share("merchant 0", keys_to_bytes({place: keys[place] for place in (0, 1, 2)}))
    offers = cohort.offers(cohort.keys())
    few = rows_to_bytes({place: offers.offers[place].sealed[0] for place in (3, 4)})
    with pytest.raises(PolicyError, match=said):
        cohort.mask("merchant 0", few, np.zeros(5, np.uint32))
    cohort.mask("merchant 0", offers.inbox("merchant 0"), np.zeros(5, np.uint32))
    with pytest.raises(PolicyError, match=said):
        cohort.unmask("merchant 0", {0, 1, 2})
    assert cohort.unmask("merchant 0", {0, 1, 2, 3})


def test_a_merchant_opens_shares_once_whatever_it_is_asked_then(cohort_of):
    cohort = cohort_of(5)
    masked_cohort(cohort)
    assert cohort.unmask("merchant 0", {0, 1, 2, 3})
    for survivors in ({0, 1, 2, 4}, {0, 1, 2, 3}, {0, 1, 2, 3, 4}):
        with pytest.raises(ReplayError, match="was taken; a step is taken once"):
            cohort.unmask("merchant 0", survivors)


@pytest.mark.parametrize(
    ("survivors", "said"),
    [({1, 2, 3}, "said to be without it"), ({0, 1, 2, 5}, "not in its cohort"), ({0, 1, 2, 4}, "handed out no shares")],
)
def test_a_merchant_opens_nothing_for_a_sum_that_cannot_be(cohort_of, survivors, said):
    cohort = cohort_of(5)
    offers = cohort.offers(cohort.keys({4}), {4})
    cohort.mask("merchant 0", offers.inbox("merchant 0"), np.zeros(5, np.uint32))
    with pytest.raises(PolicyError, match=said):
        cohort.unmask("merchant 0", survivors)


def test_a_vector_is_masked_once_and_no_step_is_skipped(cohort_of):
    cohort = cohort_of(3).advertise_all()
    with pytest.raises(PolicyError, match="has only Advertised"):
        cohort.unmask("merchant 0", {0, 1, 2})
    offers = cohort.offers(cohort.keys())
    with pytest.raises(ReplayError, match="the step after Advertised of the masked sum 1 was taken"):
        cohort.share("merchant 0", offers.keys.table())
    cohort.mask("merchant 0", offers.inbox("merchant 0"), np.zeros(5, np.uint32))
    with pytest.raises(ReplayError, match="the step after Shared of the masked sum 1 was taken"):
        cohort.mask("merchant 0", offers.inbox("merchant 0"), np.ones(5, np.uint32))


def test_who_came_late_stays_masked_although_its_masks_private_key_is_opened(cohort_of, order_hash):
    cohort, zeros = cohort_of(4), np.zeros((4, 100_000), np.uint32)
    offers = cohort.offers(cohort.keys())
    late = cohort.mask("merchant 3", offers.inbox("merchant 3"), zeros[3])
    closed = cohort.closed(offers, zeros, {3})
    openings = {name: rows_from_bytes(opened, 66, 4) for name, opened in cohort.openings(closed).items()}
    private = combine({i: openings[f"merchant {i}"][3] for i in range(3)}, 3)
    context = mask_context(cohort.session, order_hash, offers.taking_part)
    key = X25519PrivateKey.from_private_bytes(private)
    for place in range(3):
        pair = masking.pair_key(key, offers.taking_part[place].mask_key, context)
        (masking.subtract_stream if place > 3 else masking.add_stream)(late, pair)
    # All masks between merchants are off; what is left is its own, uniform over the ring.
    counts = np.bincount(late >> 28, minlength=16)
    assert abs(counts - 6250).max() < 5 * np.sqrt(6250)


def test_a_coordinator_that_tells_its_own_sum_from_the_agreed_one_gets_none(cohort_of, order_hash, ring_vectors):
    # It told the merchants that three are in the sum, and adds up two.
    cohort, vectors = cohort_of(3), ring_vectors(3, 50)
    closed = cohort.closed(cohort.offers(cohort.keys()), vectors)
    openings = cohort.openings(closed)
    two = replace(closed, in_sum=(0, 1))
    with pytest.raises(RoundAbandonedError, match="what was opened of 'merchant 2'"):
        unmasked_sum(two, order_hash, {name: openings[name] for name in ("merchant 0", "merchant 1")})


# Masks that can be guessed.


def legacy_mask(seed: bytes, num_bits: int) -> np.ndarray:
    """As the legacy SecAgg+ draws masks: a Mersenne twister of the seed's last bits (there 32)."""
    folded = int.from_bytes(seed, "big") % 2**num_bits
    return np.random.RandomState(folded).randint(0, 2**32, 8, np.uint64).astype(np.uint32)


def enumerated_seed(mask: np.ndarray, num_bits: int) -> int | None:
    for guess in range(2**num_bits):
        if np.array_equal(legacy_mask(guess.to_bytes(32, "big"), num_bits), mask):
            return guess
    return None


def test_enumerating_seeds_finds_a_legacy_mask_and_none_of_ours(cohort_of):
    secret, num_bits = hashlib.sha256(b"a pair's secret").digest(), 10
    assert enumerated_seed(legacy_mask(secret, num_bits), num_bits) == int.from_bytes(secret, "big") % 2**num_bits
    cohort = cohort_of(3)
    offers = cohort.offers(cohort.keys())
    masked = cohort.mask("merchant 0", offers.inbox("merchant 0"), np.zeros(8, np.uint32))
    assert enumerated_seed(masked, num_bits) is None


def test_every_bit_of_a_secret_of_256_is_in_every_mask():
    # So there is nothing smaller to enumerate than 2^256 secrets.
    secret, context = hashlib.sha256(b"a secret").digest(), b"context"
    streams = set()
    for bit in range(257):
        flipped = int.from_bytes(secret, "big") ^ (1 << bit if bit < 256 else 0)
        stream = np.zeros(4, np.uint32)
        masking.add_stream(stream, masking.self_key(flipped.to_bytes(32, "big"), context))
        streams.add(stream.tobytes())
    assert len(streams) == 257


# What must not be seen.


def test_no_secret_is_in_a_states_repr(cohort_of):
    cohort = cohort_of(3)
    offers = cohort.offers(cohort.keys())
    shared = cohort.states["merchant 0"]
    cohort.mask("merchant 0", offers.inbox("merchant 0"), np.zeros(5, np.uint32))
    masked = cohort.states["merchant 0"]
    pairs = [*masked.held.values(), shared.own_pair]
    secrets = [shared.self_secret, shared.before.mask_key.private_bytes_raw()]
    secrets += [half for pair in pairs for half in (pair.of_self_secret, pair.of_mask_key)]
    shown = repr((shared, masked))
    assert not any(repr(secret) in shown or secret.hex() in shown for secret in secrets)


def test_forged_tables_of_keys_are_refused(cohort_of):
    cohort = cohort_of(3)
    table = cohort.keys().table()
    assert keys_from_bytes(table, 3)
    with pytest.raises(MessageError):
        keys_from_bytes(table, 2)
    with pytest.raises(MessageError, match="advertised keys have 128 bytes, these 127"):
        Advertisement.from_bytes(bytes(127))
