"""How far the ledger is, noted in a file that is not in the ledger's folder.

Whoever puts an older copy of the state folder back, by mistake or to spend the budget again, does not put this file
back with it: a ledger that is behind it is refused. That both are put back, as when a whole machine is restored, only
the coordinator can notice, whom every reply tells the same.
"""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from hansa_common import durable_files
from hansa_common.errors import MerchantError, UsageError
from hansa_common.ledger_state import LedgerState

_MAX_BYTES: Final = 200


@dataclass(frozen=True)
class LedgerHead:
    """The file that says how far one ledger is."""

    path: Path

    def read(self) -> LedgerState | None:
        """How far the ledger was when this was written; None where there is no file.

        Raises:
            MerchantError: it cannot be read, or is damaged.
        """
        try:
            with self.path.open("rb") as file:
                text = file.read(_MAX_BYTES).decode(errors="replace")
        except FileNotFoundError:
            return None
        except OSError as error:
            raise MerchantError(f"the ledger's head file {self.path} cannot be read: {error.strerror}") from error
        try:
            return LedgerState.of_text(text.removesuffix("\n"))
        except ValueError as error:
            raise MerchantError(
                f"the ledger's head file {self.path} is damaged; see that the ledger is the newest that there is, "
                "remove that file, and have it written anew: hansa client ledger --write-head"
            ) from error

    def write(self, state: LedgerState) -> None:
        """Say how far the ledger is, on disk when this returns."""
        durable_files.write(self.path, f"{state}\n".encode())

    def prepare(self) -> None:
        """Make the folder that the file is written into.

        Raises:
            UsageError: it cannot be made.
        """
        try:
            self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as error:
            raise UsageError(
                f"the ledger's head file cannot be kept in {self.path.parent} ({error.strerror}); name one outside the "
                "state folder with --ledger-head"
            ) from error


def default_path(ledger_folder: Path) -> Path:
    """The head file of the ledger in this folder unless another is named: among the user's state.

    Raises:
        UsageError: this user has no home.
    """
    own = os.environ.get("XDG_STATE_HOME", "")
    try:
        states = Path(own) if Path(own).is_absolute() else Path.home() / ".local" / "state"
    except RuntimeError as error:
        raise UsageError(
            "this user has no home to keep the ledger's head file in; name one with --ledger-head"
        ) from error
    # Two merchants of one user have folders of one name.
    folder = ledger_folder.resolve()
    place = hashlib.sha256(os.fsencode(folder)).hexdigest()[:16]
    return states / "hansa" / f"{folder.parent.name}-{place}.ledger"
