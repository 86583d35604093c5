"""The files a merchant starts with: the agreement it approved, its table, its state folder, its policy, the merchants'
key.

Reading them checks that they are what they should be and belong together; the table is data.py's.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from hansa_client.merchant_policy import POLICY_NAME, PolicyFile
from hansa_common.agreement import Agreement
from hansa_common.agreement_file import read_agreement
from hansa_common.errors import UsageError
from hansa_common.schema import CategoricalFeature

from hansa_common.keys import read_private_file
HASH_KEY_BYTES: Final = 32


@dataclass(frozen=True)
class MerchantFiles:
    """Where a merchant keeps what its trainer needs. `hash_key` is shared by the merchants, not by the coordinator;
    `policy` is what this merchant permits, in its state folder unless said otherwise.
    """

    agreement: Path
    data: Path
    state: Path
    hash_key: Path | None = None
    policy: Path | None = None

    def policy_file(self) -> PolicyFile:
        """What this merchant permits; nothing is read yet.

        Raises:
            UsageError: a file was named that is not there.
        """
        if self.policy is not None and not self.policy.is_file():
            raise UsageError(f"there is no policy at {self.policy}")
        return PolicyFile(self.policy or self.state / POLICY_NAME)

    def read_agreement(self) -> Agreement:
        """Read and check the agreement.

        Raises:
            UsageError: there is no such file, or it is no agreement.
        """
        agreement, _ = read_agreement(self.agreement)
        return agreement

    def read_hash_key(self, agreement: Agreement) -> bytes | None:
        """Read the key that the merchants hash categories with, 64 hexadecimal digits; None where none is given.

        Raises:
            UsageError: it cannot be read, or it is not the key that the agreement names.
        """
        agreed = agreement.privacy.hash_key_id
        if self.hash_key is None:
            if agreed is not None:
                raise UsageError(f"the agreement hashes categories with key {agreed}; give its file with --hash-key")
            _refuse_hashing_without_key(agreement)
            return None
        key = read_key(self.hash_key)
        if hashlib.sha256(key).hexdigest() != agreed:
            raise UsageError(f"{self.hash_key} is not the key that the agreement names ({agreed})")
        return key


def _refuse_hashing_without_key(agreement: Agreement) -> None:
    """Now, and not when the first order comes."""
    hashed = [f.name for f in agreement.features if isinstance(f, CategoricalFeature) and f.hash_buckets]
    if hashed:
        raise UsageError(
            f"the agreement hashes {', '.join(hashed)} but names no key: draw 32 random bytes among the merchants, "
            "agree on their SHA-256 as privacy.hash_key_id, and give the key's file with --hash-key"
        )


def read_key(path: Path) -> bytes:
    """Read a key for hashed categories, 64 hexadecimal digits in a file that only this user may read.

    Raises:
        UsageError: it cannot be read, others may read it, or it has another length.
    """
    try:
        key = bytes.fromhex(read_private_file(path, "the hash key").decode("ascii").strip())
    except ValueError:
        raise UsageError(f"the hash key {path} is not written in hexadecimal digits; restore it") from None
    if len(key) != HASH_KEY_BYTES:
        raise UsageError(f"the hash key {path} has {2 * len(key)} hexadecimal digits, a key has {2 * HASH_KEY_BYTES}")
    return key
