"""A sealed message is its sealer's, whole and for one purpose; everything else is refused, and with one error."""

from __future__ import annotations

import pytest
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from hypothesis import given
from hypothesis import strategies as st

from hansa_common import sealing
from hansa_common.errors import HansaError, MessageError, SignatureError
from hansa_common.keys import public_key_of
from hansa_common.messages import StatisticsOrder, decode, encode, message_hash
from hansa_common.sealing import SEAL_BYTES, open_seal, seal, unopened_hash, unverified

KEY, OTHER_KEY = bytes(range(32)), bytes(range(1, 33))
PUBLIC, OTHER_PUBLIC = public_key_of(KEY), public_key_of(OTHER_KEY)
MESSAGE = encode(StatisticsOrder(run_id="r", sequence=1, recipient="a", fingerprint="0" * 64, deadline_seconds=5.0))
SEALED = seal(MESSAGE, KEY, "order")


@given(st.binary(max_size=200), st.sampled_from(["order", "reply"]))
def test_what_is_opened_is_what_was_sealed_and_the_seal_is_the_same_each_time(message, purpose):
    sealed = seal(message, KEY, purpose)
    assert open_seal(sealed, PUBLIC, purpose) == unverified(sealed) == message
    assert sealed == seal(message, KEY, purpose)
    assert len(sealed) == SEAL_BYTES + len(message)


def test_signature_is_ed25519_over_the_purpose_and_the_message():
    Ed25519PublicKey.from_public_bytes(bytes.fromhex(PUBLIC)).verify(SEALED[6:70], b"hansa/order/v1\0" + MESSAGE)


def test_seal_of_another_key_is_refused():
    with pytest.raises(SignatureError, match=OTHER_PUBLIC):
        open_seal(SEALED, OTHER_PUBLIC, "order")


def test_signature_of_an_order_is_none_of_a_reply():
    with pytest.raises(SignatureError):
        open_seal(SEALED, PUBLIC, "reply")


@pytest.mark.parametrize("unsigned", [MESSAGE, b"", b"HSEAL", SEALED[: SEAL_BYTES - 1]])
def test_message_without_a_seal_is_refused(unsigned):
    with pytest.raises(SignatureError, match="not signed"):
        open_seal(unsigned, PUBLIC, "order")


def test_every_flipped_bit_is_refused():
    for bit in range(8 * len(SEALED)):
        changed = bytearray(SEALED)
        changed[bit // 8] ^= 1 << bit % 8
        with pytest.raises(SignatureError):
            open_seal(bytes(changed), PUBLIC, "order")


@given(st.integers(0, len(SEALED)), st.integers(0, len(SEALED)), st.binary(max_size=8))
def test_cut_or_spliced_seal_is_refused(start, stop, between):
    spliced = SEALED[:start] + between + SEALED[stop:]
    if spliced != SEALED:
        with pytest.raises(SignatureError):
            open_seal(spliced, PUBLIC, "order")


def test_seal_within_a_seal_is_no_message():
    inner = open_seal(seal(SEALED, KEY, "order"), PUBLIC, "order")
    with pytest.raises(MessageError):
        decode(inner)


def test_sealed_message_is_none_where_no_seal_is_due():
    with pytest.raises(MessageError):
        decode(SEALED)


@given(st.binary(max_size=100))
def test_what_was_not_opened_is_named_as_no_message_is(received):
    names = {message_hash(received), message_hash(unverified(received)), message_hash(SEALED), message_hash(MESSAGE)}
    assert unopened_hash(received) not in names
    assert unopened_hash(received) == unopened_hash(received) != unopened_hash(received + b"\0")


def test_key_that_is_no_point_of_the_curve_verifies_nothing():
    for key in ("0" * 64, "f" * 64, "02" + "0" * 62):
        with pytest.raises(SignatureError):
            open_seal(SEALED, key, "order")


def test_message_that_is_too_long_is_not_even_hashed(monkeypatch):
    monkeypatch.setattr(sealing, "MAX_MESSAGE_BYTES", len(MESSAGE) - 1)
    monkeypatch.setattr(sealing, "Ed25519PublicKey", None)
    with pytest.raises(MessageError, match="at most"):
        open_seal(SEALED, PUBLIC, "order")


@given(st.binary(max_size=300), st.binary(max_size=100))
def test_fuzzed_bytes_are_refused_as_one_error(wild, appended):
    for sealed in (wild, SEALED + b"\0" + appended, SEALED[:6] + wild, SEALED[:SEAL_BYTES] + wild):
        with pytest.raises(SignatureError):
            open_seal(sealed, PUBLIC, "order")
        unverified(sealed)


def test_refusal_of_a_seal_is_an_error_of_ours_with_a_code_of_its_own():
    assert issubclass(SignatureError, HansaError)
    assert not issubclass(SignatureError, InvalidSignature)
    assert SignatureError.code == "not-signed"
