"""Files as one array of bytes, so that a finished bundle fits into one field of an order, and into one file on a disk.

`HANSA-FILES-1`, the header's length, a header of canonical JSON (name and size of each file, names ascending), then
the contents in that order. Equal files give equal bytes, and `unpack` takes exactly what `pack` writes.

- A name is looked up in a list of names and is never part of a path: there is nothing to climb out with.
- Nothing is decompressed, and nothing is copied before every size adds up.

What the files must hold is others' to say: bundle.py's for a bundle.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Collection, Mapping
from typing import Any, Final

from hansa_common.errors import MessageError

_MAGIC: Final = b"HANSA-FILES-1"
_PREFIX: Final = struct.Struct(f"<{len(_MAGIC)}sI")
_MAX_HEADER_BYTES: Final = 1 << 16
_MAX_SHOWN_CHARS: Final = 80


def pack(files: Mapping[str, bytes]) -> bytes:
    """Files, name -> bytes, as one array.

    >>> unpack(pack({"b": b"two", "a": b""}), {"a", "b", "c"})
    {'a': b'', 'b': b'two'}
    """
    names = sorted(files)
    header = _canonical([[name, len(files[name])] for name in names])
    return b"".join([_PREFIX.pack(_MAGIC, len(header)), header, *(files[name] for name in names)])


def unpack(content: bytes, allowed: Collection[str]) -> dict[str, bytes]:
    """The files, name -> bytes, names ascending; each name is one of those allowed, and any of these may be missing.

    Raises:
        MessageError: the bytes are not exactly what `pack` writes for files of allowed names.
    """
    files: dict[str, bytes] = {}
    start = _end_of_header(content)
    for name, size in _entries(content[_PREFIX.size : start], allowed, len(content) - start):
        files[name] = content[start : start + size]
        start += size
    return files


def _end_of_header(content: bytes) -> int:
    if len(content) < _PREFIX.size or not content.startswith(_MAGIC):
        raise MessageError("these bytes are no files that were packed together")
    _, header_bytes = _PREFIX.unpack_from(content)
    end = _PREFIX.size + int(header_bytes)
    if header_bytes > _MAX_HEADER_BYTES or end > len(content):
        raise MessageError(f"the packed files' header of {header_bytes} bytes does not fit")
    return end


def _entries(header: bytes, allowed: Collection[str], num_bytes: int) -> list[tuple[str, int]]:
    """Name and size of each file, which are canonical, allowed, and together the bytes that there are."""
    try:
        given = json.loads(header)
    except (ValueError, RecursionError):
        raise MessageError("the packed files' header is not JSON") from None
    if not isinstance(given, list):
        raise MessageError("the packed files' header is not a list")
    entries = [_entry(entry, allowed) for entry in given]
    names = [name for name, _ in entries]
    if names != sorted(set(names)) or _canonical(given) != header:
        raise MessageError("the packed files' header is not in canonical form")
    total = sum(size for _, size in entries)
    if total != num_bytes:
        raise MessageError(f"the packed files have {num_bytes} bytes, their header says {total}")
    return entries


def _entry(entry: Any, allowed: Collection[str]) -> tuple[str, int]:
    match entry:
        case [str(name), int(size)] if type(size) is int and size >= 0:
            if name not in allowed:
                raise MessageError(f"a file may not be called {name[:_MAX_SHOWN_CHARS]!r} here")
            return name, size
    raise MessageError("the packed files' header does not hold a name and a size for each")


def _canonical(entries: list[Any]) -> bytes:
    return json.dumps(entries, separators=(",", ":"), ensure_ascii=True, allow_nan=False).encode()
