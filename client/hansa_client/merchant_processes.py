"""A merchant's processes, kept running side by side: its trainer, a forwarder where there is a gateway, Flower's node.

part           has                                          if it dies
trainer        the rows; the keys that sign                 an order that it was at is asked for again, and obeyed once
forwarder      the certificate for the gateway              its listener stays open here; requests wait for the next one
Flower's node  the node's key; no file of the merchant's    SuperLink knows the next one by the same key

One that dies is started again (supervision.py), and none outlives this process; a trainer that gives no sign of life is
ended for that (heartbeat.py). A trainer that refuses its files has said why, and ends it all.
"""

from __future__ import annotations

import os
import shutil
import socket
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final, NoReturn

from hansa_client import flower_node, forwarder, heartbeat
from hansa_client.node_user import NodeUser
from hansa_client.participation import Participation
from hansa_client.trainer_link import ACCESS_NAME, SOCKET_NAME
from hansa_client.trainer_service import check_socket_folder
from hansa_common import durable_files
from hansa_common.addresses import Address
from hansa_common.children import Child
from hansa_common.merchant_keys import NODE_KEY
from hansa_common.publisher import TRUSTED_ENTITIES_NAME, trusted_entities_yaml
from hansa_common.readiness import running_when_ready
from hansa_common.supervision import Begun, Part, keeping

READY_SECONDS: Final = 900.0

Tell = Callable[[str], object]


def run(taking_part: Participation, user: NodeUser | None, tell: Tell) -> NoReturn:
    """Start the processes and keep them running; `tell` gets the lines for people. Ends by an exception alone.

    Raises:
        HansaError: a part could not be started, or a trainer refuses to start again.
    """
    durable_files.make_private_folder(taking_part.files.state)
    with _private_folder() as folder, ExitStack() as stack:
        check_socket_folder(folder)
        if user is not None:
            user.share(folder)
        kept, server = stack.enter_context(keeping(tell)), taking_part.coordinator
        if taking_part.enrolment is not None:
            # First, so that a gateway that cannot be reached is told before any row is read.
            listener = stack.enter_context(forwarder.listening())
            kept.keep(_forwarder_part(taking_part, listener, user))
            server = Address(*listener.getsockname())
        kept.keep(_Trainer(taking_part, folder, tell).part)
        kept.keep(Part(flower_node.NAME, _node(taking_part, server, folder, user).running))
        tell(f"waiting for orders from {taking_part.coordinator}; Ctrl-C stops")
        kept.wait()


@contextmanager
def _private_folder() -> Iterator[Path]:
    # Not in the state folder: a socket's path may be a hundred bytes long, no more.
    folder = Path(tempfile.mkdtemp(prefix="hansa-"))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@dataclass(frozen=True)
class _Trainer:
    """The trainer's process, whose socket is in a folder of its own; it tells its own troubles."""

    taking_part: Participation
    folder: Path
    tell: Tell

    @property
    def part(self) -> Part:
        return Part("the trainer", self._running, refusal_is_final=True)

    @contextmanager
    def _running(self, begun: Begun) -> Iterator[Child]:
        # Of one that was killed.
        for name in (SOCKET_NAME, ACCESS_NAME):
            (self.folder / name).unlink(missing_ok=True)
        with (
            running_when_ready(
                "the trainer", self._command, _trainer_environment(), seconds=READY_SECONDS, begun=begun
            ) as (child, _),
            heartbeat.watched(child, self.folder / SOCKET_NAME, self.tell),
        ):
            yield child

    def _command(self, ready: int) -> list[str]:
        files = self.taking_part.files
        options: dict[str, object] = {
            "--agreement": files.agreement,
            "--data": files.data,
            "--merchant": self.taking_part.merchant,
            "--state": files.state,
            "--folder": self.folder,
            "--ready": ready,
        }
        if files.hash_key is not None:
            options["--hash-key"] = files.hash_key
        if files.policy is not None:
            options["--policy"] = files.policy
        # One word each: a name may begin with a dash for all this knows.
        words = [f"{name}={value}" for name, value in options.items()]
        return [sys.executable, "-m", "hansa_client.trainer_service", *words]


def _trainer_environment() -> dict[str, str]:
    # TensorFlow greets on standard error in a dozen lines; its errors still come.
    return {"TF_CPP_MIN_LOG_LEVEL": "2", **os.environ}


def _forwarder_part(taking_part: Participation, listener: socket.socket, user: NodeUser | None) -> Part:
    @contextmanager
    def running(begun: Begun) -> Iterator[Child]:
        uid = None if user is None else user.uid
        with forwarder.running(
            taking_part.coordinator, taking_part.files.state, uid, listener=listener, begun=begun
        ) as (child, _):
            yield child

    return Part(forwarder.NAME, running)


def _node(taking_part: Participation, server: Address, folder: Path, user: NodeUser | None) -> flower_node.Node:
    socket_path, state = folder / SOCKET_NAME, taking_part.files.state
    if taking_part.enrolment is None:
        return flower_node.Node(server, socket_path, state, user=user)
    trusted = state / TRUSTED_ENTITIES_NAME
    durable_files.write(trusted, trusted_entities_yaml(taking_part.enrolment.federation.publisher).encode())
    return flower_node.Node(server, socket_path, state, trusted, state / NODE_KEY, user)
