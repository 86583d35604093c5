"""The authority's certificates hold in OpenSSL and in TLS, for their one purpose and between their dates only."""

from __future__ import annotations

import shutil
import ssl
import stat
import subprocess
from datetime import UTC, datetime, timedelta

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from hansa_common import keys
from hansa_common.certificates import (
    Purpose,
    certificate_pem,
    check_authority,
    check_issued,
    common_name,
    parse_certificate,
)
from hansa_common.errors import CertificateError, UsageError
from hansa_server import authority as ca

NOW = datetime(2030, 5, 1, 12, 0, tzinfo=UTC)
needs_openssl = pytest.mark.skipif(shutil.which("openssl") is None, reason="there is no openssl on this machine")


def new_key():
    return ec.generate_private_key(keys.TLS_CURVE())


@pytest.fixture
def authority(tmp_path):
    return ca.open_authority(tmp_path, NOW)


@pytest.fixture
def issued(authority):
    return authority.issued_to_merchant("alder (west) >= 1.0", new_key().public_key(), NOW, 30)


def check(certificate, authority, purpose=Purpose.CLIENT, now=NOW):
    check_issued(certificate, authority.certificate, purpose, "tls.crt", now)


def test_authority_is_made_once_for_this_user_alone(tmp_path, authority):
    assert ca.open_authority(tmp_path, NOW + timedelta(days=9)).certificate == authority.certificate
    for name in ("ca.key", "ca.crt"):
        assert stat.S_IMODE((tmp_path / name).stat().st_mode) == 0o600
    check_authority(authority.certificate, "ca.crt", NOW)
    assert "key" not in repr(authority)


def test_certificate_left_unwritten_by_a_crash_is_made_for_the_key_that_is_there(tmp_path, authority, issued):
    (tmp_path / "ca.crt").unlink()
    again = ca.open_authority(tmp_path, NOW)
    check(issued, again)


def test_authority_of_another_key_is_refused(tmp_path, authority):
    (tmp_path / "ca.key").unlink()
    keys.make_tls_key(tmp_path / "ca.key")
    with pytest.raises(CertificateError, match="is not of the key"):
        ca.open_authority(tmp_path, NOW)


def test_authoritys_key_that_others_can_read_is_refused(tmp_path, authority):
    (tmp_path / "ca.key").chmod(0o644)
    with pytest.raises(UsageError, match="others can read the authority's key"):
        ca.open_authority(tmp_path, NOW)


def test_certificate_is_the_merchants_for_its_key_and_its_days(authority):
    key = new_key()
    certificate = authority.issued_to_merchant("alder", key.public_key(), NOW, 30)
    check(certificate, authority)
    assert common_name(certificate.subject) == "alder"
    assert certificate.public_key() == key.public_key()
    assert certificate.not_valid_after_utc == NOW + timedelta(days=30)
    assert certificate.not_valid_before_utc == NOW - timedelta(hours=1)
    another = authority.issued_to_merchant("alder", key.public_key(), NOW, 30)
    assert another.serial_number != certificate.serial_number


@pytest.mark.parametrize("name", ["a", "A" * 64, "Amount >= 100 (west)", "a,CN=b", "a=b+c", "x. <y>"])
def test_every_name_of_a_roster_is_held_by_a_certificate_letter_by_letter(authority, name):
    certificate = authority.issued_to_merchant(name, new_key().public_key(), NOW, 30)
    again = parse_certificate(certificate_pem(certificate), "it")
    assert common_name(again.subject) == name
    assert len(again.subject.rdns) == 1


def test_certificate_never_outlives_its_authority(authority):
    certificate = authority.issued_to_merchant("alder", new_key().public_key(), NOW, 10_000)
    assert certificate.not_valid_after_utc == authority.certificate.not_valid_after_utc
    late = NOW + timedelta(days=ca.AUTHORITY_DAYS + 1)
    with pytest.raises(CertificateError, match="expired at 2040-04-28"):
        authority.issued_to_merchant("alder", new_key().public_key(), late, 30)


def test_expired_certificate_and_wrong_clock_are_told_apart(authority, issued):
    check(issued, authority, now=NOW - timedelta(minutes=59))
    check(issued, authority, now=NOW + timedelta(days=30))
    with pytest.raises(
        CertificateError, match=r"valid from 2030-05-01 11:00 UTC on, .* says 2030-05-01 10:59 UTC; set"
    ):
        check(issued, authority, now=NOW - timedelta(minutes=61))
    with pytest.raises(CertificateError, match=r"expired at 2030-05-31 12:00 UTC, .* 2030-06-01 12:00 UTC; renew it"):
        check(issued, authority, now=NOW + timedelta(days=31))


def test_certificate_is_good_for_one_side_of_tls_only(authority, issued):
    server = authority.issued_to_server("fl.example.com", new_key().public_key(), NOW, 30)
    check(server, authority, Purpose.SERVER)
    with pytest.raises(CertificateError, match="not a certificate for a TLS client"):
        check(server, authority, Purpose.CLIENT)
    with pytest.raises(CertificateError, match="not a certificate for a TLS server"):
        check(issued, authority, Purpose.SERVER)
    with pytest.raises(CertificateError, match="not a certificate for a TLS client"):
        check(authority.certificate, authority, Purpose.CLIENT)


def test_merchants_certificate_is_no_authority_and_another_federations_is_none_here(authority, issued, tmp_path):
    (tmp_path / "other").mkdir()
    other = ca.open_authority(tmp_path / "other", NOW)
    assert other.certificate.subject != authority.certificate.subject
    with pytest.raises(CertificateError, match="not issued by the federation's authority"):
        check(issued, other)
    with pytest.raises(CertificateError, match="not a certificate of a federation's authority"):
        check_authority(issued, "ca.crt", NOW)


def test_certificate_in_the_name_of_the_authority_by_another_key_is_refused(authority):
    forger = ca.Authority(authority.certificate, new_key())
    forged = forger.issued_to_merchant("alder", new_key().public_key(), NOW, 30)
    with pytest.raises(CertificateError, match="not issued by the federation's authority"):
        check(forged, authority)


@pytest.mark.parametrize("change", [b"", b"x", b"\n", b"-----BEGIN CERTIFICATE-----\n"])
def test_what_is_not_one_certificate_is_refused(issued, change):
    for content in (change, certificate_pem(issued) + change * 2 + b"x", change + b" " + certificate_pem(issued)):
        with pytest.raises(CertificateError, match=r"tls\.crt is not one certificate"):
            parse_certificate(content, "tls.crt")
    with pytest.raises(CertificateError, match=r"tls\.crt is not one certificate"):
        parse_certificate(certificate_pem(issued) * 2, "tls.crt")


# The server's certificate


def test_servers_certificate_is_kept_while_it_serves_and_renewed_in_its_last_third(tmp_path, authority):
    def renew(host="fl.example.com", days_later=0):
        now = NOW + timedelta(days=days_later)
        was_issued = ca.renew_server_certificate(tmp_path, authority, host, now, 90)
        return was_issued, (tmp_path / "server.crt").read_bytes()

    first = renew()
    assert first[0]
    key = (tmp_path / "server.key").read_bytes()
    assert renew() == (False, first[1])
    assert renew(days_later=59) == (False, first[1])
    assert renew(days_later=61)[0]
    assert renew(days_later=61)[0] is False
    assert renew("10.0.0.5", days_later=61)[0]
    assert (tmp_path / "server.key").read_bytes() == key


@needs_openssl
@pytest.mark.parametrize(
    ("host", "flag"), [("fl.example.com", "-verify_hostname"), ("10.0.0.5", "-verify_ip"), ("::1", "-verify_ip")]
)
def test_openssl_verifies_what_was_issued(tmp_path, host, flag):
    now = datetime.now(UTC)
    authority = ca.open_authority(tmp_path, now)
    ca.renew_server_certificate(tmp_path, authority, host, now, 30)
    merchant = authority.issued_to_merchant("alder (west)", new_key().public_key(), now, 30)
    (tmp_path / "tls.crt").write_bytes(certificate_pem(merchant))

    def verify(name, *options):
        words = ["openssl", "verify", "-x509_strict", "-CAfile", tmp_path / "ca.crt", *options, tmp_path / name]
        return subprocess.run(words, check=False, capture_output=True, text=True).returncode

    assert verify("server.crt", "-purpose", "sslserver", flag, host) == 0
    assert verify("tls.crt", "-purpose", "sslclient") == 0
    assert verify("tls.crt", "-purpose", "sslserver") != 0
    assert verify("server.crt", "-purpose", "sslclient") != 0
    other = "10.0.0.6" if flag == "-verify_ip" else "other.example.com"
    assert verify("server.crt", flag, other) != 0
    later = str(int((now + timedelta(days=31)).timestamp()))
    assert verify("tls.crt", "-attime", later) != 0


def test_both_sides_of_tls_verify_each_other(tmp_path):
    """A handshake in memory, as Python's ssl does it: the way that the gateway and the forwarder go."""
    now = datetime.now(UTC)
    authority = ca.open_authority(tmp_path, now)
    ca.renew_server_certificate(tmp_path, authority, "fl.example.com", now, 30)
    key = new_key()
    certificate = authority.issued_to_merchant("alder", key.public_key(), now, 30)
    (tmp_path / "tls.crt").write_bytes(certificate_pem(certificate))
    (tmp_path / "tls.key").write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.verify_mode = ssl.CERT_REQUIRED
    server.load_verify_locations(tmp_path / "ca.crt")
    server.load_cert_chain(tmp_path / "server.crt", tmp_path / "server.key")
    client = ssl.create_default_context(cafile=tmp_path / "ca.crt")
    client.load_cert_chain(tmp_path / "tls.crt", tmp_path / "tls.key")
    shown = handshake(server, client, "fl.example.com")
    assert x509.load_der_x509_certificate(shown) == certificate
    with pytest.raises(ssl.SSLCertVerificationError, match="Hostname mismatch"):
        handshake(server, client, "other.example.com")
    without = ssl.create_default_context(cafile=tmp_path / "ca.crt")
    with pytest.raises(ssl.SSLError, match=r"(?i)peer did not return a certificate|certificate required"):
        handshake(server, without, "fl.example.com")


def handshake(server, client, host) -> bytes | None:
    """The certificate that the server sees of the client, in DER."""
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    sides = [
        server.wrap_bio(to_server, to_client, server_side=True),
        client.wrap_bio(to_client, to_server, server_hostname=host),
    ]
    waiting = list(sides)
    while waiting:
        for side in list(waiting):
            try:
                side.do_handshake()
                waiting.remove(side)
            except ssl.SSLWantReadError:
                continue
    return sides[0].getpeercert(binary_form=True)
