"""The running `hansa server start` of a state folder: found by another command, and ended by it.

`server.pid` in the state folder holds the process and its addresses, and the process holds a lock on it as long as it
lives, however it ends: a number that was left behind is never taken for a server.
"""

from __future__ import annotations

import fcntl
import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from hansa_common import durable_files
from hansa_common.addresses import Address, parse_address
from hansa_common.errors import CoordinatorError, UsageError

PID_NAME: Final = "server.pid"
STOP_SECONDS: Final = 60.0
_POLL_SECONDS: Final = 0.1


@dataclass(frozen=True)
class ServerProcess:
    """A server that runs: its process, where its SuperLink listens on this machine, and where its gateway listens for
    merchants, None in development.
    """

    pid: int
    address: Address
    gateway: Address | None = None


@contextmanager
def registered(state: Path, address: Address, gateway: Address | None = None) -> Iterator[None]:
    """Be the server of the state folder while the block runs; the addresses are ServerProcess's.

    Raises:
        UsageError: another process is, or others can open the folder.
    """
    durable_files.make_private_folder(state)
    descriptor = os.open(state / PID_NAME, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UsageError(
                f"a server with the state folder {state} is running already; `hansa server stop` ends it, or give "
                "another --state"
            ) from None
        os.ftruncate(descriptor, 0)
        words = [str(os.getpid()), str(address), *([] if gateway is None else [str(gateway)])]
        os.write(descriptor, f"{' '.join(words)}\n".encode())
        yield
    finally:
        os.close(descriptor)


def find(state: Path) -> ServerProcess | None:
    """The server that runs with this state folder, if one does."""
    try:
        with (state / PID_NAME).open(encoding="ascii") as file:
            if not _is_locked(file.fileno()):
                return None
            pid, *addresses = file.read().split() or [""]
    except FileNotFoundError:
        return None
    # It has the lock, and writes these a moment later.
    return ServerProcess(int(pid), *map(parse_address, addresses)) if addresses else None


def stop(state: Path, server: ServerProcess) -> None:
    """Ask the server to end, and wait until it has.

    Raises:
        CoordinatorError: it had not after STOP_SECONDS.
    """
    with suppress(ProcessLookupError):
        os.kill(server.pid, signal.SIGTERM)
    deadline = time.monotonic() + STOP_SECONDS
    while find(state) == server:
        if time.monotonic() >= deadline:
            raise CoordinatorError(f"the server (process {server.pid}) has not ended within {STOP_SECONDS:.0f} seconds")
        time.sleep(_POLL_SECONDS)


def _is_locked(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    return False
