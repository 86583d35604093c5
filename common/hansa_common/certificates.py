"""Certificates of the transport: read as one, and held against the authority that issued them.

A certificate says that a connection is with the server, or with a merchant's machine; it vouches for nothing that is
signed between the parties (trust.py names those keys). The chain is one link long: an authority of the federation's
own signs the server's certificate and the merchants', and none of these signs another.

- What is checked is who signed it, for which purpose, and that the clock stands between its two dates.
- A wrong clock and an expired certificate each say so, with both moments.

Issuing is the server's; who is revoked is told by its register. Time is passed in.
"""

from __future__ import annotations

import hashlib
from datetime import UTC, datetime
from enum import Enum
from typing import Final

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from hansa_common.errors import CertificateError

MAX_CERTIFICATE_BYTES: Final = 1 << 14


class Purpose(Enum):
    """What a certificate may be shown for: in TLS, the two sides of a connection."""

    SERVER = ExtendedKeyUsageOID.SERVER_AUTH
    CLIENT = ExtendedKeyUsageOID.CLIENT_AUTH


def parse_certificate(content: bytes, source: str) -> x509.Certificate:
    """Read one certificate in PEM; `source` names it in messages.

    Raises:
        CertificateError: it is none, or has other things beside it.
    """
    try:
        certificate = None if len(content) > MAX_CERTIFICATE_BYTES else x509.load_pem_x509_certificate(content)
    except ValueError:
        certificate = None
    if certificate is None or certificate_pem(certificate) != content:
        raise CertificateError(f"{source} is not one certificate in PEM, and nothing else")
    return certificate


def certificate_pem(certificate: x509.Certificate) -> bytes:
    """The certificate as a file has it."""
    return certificate.public_bytes(Encoding.PEM)


def certificate_fingerprint(certificate: x509.Certificate) -> str:
    """SHA-256 of the certificate's DER, 64 hexadecimal digits."""
    return hashlib.sha256(certificate.public_bytes(Encoding.DER)).hexdigest()


def common_name(subject: x509.Name) -> str:
    """The one name that a subject consists of.

    Raises:
        ValueError: it consists of others, or of more.
    """
    match list(subject):
        case [x509.NameAttribute(oid=NameOID.COMMON_NAME, value=str(name))]:
            return name
    raise ValueError("the subject is not one common name")


def check_dates(certificate: x509.Certificate, source: str, now: datetime) -> None:
    """See that the certificate has begun and has not ended.

    Raises:
        CertificateError: it has not begun, so that a clock is wrong, or it has ended.
    """
    begins, ends = certificate.not_valid_before_utc, certificate.not_valid_after_utc
    clock = f"this machine's clock says {shown_time(now)}"
    if now < begins:
        raise CertificateError(f"{source} is valid from {shown_time(begins)} on, and {clock}; set the clock")
    if now > ends:
        raise CertificateError(
            f"{source} expired at {shown_time(ends)}, and {clock}; renew it, or set the clock if it is wrong"
        )


def check_authority(certificate: x509.Certificate, source: str, now: datetime) -> None:
    """See that this is the certificate of an authority.

    Raises:
        CertificateError: it may sign no others, it is not signed by itself, or its dates do not fit the clock.
    """
    try:
        constraints = certificate.extensions.get_extension_for_class(x509.BasicConstraints).value
    except (x509.ExtensionNotFound, ValueError):
        constraints = x509.BasicConstraints(ca=False, path_length=None)
    if not constraints.ca or constraints.path_length != 0:
        raise CertificateError(f"{source} is not a certificate of a federation's authority")
    _check_signer(certificate, certificate, source)
    check_dates(certificate, source, now)


def check_issued(
    certificate: x509.Certificate, authority: x509.Certificate, purpose: Purpose, source: str, now: datetime
) -> None:
    """See that the authority issued the certificate for this purpose, and that it holds now; the authority is believed.

    Raises:
        CertificateError: another signed it, it is for another purpose, or its dates do not fit the clock.
    """
    _check_signer(certificate, authority, source)
    try:
        purposes = list(certificate.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value)
    except (x509.ExtensionNotFound, ValueError):
        purposes = []
    if purposes != [purpose.value]:
        raise CertificateError(f"{source} is not a certificate for a TLS {purpose.name.lower()}")
    check_dates(certificate, source, now)


def has_key(certificate: x509.Certificate, key: ec.EllipticCurvePrivateKey) -> bool:
    """Whether the certificate is for the public half of this key."""
    return certificate.public_key() == key.public_key()


def shown_time(moment: datetime) -> str:
    """A moment to the minute, in UTC.

    >>> shown_time(datetime(2030, 1, 31, 12, 5, tzinfo=UTC))
    '2030-01-31 12:05 UTC'
    """
    return moment.astimezone(UTC).strftime("%Y-%m-%d %H:%M UTC")


def _check_signer(certificate: x509.Certificate, signer: x509.Certificate, source: str) -> None:
    try:
        certificate.verify_directly_issued_by(signer)
    except (InvalidSignature, ValueError, TypeError):
        raise CertificateError(f"{source} was not issued by the federation's authority") from None
