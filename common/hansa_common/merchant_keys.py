"""A merchant's keys in its state folder, and the files that an enrolment puts beside them.

file                       holds
identity.key               the identity: what the merchant signs with, Ed25519; in the agreement as its public half
node.key, node.pub         Flower's node: EC P-384, as Flower reads it
tls.key                    the merchant's side of TLS: EC P-256
tls.next.key               the one that follows it, from a renewal's request until its certificate is installed
tls.crt, ca.crt            from the coordinator: the certificate of tls.key, the authority that issued it
federation.toml            from the coordinator: where it is, and the keys and fingerprints that belong together

The identity and the node's key are made once and kept: with another one a merchant is another party of the roster.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from cryptography.hazmat.primitives.asymmetric import ec

from hansa_common import durable_files, keys
from hansa_common.errors import UsageError

IDENTITY_KEY: Final = "identity.key"
NODE_KEY: Final = "node.key"
NODE_PUBLIC: Final = "node.pub"
TLS_KEY: Final = "tls.key"
NEXT_TLS_KEY: Final = "tls.next.key"
TLS_CERTIFICATE: Final = "tls.crt"
AUTHORITY_CERTIFICATE: Final = "ca.crt"
FEDERATION: Final = "federation.toml"
PRIVATE: Final = (IDENTITY_KEY, NODE_KEY, TLS_KEY, NEXT_TLS_KEY)


@dataclass(frozen=True)
class MerchantKeys:
    """The keys of one merchant; `next_tls` is there while a renewal is under way."""

    identity: bytes = field(repr=False)
    node: ec.EllipticCurvePrivateKey = field(repr=False)
    tls: ec.EllipticCurvePrivateKey = field(repr=False)
    next_tls: ec.EllipticCurvePrivateKey | None = field(repr=False, default=None)

    @property
    def identity_key(self) -> str:
        """The public half of the identity, 64 hexadecimal digits."""
        return keys.public_key_of(self.identity)

    @property
    def node_key(self) -> str:
        """The public half of the node's key, as PEM."""
        return keys.public_pem(self.node.public_key())


def make_keys(state: Path) -> MerchantKeys:
    """The keys in a state folder; those that are not there are drawn. The caller holds the folder.

    Raises:
        UsageError: others may open the folder or read a key, or a key of a merchant that is enrolled has gone.
    """
    if (state / TLS_CERTIFICATE).exists():
        # Never anew: the agreement and the coordinator's register name the ones that were here.
        return read_keys(state)
    if not (state / IDENTITY_KEY).exists():
        keys.make_signing_key(state / IDENTITY_KEY)
    if not (state / NODE_KEY).exists():
        keys.make_node_key(state / NODE_KEY)
    if not (state / TLS_KEY).exists():
        keys.make_tls_key(state / TLS_KEY)
    made = read_keys(state)
    durable_files.write(state / NODE_PUBLIC, keys.public_line(made.node.public_key()).encode())
    return made


def make_next_tls_key(state: Path) -> MerchantKeys:
    """The keys in a state folder with one more for TLS, which a renewed certificate will be for.

    Raises:
        UsageError: a key is not there, or others may read it.
    """
    if not (state / NEXT_TLS_KEY).exists():
        read_keys(state)
        keys.make_tls_key(state / NEXT_TLS_KEY)
    return read_keys(state)


def read_keys(state: Path) -> MerchantKeys:
    """The keys in a state folder.

    Raises:
        UsageError: a key is not there, others may read it, or it is none.
    """
    if not (state / IDENTITY_KEY).exists():
        raise UsageError(f"there is no {state / IDENTITY_KEY}; make one with `hansa client enroll`, or restore it")
    following = state / NEXT_TLS_KEY
    return MerchantKeys(
        keys.read_signing_key(state / IDENTITY_KEY, "the identity key"),
        keys.read_node_key(state / NODE_KEY, "the node's key"),
        keys.read_tls_key(state / TLS_KEY, "the TLS key"),
        keys.read_tls_key(following, "the next TLS key") if following.exists() else None,
    )
