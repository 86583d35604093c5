"""The merchant's Flower SuperNode: how it is started, and what it is told and not told.

It gets the coordinator's address and the path of the trainer's socket; nothing of the data. It starts Hansa's own
bundle, which holds no code, and no other; with a file of trusted entities, only under their signature. Where the system
offers it, it and all that it starts can open no file of the merchant's but what it is told of (node_confinement.py).
Flower's telemetry, update check and installation of dependencies are off, and its files stay in the merchant's state
folder. Run as a program, this module is `flower-supernode` with what its options do not offer (see `main`).
"""

from __future__ import annotations

import argparse
import logging
import os
import socket
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Final

from hansa_client.node_confinement import Allowed, confine, installation, own_folders
from hansa_client.node_user import NodeUser
from hansa_common import children
from hansa_common.addresses import Address, parse_address
from hansa_common.errors import HansaError
from hansa_common.flower_environment import flower_environment

# Flower 1.41 asks the SuperLink every 3 s and its own launcher every second: most of an exchange's time.
POLL_SECONDS: Final = 0.5
LAUNCHER_POLL_SECONDS: Final = "0.2"
LOOPBACK: Final = "127.0.0.1"
LOG_NAME: Final = "supernode.log"
# Flower's options that name a file to read.
_FILES: Final = ("--trusted-entities", "--root-certificates", "--auth-supernode-private-key")


def environment(home: Path) -> dict[str, str]:
    """The environment of the node and of what it starts, with its files in `home`."""
    own = {"FLWR_SUPEREXEC_TASK_POLL_INTERVAL": LAUNCHER_POLL_SECONDS, "HOME": str(home), "TMPDIR": str(home / "tmp")}
    return {**flower_environment(home), **own}


def command(server: Address, port: int, trainer_socket: Path, trusted_entities: Path | None = None) -> list[str]:
    """The command line of a node for this server, which listens on a port of its own for its ClientApps.

    Without `trusted_entities` (publisher.py), the bundle needs no particular signature.
    """
    options = ["--insecure", "--superlink", str(server), "--host", LOOPBACK, "--port", str(port)]
    if trusted_entities is not None:
        options += ["--trusted-entities", str(trusted_entities)]
    return [sys.executable, "-m", __name__, *options, "--node-config", f'trainer="{trainer_socket}"']


@contextmanager
def running(
    server: Address, trainer_socket: Path, state: Path, *, trusted_entities: Path | None, user: NodeUser | None
) -> Iterator[children.Child]:
    """A node while the block runs; its log is in the merchant's state folder, and its files too, unless it runs as
    another user: then they are in a home of its own, which goes with it.
    """
    home = state / "flower"
    with ExitStack() as stack:
        if user is not None:
            home = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="hansa-node-")))
            user.give(home)
            trusted_entities = None if trusted_entities is None else user.lend(trusted_entities, home)
        words = command(server, free_port(), trainer_socket, trusted_entities)
        as_user = None if user is None else (user.uid, user.gid)
        log = state / LOG_NAME
        yield stack.enter_context(children.running("Flower's node", words, environment(home), log=log, user=as_user))


def free_port() -> int:
    """A port of this machine that is free now."""
    with socket.socket() as listener:
        listener.bind((LOOPBACK, 0))
        port: int = listener.getsockname()[1]
        return port


def main() -> None:
    """Run `flower-supernode` with this process's arguments: it asks sooner, takes one bundle only, opens no file of the
    merchant's, and ends with its parent.
    """
    # Flower's launcher watches the node in its turn, so that nothing is left behind.
    children.end_with_parent()
    if not confine(allowed(sys.argv[1:], Path(os.environ["FLWR_HOME"]))):
        logging.getLogger(__name__).warning("this system does not keep the node from the files of its user")
    from hansa_client.flower_private import run_supernode

    run_supernode(POLL_SECONDS)


def allowed(words: list[str], home: Path) -> Allowed:
    """What a node of this command line needs, with its files in `home`: what it is told of, and no more."""
    told = argparse.ArgumentParser(add_help=False)
    for option in ("--superlink", "--port", "--node-config", *_FILES):
        told.add_argument(option)
    options = vars(told.parse_known_args(words)[0])
    trainer = Path(options["node_config"].partition("=")[2].strip('"'))
    files = [options[option.lstrip("-").replace("-", "_")] for option in _FILES]
    (home / "tmp").mkdir(parents=True, exist_ok=True)
    port = int(options["port"])
    return Allowed(
        readable=[*installation(), trainer.parent, *(Path(file) for file in files if file)],
        listable=own_folders(),
        writable=[home],
        connect_ports=[parse_address(options["superlink"]).port, port],
        listen_ports=[port],
    )


if __name__ == "__main__":
    try:
        main()
    except HansaError as error:
        sys.exit(f"hansa: {error}")
