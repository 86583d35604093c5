"""Private keys as files for one user alone, and public keys as text.

key                          algorithm   file
identity and signing keys    Ed25519     64 hexadecimal digits; the public half is written the same way
a node's                     EC P-384    OpenSSH, as Flower 1.41 reads it; its public half travels as PEM
those of TLS                 EC P-256    PEM (PKCS 8)

- A file that others can read is refused, whatever is in it, and left as it is.
- A key is made once: nothing here writes over a file that is there.
- No message holds a private key or a part of one.

Where keys stand and what they are good for is told by their owners: enrolment.py and signing.py.
"""

from __future__ import annotations

import os
import re
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Final

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat

from hansa_common import durable_files
from hansa_common.durable_files import UNFINISHED_SUFFIX
from hansa_common.errors import UsageError

KEY_BYTES: Final = 32
# What Flower asks of a node's key, and what every TLS library speaks.
NODE_CURVE: Final = ec.SECP384R1
TLS_CURVE: Final = ec.SECP256R1

_MAX_FILE_BYTES: Final = 1 << 16
_PUBLIC_KEY: Final = re.compile("[0-9a-f]{64}")


def read_private_file(path: Path, what: str) -> bytes:
    """The content of a file that only this user may read; `what` names it in messages.

    Raises:
        UsageError: it is not there, others may read it, or it is larger than any key.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except OSError as error:
        raise UsageError(f"{what} {path} cannot be read: {error.strerror}") from error
    with os.fdopen(descriptor, "rb") as file:
        if os.fstat(descriptor).st_mode & 0o077:
            raise UsageError(f"others can read {what} {path}; make it yours alone: chmod 600")
        content = file.read(_MAX_FILE_BYTES + 1)
    if len(content) > _MAX_FILE_BYTES:
        raise UsageError(f"{path} is too large to be {what}; restore it")
    return content


def write_new_file(path: Path, content: bytes) -> None:
    """Put a file that only this user may read where none is yet, whoever else tries at the same time.

    Raises:
        UsageError: there is one.
    """
    descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f"{path.name}.", suffix=UNFINISHED_SUFFIX)
    unfinished = Path(name)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(descriptor)
        # A link, because a rename would write over.
        path.hardlink_to(unfinished)
    except FileExistsError:
        raise UsageError(f"{path} is there already and is never written over") from None
    finally:
        unfinished.unlink()
    durable_files.synchronise(path.parent)


# Ed25519


def make_signing_key(path: Path) -> bytes:
    """Draw a private key of 32 bytes into a new file.

    Raises:
        UsageError: there is a file.
    """
    key = os.urandom(KEY_BYTES)
    write_new_file(path, f"{key.hex()}\n".encode())
    return key


def read_signing_key(path: Path, what: str) -> bytes:
    """The private key of 32 bytes in a file that only this user may read; `what` names it in messages.

    Raises:
        UsageError: it is not there, others may read it, or it is no key.
    """
    try:
        key = bytes.fromhex(read_private_file(path, what).decode("ascii").strip())
    except ValueError:
        key = b""
    if len(key) != KEY_BYTES:
        raise UsageError(f"{path} is no {_bare(what)}, which has {2 * KEY_BYTES} hexadecimal digits; restore it")
    return key


def public_key_of(private_key: bytes) -> str:
    """The public key, 64 hexadecimal digits, of a private one of 32 bytes."""
    return Ed25519PrivateKey.from_private_bytes(private_key).public_key().public_bytes_raw().hex()


def is_public_key(text: str) -> bool:
    """Whether a text is one: 64 hexadecimal digits, small letters."""
    return _PUBLIC_KEY.fullmatch(text) is not None


def check_public_key(text: str) -> str:
    """The key itself.

    Raises:
        UsageError: it is not 64 hexadecimal digits.
    """
    if not is_public_key(text):
        raise UsageError(f"a public key is 64 hexadecimal digits (0-9, a-f), this is not one: {text[:80]!r}")
    return text


# Elliptic curves


def make_node_key(path: Path) -> ec.EllipticCurvePrivateKey:
    """Draw a node's key into a new file, as `flower-supernode --auth-supernode-private-key` reads it.

    Raises:
        UsageError: there is a file.
    """
    key = ec.generate_private_key(NODE_CURVE())
    write_new_file(path, key.private_bytes(Encoding.PEM, PrivateFormat.OpenSSH, NoEncryption()))
    return key


def read_node_key(path: Path, what: str) -> ec.EllipticCurvePrivateKey:
    """A node's key from a file that only this user may read.

    Raises:
        UsageError: it is not there, others may read it, or it is no such key.
    """
    return _read_curve_key(path, what, NODE_CURVE, serialization.load_ssh_private_key)


def make_tls_key(path: Path) -> ec.EllipticCurvePrivateKey:
    """Draw a key for TLS into a new file.

    Raises:
        UsageError: there is a file.
    """
    key = ec.generate_private_key(TLS_CURVE())
    write_new_file(path, key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    return key


def read_tls_key(path: Path, what: str) -> ec.EllipticCurvePrivateKey:
    """A key for TLS from a file that only this user may read.

    Raises:
        UsageError: it is not there, others may read it, or it is no such key.
    """
    return _read_curve_key(path, what, TLS_CURVE, serialization.load_pem_private_key)


def public_pem(key: ec.EllipticCurvePublicKey) -> str:
    """The public key as PEM: of a node's key, byte for byte what Flower sends in its headers."""
    return key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode()


def public_line(key: ec.EllipticCurvePublicKey) -> str:
    """The public key as a line of OpenSSH, with its line end: what Flower's tools take from a file."""
    return key.public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH).decode() + "\n"


def parse_public_pem(text: str, curve: type[ec.EllipticCurve]) -> ec.EllipticCurvePublicKey:
    """Read a public key of this curve that came from elsewhere; only `public_pem`'s own form is one.

    Raises:
        ValueError: it is none.
    """
    try:
        key = serialization.load_pem_public_key(text.encode())
    except (ValueError, UnsupportedAlgorithm):
        raise ValueError("it is no public key in PEM") from None
    if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, curve):
        raise ValueError(f"it is no public key of the curve {curve.name}")  # noqa: TRY004 - one kind of error
    if public_pem(key) != text:
        raise ValueError("it is not written as a public key is")
    return key


def _read_curve_key(
    path: Path, what: str, curve: type[ec.EllipticCurve], load: Callable[..., object]
) -> ec.EllipticCurvePrivateKey:
    content = read_private_file(path, what)
    try:
        key = load(content, password=None)
    except (ValueError, TypeError, UnsupportedAlgorithm):
        key = None
    if not isinstance(key, ec.EllipticCurvePrivateKey) or not isinstance(key.curve, curve):
        raise UsageError(f"{path} is no {_bare(what)} of the curve {curve.name}; restore it")
    return key


def _bare(what: str) -> str:
    return what.removeprefix("the ")
