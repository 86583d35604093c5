"""Whose keys are believed: the agreement's `[trust]`, and the fingerprint of the roster that people compare.

The section names the coordinator's key and one key for every merchant of the roster, all Ed25519. They stand for
whatever is signed between the parties; the certificates of the transport stand for nothing but the transport. A
change of a name or a key is another roster and another agreement. Reading key files is keys.py's.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from types import MappingProxyType
from typing import Annotated, Self

from pydantic import AfterValidator, Field, PlainSerializer, model_validator

from hansa_common.schema import Section

MerchantName = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9 ._()<>=+-]{0,63}$")]
PublicKey = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
# Read-only, because a section is frozen through and through.
Keys = Annotated[
    dict[MerchantName, PublicKey],
    Field(min_length=1, max_length=10_000),
    AfterValidator(MappingProxyType),
    PlainSerializer(dict, return_type=dict[str, str]),
]


class Trust(Section):
    """The coordinator's public key and each merchant's, 64 hexadecimal digits; no two parties have the same one."""

    coordinator: PublicKey
    merchants: Keys

    @model_validator(mode="after")
    def _one_key_for_each(self) -> Self:
        owners = {self.coordinator: "the coordinator"}
        for name, key in self.merchants.items():
            if key in owners:
                raise ValueError(
                    f"{owners[key]} and {name!r} have the same key {key}; everyone makes a key of their own"
                )
            owners[key] = repr(name)
        return self

    def __hash__(self) -> int:
        return hash(self.canonical_json())

    def canonical_json(self) -> bytes:
        """Sorted keys, no spaces, ASCII: the bytes that the roster's fingerprint is taken over."""
        values = {"coordinator": self.coordinator, "merchants": dict(self.merchants)}
        return json.dumps(values, sort_keys=True, separators=(",", ":")).encode()

    @property
    def roster_fingerprint(self) -> str:
        """SHA-256 of the canonical JSON, 64 hexadecimal digits: what merchants compare out of band."""
        return hashlib.sha256(self.canonical_json()).hexdigest()

    def check_roster(self, roster: Sequence[str]) -> None:
        """See that these are the keys of this roster, whose names nobody can mistake for one another.

        Raises:
            ValueError: a merchant has no key, a key has no merchant, or two names differ in case or spaces alone.
        """
        without_key = [name for name in roster if name not in self.merchants]
        strangers = [name for name in self.merchants if name not in roster]
        if without_key:
            raise ValueError(f"trust.merchants has no key for {_listed(without_key)}, who stand in the roster")
        if strangers:
            raise ValueError(f"trust.merchants has a key for {_listed(strangers)}, who do not stand in the roster")
        check_names_differ(roster)


def check_names_differ(roster: Sequence[str]) -> None:
    """See that no two names would be one folder or one person's reading.

    Raises:
        ValueError: two names differ in case or spaces alone.
    """
    read: dict[str, str] = {}
    for name in roster:
        other = read.setdefault(" ".join(name.casefold().split()), name)
        if other != name:
            raise ValueError(f"the roster's {other!r} and {name!r} differ in case or spaces alone; rename one of them")


def _listed(names: Sequence[str], most: int = 5) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(map(repr, names[:most])) + more
