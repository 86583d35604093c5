"""Keys that are not their merchant's or not for this sum, and sealed shares that are not what they are said to be."""

from dataclasses import fields, replace

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from hansa_common import secure_round
from hansa_common.errors import MessageError, PolicyError, ReplayError, SignatureError
from hansa_common.secure_keys import KeyHistory, Session, keys_to_bytes, sign_keys
from hansa_common.secure_rows import rows_from_bytes, rows_to_bytes
from hansa_common.secure_shares import SEALED_BYTES, Channel, SharePair
from hansa_common.secure_thresholds import secure_thresholds

# Keys that are not their merchant's, or not for this sum.


def sharing(cohort, name, **changes):
    """Let a merchant share among the keys as they are, but for those of some places."""
    table = {place: cohort.states[other].advertisement for place, other in enumerate(cohort.session.cohort)}
    changed = {int(place.removeprefix("at_")): advertisement for place, advertisement in changes.items()}
    return cohort.share(name, keys_to_bytes(table | changed))


def test_a_coordinator_cannot_put_its_own_keys_in_place_of_a_merchants(cohort_of):
    cohort = cohort_of(3).advertise_all()
    keys = [X25519PrivateKey.generate().public_key().public_bytes_raw() for _ in range(2)]
    forged = sign_keys(cohort.session, 1, *keys, b"the coordinator's own signature".ljust(32))
    with pytest.raises(SignatureError, match="the keys of 'merchant 1' for the masked sum 1 do not bear its signature"):
        sharing(cohort, "merchant 0", at_1=forged)
    kept = cohort.states["merchant 1"].advertisement
    with pytest.raises(SignatureError):
        sharing(cohort, "merchant 0", at_1=replace(kept, share_key=keys[0]))
    # And nothing was lost by being refused: the merchant shares once it is given the true ones.
    assert sharing(cohort, "merchant 0")


def test_keys_of_one_merchant_do_not_pass_for_anothers(cohort_of):
    cohort = cohort_of(3).advertise_all()
    with pytest.raises(SignatureError):
        sharing(cohort, "merchant 0", at_1=cohort.states["merchant 2"].advertisement)


def test_a_merchant_does_not_share_under_keys_said_to_be_its_own(cohort_of):
    cohort = cohort_of(3).advertise_all()
    other = sign_keys(cohort.session, 0, bytes(32), bytes(range(32)), cohort.identity("merchant 0"))
    with pytest.raises(PolicyError, match="other keys than its own"):
        sharing(cohort, "merchant 0", at_0=other)


@pytest.mark.parametrize(
    "other",
    [
        {"fingerprint": "cd" * 32},
        {"run_id": "run-0"},
        {"round": 2},
        {"cohort": ("merchant 1", "merchant 0", "merchant 2", "merchant 3")},
        {"cohort": ("merchant 0", "merchant 1", "merchant 2", "merchant 4")},
        {"thresholds": secure_thresholds(4, 0, 4)},
        {"thresholds": secure_thresholds(4, 0, 3, 4)},
    ],
    ids="-".join,
)
def test_keys_advertised_for_another_session_are_refused(cohort_of, other):
    assert {field.name for field in fields(Session)} >= other.keys()
    cohort = cohort_of(4).advertise_all()
    session = replace(cohort.session, **other)
    elsewhere = secure_round.advertise(session, "merchant 2", cohort.identity("merchant 2")).advertisement
    with pytest.raises(SignatureError):
        sharing(cohort, "merchant 0", at_2=elsewhere)


def test_an_advertisement_from_an_earlier_round_is_refused(cohort_of):
    first = cohort_of(3)
    first.offers(first.keys())
    later = first.at_round(2).advertise_all()
    with pytest.raises(SignatureError):
        sharing(later, "merchant 0", at_1=first.states["merchant 1"].before.advertisement)


def test_a_key_that_was_used_is_refused_although_it_is_signed_anew(cohort_of):
    first = cohort_of(3)
    first.offers(first.keys())
    used = first.states["merchant 1"].before.advertisement
    later = first.at_round(2).advertise_all()
    fresh = X25519PrivateKey.generate().public_key().public_bytes_raw()
    for keys in ((used.mask_key, fresh), (fresh, used.share_key), (used.share_key, fresh)):
        again = sign_keys(later.session, 1, *keys, later.identity("merchant 1"))
        with pytest.raises(ReplayError, match="was used before"):
            sharing(later, "merchant 0", at_1=again)


def test_two_keys_of_a_round_are_never_the_same(cohort_of):
    cohort = cohort_of(3).advertise_all()
    seen = cohort.states["merchant 2"].advertisement
    copied = sign_keys(cohort.session, 1, seen.mask_key, seen.share_key, cohort.identity("merchant 1"))
    with pytest.raises(ReplayError, match="are the same"):
        sharing(cohort, "merchant 0", at_1=copied)


def test_a_round_that_was_there_is_not_shared_in_again_under_new_keys(cohort_of):
    cohort = cohort_of(3)
    cohort.offers(cohort.keys())
    again = replace(cohort, seed=0, states={}).at_round(1).advertise_all()
    with pytest.raises(ReplayError, match="allowed is a number above 1"):
        sharing(again, "merchant 0")


def test_another_run_is_not_a_way_to_forget_the_keys_of_this_one(cohort_of):
    first = cohort_of(3)
    first.offers(first.keys())
    other = replace(first, session=replace(first.session, run_id="run-2"), states={}).advertise_all()
    with pytest.raises(PolicyError, match="a masked sum of run 'run-2' is asked for among those of 'run-1'"):
        sharing(other, "merchant 0")


def test_merchants_that_the_agreement_does_not_name_are_refused(cohort_of):
    cohort = cohort_of(4).advertise_all()
    identities = {name: key for name, key in cohort.identities.items() if name != "merchant 3"}
    keys = {place: cohort.states[name].advertisement for place, name in enumerate(cohort.session.cohort)}
    with pytest.raises(PolicyError, match="names no key of 'merchant 3'"):
        secure_round.share(cohort.states["merchant 0"], keys, identities, KeyHistory())


def test_a_key_that_makes_every_secret_known_is_refused_and_masks_nothing(cohort_of, order_hash):
    cohort = cohort_of(3).advertise_all()
    keys = {place: cohort.states[name].advertisement for place, name in enumerate(cohort.session.cohort)}
    identity = cohort.identity("merchant 1")
    with pytest.raises(MessageError, match="none that can be shared with"):
        sharing(cohort, "merchant 0", at_1=sign_keys(cohort.session, 1, keys[1].mask_key, bytes(32), identity))
    evil = sign_keys(cohort.session, 1, bytes(32), keys[1].share_key, identity)
    cohort.share("merchant 0", keys_to_bytes({**keys, 1: evil}))
    cohort.share("merchant 1", keys_to_bytes(keys))
    # Its peer takes part with the bad key: the vector must not be masked with what everyone knows.
    vector, sealed = np.zeros(5, np.uint32), cohort.states["merchant 1"].offer.sealed[0]
    with pytest.raises(MessageError, match="none that can be shared with"):
        secure_round.mask(cohort.states["merchant 0"], vector, {1: sealed}, order_hash)
    assert not vector.any()


# Sealed shares.


def test_sealed_shares_open_only_for_whom_and_from_whom_they_were_sealed(cohort_of, order_hash):
    cohort = cohort_of(4)
    offers = cohort.offers(cohort.keys())
    mine = rows_from_bytes(offers.inbox("merchant 0"), SEALED_BYTES, 4)
    theirs = rows_from_bytes(offers.inbox("merchant 3"), SEALED_BYTES, 4)
    altered = bytes([*mine[1][:-1], mine[1][-1] ^ 1])
    for swapped in ({1: mine[2], 2: mine[1]}, {1: theirs[1]}, {1: altered}, {1: bytes(SEALED_BYTES)}, {1: b""}):
        vector = np.zeros(5, np.uint32)
        with pytest.raises(MessageError, match="do not open"):
            secure_round.mask(cohort.states["merchant 0"], vector, {**mine, **swapped}, order_hash)
        assert not vector.any()


def test_a_merchants_own_sealed_shares_do_not_come_back_to_it_as_anothers(cohort_of, order_hash):
    # Both directions of a pair have one X25519 secret.
    cohort = cohort_of(3)
    inbox = rows_from_bytes(cohort.offers(cohort.keys()).inbox("merchant 0"), SEALED_BYTES, 3)
    reflected = cohort.states["merchant 0"].offer.sealed[1]
    with pytest.raises(MessageError, match="do not open"):
        secure_round.mask(cohort.states["merchant 0"], np.zeros(5, np.uint32), {**inbox, 1: reflected}, order_hash)


def test_shares_are_sealed_for_one_session_although_the_keys_were_the_same(cohort_of):
    cohort, later = cohort_of(3), cohort_of(3).at_round(2)
    mine, theirs = X25519PrivateKey.generate(), X25519PrivateKey.generate()
    my_key, their_key = (key.public_key().public_bytes_raw() for key in (mine, theirs))
    pair = SharePair(bytes(66), bytes(range(66)))
    sealed = Channel(cohort.session, 0, 1).seal(pair, mine, their_key)
    assert Channel(cohort.session, 0, 1).open(sealed, theirs, my_key) == pair
    with pytest.raises(MessageError, match="do not open"):
        Channel(later.session, 0, 1).open(sealed, theirs, my_key)


def test_sealed_shares_of_an_earlier_round_do_not_open(cohort_of, ring_vectors):
    first = cohort_of(3)
    before = rows_from_bytes(first.offers(first.keys()).inbox("merchant 0"), SEALED_BYTES, 3)
    later = first.at_round(2)
    inbox = rows_from_bytes(later.offers(later.keys()).inbox("merchant 0"), SEALED_BYTES, 3)
    with pytest.raises(MessageError, match="do not open"):
        later.mask("merchant 0", rows_to_bytes({**inbox, 1: before[1]}), ring_vectors(1)[0])
