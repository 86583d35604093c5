"""Who came to a run, as its coordinator heard it: attendance.json in the run's folder, for `hansa server status`.

By merchant's name: the node it spoke through, its version of Hansa, and whether it approved the run's agreement. Only
names that the run waits for are noted. The file is there whole at any time; nothing of a run depends on it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

from hansa_common import durable_files
from hansa_common.errors import CoordinatorError
from hansa_server.run_events import Event, MerchantIntroduced, NodeRefused
from hansa_server.run_folder import ATTENDANCE

_FOR_ALL: Final = 0o644


@dataclass(frozen=True)
class Attendee:
    """A merchant as it was last heard; `version` is empty where it only refused."""

    node_id: int
    version: str
    has_approved: bool


class Attendance:
    """Notes who comes; goes on from what the file holds already."""

    def __init__(self, folder: Path, roster: Sequence[str]) -> None:
        """Note in this folder the names of this roster; where it is empty, every name."""
        self._folder = folder
        self._roster = frozenset(roster)
        self._attendees = dict(read_attendance(folder))

    def note(self, event: Event) -> None:
        """Take down what an event says of a merchant, if it says anything."""
        match event:
            case MerchantIntroduced():
                self._take_down(event.name, Attendee(event.node_id, event.version, has_approved=True))
            case NodeRefused(reason="agreement-mismatch"):
                self._take_down(event.claimed_name, Attendee(event.node_id, "", has_approved=False))

    def _take_down(self, name: str, attendee: Attendee) -> None:
        if not name or (self._roster and name not in self._roster) or self._attendees.get(name) == attendee:
            return
        self._attendees[name] = attendee
        content = {name: asdict(attendee) for name, attendee in sorted(self._attendees.items())}
        durable_files.write(self._folder / ATTENDANCE, json.dumps(content, indent=2).encode(), _FOR_ALL)


def read_attendance(folder: Path) -> Mapping[str, Attendee]:
    """Who came to the run of this folder; nobody, where it has not got that far.

    Raises:
        CoordinatorError: the file is damaged.
    """
    path = folder / ATTENDANCE
    try:
        return {name: Attendee(**values) for name, values in json.loads(path.read_bytes()).items()}
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise CoordinatorError(f"{path} cannot be read: {error}; take it away, nothing depends on it") from error
