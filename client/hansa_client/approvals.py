"""Which agreements this merchant has approved: one file each in its state folder, and nothing else counts.

file, in approved/      holds
FINGERPRINT.json        an approved agreement: its canonical JSON, of which the name is the SHA-256
latest                  the fingerprint of the one approved last, against which the next is compared

To take an approval back, remove its file: the trainer looks for it at every order. What an agreement says in plain
words is agreement_words.py's.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any, Final

from hansa_common import durable_files
from hansa_common.agreement import Agreement
from hansa_common.errors import AgreementMismatchError, MerchantError

APPROVED_NAME: Final = "approved"
_LATEST: Final = "latest"


class Approvals:
    """The approvals in one merchant's state folder."""

    def __init__(self, state: Path) -> None:
        self._folder = state / APPROVED_NAME

    def approve(self, agreement: Agreement) -> None:
        """Put an approval on record, on disk when this returns."""
        durable_files.make_private_folder(self._folder)
        durable_files.write(self._file(agreement.fingerprint), agreement.canonical_json())
        durable_files.write(self._folder / _LATEST, f"{agreement.fingerprint}\n".encode())

    def verify(self, fingerprint: str) -> None:
        """See that the agreement of this fingerprint is approved.

        Raises:
            AgreementMismatchError: it is not.
        """
        if not self._file(fingerprint).is_file():
            raise AgreementMismatchError(
                f"agreement {fingerprint} is not approved; read it, and approve it with `hansa client approve`"
            )

    def file_of(self, fingerprint: str) -> Path:
        """Where the approved agreement of this fingerprint is, in its canonical form.

        Raises:
            AgreementMismatchError: it is not approved.
        """
        self.verify(fingerprint)
        return self._file(fingerprint)

    def latest(self) -> dict[str, Any] | None:
        """The values of the agreement approved last; None before the first, or where its approval was taken back.

        Raises:
            MerchantError: its file is not what was approved.
        """
        path = self.latest_file()
        if path is None:
            return None
        content = path.read_bytes()
        if hashlib.sha256(content).hexdigest() != path.stem:
            raise MerchantError(f"{path} is not what was approved; remove it, and approve the agreement again")
        values: dict[str, Any] = json.loads(content)
        return values

    def latest_file(self) -> Path | None:
        """Where the agreement approved last is; None before the first, or where its approval was taken back."""
        try:
            path = self._file((self._folder / _LATEST).read_text(encoding="ascii").strip())
        except FileNotFoundError:
            return None
        return path if path.is_file() else None

    def _file(self, fingerprint: str) -> Path:
        return self._folder / f"{fingerprint}.json"
