"""The merchant's Flower SuperNode: how it is started, and what it is told and not told.

It gets an address to connect to and the path of the trainer's socket; nothing of the data. It starts Hansa's own
bundle, which holds no code, and no other; with a file of trusted entities, only under their signature. Where the system
offers it, it and all that it starts can open no file of the merchant's but what it is told of (node_confinement.py);
the key that it signs requests with is read before that. Flower's telemetry, update check and installation of
dependencies are off, and its files stay in the merchant's state folder. Run as a program, this module is
`flower-supernode` with what its options do not offer (see `main`).
"""

from __future__ import annotations

import argparse
import logging
import os
import socket
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from hansa_client.node_confinement import Allowed, confine, installation, own_folders
from hansa_client.node_user import NodeUser
from hansa_common.addresses import Address, parse_address
from hansa_common.children import Child, end_with_parent
from hansa_common.errors import HansaError
from hansa_common.flower_environment import flower_environment
from hansa_common.keys import read_node_key
from hansa_common.readiness import running_when_ready, tell_ready

# Flower 1.41 asks the SuperLink every 3 s and its own launcher every second: most of an exchange's time.
POLL_SECONDS: Final = 0.5
LAUNCHER_POLL_SECONDS: Final = "0.2"
READY_SECONDS: Final = 120.0
LOOPBACK: Final = "127.0.0.1"
LOG_NAME: Final = "supernode.log"
NAME: Final = "Flower's node"
# Flower's options that name a file to read.
_FILES: Final = ("--trusted-entities", "--root-certificates")


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


@dataclass(frozen=True)
class Node:
    """A merchant's node: where it connects to and where its trainer listens, whose bundles it takes, with which key it
    signs its requests, and as which user it runs; None: of anyone, one that it draws, as who starts it.
    """

    server: Address
    trainer_socket: Path
    state: Path
    trusted_entities: Path | None = None
    key: Path | None = None
    user: NodeUser | None = None

    @contextmanager
    def running(self, begun: Callable[[Child], object]) -> Iterator[Child]:
        """The node while the block runs, once SuperLink knows it; `begun` is as for `running_when_ready`. Its log is in
        the merchant's state folder, and its files too, unless it runs as another user: then they are in a home of its
        own, which goes with it.

        Raises:
            TransportError: it ended, or SuperLink did not know it in time.
        """
        home, key, trusted = self.state / "flower", self.key, self.trusted_entities
        with ExitStack() as stack:
            if self.user is not None:
                home = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="hansa-node-")))
                trusted = None if trusted is None else self.user.lend(trusted, home)
                key = None if key is None else self.user.lend(key, home)
                self.user.give(home)
            flowers = command(self.server, free_port(), self.trainer_socket, trusted)
            signing = [] if key is None else ["--node-key", str(key)]
            child, _ = stack.enter_context(
                running_when_ready(
                    NAME,
                    lambda ready: [*flowers, *signing, "--ready", str(ready)],
                    environment(home),
                    seconds=READY_SECONDS,
                    log=self.state / LOG_NAME,
                    user=None if self.user is None else (self.user.uid, self.user.gid),
                    begun=begun,
                )
            )
            yield child


def free_port() -> int:
    """A port of this machine that is free now."""
    with socket.socket() as listener:
        listener.bind((LOOPBACK, 0))
        port: int = listener.getsockname()[1]
        return port


def main() -> None:
    """Run `flower-supernode` with this process's arguments, less our own two: it asks sooner, takes one bundle only,
    opens no file of the merchant's, signs its requests, says when it is known, and ends with its parent.
    """
    # Flower's launcher watches the node in its turn, so that nothing is left behind.
    end_with_parent()
    own = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    own.add_argument("--node-key", type=Path)
    own.add_argument("--ready", type=int)
    options, flowers = own.parse_known_args(sys.argv[1:])
    key = None if options.node_key is None else read_node_key(options.node_key, "the node's key")
    if not confine(allowed(flowers, Path(os.environ["FLWR_HOME"]))):
        logging.getLogger(__name__).warning("this system does not keep the node from the files of its user")
    from hansa_client.flower_private import run_supernode

    sys.argv[1:] = flowers
    run_supernode(POLL_SECONDS, key, lambda: tell_ready(options.ready, "connected"))


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
