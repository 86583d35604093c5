"""What the first call makes, and what a kit holds: public files that belong together."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from hansa_common.agreement import parse_agreement
from hansa_common.certificates import Purpose, check_issued
from hansa_common.durable_files import exclusive
from hansa_common.enrolment_papers import decode_federation
from hansa_common.keys import public_key_of
from hansa_server.authority import open_authority
from hansa_server.issued_register import IssuedRegister
from hansa_server.signing import publisher_key, signing_key

KIT = {"agreement.toml", "federation.toml", "tls.crt", "ca.crt"}
MERCHANTS = ("alder", "birch >= 2.5")


def test_first_call_makes_the_coordinators_keys_and_says_what_comes_next(coordinator):
    result = coordinator.provision("--host", "fl.example.com")
    assert result.exit_code == 0
    assert "hansa client enroll NAME" in result.stdout
    made = {"ca.key", "ca.crt", "server.key", "server.crt", "signing.key", "publisher.key"}
    assert made <= {path.name for path in coordinator.state.iterdir()}
    for path in coordinator.state.rglob("*"):
        assert path.stat().st_mode & 0o077 == 0, path
    assert not coordinator.kits.exists()


def test_nothing_secret_is_printed(enrolled):
    told = enrolled.answered()
    for key in (signing_key(enrolled.state), publisher_key(enrolled.state)):
        assert key.hex() not in told
    assert "PRIVATE" not in told


@pytest.mark.parametrize(
    "host",
    ["http://fl.example.com", "fl example", "", "fl.example.com:0", "*.com", "::", "0.0.0.0"],  # noqa: S104 - refused
)
def test_host_that_nobody_can_connect_to_is_refused(coordinator, host, refused):
    refused(coordinator.provision("--host", host), host)


def test_host_is_asked_for_once(coordinator, refused):
    refused(coordinator.provision(), "--host")
    for host, address in (
        ("10.0.0.5:9000", "10.0.0.5:9000"),
        ("::1", "[::1]:8443"),
        ("fl.example.com", "fl.example.com:8443"),
    ):
        assert f"server at {address}," in coordinator.provision("--host", host).stdout
    assert "server at fl.example.com:8443," in coordinator.provision().stdout


def test_agreement_without_a_roster_is_refused(coordinator, refused):
    coordinator.write_agreement(coordinator.text.replace('roster = ["alder", "birch >= 2.5"]\n', ""))
    refused(coordinator.provision("--host", "h"), "no roster")


@pytest.mark.parametrize("names", [("alder", "Alder"), ("a b", "a  b"), ("alder", "agreement.toml")])
def test_names_that_would_share_a_folder_are_refused(coordinator, names, refused):
    coordinator.write_agreement(
        coordinator.text.replace('"alder", "birch >= 2.5"', ", ".join(f'"{name}"' for name in names))
    )
    refused(coordinator.provision("--host", "h"), repr(names[1]))
    assert not coordinator.state.exists()


def test_kit_holds_four_public_files_and_no_private_key(enrolled, files_of):
    for name in MERCHANTS:
        assert {path.name for path in (enrolled.kits / name).iterdir()} == KIT
        state = files_of(enrolled.folder / "merchants" / name) | files_of(enrolled.state)
        secrets = [content for path, content in state.items() if path.endswith(".key")]
        assert len(secrets) == 7
        for content in files_of(enrolled.kits / name).values():
            assert b"PRIVATE" not in content
            assert not any(secret.strip() in content for secret in secrets)


def test_agreement_keeps_its_authors_text_and_names_everybodys_keys(enrolled):
    text = (enrolled.kits / "agreement.toml").read_text()
    assert text.startswith(enrolled.text)
    assert {(enrolled.kits / name / "agreement.toml").read_text() for name in MERCHANTS} == {text}
    trust = enrolled.agreed.trust
    assert trust.coordinator == public_key_of(signing_key(enrolled.state))
    assert trust.merchants == {name: enrolled.merchant(name).identity_key for name in MERCHANTS}
    assert enrolled.agreed.without_trust() == parse_agreement(enrolled.text, "it")


def test_certificate_is_the_merchants_and_leads_to_its_node_key(enrolled):
    authority = open_authority(enrolled.state, datetime.now(UTC))
    register = IssuedRegister.read(enrolled.state)
    for name in MERCHANTS:
        certificate, held = enrolled.certificate(name), enrolled.merchant(name)
        check_issued(certificate, authority.certificate, Purpose.CLIENT, "it", datetime.now(UTC))
        assert certificate.public_key() == held.tls.public_key()
        issued = register.lookup(certificate.serial_number)
        assert (issued.merchant, issued.node_key, issued.identity_key) == (name, held.node_key, held.identity_key)


def test_federation_file_is_signed_and_says_what_belongs_together(enrolled):
    content = (enrolled.kits / "alder" / "federation.toml").read_bytes()
    federation = decode_federation(content, enrolled.agreed.trust.coordinator, "it")
    assert (federation.merchant, federation.server) == ("alder", "fl.example.com:8443")
    assert federation.agreement == enrolled.agreed.fingerprint
    assert federation.roster == enrolled.agreed.roster_fingerprint
    assert federation.publisher == public_key_of(publisher_key(enrolled.state))
    assert not federation.keys_made_by_coordinator


def test_fingerprints_are_told(enrolled):
    told = enrolled.answered()
    assert f"the agreement's fingerprint is {enrolled.agreed.fingerprint}" in told
    assert f"the roster's fingerprint is {enrolled.agreed.roster_fingerprint}" in told
    for name in MERCHANTS:
        assert f"{name}: identity key {enrolled.merchant(name).identity_key}" in told


def test_answering_again_changes_nothing(enrolled, files_of):
    before = files_of(enrolled.kits), files_of(enrolled.state)
    enrolled.answered()
    assert enrolled.provision().exit_code == 0
    assert enrolled.provision(agreement=enrolled.kits / "agreement.toml").exit_code == 0
    assert (files_of(enrolled.kits), files_of(enrolled.state)) == before


def test_two_coordinators_at_once_are_one_too_many(enrolled, refused):
    with exclusive(enrolled.state / "issued"):
        refused(enrolled.answer(), "in use by another process")
