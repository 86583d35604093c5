"""What the coordinator closes orders with and opens replies with: keys under an agreement with `[trust]`, else nothing.

Under `[trust]` every order leaves under the coordinator's signing key, and a reply is believed that the merchant who
was asked has signed with the key that the agreement names for it; an introduction, that of whom it claims to be.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from hansa_common.agreement import Agreement
from hansa_common.errors import SignatureError, UsageError
from hansa_common.keys import public_key_of, read_signing_key
from hansa_common.sealing import open_seal, seal
from hansa_common.trust import Trust
from hansa_server.introduction_numbers import INTRODUCTIONS, IntroductionNumbers


class Seals(Protocol):
    """How messages are closed and opened; both are bytes of messages.py inside."""

    @property
    def trust(self) -> Trust | None:
        """Whose keys count; None where nothing is signed."""
        ...

    def close_order(self, message: bytes) -> bytes:
        """The order as it leaves."""
        ...

    def introduction_number(self) -> int:
        """A number for an introduction, above all before it; 0 where nothing is signed, as it would say nothing."""
        ...

    def open_reply(self, received: bytes, merchant: str) -> bytes:
        """The message of a reply of this merchant's.

        Raises:
            SignatureError: it must be signed and is not, or by somebody else.
        """
        ...


class Unsealed:
    """Messages as they are."""

    trust: Trust | None = None

    def close_order(self, message: bytes) -> bytes:
        return message

    def introduction_number(self) -> int:
        return 0

    def open_reply(self, received: bytes, merchant: str) -> bytes:  # noqa: ARG002 - whoever it is
        return received


@dataclass(frozen=True)
class Sealed:
    """Orders under the signing key of 32 bytes, replies under the keys that the agreement trusts; `numbers` are drawn
    for introductions.
    """

    trust: Trust
    signing_key: bytes = field(repr=False)
    numbers: Callable[[], int] = field(repr=False, compare=False)

    def introduction_number(self) -> int:
        return self.numbers()

    def close_order(self, message: bytes) -> bytes:
        return seal(message, self.signing_key, "order")

    def open_reply(self, received: bytes, merchant: str) -> bytes:
        if merchant not in self.trust.merchants:
            raise SignatureError(f"the agreement trusts no merchant {merchant!r}")
        return open_seal(received, self.trust.merchants[merchant], "reply")


def seals_for(agreement: Agreement, key_file: Path | None) -> Seals:
    """The seals that the agreement asks for, with the signing key in this file.

    Raises:
        UsageError: there is no such key, others may read it, or the agreement trusts another one.
    """
    if agreement.trust is None:
        return Unsealed()
    agreed = agreement.trust.coordinator
    if key_file is None:
        raise UsageError(f"the agreement trusts the coordinator's key {agreed}, and this run was given no signing key")
    key = read_signing_key(key_file, "the signing key")
    if public_key_of(key) != agreed:
        raise UsageError(
            f"{key_file} is the key {public_key_of(key)}, the agreement trusts {agreed}; "
            "give the --state that holds that key, or agree anew"
        )
    return Sealed(agreement.trust, key, IntroductionNumbers(key_file.with_name(INTRODUCTIONS)).draw)
