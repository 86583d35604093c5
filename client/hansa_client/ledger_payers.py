"""Who a charge was made for, where several trainers of one merchant share a ledger: each state folder is a payer.

- A payer's id is random, drawn once for a state folder, and on disk before anything is charged in its name. The same
  order, obeyed from another folder, has noise of its own: so it is another charge.
- A folder that lost its id draws another, and pays once more for what it had not answered. Nothing is ever paid less
  often than it leaves.
- Two processes never charge as one payer: the copy of a state folder has its id, and is refused while the other runs.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Final

from pydantic import Field

from hansa_common import durable_files
from hansa_common.errors import MerchantError

PAYER_NAME: Final = "payer"
_ID_BYTES: Final = 16
_PATTERN: Final = rf"^[0-9a-f]{{{2 * _ID_BYTES}}}$"
# Empty: of a ledger that lasts no longer than its process, or of a line from before there were payers.
PayerId = Annotated[str, Field(pattern=rf"^$|{_PATTERN}")]


def payer_of(state: Path) -> str:
    """The id of a state folder, drawn if it has none, and on disk when this returns.

    Raises:
        MerchantError: it cannot be read or written, or is damaged.
    """
    path = state / PAYER_NAME
    try:
        if not path.exists():
            durable_files.write(path, secrets.token_hex(_ID_BYTES).encode())
        found = path.read_bytes().decode(errors="replace")
    except OSError as error:
        raise MerchantError(f"{path}, by which the ledger knows this folder, cannot be read: {error}") from error
    if not re.fullmatch(_PATTERN, found):
        raise MerchantError(
            f"{path}, by which the ledger knows this folder, is damaged; remove it: another is drawn, and what was "
            "charged and not answered is charged once more"
        )
    return found


@contextmanager
def charging_alone(ledger: Path, payer: str) -> Iterator[None]:
    """Be the one process that charges as this payer to the ledger in a folder, until this or the process ends.

    Raises:
        UsageError: another process is.
    """
    refusal = (
        f"another process charges to {ledger} in the name of this state folder, so one of the two is a copy; in the "
        f"copy, remove the file {PAYER_NAME!r}, and start it again"
    )
    with durable_files.alone(ledger / f"{payer}.{durable_files.LOCK_NAME}", refusal):
        yield
