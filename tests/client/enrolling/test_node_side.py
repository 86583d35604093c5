"""The half of a merchant that may run as another user: what its node needs, held together, and no identity."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from hansa_client.enrolment import read_node_side
from hansa_common.errors import CertificateError, UsageError
from hansa_common.keys import make_tls_key


@pytest.fixture
def folder(answered) -> Path:
    """The kit, and copies of two keys beside it."""
    folder = answered.folder / "node"
    shutil.copytree(answered.kit, folder)
    folder.chmod(0o700)
    for key in ("node.key", "tls.key"):
        shutil.copy(answered.state / key, folder)
    return folder


def test_node_needs_the_kit_and_two_keys_and_not_the_identity(folder, now):
    federation = read_node_side(folder, now())
    assert (federation.merchant, federation.address.host) == ("alder", "fl.example.com")
    assert not (folder / "identity.key").exists()


@pytest.mark.parametrize("name", ["node.key", "tls.key", "federation.toml", "tls.crt", "ca.crt", "agreement.toml"])
def test_each_file_is_needed_and_named(folder, now, name):
    (folder / name).unlink()
    with pytest.raises(UsageError, match=name):
        read_node_side(folder, now())


def test_certificate_of_another_key_is_refused(folder, now):
    (folder / "tls.key").unlink()
    make_tls_key(folder / "tls.key")
    with pytest.raises(UsageError, match="another key"):
        read_node_side(folder, now())


def test_certificate_that_does_not_hold_now_is_refused(folder, now):
    with pytest.raises(CertificateError, match="expired"):
        read_node_side(folder, now(days=3650))


def test_commands_refuse_what_cannot_be_apart(answered, folder, hansa, refused):
    folder.chmod(0o755)
    refused(hansa("client", "node", "--state", folder, "--trainer", folder), "chmod 700")
    words = ("--data", "alder.csv", "--state", answered.state, "--trainer-only", folder, "--node-user", "nobody")
    refused(hansa("client", "start", *words), "hansa client node", "--node-user")
