"""A request and a federation.toml are taken exactly as they were signed, or not at all."""

from __future__ import annotations

import json
import stat

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID

from hansa_common import keys
from hansa_common.enrolment_papers import (
    MAX_PAPER_BYTES,
    decode_federation,
    decode_request,
    encode_request,
    make_request,
    sign_federation,
)
from hansa_common.errors import HansaError, MessageError, SignatureError, UsageError
from hansa_common.merchant_keys import MerchantKeys, make_keys, make_next_tls_key, read_keys

SIGNING_KEY = bytes(range(32))
COORDINATOR = keys.public_key_of(SIGNING_KEY)


def new_keys() -> MerchantKeys:
    identity = Ed25519PrivateKey.generate().private_bytes_raw()
    return MerchantKeys(identity, ec.generate_private_key(keys.NODE_CURVE()), ec.generate_private_key(keys.TLS_CURVE()))


HELD, OTHERS = new_keys(), new_keys()
REQUEST = make_request("alder", HELD)
CONTENT = encode_request(REQUEST)


def signed(values: dict, identity: bytes = HELD.identity) -> bytes:
    """A request that says this, whatever it is, under a signature that holds."""
    body = {name: value for name, value in values.items() if name != "signature"}
    text = json.dumps(body, sort_keys=True, separators=(",", ":")).encode()
    private = Ed25519PrivateKey.from_private_bytes(identity)
    body["signature"] = private.sign(b"hansa/enrolment-request/v1\0" + text).hex()
    return json.dumps(body, sort_keys=True, separators=(",", ":")).encode() + b"\n"


def refused(content: bytes, *words: str, error: type[HansaError] = MessageError) -> None:
    with pytest.raises(error) as told:
        decode_request(content, "alder.request.json")
    (line,) = str(told.value).splitlines()
    assert len(line) < 400
    for word in ("alder.request.json", *words):
        assert word in line


def csr(name: str, key=HELD.tls, *more: x509.NameAttribute) -> str:
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name), *more])
    asked = x509.CertificateSigningRequestBuilder().subject_name(subject).sign(key, hashes.SHA256())
    return asked.public_bytes(Encoding.PEM).decode()


def test_request_is_read_as_it_was_written():
    request = decode_request(CONTENT, "it")
    assert request == REQUEST
    assert request.identity_key == keys.public_key_of(HELD.identity)
    assert request.node_key == keys.public_pem(HELD.node.public_key())
    assert request.tls_key == HELD.tls.public_key()
    assert signed(json.loads(CONTENT)) == CONTENT


def test_request_holds_no_private_key():
    for secret in (HELD.identity.hex(), f"{HELD.node.private_numbers().private_value:x}"):
        assert secret not in CONTENT.decode()
    assert "PRIVATE" not in CONTENT.decode()
    assert HELD.identity.hex() not in repr(HELD)
    assert repr(HELD) == "MerchantKeys()"


def test_any_changed_byte_is_refused():
    for place in range(0, len(CONTENT), 7):
        changed = bytearray(CONTENT)
        changed[place] ^= 1
        with pytest.raises(MessageError):
            decode_request(bytes(changed), "it")


def test_request_that_another_signed_in_this_name_is_refused():
    values = json.loads(CONTENT)
    refused(signed(values, OTHERS.identity), "signature", REQUEST.identity_key, error=SignatureError)
    refused(CONTENT.replace(REQUEST.identity_key.encode(), OTHERS.identity_key.encode()), error=SignatureError)
    refused(CONTENT.replace(REQUEST.signature.encode(), b"00" * 64), error=SignatureError)


def test_signature_of_something_else_is_none_of_a_request():
    federation = sign_federation(FEDERATION, HELD.identity)
    refused(CONTENT.replace(REQUEST.signature.encode(), federation.signature.encode()), error=SignatureError)


@pytest.mark.parametrize(
    "name", ["../alder", "a/b", "..", ".", "", "/etc", "a\\b", "a\n", "a" * 65, "é", "-rf", "a\0b", 5, None, ["alder"]]
)
def test_name_that_leads_elsewhere_is_refused_though_it_is_signed(name):
    refused(signed(json.loads(CONTENT) | {"merchant": name}), "merchant")


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"node_key": "x"}, "no public key"),
        ({"node_key": keys.public_pem(HELD.tls.public_key())}, "curve secp384r1"),
        ({"node_key": keys.public_pem(HELD.node.public_key()) + "\n"}, "not written"),
        ({"tls_request": "x"}, "no certificate request"),
        ({"tls_request": csr("alder") + "x"}, "more than the request"),
        ({"tls_request": csr("birch")}, "another name"),
        ({"tls_request": csr("alder", HELD.node)}, "curve secp256r1"),
        ({"tls_request": csr("alder", HELD.tls, x509.NameAttribute(NameOID.ORGANIZATION_NAME, "o"))}, "common name"),
        ({"identity_key": "A" * 64}, "identity_key"),
        ({"identity_key": "a" * 63}, "identity_key"),
        ({"format": "hansa-enrolment-2"}, "format"),
        ({"more": 1}, "unknown key 'more'"),
        ({"node_key": "x" * 5000}, "node_key"),
    ],
)
def test_what_is_wrong_with_a_signed_request_is_told(changes, told):
    refused(signed(json.loads(CONTENT) | changes), told)


def test_certificate_request_with_a_broken_signature_is_refused():
    """Somebody else's public key, without the private one that would prove it."""
    pem = csr("alder", OTHERS.tls)
    der = bytearray(x509.load_pem_x509_csr(pem.encode()).public_bytes(Encoding.DER))
    der[-1] ^= 1
    broken = x509.load_der_x509_csr(bytes(der)).public_bytes(Encoding.PEM).decode()
    refused(signed(json.loads(CONTENT) | {"tls_request": broken}), "tls_request")


@pytest.mark.parametrize(
    "content",
    [
        b"", b"{}", b"[]", b"null", b"\xff", b"[" * 10_000, CONTENT[:-1], CONTENT + b"\n", b" " + CONTENT,
        CONTENT.replace(b",", b", "), CONTENT.replace(b"{", b'{"format":"hansa-enrolment-1",', 1),
        CONTENT.replace(b'"alder"', b'"\\u0061lder"'), b"0" * (MAX_PAPER_BYTES + 1),
    ],
)  # fmt: skip
def test_request_that_is_written_otherwise_is_refused(content):
    refused(content)


def test_request_that_is_too_long_is_refused_unread():
    refused(b"0" * (MAX_PAPER_BYTES + 1), f"more than {MAX_PAPER_BYTES:,} bytes")


# federation.toml

FEDERATION = {
    "merchant": "Amount >= 100 (west)",
    "server": "fl.example.com:8443",
    "coordinator": COORDINATOR,
    "publisher": "a1" * 32,
    "authority": "a2" * 32,
    "agreement": "a3" * 32,
    "roster": "a4" * 32,
    "keys_made_by_coordinator": False,
}
TOML = sign_federation(FEDERATION, SIGNING_KEY).to_toml()


def test_federation_is_read_as_it_was_signed():
    federation = decode_federation(TOML, COORDINATOR, "it")
    assert federation.model_dump(exclude={"signature"}) == FEDERATION
    assert federation.address.port == 8443


@pytest.mark.parametrize(
    ("written", "instead"),
    [
        (b"fl.example.com", b"fl.example.org"), (b"8443", b"8444"), (b"a1" * 32, b"b1" * 32), (b"a2" * 32, b"b2" * 32),
        (b"a3" * 32, b"b3" * 32), (b"a4" * 32, b"b4" * 32), (b"false", b"true"), (b"(west)", b"(east)"),
    ],
)  # fmt: skip
def test_changed_value_is_not_what_the_coordinator_signed(written, instead):
    with pytest.raises(SignatureError, match=f"does not bear the signature of the key {COORDINATOR}"):
        decode_federation(TOML.replace(written, instead), COORDINATOR, "it")


def test_federation_signed_by_another_coordinator_is_refused():
    other = keys.public_key_of(OTHERS.identity)
    with pytest.raises(SignatureError, match=other):
        decode_federation(TOML, other, "it")


@pytest.mark.parametrize(
    "content", [b"", b"server = 5", b"\xff", b"a = ", TOML + b"more = 1\n", b"#" * 20_000, TOML.replace(b":8443", b"")]
)
def test_what_is_no_federation_file_is_refused(content):
    with pytest.raises(MessageError, match="it"):
        decode_federation(content, COORDINATOR, "it")


# A merchant's keys in its folder


def test_keys_are_made_once_and_are_for_this_user_alone(tmp_path):
    made = make_keys(tmp_path)
    files = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    assert make_keys(tmp_path).identity == made.identity
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == files
    assert all(stat.S_IMODE(path.stat().st_mode) == 0o600 for path in tmp_path.iterdir())


def test_keys_that_a_crash_left_unmade_are_made_beside_those_that_are_there(tmp_path):
    made = make_keys(tmp_path)
    (tmp_path / "tls.key").unlink()
    (tmp_path / "node.key").unlink()
    again = make_keys(tmp_path)
    assert again.identity == made.identity
    assert again.node_key != made.node_key


@pytest.mark.parametrize("name", ["identity.key", "node.key", "tls.key"])
def test_key_that_is_lost_after_enrolling_is_never_drawn_anew(tmp_path, name):
    make_keys(tmp_path)
    (tmp_path / "tls.crt").write_bytes(b"")
    (tmp_path / name).unlink()
    with pytest.raises(UsageError, match=name):
        make_keys(tmp_path)
    assert not (tmp_path / name).exists()


def test_renewal_asks_for_another_tls_key_and_for_nothing_else(tmp_path):
    first = make_keys(tmp_path)
    following = make_next_tls_key(tmp_path)
    assert (following.identity, following.node_key) == (first.identity, first.node_key)
    request = make_request("alder", following)
    assert request.tls_key == following.next_tls.public_key() != first.tls.public_key()
    assert make_next_tls_key(tmp_path).next_tls.public_key() == request.tls_key
    assert read_keys(tmp_path).tls.public_key() == first.tls.public_key()


def test_renewal_without_keys_makes_none(tmp_path):
    with pytest.raises(UsageError, match="hansa client enroll"):
        make_next_tls_key(tmp_path)
    assert not list(tmp_path.iterdir())
