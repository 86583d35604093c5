"""A file of JSON lines, each bound to all lines before it, that a kill at any write leaves whole.

- A line is on disk, whole, when `append` returns; where that fails, the file is as it was.
- A line names the SHA-256 of the line before it, so that a line changed, removed, added or moved is found; not that the
  last ones are missing, unless the hash of the last is noted elsewhere.
- A last line without an end is one that a killed process left: it was never whole, so nothing was done upon it.

What the lines say is audit.py's and ledger.py's; that one process writes at a time is theirs to see to.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Annotated, Final, Generic, TypeVar

from pydantic import Field, ValidationError

from hansa_common import durable_files
from hansa_common.errors import MerchantError
from hansa_common.record_types import Digest
from hansa_common.schema import Section

MAX_LINE_BYTES: Final = 1 << 14
MAX_TEXT_CHARS: Final = 1000
NOTHING_BEFORE: Final = "0" * 64

Text = Annotated[str, Field(max_length=MAX_TEXT_CHARS)]


class ChainedLine(Section):
    """What every line says: its number, when it was written, and the SHA-256 of the line before it."""

    number: Annotated[int, Field(ge=1)]
    at: Text
    previous: Digest

    def line(self) -> bytes:
        """The line without its end; what a kind of line has no use for is left out."""
        values = self.model_dump(mode="json", exclude_defaults=True)
        return json.dumps(values, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()


Line = TypeVar("Line", bound=ChainedLine)


@dataclass(frozen=True)
class Chain:
    """A file of whole lines that follow from one another: how many, the hash of the last, and the bytes they take.

    `num_torn_bytes` stand behind them without an end of line.
    """

    num_lines: int = 0
    head: str = NOTHING_BEFORE
    num_bytes: int = 0
    num_torn_bytes: int = 0

    def with_line(self, content: bytes) -> Chain:
        """The chain with one more line, given without its end."""
        return Chain(self.num_lines + 1, hashlib.sha256(content).hexdigest(), self.num_bytes + len(content) + 1)


EMPTY: Final = Chain()


@dataclass(frozen=True)
class ChainedFile(Generic[Line]):
    """Where lines of a kind are kept. `name` is what the file is called in an error, with its article; `remedy` what to
    do about a line that somebody has changed.
    """

    path: Path
    kind: type[Line]
    name: str
    remedy: str

    def links(self, begin: Chain = EMPTY) -> Iterator[tuple[Line | None, Chain]]:
        """Each line after `begin` with the chain up to it; last, without a line, the chain with what is torn behind it.

        Raises:
            MerchantError: it cannot be read, or a line does not follow from the one before it; says which.
        """
        chain = begin
        try:
            with self.path.open("rb") as file:
                file.seek(begin.num_bytes)
                for line in _lines(file):
                    if not line.endswith(b"\n") and len(line) <= MAX_LINE_BYTES:
                        chain = Chain(chain.num_lines, chain.head, chain.num_bytes, len(line))
                        break
                    content = line.removesuffix(b"\n")
                    entry = self._entry(content, chain)
                    chain = chain.with_line(content)
                    yield entry, chain
        except OSError as error:
            raise MerchantError(f"{self.path} cannot be read: {error.strerror}") from error
        yield None, chain

    def take_torn_off(self, chain: Chain) -> Chain:
        """The chain once the unfinished line behind it is off the disk."""
        if chain.num_torn_bytes:
            os.truncate(self.path, chain.num_bytes)
            durable_files.synchronise(self.path)
        return Chain(chain.num_lines, chain.head, chain.num_bytes)

    def append(self, line: Line, chain: Chain) -> Chain:
        """The chain with one more line, which is on disk when this returns.

        Raises:
            MerchantError: the file is not the chain's any more, or cannot be written.
        """
        content = line.line()
        self._write(content + b"\n", chain)
        if chain.num_lines == 0:
            durable_files.synchronise(self.path.parent)
        return chain.with_line(content)

    def _write(self, line: bytes, chain: Chain) -> None:
        path, num_bytes = self.path, chain.num_bytes
        try:
            create = os.O_CREAT if chain.num_lines == 0 else 0
            descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | create, 0o600)
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

    def _entry(self, content: bytes, before: Chain) -> Line:
        place = f"{self.path}, line {before.num_lines + 1}"
        try:
            entry = self.kind.model_validate_json(content)
        except ValidationError:
            raise MerchantError(
                f"{place} is no line of {self.name}, so somebody has changed it; {self.remedy}"
            ) from None
        if entry.number != before.num_lines + 1 or entry.previous != before.head or entry.line() != content:
            raise MerchantError(
                f"{place} does not follow from the line before it, so somebody has changed one; {self.remedy}"
            )
        return entry


def _lines(file: IO[bytes]) -> Iterator[bytes]:
    # Bounded: a file without line ends is not to fill the memory.
    while line := file.readline(MAX_LINE_BYTES + 1):
        yield line
