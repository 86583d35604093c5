"""Shares of a merchant's secrets on their way through the coordinator, who can read none of them.

- A sealed pair of shares opens for the merchant it was sealed for, as from the merchant who sealed it, in the session
  of both, and for nobody and nothing else: ChaCha20-Poly1305 under a key that HKDF derives from both share keys.
- A secret that shares gave back is the one that was shared, or `check_secret` says that it is not.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
import struct
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final, Self

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from hansa_common.errors import MessageError
from hansa_common.secret_sharing import SHARE_BYTES, DrawBytes
from hansa_common.secure_keys import DIGEST_BYTES, KEY_BYTES, Session
from hansa_common.secure_rows import rows_from_bytes, rows_to_bytes

NONCE_BYTES: Final = 12
SEALED_BYTES: Final = NONCE_BYTES + 2 * SHARE_BYTES + 16
_PLACES: Final = struct.Struct("<II")
_SEALED: Final = b"hansa/secure-aggregation/shares/v1\0"
_COMMITTED: Final = b"hansa/secure-aggregation/self-secret/v1\0"


@dataclass(frozen=True)
class SharePair:
    """One merchant's share of each half of another's secrets: of what its own mask is made from, and of the private key
    of its masks with the others. Nobody is ever given both.
    """

    of_self_secret: bytes = field(repr=False)
    of_mask_key: bytes = field(repr=False)


@dataclass(frozen=True)
class Channel:
    """From one merchant of a session to another, by places, under the keys of both."""

    session: Session
    sender: int
    recipient: int

    def seal(
        self, pair: SharePair, private_key: X25519PrivateKey, peer: bytes, draw: DrawBytes = secrets.token_bytes
    ) -> bytes:
        """SEALED_BYTES that the recipient opens; `private_key` is the sender's share key, `peer` the recipient's.

        Raises:
            MessageError: the recipient's key is none.
        """
        nonce = draw(NONCE_BYTES)
        content = pair.of_self_secret + pair.of_mask_key
        return nonce + self._cipher(private_key, peer).encrypt(nonce, content, self._info)

    def open(self, sealed: bytes, private_key: X25519PrivateKey, peer: bytes) -> SharePair:
        """What was sealed; `private_key` is the recipient's share key, `peer` the sender's.

        Raises:
            MessageError: the sender did not seal it for the recipient in this session, or the sender's key is none.
        """
        nonce, content = sealed[:NONCE_BYTES], sealed[NONCE_BYTES:]
        try:
            opened = self._cipher(private_key, peer).decrypt(nonce, content, self._info)
        except (InvalidTag, ValueError):
            opened = b""
        if len(opened) != 2 * SHARE_BYTES:
            sender = self.session.cohort[self.sender]
            raise MessageError(f"the shares of {sender!r} for the masked sum {self.session.round} do not open")
        return SharePair(opened[:SHARE_BYTES], opened[SHARE_BYTES:])

    @property
    def _info(self) -> bytes:
        return _SEALED + self.session.digest + _PLACES.pack(self.sender, self.recipient)

    def _cipher(self, private_key: X25519PrivateKey, peer: bytes) -> ChaCha20Poly1305:
        try:
            shared = private_key.exchange(X25519PublicKey.from_public_bytes(peer))
        except ValueError:
            raise MessageError(
                f"a key for the masked sum {self.session.round} is none that can be shared with"
            ) from None
        return ChaCha20Poly1305(HKDF(algorithm=SHA256(), length=KEY_BYTES, salt=None, info=self._info).derive(shared))


@dataclass(frozen=True)
class Offer:
    """What a merchant hands out: its sealed shares by their recipients' places, and what binds it to its secret."""

    commitment: bytes
    sealed: Mapping[int, bytes]

    def to_bytes(self) -> bytes:
        return self.commitment + rows_to_bytes(self.sealed)

    @classmethod
    def from_bytes(cls, content: bytes, num_places: int) -> Self:
        """Read what `to_bytes` wrote; nothing is opened.

        Raises:
            MessageError: the bytes are not exactly that.
        """
        if len(content) < DIGEST_BYTES:
            raise MessageError(f"an offer of shares has {DIGEST_BYTES} bytes at least, this one {len(content)}")
        return cls(content[:DIGEST_BYTES], rows_from_bytes(content[DIGEST_BYTES:], SEALED_BYTES, num_places))


def commitment(self_secret: bytes) -> bytes:
    """DIGEST_BYTES that bind a merchant to its secret and say nothing about it, which is uniform."""
    return hashlib.sha256(_COMMITTED + self_secret).digest()


def check_secret(self_secret: bytes, committed: bytes) -> None:
    """See that a secret is the one committed to.

    Raises:
        ValueError: it is not.
    """
    if not hmac.compare_digest(commitment(self_secret), committed):
        raise ValueError("the shares give another secret than the one that was shared")
