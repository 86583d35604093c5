"""A merchant's processes, kept running side by side: its trainer, a forwarder where there is a gateway, Flower's node.

part           has                                          if it dies
trainer        the rows; the keys that sign                 an order that it was at is asked for again, and obeyed once
forwarder      the certificate for the gateway              its listener stays open here; requests wait for the next one
Flower's node  the node's key; no file of the merchant's    SuperLink knows the next one by the same key

They live together (`run`), or as two users of one machine, who share a folder for the trainer's socket and nothing else
(`run_trainer`, `run_node`). One that dies is started again (supervision.py), and none outlives this process; a trainer
that gives no sign of life is ended for that (heartbeat.py). A trainer that refuses its files has said why, and ends it
all.
"""

from __future__ import annotations

import os
import shutil
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
from hansa_common.enrolment_papers import Federation
from hansa_common.merchant_keys import NODE_KEY
from hansa_common.publisher import TRUSTED_ENTITIES_NAME, trusted_entities_yaml
from hansa_common.readiness import running_when_ready
from hansa_common.supervision import Begun, Kept, Part, keeping

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
        kept, files = stack.enter_context(keeping(tell)), taking_part.files
        if taking_part.enrolment is None:
            node = flower_node.Node(taking_part.coordinator, folder / SOCKET_NAME, files.state, user=user)
        else:
            # First, so that a gateway that cannot be reached is told before any row is read.
            node = _enrolled_node(stack, kept, taking_part.enrolment.federation, files.state, folder, user)
        kept.keep(_Trainer(taking_part, folder, tell).part)
        kept.keep(Part(flower_node.NAME, node.running))
        tell(f"waiting for orders from {taking_part.coordinator}; Ctrl-C stops")
        kept.wait()


def run_trainer(taking_part: Participation, folder: Path, tell: Tell) -> NoReturn:
    """Keep the trainer alone running, with its socket in a folder for a node that runs apart from it.

    Raises:
        UsageError: others than this user, and the group that the folder was given to, can open it.
        HansaError: the trainer could not be started, or refuses to start again.
    """
    durable_files.make_private_folder(taking_part.files.state)
    check_socket_folder(folder)
    with keeping(tell) as kept:
        kept.keep(_Trainer(taking_part, folder, tell).part)
        tell(f"the trainer listens in {folder}; Ctrl-C stops")
        kept.wait()


def run_node(federation: Federation, state: Path, folder: Path, tell: Tell) -> NoReturn:
    """Keep the forwarder and Flower's node running, with the keys in `state`, for a trainer that listens in a folder;
    it need not do so yet.

    Raises:
        HansaError: one could not be started.
    """
    with ExitStack() as stack:
        kept = stack.enter_context(keeping(tell))
        kept.keep(Part(flower_node.NAME, _enrolled_node(stack, kept, federation, state, folder, None).running))
        tell(f"connected to {federation.address}; Ctrl-C stops")
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
        chosen = {
            "--hash-key": files.hash_key,
            "--policy": files.policy,
            "--ledger": files.ledger,
            "--ledger-head": files.ledger_head,
        }
        options |= {name: value for name, value in chosen.items() if value is not None}
        # One word each: a name may begin with a dash for all this knows.
        words = [f"{name}={value}" for name, value in options.items()]
        return [sys.executable, "-m", "hansa_client.trainer_service", *words]


def _trainer_environment() -> dict[str, str]:
    # TensorFlow greets on standard error in a dozen lines; its errors still come.
    return {"TF_CPP_MIN_LOG_LEVEL": "2", **os.environ}


def _enrolled_node(
    stack: ExitStack, kept: Kept, federation: Federation, state: Path, folder: Path, user: NodeUser | None
) -> flower_node.Node:
    """A node with the keys in the state folder, behind a forwarder that is kept running."""
    listener = stack.enter_context(forwarder.listening())
    uid = None if user is None else user.uid

    @contextmanager
    def running(begun: Begun) -> Iterator[Child]:
        started = forwarder.running(federation.address, state, uid, listener=listener, begun=begun)
        with started as (child, _):
            yield child

    kept.keep(Part(forwarder.NAME, running))
    trusted = state / TRUSTED_ENTITIES_NAME
    durable_files.write(trusted, trusted_entities_yaml(federation.publisher).encode())
    own = Address(*listener.getsockname())
    return flower_node.Node(own, folder / SOCKET_NAME, state, trusted, state / NODE_KEY, user)
