"""A renewal leaves the merchant connected, and what it takes part with is held against agreement and clock."""

from __future__ import annotations

import shutil
from datetime import timedelta

import pytest

from hansa_client.enrolment import read_enrolment
from hansa_common.certificates import certificate_pem, parse_certificate
from hansa_common.errors import CertificateError, SignatureError, UsageError
from hansa_server.authority import open_authority

PRIVATE = {"identity.key", "node.key", "tls.key"}
INSTALLED = {"tls.crt", "ca.crt", "federation.toml"}


def test_renewal_replaces_the_tls_key_when_its_certificate_is_there_and_not_before(installed, now):
    before, agreed = installed.files(), installed.agreed
    installed.ask("alder", "--renew")
    during = installed.files()
    assert {name: during[name] for name in PRIVATE | INSTALLED} == {name: before[name] for name in PRIVATE | INSTALLED}
    read_enrolment(installed.state, "alder", agreed, now())
    # The kit of before is still one: until the next is there the merchant can install it again.
    assert installed.enroll("--kit", installed.kit).exit_code == 0
    installed.provision(agreement="kits/agreement.toml")
    assert installed.enroll("--kit", installed.kit).exit_code == 0
    after = installed.files()
    assert after["tls.key"] == during["tls.next.key"]
    assert "tls.next.key" not in after
    assert {name: after[name] for name in ("identity.key", "node.key")} == {
        name: before[name] for name in ("identity.key", "node.key")
    }
    assert installed.agreed == agreed
    read_enrolment(installed.state, "alder", agreed, now())


def test_renewal_cut_off_between_key_and_certificate_is_told_and_mended_by_the_same_kit(installed, now):
    installed.ask("alder", "--renew")
    installed.provision(agreement="kits/agreement.toml")
    (installed.state / "tls.next.key").rename(installed.state / "tls.key")
    with pytest.raises(UsageError, match=r"tls.crt is not of the key .*install the newest kit again"):
        read_enrolment(installed.state, "alder", installed.agreed, now())
    assert installed.enroll("--kit", installed.kit).exit_code == 0
    read_enrolment(installed.state, "alder", installed.agreed, now())


def test_kit_that_answers_no_request_of_this_merchants_is_refused(installed, refused):
    installed.ask("alder", "--renew")
    installed.provision(agreement="kits/agreement.toml")
    (installed.state / "tls.next.key").unlink()
    refused(installed.enroll("--kit", installed.kit), "is for another key", "newest request")


@pytest.fixture
def told(answered, now):
    """The one line with which taking part is refused."""

    def line_of(error, moment=None, agreement=None) -> str:
        with pytest.raises(error) as refusal:
            read_enrolment(answered.state, "alder", agreement or answered.agreed, moment or now())
        (line,) = str(refusal.value).splitlines()
        return line

    return line_of


def test_merchant_without_keys_is_told_what_to_do(installed, told):
    shutil.rmtree(installed.state)
    assert "hansa client enroll" in told(UsageError)


def test_merchant_whose_request_is_not_answered_is_told_what_to_send(answered, told):
    line = told(UsageError)
    assert str(answered.state / "alder.request.json") in line
    assert "--kit" in line


@pytest.mark.parametrize("name", ["node.key", "tls.key", "ca.crt", "federation.toml"])
def test_file_that_is_missing_is_told_by_its_name(installed, name, told):
    (installed.state / name).unlink()
    assert name in told(UsageError)


def test_wrong_clock_and_expiry_are_told_in_one_line_each(installed, told, now):
    end = parse_certificate((installed.state / "tls.crt").read_bytes(), "it").not_valid_after_utc
    read_enrolment(installed.state, "alder", installed.agreed, end)
    assert "tls.crt expired at" in told(CertificateError, end + timedelta(seconds=1))
    early = told(CertificateError, now(days=-2))
    assert "set the clock" in early
    assert "valid from" in early


def test_agreement_with_another_identity_or_coordinator_is_not_taken_part_in(installed, told):
    trust = installed.agreed.trust
    merchants = {**trust.merchants, "alder": "a1" * 32}
    other = installed.agreed.with_trust(type(trust)(coordinator=trust.coordinator, merchants=merchants))
    assert "do not approve it" in told(UsageError, agreement=other)
    other = installed.agreed.with_trust(type(trust)(coordinator="a1" * 32, merchants=trust.merchants))
    assert "does not bear the signature" in told(SignatureError, agreement=other)
    assert "no [trust]" in told(UsageError, agreement=installed.agreed.without_trust())


def test_certificates_of_two_kits_do_not_go_together(installed, told, now):
    installed.provision(state="server", kits="again")
    authority = open_authority(installed.folder, now())
    (installed.state / "ca.crt").write_bytes(certificate_pem(authority.certificate))
    assert "two kits" in told(UsageError)
