"""What a merchant opens orders with and seals replies with: keys under an agreement with `[trust]`, else nothing.

Under `[trust]` an order is believed that the agreement's coordinator signed, and every reply leaves under the
merchant's identity key. Without it, which is for one machine alone, messages travel as they are.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from hansa_common.agreement import Agreement
from hansa_common.errors import UsageError
from hansa_common.keys import public_key_of, read_signing_key
from hansa_common.merchant_keys import IDENTITY_KEY
from hansa_common.sealing import open_seal, seal


class Seals(Protocol):
    """How messages are opened and closed; both are bytes of messages.py inside."""

    def open_order(self, received: bytes) -> bytes:
        """The order's message.

        Raises:
            SignatureError: it must be signed and is not, or by another key.
        """
        ...

    def close_reply(self, message: bytes) -> bytes:
        """The reply as it leaves."""
        ...


class Unsealed:
    """Messages as they are."""

    def open_order(self, received: bytes) -> bytes:
        return received

    def close_reply(self, message: bytes) -> bytes:
        return message


@dataclass(frozen=True)
class Sealed:
    """Orders under the coordinator's public key, replies under this merchant's private one of 32 bytes."""

    coordinator: str
    identity_key: bytes = field(repr=False)

    def open_order(self, received: bytes) -> bytes:
        return open_seal(received, self.coordinator, "order")

    def close_reply(self, message: bytes) -> bytes:
        return seal(message, self.identity_key, "reply")


def seals_for(agreement: Agreement, merchant: str, state: Path) -> Seals:
    """The seals that the agreement asks for, with the identity key in the merchant's state folder.

    Raises:
        UsageError: there is no such key, others may read it, or the agreement names another one for this merchant.
    """
    if agreement.trust is None:
        return Unsealed()
    path, agreed = state / IDENTITY_KEY, agreement.trust.merchants[merchant]
    key = read_signing_key(path, "the identity key")
    if public_key_of(key) != agreed:
        raise UsageError(
            f"{path} is the key {public_key_of(key)}, the agreement names {agreed} for {merchant!r}; "
            "agree on the right one, or give the --state that holds it"
        )
    return Sealed(agreement.trust.coordinator, key)
