"""What changes after enrolment: the roster, certificates that end, certificates that are taken back."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from hansa_common.errors import CertificateRevokedError
from hansa_common.merchant_keys import make_next_tls_key
from hansa_server.authority import open_authority
from hansa_server.issued_register import IssuedCertificate, IssuedRegister, record

MERCHANTS = ("alder", "birch >= 2.5")


def test_merchant_who_joins_makes_another_agreement_for_all(enrolled):
    before = enrolled.agreed
    enrolled.write_agreement(enrolled.text.replace('"alder", ', '"alder", "cedar", '))
    for path in enrolled.requests.iterdir():
        path.unlink()
    enrolled.ask("cedar")
    certificates = {name: enrolled.certificate(name) for name in MERCHANTS}
    told = enrolled.answered()
    assert f"another agreement than before ({before.fingerprint})" in told
    after = enrolled.agreed
    assert after.roster_fingerprint != before.roster_fingerprint
    assert after.fingerprint != before.fingerprint
    assert {name: enrolled.certificate(name) for name in MERCHANTS} == certificates
    assert set(after.trust.merchants) == {*MERCHANTS, "cedar"}


def test_renewal_gets_a_certificate_for_the_new_key_and_no_other_agreement(enrolled):
    before, first = enrolled.agreed, enrolled.certificate("alder")
    held = make_next_tls_key(enrolled.folder / "merchants" / "alder")
    enrolled.ask("alder", held)
    enrolled.answered(agreement=enrolled.kits / "agreement.toml")
    second = enrolled.certificate("alder")
    assert second.public_key() == held.next_tls.public_key() != first.public_key()
    assert enrolled.agreed == before
    register = IssuedRegister.read(enrolled.state)
    # The one before stays good until its end: the merchant uses it until the kit has come.
    assert register.lookup(first.serial_number) == register.lookup(second.serial_number)


def test_certificate_is_renewed_for_the_same_key_when_asked_by_name(enrolled, refused):
    first = enrolled.certificate("alder")
    assert enrolled.provision("--renew", "alder", "--days", 30).exit_code == 0
    second = enrolled.certificate("alder")
    assert second.public_key() == first.public_key()
    assert second.serial_number != first.serial_number
    assert second.not_valid_after_utc - datetime.now(UTC) < timedelta(days=30)
    refused(enrolled.provision("--renew", "aldr"), "'aldr' has no certificate", "did you mean 'alder'?")
    refused(enrolled.answer("--renew", "alder"), "'alder' has sent a request")


def test_certificate_near_its_end_is_renewed_when_its_request_comes_again(enrolled):
    age(enrolled, "alder", days_left=10)
    enrolled.answered()
    assert enrolled.certificate("alder").not_valid_after_utc - datetime.now(UTC) > timedelta(days=300)


def test_expired_certificate_is_not_sent_and_the_others_are(enrolled, files_of):
    age(enrolled, "alder", days_left=-1)
    before = files_of(enrolled.kits)
    result = enrolled.provision()
    assert result.exit_code == 0
    assert "alder: no kit, its certificate expired at" in result.stdout
    assert "--renew" in result.stdout
    assert files_of(enrolled.kits) == before
    assert enrolled.provision("--renew", "alder").exit_code == 0
    assert enrolled.certificate("alder").not_valid_after_utc > datetime.now(UTC)


def age(coordinator, name: str, days_left: int) -> None:
    """Put a certificate in the register that was issued a hundred days before its end."""
    entry = IssuedRegister.read(coordinator.state).merchants[name]
    now = datetime.now(UTC)
    authority = open_authority(coordinator.state, now)
    issued_at = now + timedelta(days=days_left - 100)
    key = coordinator.merchant(name).tls.public_key()
    certificate = IssuedCertificate.of(authority.issued_to_merchant(name, key, issued_at, 100))
    record(coordinator.state, entry.model_copy(update={"certificates": (certificate,)}))


def test_revoked_merchant_gets_no_kit_until_it_has_new_keys(enrolled, refused):
    first = enrolled.certificate("alder")
    result = enrolled.provision("--revoke", "alder")
    assert result.exit_code == 0
    assert "alder: 1 certificates revoked" in result.stdout
    with pytest.raises(CertificateRevokedError):
        IssuedRegister.read(enrolled.state).lookup(first.serial_number)
    agreement = enrolled.kits / "agreement.toml"
    refused(enrolled.answer(agreement=agreement), "'alder' asks for a key whose certificate was revoked")
    refused(enrolled.provision("--renew", "alder", agreement=agreement), "was revoked", "new keys")
    told = enrolled.provision(agreement=agreement).stdout
    assert "alder: no kit, its certificate was revoked" in told
    enrolled.ask("alder", make_next_tls_key(enrolled.folder / "merchants" / "alder"))
    enrolled.answered(agreement=agreement)
    assert IssuedRegister.read(enrolled.state).lookup(enrolled.certificate("alder").serial_number).merchant == "alder"


def test_revoking_nobody_or_with_other_things_is_refused(enrolled, refused):
    refused(enrolled.provision("--revoke", "aldr"), "'aldr' has no certificate", "did you mean 'alder'?")
    refused(enrolled.answer("--revoke", "alder"), "--revoke stands alone")
    assert enrolled.certificate("alder").serial_number
    IssuedRegister.read(enrolled.state).lookup(enrolled.certificate("alder").serial_number)
