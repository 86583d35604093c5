"""What keeps an enrolled merchant from taking part is one clear line: with what is wrong, and what to do; no process is
left, and no row was read for it."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from hansa_client.participation import Given, enrolled
from hansa_common.agreement_file import read_agreement
from hansa_common.certificates import certificate_pem
from hansa_common.keys import read_tls_key
from hansa_server.authority import open_authority


@pytest.fixture
def start(installed, door, hansa):
    """`hansa client start` of alder, with other options if they are given."""

    def run(*options: object):
        words = options or ("--data", installed.folder / "alder.csv")
        return hansa("client", "start", "--state", installed.state, *words)

    return run


def issued(consortium, begins: datetime) -> None:
    """Another certificate for alder's key, which holds for a day from then on."""
    authority = open_authority(consortium.folder / "server", datetime.now(UTC))
    key = read_tls_key(consortium.state / "tls.key", "the TLS key").public_key()
    certificate = authority.issued_to_merchant("alder", key, begins, 1)
    (consortium.state / "tls.crt").write_bytes(certificate_pem(certificate))


def without(name: str):
    """A file of the state folder is gone."""

    def remove(installed, door):
        (installed.state / name).unlink()

    return remove


def not_approved(installed, door):
    (next((installed.state / "approved").glob("*.json"))).unlink()


def clock_before_its_certificate(installed, door):
    issued(installed, datetime.now(UTC) + timedelta(days=3))


def clock_after_its_certificate(installed, door):
    issued(installed, datetime.now(UTC) - timedelta(days=3))


def clock_that_is_slow(installed, door):
    door.ahead = timedelta(minutes=10)


def clock_that_is_fast(installed, door):
    door.ahead = -timedelta(seconds=30)


def no_table(installed, door):
    (installed.folder / "alder.csv").unlink()


def server_that_is_not_there(installed, door):
    door.close()


def other_machine_at_the_address(installed, door):
    stranger = installed.folder / "stranger"
    words = ("provision", installed.folder / "agreement.toml", "--host", door.address, "--state", stranger)
    assert installed.hansa(*words, "-o", installed.folder / "other-kits").exit_code == 0
    door.context.load_cert_chain(stranger / "server.crt", stranger / "server.key")


TROUBLES = [
    (without("identity.key"), "there is no", "identity.key; make one with `hansa client enroll`, or restore it"),
    (without("node.key"), "node.key cannot be read: No such file"),
    (without("tls.key"), "tls.key cannot be read: No such file"),
    (without("tls.crt"), "keys and no certificate yet", "hansa client enroll 'alder' --kit FOLDER"),
    (without("federation.toml"), "nobody has enrolled", "hansa client enroll NAME"),
    (not_approved, "no agreement is approved", "hansa client approve KIT/agreement.toml"),
    (clock_before_its_certificate, "tls.crt is valid from", "this machine's clock says", "set the clock"),
    (clock_after_its_certificate, "tls.crt expired at", "this machine's clock says", "renew it, or set the clock"),
    (clock_that_is_slow, "this machine's clock is", "seconds behind the coordinator's", "set the clock"),
    (clock_that_is_fast, "this machine's clock is", "seconds ahead of the coordinator's", "set the clock"),
    (no_table, "there is no table at", "alder.csv"),
    (server_that_is_not_there, "the gateway at", "nothing listens there; has the coordinator started?"),
    (other_machine_at_the_address, "is not of the authority in ca.crt, so this is not the federation's gateway"),
]


@pytest.mark.system
@pytest.mark.parametrize(
    ("trouble", "words"), [(trouble, words) for trouble, *words in TROUBLES], ids=[str(t[1]) for t in TROUBLES]
)
def test_trouble_is_one_clear_line(start, installed, door, trouble, words):
    trouble(installed, door)
    result = start()
    assert result.exit_code in {1, 2}
    (line,) = result.stderr.splitlines()
    assert line.startswith("hansa: ")
    assert all(word in line for word in words), line
    assert result.stdout == ""
    assert not (installed.state / "data_quality.json").exists()


def test_enrolled_merchant_says_neither_its_name_nor_an_address(start, installed, refused):
    data = ("--data", installed.folder / "alder.csv")
    refused(start(*data, "--merchant", "birch"), "--merchant and --server are for --development")
    refused(start(*data, "--server", "127.0.0.1:1"), "--merchant and --server are for --development")


def test_agreement_that_is_named_must_be_approved(start, installed, refused):
    text = (installed.kit / "agreement.toml").read_text()
    other = installed.folder / "other.toml"
    other.write_text(f"seed = 5\n{text}")
    refused(start("--data", installed.folder / "alder.csv", "--agreement", other), "is not approved", "client approve")


def test_of_several_approved_agreements_the_last_counts_or_the_one_that_is_named(installed, door):
    first, other = installed.kit / "agreement.toml", installed.folder / "other.toml"
    other.write_text(f"seed = 5\n{first.read_text()}")
    words = ("--state", installed.state, "--yes-to", read_agreement(other)[0].fingerprint)
    assert installed.hansa("client", "approve", other, *words).exit_code == 0
    data, now = installed.folder / "alder.csv", datetime.now(UTC)
    last, named = (enrolled(Given(data, installed.state, agreement), now) for agreement in (None, first))
    assert (last.agreement.seed, named.agreement.seed) == (5, 0)
    for taking_part in (last, named):
        assert read_agreement(taking_part.files.agreement)[0] == taking_part.agreement
        assert taking_part.files.agreement.parent == installed.state / "approved"
        assert (taking_part.merchant, str(taking_part.coordinator)) == ("alder", door.address)


def test_agreement_of_another_coordinator_is_refused(start, installed, refused):
    text = (installed.kit / "agreement.toml").read_text()
    coordinator = installed.agreed.trust.coordinator
    other = installed.folder / "other.toml"
    other.write_text(text.replace(coordinator, "ab" * 32))
    words = ("--state", installed.state, "--yes-to", read_agreement(other)[0].fingerprint)
    assert installed.hansa("client", "approve", other, *words).exit_code == 0
    refused(start("--data", installed.folder / "alder.csv"), "federation.toml does not bear the signature of the key")
