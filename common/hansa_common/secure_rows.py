"""What belongs to merchants of a cohort as one array: rows of one length, each after its merchant's place, ascending.

Of equal rows there is one way to write them, and `rows_from_bytes` takes exactly what `rows_to_bytes` writes. What a
row says is its reader's.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from typing import Final

from hansa_common.errors import MessageError

_PLACE: Final = struct.Struct("<H")


def rows_to_bytes(rows: Mapping[int, bytes]) -> bytes:
    """Rows of one length by place, as one array."""
    return b"".join(_PLACE.pack(place) + rows[place] for place in sorted(rows))


def rows_from_bytes(content: bytes, row_bytes: int, num_places: int) -> dict[int, bytes]:
    """The rows by place, each place below `num_places`.

    Raises:
        MessageError: the bytes are not exactly what `rows_to_bytes` writes for rows of this length.

    >>> rows_from_bytes(rows_to_bytes({2: b"cc", 0: b"aa"}), 2, num_places=3)
    {0: b'aa', 2: b'cc'}
    """
    step = _PLACE.size + row_bytes
    if len(content) % step != 0 or len(content) > step * num_places:
        raise MessageError(f"{len(content)} bytes are not up to {num_places} rows of {row_bytes}")
    rows: dict[int, bytes] = {}
    last = -1
    for start in range(0, len(content), step):
        (place,) = _PLACE.unpack_from(content, start)
        if not last < place < num_places:
            raise MessageError(f"the place {place} follows {last} among {num_places}")
        rows[place] = content[start + _PLACE.size : start + step]
        last = place
    return rows
