"""A kit is verified before any of it is installed, against the keys, the agreement and the clock."""

from __future__ import annotations

import shutil

import pytest

from hansa_client.enrolment import install_kit, read_enrolment
from hansa_common.agreement import parse_agreement
from hansa_common.certificates import certificate_pem
from hansa_common.errors import CertificateError
from hansa_common.merchant_keys import read_keys
from hansa_server.authority import open_authority

PRIVATE = {"identity.key", "node.key", "tls.key"}
INSTALLED = {"tls.crt", "ca.crt", "federation.toml"}


def test_kit_is_installed_and_the_fingerprints_are_shown(answered, now):
    keys = {name: answered.files()[name] for name in PRIVATE}
    result = answered.enroll("--kit", answered.kit)
    assert result.exit_code == 0
    assert answered.agreed.fingerprint in result.stdout
    assert answered.agreed.roster_fingerprint in result.stdout
    assert all(key in result.stdout for key in answered.agreed.trust.merchants.values())
    files = answered.files()
    assert set(files) == PRIVATE | INSTALLED | {"node.pub", "alder.request.json"}
    assert {name: files[name] for name in PRIVATE} == keys
    assert all(path.stat().st_mode & 0o077 == 0 for path in answered.state.iterdir())
    enrolment = read_enrolment(answered.state, "alder", answered.agreed, now())
    assert str(enrolment.federation.address) == "fl.example.com:8443"
    assert enrolment.identity == read_keys(answered.state).identity
    assert enrolment.identity.hex() not in repr(enrolment)


def test_kit_for_another_merchant_is_refused(answered, refused):
    refused(answered.enroll("--kit", answered.folder / "kits" / "birch"), "is for 'birch'", "not for 'alder'")
    refused(answered.enroll("--kit", answered.kit, name="birch"), "is for 'alder'", "not for 'birch'")


@pytest.mark.parametrize("name", ["agreement.toml", "federation.toml", "tls.crt", "ca.crt"])
def test_kit_is_refused_whole_if_a_file_is_missing_or_anothers(answered, name, refused):
    before = answered.files()
    content = (answered.kit / name).read_bytes()
    (answered.kit / name).unlink()
    refused(answered.enroll("--kit", answered.kit), name, "cannot be read")
    (answered.kit / name).write_bytes(content[: len(content) // 2])
    refused_in_some_way = answered.enroll("--kit", answered.kit)
    assert refused_in_some_way.exit_code in {1, 2}
    assert "Traceback" not in refused_in_some_way.stderr
    (answered.kit / name).write_bytes(b"\xff\xfe")
    refused(answered.enroll("--kit", answered.kit), name)
    assert answered.files() == before


def test_agreement_that_names_another_identity_for_this_merchant_is_refused(answered, refused):
    """The coordinator, or whoever sat between, enrolled somebody else in this merchant's name."""
    answered.enroll(name="alder", state=answered.folder / "mallory")
    shutil.copy(answered.folder / "mallory" / "alder.request.json", answered.folder / "requests")
    answered.provision(state="other", kits="forged")
    result = answered.enroll("--kit", answered.folder / "forged" / "alder")
    refused(result, read_keys(answered.state).identity_key, "do not approve it", "tell the other merchants")
    assert not INSTALLED & set(answered.files())


def test_roster_with_an_extra_merchant_shows_in_the_fingerprint_that_people_compare(answered):
    honest = answered.agreed
    (answered.folder / "agreement.toml").write_text(answered.text.replace('"birch"', '"birch", "mallory"'))
    answered.ask("mallory")
    answered.provision(kits="padded")
    padded = answered.folder / "padded" / "alder"
    result = answered.enroll("--kit", padded)
    # It is a kit like any other: what tells is what it shows.
    assert result.exit_code == 0
    assert "mallory: " in result.stdout
    assert honest.roster_fingerprint not in result.stdout
    assert honest.fingerprint not in result.stdout
    agreed = parse_agreement((padded / "agreement.toml").read_text(), "it")
    assert agreed.roster_fingerprint in result.stdout


def test_agreement_swapped_in_a_kit_is_refused(answered, refused):
    path = answered.kit / "agreement.toml"
    path.write_text("seed = 5\n" + path.read_text())
    refused(answered.enroll("--kit", answered.kit), "not the agreement that this kit was made for")
    path.write_text(answered.text)
    refused(answered.enroll("--kit", answered.kit), "no [trust]")


def test_kit_of_another_coordinator_leaves_the_one_in_use_as_it_is(installed, refused, now):
    before = installed.files()
    installed.provision(state="other", kits="others")
    foreign = installed.folder / "others" / "alder"
    refused(installed.enroll("--kit", foreign), "another coordinator", "--state", "federation.toml")
    assert installed.files() == before
    assert read_enrolment(installed.state, "alder", installed.agreed, now())
    (installed.state / "federation.toml").unlink()
    assert installed.enroll("--kit", foreign).exit_code == 0


def test_kit_makes_damaged_files_of_the_one_before_good(installed, now):
    for name in INSTALLED:
        (installed.state / name).write_bytes(b"damaged")
    assert installed.enroll("--kit", installed.kit).exit_code == 0
    assert read_enrolment(installed.state, "alder", installed.agreed, now())


@pytest.mark.parametrize(
    ("written", "instead"),
    [("fl.example.com", "evil.example.com"), ('publisher = "', 'publisher = "f'), ('authority = "', 'authority = "0')],
)
def test_federation_file_that_was_changed_on_the_way_is_refused(answered, written, instead, refused):
    path = answered.kit / "federation.toml"
    line = next(line for line in path.read_text().splitlines() if written in line)
    changed = line.replace(written, instead)
    changed = changed if len(changed) == len(line) or "example" in changed else changed[:-2] + '"'
    path.write_text(path.read_text().replace(line, changed))
    refused(answered.enroll("--kit", answered.kit), "does not bear the signature")


def test_authority_that_the_coordinator_did_not_sign_for_is_refused(answered, tmp_path, refused, now):
    """Who can swap the authority can put a server of its own in the coordinator's place."""
    (tmp_path / "mallory").mkdir()
    mallory = open_authority(tmp_path / "mallory", now())
    certificate = mallory.issued_to_merchant("alder", read_keys(answered.state).tls.public_key(), now(), 30)
    (answered.kit / "ca.crt").write_bytes(certificate_pem(mallory.certificate))
    (answered.kit / "tls.crt").write_bytes(certificate_pem(certificate))
    refused(answered.enroll("--kit", answered.kit), "ca.crt is not the authority that the coordinator signed for")
    assert not INSTALLED & set(answered.files())


@pytest.fixture
def swap_certificate(answered, now):
    """Put another certificate of the coordinator's own authority into the kit."""

    def swap(name="alder", holder="alder", **issued_later) -> None:
        authority = open_authority(answered.folder / "server", now())
        key = read_keys(answered.folder / holder).tls.public_key()
        certificate = authority.issued_to_merchant(name, key, now(**issued_later), 30)
        (answered.kit / "tls.crt").write_bytes(certificate_pem(certificate))

    return swap


def test_certificate_for_another_key_is_refused(answered, swap_certificate, refused):
    swap_certificate(holder="birch")
    refused(answered.enroll("--kit", answered.kit), "is for another key", "newest request")


def test_certificate_in_another_name_is_refused(answered, swap_certificate, refused):
    swap_certificate("birch")
    refused(answered.enroll("--kit", answered.kit), "is not in the name of 'alder'")


def test_expired_certificate_is_refused(answered, swap_certificate, refused):
    swap_certificate(days=-31)
    refused(answered.enroll("--kit", answered.kit), "tls.crt expired at", "this machine's clock says", "renew it")


def test_certificate_that_has_not_begun_says_that_a_clock_is_wrong(answered, swap_certificate, refused):
    swap_certificate(days=3)
    refused(
        answered.enroll("--kit", answered.kit), "tls.crt is valid from", "this machine's clock says", "set the clock"
    )


def test_servers_certificate_is_no_merchants(answered, refused):
    shutil.copy(answered.folder / "server" / "server.crt", answered.kit / "tls.crt")
    refused(answered.enroll("--kit", answered.kit), "not a certificate for a TLS client")


def test_keys_that_the_coordinator_made_are_said_to_be_so(answered, now):
    for path in (answered.folder / "requests").iterdir():
        path.unlink()
    result = answered.hansa(
        "provision", answered.folder / "agreement.toml", "--host", "127.0.0.1", "--development",
        "--state", answered.folder / "made", "-o", answered.folder / "development",
    )  # fmt: skip
    assert result.exit_code == 0
    folder = answered.folder / "development" / "alder"
    result = answered.enroll("--kit", folder, state=folder)
    assert result.exit_code == 0
    assert "DEVELOPMENT" in result.stderr
    agreed = parse_agreement((folder / "agreement.toml").read_text(), "it")
    assert read_enrolment(folder, "alder", agreed, now()).federation.keys_made_by_coordinator


def test_kit_is_verified_at_the_moment_it_is_installed(answered, now):
    with pytest.raises(CertificateError, match="expired"):
        install_kit(answered.state, "alder", answered.kit, now(days=366))
    with pytest.raises(CertificateError, match="set the clock"):
        install_kit(answered.state, "alder", answered.kit, now(hours=-2))
    assert not INSTALLED & set(answered.files())
