"""The merchant's Flower SuperNode: how it is started, and what it is told and not told.

It gets the coordinator's address and the path of the trainer's socket; nothing of the data. Flower's telemetry,
update check and installation of dependencies are off, and its files stay in the merchant's state folder.
Run as a program, this module is `flower-supernode` with two changes that its options do not offer (see `main`).
"""

from __future__ import annotations

import os
import signal
import socket
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Final

from hansa_common import children
from hansa_common.addresses import Address
from hansa_common.flower_environment import flower_environment

# Flower 1.41 asks the SuperLink every 3 s and its own launcher every second: most of an exchange's time.
POLL_SECONDS: Final = 0.5
LAUNCHER_POLL_SECONDS: Final = "0.2"
LOOPBACK: Final = "127.0.0.1"


def environment(home: Path) -> dict[str, str]:
    """The environment of the node and of what it starts, with its files in `home`."""
    return {**flower_environment(home), "FLWR_SUPEREXEC_TASK_POLL_INTERVAL": LAUNCHER_POLL_SECONDS}


def command(server: Address, port: int, trainer_socket: Path) -> list[str]:
    """The command line of a node for this server, which listens on a port of its own for its ClientApps."""
    options = ["--insecure", "--superlink", str(server), "--host", LOOPBACK, "--port", str(port)]
    return [sys.executable, "-m", __name__, *options, "--node-config", f'trainer="{trainer_socket}"']


def free_port() -> int:
    """A port of this machine that is free now."""
    with socket.socket() as listener:
        listener.bind((LOOPBACK, 0))
        port: int = listener.getsockname()[1]
        return port


def main() -> None:
    """Run `flower-supernode` with this process's arguments: polling faster, and ending with its parent."""
    from flwr.supernode import start_client_internal
    from flwr.supernode.cli.flower_supernode import flower_supernode

    # The one private name of Flower's that this room touches: the module's `time`, of which it uses `sleep`.
    start_client_internal.time = SimpleNamespace(sleep=lambda seconds: time.sleep(min(seconds, POLL_SECONDS)))
    threading.Thread(target=_end_with_parent, daemon=True).start()
    flower_supernode()


def _end_with_parent() -> None:
    # Flower's launcher watches the node in its turn, so that nothing is left behind.
    children.wait_for_end_of_parent()
    os.kill(os.getpid(), signal.SIGTERM)


if __name__ == "__main__":
    main()
