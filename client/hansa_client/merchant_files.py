"""The files a merchant starts with: the agreement it approved, its table, its state folder, its policy, the merchants'
key.

Reading them checks that they are what they should be and belong together; the table is data.py's.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from hansa_client.ledger import LEDGER_FOLDER, Ledger, LedgerFiles
from hansa_client.ledger_head import LedgerHead, default_path
from hansa_client.ledger_payers import payer_of
from hansa_client.merchant_policy import POLICY_NAME, PolicyFile
from hansa_common.agreement import Agreement
from hansa_common.agreement_file import read_agreement
from hansa_common.errors import UsageError
from hansa_common.keys import read_private_file
from hansa_common.schema import CategoricalFeature

HASH_KEY_BYTES: Final = 32


@dataclass(frozen=True)
class MerchantFiles:
    """Where a merchant keeps what its trainer needs. `hash_key` is shared by the merchants, not by the coordinator;
    `policy` is what this merchant permits, in its state folder unless said otherwise; so is the folder of its privacy
    `ledger`, and `ledger_head`, which says how far that is, among this user's state.
    """

    agreement: Path
    data: Path
    state: Path
    hash_key: Path | None = None
    policy: Path | None = None
    ledger: Path | None = None
    ledger_head: Path | None = None

    @property
    def ledger_folder(self) -> Path:
        """Where the privacy that this merchant spends is on record."""
        return self.state / LEDGER_FOLDER if self.ledger is None else self.ledger

    def keeps_ledger(self, agreement: Agreement) -> bool:
        """Whether something is charged under this agreement, or was under another."""
        return agreement.privacy.dp is not None or self.ledger_folder.exists()

    def ledger_files(self) -> LedgerFiles:
        """The ledger and its head file; nothing is read yet.

        Raises:
            UsageError: the head file would be in the ledger's folder or the state folder, or has no place.
        """
        folder = self.ledger_folder
        path = default_path(folder) if self.ledger_head is None else self.ledger_head
        for parent in (folder, self.state):
            if path.resolve().is_relative_to(parent.resolve()):
                raise UsageError(
                    f"the ledger's head file {path} is in {parent}, and would be put back with it; name one elsewhere "
                    "with --ledger-head"
                )
        return LedgerFiles(folder, LedgerHead(path))

    def opened_ledger(self, agreement: Agreement) -> Ledger:
        """The ledger, to charge to in the name of the state folder, which is there; one without files where nothing is
        charged.

        Raises:
            UsageError: as `ledger_files` does, or a folder cannot be made.
            MerchantError: the ledger is not what it was.
        """
        if not self.keeps_ledger(agreement):
            return Ledger()
        return Ledger(self.ledger_files(), payer=payer_of(self.state))

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
