"""A certificate leads to one merchant and one node key, until it is taken back."""

from __future__ import annotations

import json
import stat
from datetime import UTC, datetime

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from pydantic import ValidationError

from hansa_common import keys
from hansa_common.errors import CertificateRevokedError, CertificateUnknownError, CoordinatorError
from hansa_server.authority import open_authority
from hansa_server.issued_register import (
    Issued,
    IssuedCertificate,
    IssuedKeys,
    IssuedRegister,
    changed_at,
    record,
    revoke,
)

NOW = datetime(2030, 5, 1, 12, 0, tzinfo=UTC)


@pytest.fixture
def state(tmp_path):
    tmp_path.chmod(0o700)
    return tmp_path


@pytest.fixture
def issue(state):
    authority = open_authority(state, NOW)

    def issue(merchant: str, *before: IssuedCertificate):
        key = ec.generate_private_key(keys.TLS_CURVE()).public_key()
        certificate = authority.issued_to_merchant(merchant, key, NOW, 30)
        entry = IssuedKeys(
            merchant=merchant,
            identity_key=f"{len(merchant):064x}",
            node_key=f"the node key of {merchant}",
            certificates=(*before, IssuedCertificate.of(certificate)),
        )
        record(state, entry)
        return certificate, entry

    return issue


def test_certificate_leads_to_the_merchant_and_its_node_key(state, issue):
    (alder, _), (birch, _) = issue("alder"), issue("birch >= 2.json")
    register = IssuedRegister.read(state)
    assert register.lookup(alder.serial_number) == Issued("alder", "the node key of alder", f"{5:064x}")
    assert register.lookup(birch.serial_number).merchant == "birch >= 2.json"
    assert register.standing("alder") == alder


def test_certificate_that_was_not_issued_is_unknown(state, issue):
    issued, _ = issue("alder")
    for serial in (0, 1, issued.serial_number + 1, 2**160):
        with pytest.raises(CertificateUnknownError, match=f"{serial:x} was not issued here"):
            IssuedRegister.read(state).lookup(serial)


def test_empty_register_knows_nobody(state):
    register = IssuedRegister.read(state)
    assert register.standing("alder") is None
    with pytest.raises(CertificateUnknownError):
        register.lookup(5)


def test_renewed_certificate_stands_beside_the_one_before(state, issue):
    first, entry = issue("alder")
    second, _ = issue("alder", *entry.certificates)
    register = IssuedRegister.read(state)
    assert register.lookup(first.serial_number) == register.lookup(second.serial_number)
    assert register.standing("alder") == second


def test_revoking_takes_back_every_certificate_of_one_merchant_and_no_other(state, issue):
    first, entry = issue("alder")
    second, _ = issue("alder", *entry.certificates)
    birch, _ = issue("birch")
    before = changed_at(state)
    assert revoke(state, "alder", NOW) == 2
    assert changed_at(state) != before
    register = IssuedRegister.read(state)
    for certificate in (first, second):
        with pytest.raises(CertificateRevokedError, match="was revoked"):
            register.lookup(certificate.serial_number)
    assert register.standing("alder") is None
    assert register.lookup(birch.serial_number).merchant == "birch"
    assert revoke(state, "alder", NOW) == 0
    assert revoke(state, "nobody", NOW) == 0


def test_what_is_issued_after_a_revocation_stands(state, issue):
    first, entry = issue("alder")
    revoke(state, "alder", NOW)
    second, _ = issue("alder", *entry.certificates)
    register = IssuedRegister.read(state)
    assert register.standing("alder") == second
    with pytest.raises(CertificateRevokedError):
        register.lookup(first.serial_number)
    assert revoke(state, "alder", NOW) == 1
    assert f"{first.serial_number:x}" in IssuedRegister.read(state).revoked


def test_every_change_can_be_seen_from_outside(state, issue):
    seen = [changed_at(state)]
    issue("alder")
    seen.append(changed_at(state))
    issue("birch")
    seen.append(changed_at(state))
    revoke(state, "alder", NOW)
    seen.append(changed_at(state))
    assert len(set(seen)) == len(seen)


def test_register_is_for_this_user_alone_and_says_what_people_look_for(state, issue):
    issued, _ = issue("alder")
    revoke(state, "alder", NOW)
    path = state / "issued" / "alder.json"
    assert stat.S_IMODE(path.stat().st_mode) == stat.S_IMODE((state / "revoked.json").stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    entry = json.loads(path.read_text())
    assert entry["certificates"][0]["serial"] == f"{issued.serial_number:x}"
    assert entry["certificates"][0]["not_after"] == "2030-05-31T12:00:00+00:00"
    revoked = json.loads((state / "revoked.json").read_text())
    assert revoked["serials"][f"{issued.serial_number:x}"] == {"merchant": "alder", "at": "2030-05-01T12:00:00+00:00"}


@pytest.mark.parametrize("name", ["../alder", "a/b", "..", "", ".alder", "a\0"])
def test_name_that_leads_elsewhere_is_not_written(state, issue, name):
    _, entry = issue("alder")
    with pytest.raises(ValidationError):
        record(state, entry.model_copy(update={"merchant": name}))
    assert sorted(path.name for path in state.rglob("*.json")) == ["alder.json"]


@pytest.mark.parametrize("content", [b"", b"{}", b"[]", b"\xff", b'{"serials": {"x": 1}}', b'{"serials": {}, "a": 1}'])
def test_damaged_register_is_refused_whole(state, issue, content):
    issue("alder")
    for name in ("revoked.json", "issued/alder.json"):
        before = (state / name).read_bytes() if (state / name).exists() else None
        (state / name).write_bytes(content)
        with pytest.raises(CoordinatorError, match=f"{name} is damaged: .*; restore it"):
            IssuedRegister.read(state)
        (state / name).unlink() if before is None else (state / name).write_bytes(before)


def test_entry_under_another_merchants_name_is_refused(state, issue):
    issue("alder")
    (state / "issued" / "alder.json").rename(state / "issued" / "birch.json")
    with pytest.raises(CoordinatorError, match="is of 'alder'"):
        IssuedRegister.read(state)
