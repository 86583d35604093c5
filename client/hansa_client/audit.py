"""What was asked of this merchant and what it answered: its own file, each line bound to all lines before it.

- A line is on disk before an order is obeyed, and another before the answer leaves. None is ever changed.
- A line names the SHA-256 of the line before it, so that a line changed, removed, added or moved is found; not that the
  last ones are missing, unless the merchant has noted `head` elsewhere.
- Lines hold hashes, sizes, names and what was asked and allowed: no row, no weight, no key.
- A last line that a killed process left unfinished is taken off when the trainer next starts, and that is noted.

what       says
started    a trainer began to serve under an agreement
repaired   an unfinished last line of `num_bytes` was taken off
asked      an order came: its kind, run, number, round, hash and size; empty where it is not readable or not signed
answered   what left for it: `decision` is answered, stored (again, as before) or refused, with the code and the reason
"""

from __future__ import annotations

import hashlib
import json
import os
import threading
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Annotated, Any, Final, Literal

from pydantic import Field, ValidationError

from hansa_common import durable_files
from hansa_common.errors import MerchantError
from hansa_common.plain_text import printable
from hansa_common.record_types import Digest
from hansa_common.schema import Section

AUDIT_NAME: Final = "audit.jsonl"
MAX_LINE_BYTES: Final = 1 << 14
MAX_REASON_CHARS: Final = 1000
_NOTHING_BEFORE: Final = "0" * 64

What = Literal["started", "repaired", "asked", "answered"]
Decision = Literal["answered", "stored", "refused"]
Text = Annotated[str, Field(max_length=MAX_REASON_CHARS)]


class Entry(Section):
    """One line. `order` and `reply` are the hashes of messages, without their seals; `kind` is the kind of message."""

    number: Annotated[int, Field(ge=1)]
    at: Text
    what: What
    previous: Digest
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

    def line(self) -> bytes:
        """The line without its end; what a kind of line has no use for is left out."""
        values = self.model_dump(mode="json", exclude_defaults=True)
        return json.dumps(values, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()


@dataclass(frozen=True)
class Chain:
    """A file of whole lines that follow from one another: how many, the hash of the last, and the bytes they take.

    `num_torn_bytes` stand behind them without an end of line.
    """

    num_lines: int = 0
    head: str = _NOTHING_BEFORE
    num_bytes: int = 0
    num_torn_bytes: int = 0


class Audit:
    """One merchant's audit; nothing is kept where path is None. The caller holds the file for itself."""

    def __init__(self, path: Path | None = None, now: Callable[[], datetime] = lambda: datetime.now(UTC)) -> None:
        """Verify what there is, and take an unfinished last line off.

        Raises:
            MerchantError: a line does not follow from the one before it; says which, and what to do.
        """
        self._path = path
        self._now = now
        self._chain = Chain()
        self._writing = threading.Lock()
        if path is not None and path.exists():
            self._chain = verified(path)
            self._repair(path)

    @property
    def head(self) -> str:
        """The SHA-256 of the last line: whoever has it can tell that no line before it was changed or removed."""
        return self._chain.head

    def started(self, agreement: str) -> None:
        """Note that orders under the agreement of this fingerprint can come from now on."""
        self._append("started", agreement=agreement)

    def asked(self, **facts: Any) -> None:
        """Note an order, on disk when this returns; call before it is obeyed. The fields are Entry's."""
        self._append("asked", **facts)

    def answered(self, decision: Decision, *, reason: str = "", **facts: Any) -> None:
        """Note an answer, on disk when this returns; call before it leaves."""
        self._append("answered", decision=decision, reason=printable(reason, MAX_REASON_CHARS), **facts)

    def _repair(self, path: Path) -> None:
        torn = self._chain.num_torn_bytes
        if torn:
            os.truncate(path, self._chain.num_bytes)
            durable_files.synchronise(path)
            self._append("repaired", num_bytes=torn)

    def _append(self, what: What, **facts: Any) -> None:
        if self._path is None:
            return
        with self._writing:
            number, at = self._chain.num_lines + 1, self._now().isoformat(timespec="milliseconds")
            line = Entry(number=number, at=at, what=what, previous=self._chain.head, **facts).line()
            self._write(self._path, line + b"\n")
            num_bytes = self._chain.num_bytes + len(line) + 1
            self._chain = Chain(number, hashlib.sha256(line).hexdigest(), num_bytes)

    def _write(self, path: Path, line: bytes) -> None:
        is_first, num_bytes = self._chain.num_lines == 0, self._chain.num_bytes
        try:
            descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | (os.O_CREAT if is_first else 0), 0o600)
        except FileNotFoundError:
            raise MerchantError(f"{path} is gone while it is in use; nothing leaves before it is put back") from None
        try:
            if os.fstat(descriptor).st_size != num_bytes:
                raise MerchantError(f"{path} was changed while it is in use; nothing leaves before it is put back")
            try:
                is_whole = os.write(descriptor, line) == len(line)
                os.fsync(descriptor)
            except OSError as error:
                os.ftruncate(descriptor, num_bytes)
                raise MerchantError(
                    f"{path} cannot be written ({error.strerror}); nothing leaves that is not noted there"
                ) from error
            if not is_whole:
                os.ftruncate(descriptor, num_bytes)
                raise MerchantError(f"the disk with {path} is full; nothing leaves that is not noted there")
        finally:
            os.close(descriptor)
        if is_first:
            durable_files.synchronise(path.parent)


def verified(path: Path) -> Chain:
    """Read a file to its end and see that it is one chain.

    Raises:
        MerchantError: it cannot be read, or a line does not follow from the one before it.
    """
    ((_, chain),) = deque(_links(path), maxlen=1)
    return chain


def entries(path: Path) -> Iterator[Entry]:
    """The lines of a file, verified as they come.

    Raises:
        MerchantError: as `verified` does, at the line that does not follow.
    """
    return (entry for entry, _ in _links(path) if entry is not None)


def _links(path: Path) -> Iterator[tuple[Entry | None, Chain]]:
    """Each line with the chain up to it; last, without an entry, the chain with what is torn behind it."""
    chain = Chain()
    try:
        with path.open("rb") as file:
            for line in _lines(file):
                if not line.endswith(b"\n") and len(line) <= MAX_LINE_BYTES:
                    chain = Chain(chain.num_lines, chain.head, chain.num_bytes, len(line))
                    break
                content = line.removesuffix(b"\n")
                entry = _entry(content, chain, path)
                chain = Chain(chain.num_lines + 1, hashlib.sha256(content).hexdigest(), chain.num_bytes + len(line))
                yield entry, chain
    except OSError as error:
        raise MerchantError(f"{path} cannot be read: {error.strerror}") from error
    yield None, chain


def _lines(file: IO[bytes]) -> Iterator[bytes]:
    # Bounded: a file without line ends is not to fill the memory.
    while line := file.readline(MAX_LINE_BYTES + 1):
        yield line


def _entry(line: bytes, before: Chain, path: Path) -> Entry:
    place = f"{path}, line {before.num_lines + 1}"
    then = "keep the file elsewhere, and start again: a new one begins"
    try:
        entry = Entry.model_validate_json(line)
    except ValidationError:
        raise MerchantError(f"{place} is no line of an audit, so somebody has changed it; {then}") from None
    if entry.number != before.num_lines + 1 or entry.previous != before.head or entry.line() != line:
        raise MerchantError(f"{place} does not follow from the line before it, so somebody has changed one; {then}")
    return entry
