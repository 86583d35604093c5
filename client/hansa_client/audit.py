"""What was asked of this merchant and what it answered: its own file, each line bound to all lines before it.

- A line is on disk before an order is worked on, and another before the answer leaves. None is ever changed.
- An order that is not worked on, because it is refused or has its answer already, has a line in the place of both. Who
  has no key can send such orders without end, so there are at most ASIDE_LINES_AN_HOUR of these; the others are
  counted, and their number is in the next line.
- A line names the SHA-256 of the line before it (chained_lines.py), so that a line changed, removed, added or moved is
  found; not that the last ones are missing, unless the merchant has noted `head` elsewhere.
- Lines hold hashes, sizes, names and what was asked and allowed: no row, no weight, no key.
- A last line that a killed process left unfinished is taken off when the trainer next starts, and that is noted.

what       says
started    a trainer began to serve under an agreement
repaired   an unfinished last line of `num_bytes` was taken off
asked      an order is worked on: its kind, run, number, round, hash and size
answered   what left for it: `decision` is answered or refused, with the code and the reason; or, without `asked` before
           it, what left for an order that is not worked on: it is stored (again, as before) or refused
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Annotated, Any, Final, Literal

from pydantic import Field

from hansa_client.chained_lines import MAX_TEXT_CHARS, Chain, ChainedFile, ChainedLine, Text
from hansa_common.plain_text import printable
from hansa_common.record_types import Digest

AUDIT_NAME: Final = "audit.jsonl"
# More than an honest run has, and some megabytes a day at the most.
ASIDE_LINES_AN_HOUR: Final = 120
_REMEDY: Final = "keep the file elsewhere, and start again: a new one begins"

What = Literal["started", "repaired", "asked", "answered"]
Decision = Literal["answered", "stored", "refused"]


class Entry(ChainedLine):
    """One line. `order` and `reply` are the hashes of messages, without their seals, or what names an order that was
    not opened (sealing.py); `kind` is the order's. `num_unnoted` orders that were not worked on came since the line
    before, and have none.
    """

    what: What
    agreement: Digest | None = None
    kind: Text = ""
    run: Text = ""
    sequence: int | None = None
    round: int | None = None
    order: Digest | None = None
    reply: Digest | None = None
    num_bytes: Annotated[int, Field(ge=0)] = 0
    decision: Decision | None = None
    code: Text = ""
    reason: Text = ""
    num_unnoted: Annotated[int, Field(ge=0)] = 0


class Audit:
    """One merchant's audit; nothing is kept where path is None. The caller holds the file for itself."""

    def __init__(self, path: Path | None = None, now: Callable[[], datetime] = lambda: datetime.now(UTC)) -> None:
        """Verify what there is, and take an unfinished last line off.

        Raises:
            MerchantError: a line does not follow from the one before it; says which, and what to do.
        """
        self._file = None if path is None else _file(path)
        self._now = now
        self._chain = Chain()
        self._writing = threading.Lock()
        self._num_unnoted = 0
        self._aside = deque[datetime](maxlen=ASIDE_LINES_AN_HOUR)
        if path is not None and path.exists():
            self._repair(_file(path), verified(path))

    @property
    def head(self) -> str:
        """The SHA-256 of the last line: whoever has it can tell that no line before it was changed or removed."""
        return self._chain.head

    def started(self, agreement: str) -> None:
        """Note that orders under the agreement of this fingerprint can come from now on."""
        self._append("started", agreement=agreement)

    def asked(self, **facts: Any) -> None:
        """Note an order, on disk when this returns; call before it is worked on. The fields are Entry's."""
        self._append("asked", **facts)

    def answered(self, decision: Decision, *, reason: str = "", **facts: Any) -> None:
        """Note an answer, on disk when this returns; call before it leaves."""
        self._append("answered", decision=decision, reason=printable(reason, MAX_TEXT_CHARS), **facts)

    def set_aside(self, decision: Decision, *, reason: str = "", **facts: Any) -> None:
        """Note the answer to an order that is not worked on, or count it where there have been too many."""
        with self._writing:
            now = self._now()
            if len(self._aside) == ASIDE_LINES_AN_HOUR and abs(now - self._aside[0]) < timedelta(hours=1):
                self._num_unnoted += 1
                return
            self._aside.append(now)
        self.answered(decision, reason=reason, **facts)

    def _repair(self, file: ChainedFile[Entry], found: Chain) -> None:
        self._chain = file.take_torn_off(found)
        if found.num_torn_bytes:
            self._append("repaired", num_bytes=found.num_torn_bytes)

    def _append(self, what: What, **facts: Any) -> None:
        if self._file is None:
            return
        with self._writing:
            number, at = self._chain.num_lines + 1, self._now().isoformat(timespec="milliseconds")
            place: dict[str, Any] = {"number": number, "at": at, "previous": self._chain.head}
            place["num_unnoted"] = self._num_unnoted
            self._chain = self._file.append(Entry(what=what, **place, **facts), self._chain)
            self._num_unnoted = 0


def verified(path: Path) -> Chain:
    """Read a file to its end and see that it is one chain.

    Raises:
        MerchantError: it cannot be read, or a line does not follow from the one before it.
    """
    ((_, chain),) = deque(_file(path).links(), maxlen=1)
    return chain


def entries(path: Path) -> Iterator[Entry]:
    """The lines of a file, verified as they come.

    Raises:
        MerchantError: as `verified` does, at the line that does not follow.
    """
    return (entry for entry, _ in _file(path).links() if entry is not None)


def _file(path: Path) -> ChainedFile[Entry]:
    return ChainedFile(path, Entry, "an audit", _REMEDY)
