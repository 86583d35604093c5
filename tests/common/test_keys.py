"""Private keys are this user's alone, made once, and read by Flower and OpenSSL as they are."""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
import threading

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from hansa_common import keys
from hansa_common.errors import UsageError

KINDS = {
    "identity": (keys.make_signing_key, keys.read_signing_key),
    "node": (keys.make_node_key, keys.read_node_key),
    "tls": (keys.make_tls_key, keys.read_tls_key),
}
WHAT = "the test's key"


def shown(key) -> str:
    return key.hex() if isinstance(key, bytes) else f"{key.private_numbers().private_value:x}"


@pytest.fixture(params=KINDS)
def kind(request):
    return KINDS[request.param]


def test_key_is_read_as_it_was_made_and_no_two_are_alike(kind, tmp_path):
    make, read = kind
    first, second = make(tmp_path / "first"), make(tmp_path / "second")
    assert shown(read(tmp_path / "first", WHAT)) == shown(first) != shown(second)


def test_key_is_for_this_user_alone_whatever_the_umask(kind, tmp_path):
    before = os.umask(0)
    try:
        kind[0](tmp_path / "key")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "key").stat().st_mode) == 0o600


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o610, 0o666, 0o601])
def test_key_that_others_can_reach_is_refused_and_not_told(kind, tmp_path, mode):
    make, read = kind
    key = make(tmp_path / "key")
    (tmp_path / "key").chmod(mode)
    with pytest.raises(UsageError, match=r"others can read the test's key .*chmod 600") as refused:
        read(tmp_path / "key", WHAT)
    assert shown(key) not in str(refused.value)


def test_key_is_never_written_over(kind, tmp_path):
    make, _ = kind
    make(tmp_path / "key")
    before = (tmp_path / "key").read_bytes()
    with pytest.raises(UsageError, match="never written over"):
        make(tmp_path / "key")
    assert (tmp_path / "key").read_bytes() == before


def test_link_that_leads_nowhere_is_not_written_through(kind, tmp_path):
    (tmp_path / "key").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(UsageError, match="never written over"):
        kind[0](tmp_path / "key")
    assert not (tmp_path / "elsewhere").exists()


@pytest.mark.parametrize("content", [b"", b"00" * 31, b"zz" * 32, b"\xff" * 64, b"0" * 100_000])
def test_what_is_no_key_is_refused_in_one_line_that_does_not_show_it(kind, tmp_path, content):
    keys.write_new_file(tmp_path / "key", content)
    with pytest.raises(UsageError) as refused:
        kind[1](tmp_path / "key", WHAT)
    (line,) = str(refused.value).splitlines()
    assert str(tmp_path / "key") in line
    assert len(line) < 300 + len(str(tmp_path))
    assert "zzzz" not in line


def test_key_that_is_not_there_is_told_by_its_file(kind, tmp_path):
    with pytest.raises(UsageError, match=r"the test's key .*/key cannot be read: No such file"):
        kind[1](tmp_path / "key", WHAT)


def test_key_of_another_kind_is_refused(tmp_path):
    keys.make_node_key(tmp_path / "node")
    keys.make_tls_key(tmp_path / "tls")
    keys.make_signing_key(tmp_path / "identity")
    for name, (_, read) in KINDS.items():
        for other in KINDS.keys() - {name}:
            with pytest.raises(UsageError, match="is no test's key"):
                read(tmp_path / other, WHAT)


def test_public_key_is_that_of_the_standard(tmp_path):
    """RFC 8032, section 7.1, test 1."""
    private = bytes.fromhex("9d61b19deffd5a60ba844af492ec2cc44449c5697b326919703bac031cae7f60")
    public = "d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a"
    assert keys.public_key_of(private) == public
    assert Ed25519PrivateKey.from_private_bytes(private).public_key().public_bytes_raw().hex() == public


def test_flower_reads_a_nodes_key_as_its_own(tmp_path):
    """Flower's own loaders, of the node and of the command that registers one."""
    from types import SimpleNamespace

    from flwr.cli.supernode.register import try_load_public_key
    from flwr.supercore.primitives.asymmetric import public_key_to_bytes
    from flwr.supernode.cli.flower_supernode import _try_setup_client_authentication

    key = keys.make_node_key(tmp_path / "node.key")
    (tmp_path / "node.pub").write_text(keys.public_line(key.public_key()))
    arguments = SimpleNamespace(auth_supernode_private_key=str(tmp_path / "node.key"), auth_supernode_public_key=None)
    private, public = _try_setup_client_authentication(arguments)
    assert shown(private) == shown(key)
    # What Flower sends is what a request names, byte for byte: so the two can be held against each other.
    assert public_key_to_bytes(public).decode() == keys.public_pem(key.public_key())
    assert try_load_public_key(tmp_path / "node.pub").decode() == keys.public_pem(key.public_key())


@pytest.mark.skipif(shutil.which("openssl") is None, reason="there is no openssl on this machine")
def test_openssl_reads_a_tls_key(tmp_path):
    key = keys.make_tls_key(tmp_path / "tls.key")
    told = subprocess.run(
        ["openssl", "pkey", "-in", tmp_path / "tls.key", "-pubout"], check=True, capture_output=True, text=True
    )
    assert told.stdout == keys.public_pem(key.public_key())


def test_public_pem_is_read_back_and_nothing_else_is_taken_for_it():
    key = ec.generate_private_key(keys.NODE_CURVE()).public_key()
    pem = keys.public_pem(key)
    assert keys.public_pem(keys.parse_public_pem(pem, keys.NODE_CURVE)) == pem
    other_curve = keys.public_pem(ec.generate_private_key(keys.TLS_CURVE()).public_key())
    for text in (
        "",
        "x",
        pem + "\n",
        " " + pem,
        pem.replace("\n", "\r\n"),
        other_curve,
        pem + pem,
        keys.public_line(key),
    ):
        with pytest.raises(ValueError, match="it is no"):
            keys.parse_public_pem(text, keys.NODE_CURVE)


def test_of_two_who_make_a_key_at_once_one_is_refused_and_nothing_else_is_left(tmp_path):
    together, made, refused = threading.Barrier(8), [], []

    def make():
        together.wait()
        try:
            made.append(keys.make_signing_key(tmp_path / "key"))
        except UsageError as error:
            refused.append(error)

    threads = [threading.Thread(target=make) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (len(made), len(refused)) == (1, 7)
    assert keys.read_signing_key(tmp_path / "key", WHAT) == made[0]
    assert [path.name for path in tmp_path.iterdir()] == ["key"]
