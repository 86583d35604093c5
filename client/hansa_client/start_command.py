"""`hansa client start`: a merchant's side of a federation, one command for all its processes; or for the trainer alone,
with `hansa client node` for the rest as another user.

An enrolled merchant names its table; its name, its keys and the coordinator's address are in its state folder, and the
agreement is the one that it approved. Development is one machine without keys: it must be asked for, and the
coordinator must be on this machine, because nothing then encrypts or authenticates the way to it.
"""

from __future__ import annotations

import socket
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Final, NoReturn

import typer

from hansa_client.enrolment import read_node_side
from hansa_client.node_user import NodeUser
from hansa_client.participation import DEVELOPMENT_SERVER, Given, Participation, enrolled, in_development
from hansa_client.participation_options import (
    AgreementOption,
    HashKeyOption,
    LedgerHeadOption,
    LedgerOption,
    PolicyOption,
    StateOption,
    TableOption,
)
from hansa_client.state_folders import STATES, state_folder
from hansa_common import durable_files
from hansa_common.addresses import Address, loopback_address
from hansa_common.errors import TransportError, UsageError
from hansa_common.readiness import EndedEarlyError
from hansa_common.stopping import stopped_by_sigterm

CONNECT_SECONDS: Final = 5.0

Tell = Callable[[str], object]


def start(
    data: TableOption,
    state: StateOption = None,
    agreement: AgreementOption = None,
    policy: PolicyOption = None,
    hash_key: HashKeyOption = None,
    ledger: LedgerOption = None,
    ledger_head: LedgerHeadOption = None,
    node_user: Annotated[
        str | None, typer.Option(help="The user of this machine to run Flower's node as; for root.")
    ] = None,
    trainer_only: Annotated[
        Path | None,
        typer.Option(help="Start the trainer alone, in this folder, which the group of its node's user may enter."),
    ] = None,
    development: Annotated[
        bool, typer.Option("--development", help="Without keys, on this machine alone; never for real data.")
    ] = False,
    merchant: Annotated[str | None, typer.Option(help="With --development: this merchant's name.")] = None,
    server: Annotated[
        str | None, typer.Option(help="With --development: the SuperLink.", show_default=DEVELOPMENT_SERVER)
    ] = None,
) -> None:
    """Serve this merchant's trainer to the coordinator, until Ctrl-C."""
    if trainer_only is not None and node_user is not None:
        raise UsageError("with --trainer-only, the node's user is who runs `hansa client node`; leave --node-user out")
    user = None if node_user is None else NodeUser.named(node_user)
    if development:
        folder = state or STATES / (merchant or "")
        taking_part = in_development(
            Given(data, folder, agreement, hash_key, policy, ledger, ledger_head),
            merchant,
            loopback_address(server or DEVELOPMENT_SERVER),
        )
    elif merchant is not None or server is not None:
        raise UsageError("--merchant and --server are for --development; an enrolled merchant has both in its kit")
    else:
        taking_part = enrolled(
            Given(data, state_folder(state), agreement, hash_key, policy, ledger, ledger_head), datetime.now(UTC)
        )
    _start(taking_part, user, trainer_only)


def node(
    state: Annotated[Path, typer.Option(help="The kit, and beside it node.key and tls.key; this user's alone.")],
    trainer: Annotated[Path, typer.Option(help="The folder of `hansa client start --trainer-only`.")],
) -> None:
    """Connect a trainer that another user of this machine runs, until Ctrl-C."""
    from hansa_client import merchant_processes

    durable_files.make_private_folder(state)
    federation = read_node_side(state, datetime.now(UTC))
    own, folder = state.absolute(), trainer.absolute()
    _run_until_stopped(federation.merchant, lambda tell: merchant_processes.run_node(federation, own, folder, tell))


def _start(taking_part: Participation, user: NodeUser | None, trainer_only: Path | None) -> None:
    # Late: gRPC and certificates are imported with it.
    from hansa_client import merchant_processes

    def run(tell: Tell) -> NoReturn:
        for line in taking_part.check():
            tell(f"{line}; such orders will be refused")
        if trainer_only is not None:
            merchant_processes.run_trainer(taking_part, trainer_only.absolute(), tell)
        if taking_part.enrolment is None:
            _check_reachable(taking_part.coordinator)
        merchant_processes.run(taking_part, user, tell)

    _run_until_stopped(taking_part.merchant, run)


def _run_until_stopped(merchant: str, run: Callable[[Tell], NoReturn]) -> None:
    def tell(line: str) -> None:
        typer.echo(f"{merchant}: {line}")

    try:
        with stopped_by_sigterm():
            run(tell)
    except KeyboardInterrupt:
        tell("stopped")
    except EndedEarlyError as error:
        if error.log is not None or error.ended_with < 0:
            raise
        # It has told why itself.
        raise typer.Exit(error.ended_with or 1) from None


def _check_reachable(server: Address) -> None:
    try:
        socket.create_connection((server.host, server.port), CONNECT_SECONDS).close()
    except OSError as error:
        raise TransportError(
            f"nothing answers at {server} ({error.strerror or error}); start the coordinator with `hansa server start`"
        ) from error
