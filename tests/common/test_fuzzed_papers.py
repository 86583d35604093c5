"""Enrolment's decoders take any bytes and refuse them in words of their own: nothing else ever comes out of them."""

from __future__ import annotations

import json

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from hypothesis import given, settings
from hypothesis import strategies as st

from hansa_common import keys
from hansa_common.enrolment_papers import decode_federation, decode_request, encode_request, make_request
from hansa_common.errors import MessageError, SignatureError
from hansa_common.merchant_keys import MerchantKeys

IDENTITY = bytes(range(32))
HELD = MerchantKeys(IDENTITY, ec.generate_private_key(keys.NODE_CURVE()), ec.generate_private_key(keys.TLS_CURVE()))
CONTENT = encode_request(make_request("alder", HELD))
FIELDS = sorted(json.loads(CONTENT))
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(FIELDS), inner, max_size=3),
    max_leaves=8,
)


@st.composite
def nearly_a_request(draw) -> bytes:
    """A request with bytes put in, taken out or replaced."""
    at = draw(st.integers(0, len(CONTENT)))
    content = CONTENT[:at] + draw(st.binary(max_size=8)) + CONTENT[at + draw(st.integers(0, 8)) :]
    return content if content != CONTENT else content + b"x"


@st.composite
def request_with_other_values(draw) -> bytes:
    """JSON of a request's keys with whatever values."""
    said = {**json.loads(CONTENT), **draw(st.dictionaries(st.sampled_from(FIELDS), VALUES, min_size=1, max_size=3))}
    content = json.dumps(said, sort_keys=True, separators=(",", ":")).encode() + b"\n"
    return content if content != CONTENT else content + b"x"


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=300) | nearly_a_request() | request_with_other_values())
def test_fuzzed_request_is_refused_as_one(content):
    with pytest.raises((MessageError, SignatureError)):
        decode_request(content, "the request")


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=300) | st.text(max_size=300).map(str.encode))
def test_fuzzed_federation_file_is_refused_as_one(content):
    with pytest.raises((MessageError, SignatureError)):
        decode_federation(content, keys.public_key_of(IDENTITY), "the file")
