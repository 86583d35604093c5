"""The keys of one masked sum: two for each merchant, drawn for it, signed for it and never used for another.

- A signature is the identity key's that the agreement names. It covers the agreement's fingerprint, the run, the round,
  the cohort, the thresholds and the merchant's place, so a key that was advertised once is good for nothing else.
- `mask_context` holds all that merchants must have in common before their masks cancel: the session, the order and the
  keys of who takes part.
- A key that was in an earlier round of the run is refused, signed or not: its shares may have been opened.

A run's masked sums are numbered from 1, whatever is summed: rounds of each stage, statistics, evaluations. What is done
with keys is secure_round.py's.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Final, Self

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from hansa_common.errors import MessageError, PolicyError, ReplayError, SignatureError
from hansa_common.secure_rows import rows_from_bytes, rows_to_bytes
from hansa_common.secure_thresholds import Thresholds

KEY_BYTES: Final = 32
DIGEST_BYTES: Final = 32
SIGNATURE_BYTES: Final = 64
ADVERTISEMENT_BYTES: Final = 2 * KEY_BYTES + SIGNATURE_BYTES
_PLACE_BYTES: Final = 4
_SESSION: Final = b"hansa/secure-aggregation/session/v1\0"
_SIGNED: Final = b"hansa/round-keys/v1\0"
_DEVELOPMENT: Final = b"hansa/secure-aggregation/development-identity/v1\0"
_CONTEXT: Final = b"hansa/secure-aggregation/context/v1\0"


@dataclass(frozen=True)
class Session:
    """One masked sum: under which agreement, in which run, its number there, among whom and under which thresholds. A
    merchant is known by its place in `cohort`.
    """

    fingerprint: str
    run_id: str
    round: int
    cohort: tuple[str, ...]
    thresholds: Thresholds

    def __post_init__(self) -> None:
        least, most = self.thresholds.least, self.thresholds.num_merchants
        if not least <= len(self.cohort) <= most:
            raise PolicyError(f"a masked sum among {len(self.cohort)} merchants; allowed are {least} to {most}")
        if len(set(self.cohort)) != len(self.cohort):
            raise PolicyError("the cohort of a masked sum names a merchant twice")
        if self.round < 1:
            raise PolicyError(f"masked sums are numbered from 1, this one is {self.round}")

    def place(self, merchant: str) -> int:
        """Where a merchant stands in the cohort.

        Raises:
            PolicyError: it does not.
        """
        if merchant not in self.cohort:
            raise PolicyError(f"{merchant!r} is not in the cohort of the masked sum {self.round}")
        return self.cohort.index(merchant)

    @cached_property
    def digest(self) -> bytes:
        """DIGEST_BYTES that differ wherever two sessions do."""
        limits = self.thresholds
        values = {
            "fingerprint": self.fingerprint,
            "run": self.run_id,
            "round": self.round,
            "cohort": list(self.cohort),
            "thresholds": [limits.num_merchants, limits.colluders, limits.threshold, limits.min_merchants],
        }
        return hashlib.sha256(_SESSION + json.dumps(values, sort_keys=True, separators=(",", ":")).encode()).digest()


@dataclass(frozen=True)
class Advertisement:
    """A merchant's two public keys (X25519) for one session, under its identity key's signature."""

    mask_key: bytes
    share_key: bytes
    signature: bytes

    def to_bytes(self) -> bytes:
        return self.mask_key + self.share_key + self.signature

    @classmethod
    def from_bytes(cls, content: bytes) -> Self:
        """Read what `to_bytes` wrote; nothing is verified.

        Raises:
            MessageError: another length.
        """
        if len(content) != ADVERTISEMENT_BYTES:
            raise MessageError(f"advertised keys have {ADVERTISEMENT_BYTES} bytes, these {len(content)}")
        mask_key, rest = content[:KEY_BYTES], content[KEY_BYTES:]
        return cls(mask_key, rest[:KEY_BYTES], rest[KEY_BYTES:])

    def verify(self, session: Session, place: int, identity: str) -> None:
        """See that the holder of this identity key (64 hexadecimal digits) signed these keys for this session.

        Raises:
            SignatureError: it did not.
        """
        signed = _signed(session, place, self.mask_key, self.share_key)
        try:
            Ed25519PublicKey.from_public_bytes(bytes.fromhex(identity)).verify(self.signature, signed)
        except (InvalidSignature, ValueError):
            raise SignatureError(
                f"the keys of {session.cohort[place]!r} for the masked sum {session.round} do not bear its signature"
            ) from None


def sign_keys(
    session: Session, place: int, mask_key: bytes, share_key: bytes, identity_private_key: bytes
) -> Advertisement:
    """Two public keys under the signature of a private Ed25519 key of 32 bytes."""
    signed = _signed(session, place, mask_key, share_key)
    signature = Ed25519PrivateKey.from_private_bytes(identity_private_key).sign(signed)
    return Advertisement(mask_key, share_key, signature)


def development_identity(merchant: str) -> bytes:
    """The private key that a merchant signs with where the agreement has no [trust], 32 bytes: everyone can derive it
    from the name, so that a simulation takes the same steps, and it proves nothing.
    """
    return hashlib.sha256(_DEVELOPMENT + merchant.encode()).digest()


def keys_to_bytes(keys: Mapping[int, Advertisement]) -> bytes:
    """Everybody's keys, by place, as each of them gets them."""
    return rows_to_bytes({place: advertised.to_bytes() for place, advertised in keys.items()})


def keys_from_bytes(content: bytes, num_places: int) -> dict[int, Advertisement]:
    """Read what `keys_to_bytes` wrote; nothing is verified.

    Raises:
        MessageError: the bytes are not exactly that.
    """
    rows = rows_from_bytes(content, ADVERTISEMENT_BYTES, num_places)
    return {place: Advertisement.from_bytes(row) for place, row in rows.items()}


def mask_context(session: Session, order_hash: bytes, taking_part: Mapping[int, Advertisement]) -> bytes:
    """DIGEST_BYTES for the masks of one sum: `order_hash` is that of the order without its recipient, `taking_part` the
    keys of everyone whose shares were handed out, by place.

    Raises:
        ValueError: the hash has another length.
    """
    if len(order_hash) != DIGEST_BYTES:
        raise ValueError(f"an order's hash has {DIGEST_BYTES} bytes, not {len(order_hash)}")
    parts = [_place_bytes(place) + taking_part[place].to_bytes() for place in sorted(taking_part)]
    return hashlib.sha256(b"".join([_CONTEXT, session.digest, order_hash, *parts])).digest()


@dataclass(frozen=True)
class KeyHistory:
    """The keys of one run's rounds so far, as digests, and the last of these rounds; empty before the first."""

    run_id: str = ""
    round: int = 0
    used: frozenset[bytes] = field(default=frozenset(), repr=False)

    def at(self, session: Session) -> KeyHistory:
        """The history with the session's round begun.

        Raises:
            PolicyError: the history is another run's.
            ReplayError: the round was there, or a later one.
        """
        # To begin anew for each run would be to forget: a run could be left and come back to.
        if self.run_id not in {"", session.run_id}:
            raise PolicyError(f"a masked sum of run {session.run_id!r} is asked for among those of {self.run_id!r}")
        if session.round <= self.round:
            raise ReplayError(
                f"the masked sum {session.round} of run {session.run_id!r} was there; "
                f"allowed is a number above {self.round}"
            )
        return KeyHistory(session.run_id, session.round, self.used)

    def check(self, advertisements: Collection[Advertisement]) -> frozenset[bytes]:
        """The digests of fresh keys.

        Raises:
            ReplayError: a key was used before, or two of them are the same.
        """
        keys = [key for advertised in advertisements for key in (advertised.mask_key, advertised.share_key)]
        digests = frozenset(hashlib.sha256(key).digest() for key in keys)
        if len(digests) != len(keys):
            raise ReplayError(f"two keys for the masked sum {self.round} are the same; each is for one use")
        if not digests.isdisjoint(self.used):
            raise ReplayError(f"a key for the masked sum {self.round} was used before; each is for one use")
        return digests

    def with_keys(self, advertisements: Collection[Advertisement]) -> KeyHistory:
        """The history once these keys are in use.

        Raises:
            ReplayError: as `check`.
        """
        return KeyHistory(self.run_id, self.round, self.used | self.check(advertisements))


def _signed(session: Session, place: int, mask_key: bytes, share_key: bytes) -> bytes:
    return b"".join([_SIGNED, session.digest, _place_bytes(place), mask_key, share_key])


def _place_bytes(place: int) -> bytes:
    return place.to_bytes(_PLACE_BYTES, "little")
