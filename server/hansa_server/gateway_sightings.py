"""Whether one merchant's certificate is in use in two places: the sign of a copy, or of a move that is not over.

A merchant that moves comes from another address, once. One whose key somebody copied comes from one address, from
another, and from the first again. Only this coming back within WINDOW_SECONDS is told and noted: in the log, and in the
state folder, where `hansa server status` reads it. It is noticed and not prevented, and copies behind one address are
not noticed.
"""

from __future__ import annotations

import json
import math
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from hansa_common import durable_files
from hansa_common.errors import CoordinatorError

NAME: Final = "two_places.json"
WINDOW_SECONDS: Final = 600.0
# A note waits for the disk: two copies must not cost one for every request.
NOTE_SECONDS: Final = 60.0
# Of one merchant: who changes its address for every request is told of with the second.
_MAX_ADDRESSES: Final = 16


@dataclass
class Sightings:
    """Where each merchant was last seen, and when. For many threads.

    `now` gives seconds on a clock that never goes back; `tell` gets a subject and a line for the log.
    """

    state: Path
    now: Callable[[], float]
    tell: Callable[[str, str], None]
    _seen: dict[str, dict[str, float]] = field(default_factory=dict)
    _noted: dict[str, float] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def see(self, merchant: str, address: str) -> None:
        """Note that the merchant speaks from an address."""
        with self._lock:
            seen = self._seen.setdefault(merchant, {})
            before, moment = seen.get(address), self.now()
            between = [other for other, at in seen.items() if before is not None and other != address and at > before]
            seen[address] = moment
            if len(seen) > _MAX_ADDRESSES:
                del seen[min(seen, key=lambda other: seen[other])]
            if before is None or moment - before > WINDOW_SECONDS or not between:
                return
            if moment - self._noted.get(merchant, -math.inf) >= NOTE_SECONDS:
                self._noted[merchant] = moment
                self._note(merchant)
        self.tell(
            f"{merchant}: certificate in use in two places",
            f"it came from {address}, from {between[-1]} and from {address} again; if one of them is not the "
            f"merchant's, its key was copied: revoke it (hansa provision --revoke)",
        )

    def _note(self, merchant: str) -> None:
        noted = {**read_two_places(self.state), merchant: datetime.now(UTC)}
        content = {name: moment.isoformat(timespec="seconds") for name, moment in sorted(noted.items())}
        durable_files.write(self.state / NAME, json.dumps(content, indent=2).encode())


def read_two_places(state: Path) -> dict[str, datetime]:
    """When each merchant's certificate was last seen in use in two places; those never seen so are left out.

    Raises:
        CoordinatorError: the file is damaged.
    """
    path = state / NAME
    try:
        content = json.loads(path.read_bytes())
        return {str(name): datetime.fromisoformat(moment) for name, moment in content.items()}
    except FileNotFoundError:
        return {}
    except (ValueError, TypeError, AttributeError) as error:
        raise CoordinatorError(f"{path} is damaged ({error}); remove it, it is written anew") from error
