"""The resident trainer: a process that loads the merchant's rows and compiles once, and serves every round.

- It listens on a unix socket in a folder that only its user can open, or its node's too where that is another
  (node_user.py), and answers only who knows the token: of others' orders it reads nothing. Who asks with gRPC's own
  health check (grpc.health.v1) needs none, and hears of nothing else.
- Whoever hangs up is noticed: work for it stops at the next chunk.
- SIGTERM, SIGINT or the end of its standard input (its parent is gone) stop it: training ends at the next
  chunk, and what was proposed is already on disk.

Its peer, the ClientApp, is started by Flower for whatever the coordinator sends; what it lets in and out is
guarded_trainer.py's.
"""

from __future__ import annotations

import hmac
import json
import logging
import os
import signal
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Annotated, Final, Protocol, Self

import grpc
import typer
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

from hansa_client import trainer_pb2
from hansa_client.guarded_trainer import MAX_WAITING, Boundary, GuardedTrainer
from hansa_client.merchant_files import MerchantFiles
from hansa_client.node_user import is_shared
from hansa_client.trainer_link import (
    MAX_ORDER_BYTES,
    SERVER_OPTIONS,
    SERVICE,
    SOCKET_NAME,
    TOKEN_METADATA,
    new_access,
)
from hansa_common import children, durable_files
from hansa_common.errors import HansaError, UsageError
from hansa_common.log_lines import log_to_stderr
from hansa_common.own_program import run_program

STOP_SECONDS: Final = 10.0
QUALITY_NAME: Final = "data_quality.json"
# Linux takes 107 bytes in a socket's address, macOS 103.
MAX_SOCKET_PATH_BYTES: Final = 103
# Besides the order that is worked on and those that wait: to refuse one more, and to say how it goes.
_NUM_THREADS: Final = MAX_WAITING + 3
_NUM_CALLS: Final = 16


class Answering(Protocol):
    """Answers one order with one reply; `has_gone` says that nobody waits for it any more."""

    def answer(self, order: bytes, has_gone: Callable[[], bool]) -> bytes: ...


class TrainerServer:
    """A trainer behind a socket; a context manager that serves while it is open."""

    def __init__(self, trainer: Answering, merchant: str, folder: Path) -> None:
        """Prepare the socket and the access file in a folder that others cannot open.

        Raises:
            UsageError: others can open the folder, or its path is too long for a socket.
        """
        socket = folder / SOCKET_NAME
        check_socket_folder(folder)
        access = new_access(merchant)
        self._trainer = trainer
        self._token = access.token.encode()
        self._server = grpc.server(
            ThreadPoolExecutor(_NUM_THREADS), options=SERVER_OPTIONS, maximum_concurrent_rpcs=_NUM_CALLS
        )
        self._server.add_generic_rpc_handlers((self._handlers(),))
        # Whoever watches holds no thread.
        self._health = health.HealthServicer(experimental_thread_pool=ThreadPoolExecutor(1))
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)
        self._server.add_insecure_port(f"unix:{socket}")
        if is_shared(folder):
            socket.chmod(0o660)
        access.write(folder)

    def __enter__(self) -> Self:
        self._server.start()
        self._health.set(SERVICE, health_pb2.HealthCheckResponse.SERVING)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._health.enter_graceful_shutdown()
        self._server.stop(STOP_SECONDS).wait()

    def _handlers(self) -> grpc.GenericRpcHandler:
        answer = grpc.stream_unary_rpc_method_handler(
            self._answer,
            request_deserializer=trainer_pb2.OrderPiece.FromString,
            response_serializer=trainer_pb2.Reply.SerializeToString,
        )
        return grpc.method_handlers_generic_handler(SERVICE, {"Answer": answer})

    def _answer(self, pieces: Iterator[trainer_pb2.OrderPiece], context: grpc.ServicerContext) -> trainer_pb2.Reply:
        # The metadata is there before any piece is asked for.
        token = dict(context.invocation_metadata()).get(TOKEN_METADATA, "")
        if not hmac.compare_digest(str(token).encode(), self._token):
            context.abort(grpc.StatusCode.UNAUTHENTICATED, "the token is not this trainer's")
        order = _joined(pieces, context)
        return trainer_pb2.Reply(encoded=self._trainer.answer(order, lambda: not context.is_active()))


def _joined(pieces: Iterator[trainer_pb2.OrderPiece], context: grpc.ServicerContext) -> bytes:
    """The order whose pieces they are; one that is longer than any may be ends the call, and no more of it is read."""
    order = bytearray()
    for piece in pieces:
        if len(order) + len(piece.encoded) > MAX_ORDER_BYTES:
            context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, f"an order has at most {MAX_ORDER_BYTES} bytes")
        order += piece.encoded
    return bytes(order)


def check_socket_folder(folder: Path) -> None:
    """See that a socket can be in the folder, and that only its user, and the node's where it is shared with that, can
    reach it there.

    Raises:
        UsageError: there is none, it is another user's, others can open it or the node's can change it, or its path is
            too long.
    """
    if not folder.is_dir() or folder.stat().st_uid != os.geteuid():
        raise UsageError(
            f"{folder} is no folder of this user's, where the trainer could listen; make one: mkdir -m 700"
        )
    if folder.stat().st_mode & (0o027 if is_shared(folder) else 0o077):
        raise UsageError(
            f"others can open {folder}, where the trainer listens; make it yours alone (chmod 700), or, for a node of "
            "another user's, give it to a group of that user's (chgrp GROUP, chmod 2750)"
        )
    num_bytes = len(os.fsencode(folder / SOCKET_NAME))
    if num_bytes > MAX_SOCKET_PATH_BYTES:
        raise UsageError(
            f"the socket path {folder / SOCKET_NAME} has {num_bytes} bytes, a socket takes {MAX_SOCKET_PATH_BYTES}; "
            "set TMPDIR to a folder with a shorter path"
        )


def serve(files: MerchantFiles, merchant: str, folder: Path, ready: int, stop: threading.Event) -> None:
    """Load, listen in folder, write one line to the descriptor ready, and serve until stop is set.

    Raises:
        HansaError: the agreement, the data or the folder do not allow it.
    """
    agreement = files.read_agreement()
    hash_key = files.read_hash_key(agreement)
    durable_files.make_private_folder(files.state)
    with durable_files.exclusive(files.state):
        boundary = Boundary.of_files(agreement, merchant, files, stop.is_set)
        with boundary.ledger.charging_alone():
            _serve(boundary, files, hash_key, folder, ready, stop)


def _serve(
    boundary: Boundary, files: MerchantFiles, hash_key: bytes | None, folder: Path, ready: int, stop: threading.Event
) -> None:
    # Late, so that a mistake on the command line is told before TensorFlow is loaded.
    from hansa_client.data import load_table
    from hansa_client.masked_sums import masked_sums_of
    from hansa_client.programs import Programs
    from hansa_client.trainer import MerchantTrainer
    from hansa_client.variates import VariateStore

    agreement, merchant = boundary.agreed.agreement, boundary.agreed.merchant
    table = load_table(files.data, agreement, merchant)
    quality = json.dumps(table.quality.to_json(), indent=2)
    durable_files.write(files.state / QUALITY_NAME, quality.encode())
    programs = Programs.for_tables(agreement, table)
    trainer = MerchantTrainer(
        agreement,
        merchant,
        table,
        hash_key=hash_key,
        state=VariateStore(files.state / "variates"),
        programs=programs,
        out=files.state,
        sums=masked_sums_of(agreement, merchant, files.state),
    )
    backend, device = programs.device
    boundary.audit.started(agreement.fingerprint)
    with TrainerServer(GuardedTrainer(trainer, boundary), merchant, folder):
        typer.echo(f"{merchant}: {table.quality.line}")
        typer.echo(f"{merchant}: {len(table.train)} training rows, {backend} on {device}")
        for line in boundary.budget_lines():
            typer.echo(f"{merchant}: {line}")
        os.write(ready, b"ready\n")
        os.close(ready)
        stop.wait()


def main(
    agreement: Annotated[Path, typer.Option()],
    data: Annotated[Path, typer.Option()],
    merchant: Annotated[str, typer.Option()],
    state: Annotated[Path, typer.Option()],
    folder: Annotated[Path, typer.Option(help="A folder of this user alone, for the socket.")],
    ready: Annotated[int, typer.Option(help="A descriptor to write a line to when orders can come.")],
    hash_key: Annotated[Path | None, typer.Option()] = None,
    policy: Annotated[Path | None, typer.Option()] = None,
    ledger: Annotated[Path | None, typer.Option()] = None,
    ledger_head: Annotated[Path | None, typer.Option()] = None,
) -> None:
    """Serve one merchant's trainer; `hansa client start` runs this."""
    log_to_stderr(logging.WARNING)
    # What is delivered waits for this merchant, who should hear of it.
    logging.getLogger("hansa_client.delivery").setLevel(logging.INFO)
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    threading.Thread(target=_stop_with_parent, args=(stop,), daemon=True).start()
    try:
        files = MerchantFiles(agreement, data, state, hash_key, policy, ledger, ledger_head)
        serve(files, merchant, folder, ready, stop)
    except HansaError as error:
        typer.echo(f"hansa: {error}", err=True)
        raise typer.Exit(error.exit_code) from None


def _stop_with_parent(stop: threading.Event) -> None:
    children.wait_for_end_of_parent()
    stop.set()


if __name__ == "__main__":
    run_program(main)
