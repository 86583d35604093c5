"""The federation's certificate authority: it vouches for the transport and for nothing else.

file in the state folder     holds
ca.key, ca.crt               the authority's key and its own certificate, which merchants verify the server by
server.key, server.crt       the gateway's

Made at first use and then kept: with another authority every merchant needs another kit. What is issued never outlives
the authority. Who holds which certificate, and which are taken back, is issued_register.py's.
"""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path
from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from hansa_common import durable_files, keys
from hansa_common.certificates import (
    Purpose,
    certificate_pem,
    check_authority,
    check_issued,
    has_key,
    parse_certificate,
    shown_time,
)
from hansa_common.errors import CertificateError

AUTHORITY_KEY: Final = "ca.key"
AUTHORITY_CERTIFICATE: Final = "ca.crt"
SERVER_KEY: Final = "server.key"
SERVER_CERTIFICATE: Final = "server.crt"
AUTHORITY_DAYS: Final = 3650
DEFAULT_DAYS: Final = 365
# Of a certificate's life: what is left of it when it is renewed.
RENEWED_AT: Final = 1 / 3
# Clocks differ: what is issued now holds on a machine that is an hour behind.
CLOCK_SLACK: Final = timedelta(hours=1)

_NO_USE: Final = {
    "digital_signature": False, "content_commitment": False, "key_encipherment": False, "data_encipherment": False,
    "key_agreement": False, "key_cert_sign": False, "crl_sign": False, "encipher_only": False, "decipher_only": False,
}  # fmt: skip


@dataclass(frozen=True)
class Authority:
    """The authority's certificate, and its key, with which certificates are issued."""

    certificate: x509.Certificate
    key: ec.EllipticCurvePrivateKey = field(repr=False)

    def issued_to_merchant(
        self, merchant: str, key: ec.EllipticCurvePublicKey, now: datetime, days: int
    ) -> x509.Certificate:
        """A new certificate for a merchant's side of TLS.

        Raises:
            CertificateError: the authority is at its end.
        """
        return self._issued(_named(merchant), key, Purpose.CLIENT, [], now, days)

    def issued_to_server(self, host: str, key: ec.EllipticCurvePublicKey, now: datetime, days: int) -> x509.Certificate:
        """A new certificate for the server at this host, a name or an address.

        Raises:
            CertificateError: the authority is at its end.
        """
        return self._issued(_named("hansa server"), key, Purpose.SERVER, [_alternative_name(host)], now, days)

    def _issued(
        self,
        subject: x509.Name,
        key: ec.EllipticCurvePublicKey,
        purpose: Purpose,
        alternatives: list[x509.GeneralName],
        now: datetime,
        days: int,
    ) -> x509.Certificate:
        end = min(now + timedelta(days=days), self.certificate.not_valid_after_utc)
        if end <= now:
            raise CertificateError(f"the authority's certificate expired at {shown_time(end)}; make a new --state")
        usages = {**_NO_USE, "digital_signature": True}
        builder = (
            _builder(subject, self.certificate.subject, key, now, end)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(x509.KeyUsage(**usages), critical=True)
            .add_extension(x509.ExtendedKeyUsage([purpose.value]), critical=False)
            .add_extension(_authority_identifier(self.certificate), critical=False)
        )
        if alternatives:
            builder = builder.add_extension(x509.SubjectAlternativeName(alternatives), critical=False)
        return builder.sign(self.key, hashes.SHA256())


def open_authority(state: Path, now: datetime) -> Authority:
    """The authority in the coordinator's state folder, made at its first use; the caller holds the folder.

    Raises:
        UsageError: others may read its key, or it is no key.
        CertificateError: its certificate is none, is another key's, or has expired.
    """
    key_path, certificate_path = state / AUTHORITY_KEY, state / AUTHORITY_CERTIFICATE
    key = _kept_key(key_path, "the authority's key")
    if not certificate_path.exists():
        durable_files.write(certificate_path, certificate_pem(_own_certificate(key, now)))
    certificate = parse_certificate(certificate_path.read_bytes(), str(certificate_path))
    check_authority(certificate, str(certificate_path), now)
    if not has_key(certificate, key):
        raise CertificateError(f"{certificate_path} is not of the key {key_path}; restore the two that belong together")
    return Authority(certificate, key)


def renew_server_certificate(state: Path, authority: Authority, host: str, now: datetime, days: int) -> bool:
    """See that the state folder has a key and a certificate for the server at this host; whether one had to be issued.

    One that holds for this host, from this authority, and for more than a third of its life, is kept.

    Raises:
        UsageError: others may read the server's key, or it is no key.
        CertificateError: the authority is at its end.
    """
    key_path, certificate_path = state / SERVER_KEY, state / SERVER_CERTIFICATE
    key = _kept_key(key_path, "the server's key")
    if _still_serves(certificate_path, key, authority, host, now):
        return False
    certificate = authority.issued_to_server(host, key.public_key(), now, days)
    durable_files.write(certificate_path, certificate_pem(certificate))
    return True


def _kept_key(path: Path, what: str) -> ec.EllipticCurvePrivateKey:
    return keys.read_tls_key(path, what) if path.exists() else keys.make_tls_key(path)


def _still_serves(path: Path, key: ec.EllipticCurvePrivateKey, authority: Authority, host: str, now: datetime) -> bool:
    if not path.exists():
        return False
    certificate = parse_certificate(path.read_bytes(), str(path))
    try:
        check_issued(certificate, authority.certificate, Purpose.SERVER, str(path), now)
    except CertificateError:
        return False
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    life = certificate.not_valid_after_utc - certificate.not_valid_before_utc
    is_young = certificate.not_valid_after_utc - now > life * RENEWED_AT
    return is_young and has_key(certificate, key) and list(names) == [_alternative_name(host)]


def _own_certificate(key: ec.EllipticCurvePrivateKey, now: datetime) -> x509.Certificate:
    identifier = x509.SubjectKeyIdentifier.from_public_key(key.public_key())
    # Named by its key, so that two federations' authorities are never taken for one.
    name = _named(f"hansa transport {identifier.digest.hex()[:16]}")
    usages = {**_NO_USE, "key_cert_sign": True, "crl_sign": True}
    return (
        _builder(name, name, key.public_key(), now, now + timedelta(days=AUTHORITY_DAYS))
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(x509.KeyUsage(**usages), critical=True)
        .sign(key, hashes.SHA256())
    )


def _builder(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePublicKey, now: datetime, end: datetime
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - CLOCK_SLACK)
        .not_valid_after(end)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
    )


def _authority_identifier(certificate: x509.Certificate) -> x509.AuthorityKeyIdentifier:
    identifier = certificate.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
    return x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(identifier)


def _named(name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])


def _alternative_name(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        return x509.DNSName(host)
