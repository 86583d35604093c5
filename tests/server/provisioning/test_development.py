"""Private keys are in a kit only where --development put them, and that is said at every turn."""

from __future__ import annotations

import stat

from hansa_common.enrolment_papers import decode_federation
from hansa_common.merchant_keys import PRIVATE

KIT = {"agreement.toml", "federation.toml", "tls.crt", "ca.crt"}
MERCHANTS = ("alder", "birch >= 2.5")


def test_development_makes_the_merchants_keys_and_says_so_loudly(coordinator):
    result = coordinator.provision("--host", "127.0.0.1", "--development")
    assert result.exit_code == 0
    assert "DEVELOPMENT" in result.stderr
    assert "alder, birch >= 2.5" in result.stderr
    assert result.stdout.count("DEVELOPMENT: its keys were made here") == 2
    for name in MERCHANTS:
        folder = coordinator.kits / name
        assert {path.name for path in folder.iterdir()} == KIT | {"identity.key", "node.key", "node.pub", "tls.key"}
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
        assert all(stat.S_IMODE(path.stat().st_mode) == 0o600 for path in folder.iterdir())
        federation = decode_federation(
            (folder / "federation.toml").read_bytes(), coordinator.agreed.trust.coordinator, "it"
        )
        assert federation.keys_made_by_coordinator


def test_development_again_keeps_the_keys(coordinator, files_of):
    assert coordinator.provision("--host", "127.0.0.1", "--development").exit_code == 0
    before = files_of(coordinator.kits)
    assert coordinator.provision("--development").exit_code == 0
    assert files_of(coordinator.kits) == before


def test_kit_with_private_keys_is_never_made_without_development(coordinator, refused):
    assert coordinator.provision("--host", "127.0.0.1", "--development").exit_code == 0
    refused(coordinator.provision(), "holds private keys", "identity.key", "another -o")
    sent = coordinator.folder / "sent"
    result = coordinator.provision("--renew", "alder", kits=sent)
    assert result.exit_code == 0
    assert not any(path.name in PRIVATE for path in sent.rglob("*"))
    # It is never forgotten who made them.
    federation = (sent / "alder" / "federation.toml").read_text()
    assert "keys_made_by_coordinator = true" in federation
    assert "DEVELOPMENT" in result.stdout


def test_development_leaves_those_alone_who_made_keys_of_their_own(coordinator):
    coordinator.ask("alder")
    told = coordinator.answer("--development")
    assert told.exit_code == 0
    assert {path.name for path in (coordinator.kits / "alder").iterdir()} == KIT
    assert (coordinator.kits / "birch >= 2.5" / "identity.key").exists()
    assert "keys_made_by_coordinator = false" in (coordinator.kits / "alder" / "federation.toml").read_text()
