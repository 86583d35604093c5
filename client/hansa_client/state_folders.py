"""Which state folder a merchant's command is about: the one that was named, or the only one there is."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from hansa_common.errors import UsageError

STATES: Final = Path(".hansa")
_COORDINATORS: Final = "server"


def state_folder(given: Path | None) -> Path:
    """The folder that was named, or the only merchant's in .hansa.

    Raises:
        UsageError: it is not there, or there is not exactly one.
    """
    if given is not None:
        if not given.is_dir():
            raise UsageError(f"there is no state folder {given}; it is the one that `hansa client start` was given")
        return given
    folders = sorted(p for p in STATES.glob("*") if p.is_dir() and p.name != _COORDINATORS)
    if len(folders) != 1:
        found = f"{STATES} holds {', '.join(f.name for f in folders)}" if folders else f"no merchant's is in {STATES}"
        raise UsageError(f"which state folder? {found}; name it with --state, as for `hansa client start`")
    return folders[0]
