"""The two papers of an enrolment: what a merchant asks for, and what the coordinator answers beside certificates.

- A request is canonical JSON under the signature of the identity key in it; its certificate request proves the TLS
  key. It proves that one party holds both, not who that is: people compare the identity keys.
- `federation.toml` is signed with the coordinator's key, which the agreement names: whoever carries a kit can leave it
  behind, and change nothing in it.
- What is not exactly what an encoder here writes is refused, whole, and never shown longer than a line.

Files are the callers'.
"""

from __future__ import annotations

import json
import tomllib
from typing import Annotated, Any, Final, Literal

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID
from pydantic import Field, ValidationError

from hansa_common import keys
from hansa_common.addresses import Address, parse_address
from hansa_common.certificates import common_name
from hansa_common.errors import MessageError, SignatureError, UsageError
from hansa_common.merchant_keys import MerchantKeys
from hansa_common.plain_text import printable
from hansa_common.schema import Section
from hansa_common.trust import MerchantName, PublicKey

REQUEST_SUFFIX: Final = ".request.json"
MAX_PAPER_BYTES: Final = 1 << 14
GATEWAY_PORT: Final = 8443

_REQUEST_CONTEXT: Final = b"hansa/enrolment-request/v1\0"
_FEDERATION_CONTEXT: Final = b"hansa/federation-file/v1\0"
_MAX_PROBLEM_CHARS: Final = 200

Signature = Annotated[str, Field(pattern=r"^[0-9a-f]{128}$")]
Pem = Annotated[str, Field(min_length=1, max_length=4000)]


class EnrolmentRequest(Section):
    """A merchant's name and public keys: its identity, its node's (PEM), and for TLS a certificate request (PEM)."""

    format: Literal["hansa-enrolment-1"]
    merchant: MerchantName
    identity_key: PublicKey
    node_key: Pem
    tls_request: Pem
    signature: Signature

    @property
    def tls_key(self) -> ec.EllipticCurvePublicKey:
        """The key that a certificate is asked for.

        Raises:
            ValueError: the certificate request is none, or is in another name.
        """
        return _requested_key(self.tls_request, self.merchant)


class Federation(Section):
    """Where a merchant's coordinator is, and what belongs together: fingerprints are SHA-256, hexadecimal.

    `keys_made_by_coordinator` is for development: then the coordinator can sign in the merchant's name.
    """

    merchant: MerchantName
    server: Annotated[str, Field(max_length=300)]
    coordinator: PublicKey
    publisher: PublicKey
    authority: PublicKey
    agreement: PublicKey
    roster: PublicKey
    keys_made_by_coordinator: bool
    signature: Signature

    @property
    def address(self) -> Address:
        """Where the gateway is."""
        return parse_address(self.server)

    def to_toml(self) -> bytes:
        """The file, with what it is for."""
        values = self.model_dump(mode="json")
        pairs = [f"{name} = {json.dumps(value)}" for name, value in values.items()]
        head = "# Made by `hansa provision` and signed by the coordinator; do not edit."
        return ("\n".join([head, *pairs]) + "\n").encode()


def make_request(merchant: str, held: MerchantKeys) -> EnrolmentRequest:
    """Ask for a certificate for the newest TLS key of these.

    Raises:
        ValueError: the merchant's name is none.
    """
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, merchant)])
    asked = (
        x509.CertificateSigningRequestBuilder().subject_name(subject).sign(held.next_tls or held.tls, hashes.SHA256())
    )
    values = {
        "format": "hansa-enrolment-1",
        "merchant": merchant,
        "identity_key": held.identity_key,
        "node_key": held.node_key,
        "tls_request": asked.public_bytes(Encoding.PEM).decode(),
    }
    return EnrolmentRequest.model_validate({**values, "signature": _signature(_REQUEST_CONTEXT, values, held.identity)})


def encode_request(request: EnrolmentRequest) -> bytes:
    """The request as a file has it: canonical JSON and a line end."""
    return _canonical(request.model_dump(mode="json")) + b"\n"


def decode_request(content: bytes, source: str) -> EnrolmentRequest:
    """Read a request that came from elsewhere; `source` names it in messages.

    Raises:
        MessageError: it is too long, no request, or not written as one; or a key in it is none.
        SignatureError: the holder of the identity key did not sign it.
    """
    if len(content) > MAX_PAPER_BYTES:
        raise MessageError(f"{source} is no enrolment request: it has more than {MAX_PAPER_BYTES:,} bytes")
    try:
        request = EnrolmentRequest.model_validate_json(content)
        if encode_request(request) != content:
            raise ValueError("it is not canonical JSON")  # noqa: TRY301 - one message for all that is wrong with it
        keys.parse_public_pem(request.node_key, keys.NODE_CURVE)
        _ = request.tls_key
    except ValueError as error:
        raise MessageError(f"{source} is no enrolment request: {_problem(error)}") from None
    _verify(_REQUEST_CONTEXT, request, request.identity_key, source)
    return request


def sign_federation(values: dict[str, Any], signing_key: bytes) -> Federation:
    """The signed paper of these values, which are all of a Federation's but the signature."""
    return Federation.model_validate({**values, "signature": _signature(_FEDERATION_CONTEXT, values, signing_key)})


def decode_federation(content: bytes, coordinator: str, source: str) -> Federation:
    """Read a `federation.toml` that this coordinator's key signed.

    Raises:
        MessageError: it is too long, or no such file.
        SignatureError: another key signed it, or it was changed.
    """
    if len(content) > MAX_PAPER_BYTES:
        raise MessageError(f"{source} has more than {MAX_PAPER_BYTES:,} bytes; take the coordinator's kit anew")
    try:
        federation = Federation.model_validate(tomllib.loads(content.decode()))
        parse_address(federation.server)
    except (ValueError, RecursionError, UsageError) as error:
        raise MessageError(f"{source} is no federation.toml: {_problem(error)}") from None
    _verify(_FEDERATION_CONTEXT, federation, coordinator, source)
    return federation


def _requested_key(pem: str, merchant: str) -> ec.EllipticCurvePublicKey:
    try:
        asked = x509.load_pem_x509_csr(pem.encode())
        is_signed, key = asked.is_signature_valid, asked.public_key()
    except (ValueError, TypeError, UnsupportedAlgorithm):
        raise ValueError("tls_request: it is no certificate request in PEM") from None
    if asked.public_bytes(Encoding.PEM).decode() != pem or not is_signed:
        raise ValueError("tls_request: its signature does not hold, or there is more than the request")
    if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, keys.TLS_CURVE):
        raise ValueError(f"tls_request: its key is not of the curve {keys.TLS_CURVE.name}")  # noqa: TRY004 - one kind
    if common_name(asked.subject) != merchant:
        raise ValueError(f"tls_request: it is in another name than {merchant!r}")
    return key


def _signature(context: bytes, values: dict[str, Any], private_key: bytes) -> str:
    return Ed25519PrivateKey.from_private_bytes(private_key).sign(context + _canonical(values)).hex()


def _verify(context: bytes, paper: EnrolmentRequest | Federation, public_key: str, source: str) -> None:
    signed = context + _canonical(paper.model_dump(mode="json", exclude={"signature"}))
    try:
        Ed25519PublicKey.from_public_bytes(bytes.fromhex(public_key)).verify(bytes.fromhex(paper.signature), signed)
    except (InvalidSignature, ValueError):
        raise SignatureError(f"{source} does not bear the signature of the key {public_key}") from None


def _canonical(values: dict[str, Any]) -> bytes:
    return json.dumps(values, sort_keys=True, separators=(",", ":")).encode()


def _problem(error: Exception) -> str:
    if isinstance(error, ValidationError):
        first = error.errors(include_input=False, include_url=False)[0]
        place = ".".join(map(str, first["loc"]))
        return printable(f"{place}: {first['msg']}" if place else first["msg"], _MAX_PROBLEM_CHARS)
    return printable(str(error), _MAX_PROBLEM_CHARS)
