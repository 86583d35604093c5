"""Whose process is at the other end of a connection inside this machine.

Linux says it in a table of connections; elsewhere it is not known. A port of 127.0.0.1 is open to every user of the
machine, so who listens there for one program alone asks here.
"""

from __future__ import annotations

import socket
import struct
from pathlib import Path
from typing import Final

TABLE: Final = Path("/proc/net/tcp")
_LOCAL, _REMOTE, _UID = 1, 2, 7


def user_of_peer(connection: socket.socket) -> int | None:
    """The user id of the process at the other end of an IPv4 connection, or None where the system does not tell.

    Raises:
        ConnectionError: the other end is not on this machine, or has gone.
    """
    if not TABLE.exists():
        return None
    peer, here = _as_in_table(connection.getpeername()), _as_in_table(connection.getsockname())
    with TABLE.open(encoding="ascii") as table:
        for line in table:
            words = line.split()
            if words[_LOCAL] == peer and words[_REMOTE] == here:
                return int(words[_UID])
    raise ConnectionError("the other end is not here any more")


def _as_in_table(address: tuple[str, int]) -> str:
    host, port = address
    # As the machine keeps it in memory, so backwards on most.
    (number,) = struct.unpack("=I", socket.inet_aton(host))
    return f"{number:08X}:{port:04X}"
