"""`hansa client start`: a merchant's side of a federation, as processes that live and end together.

The trainer is started first, and Flower's node once the trainer can take orders. If one of them ends, the other
is ended and the command says which and where its log is. Development mode: the coordinator is on this machine,
because nothing here encrypts or authenticates the way to it. Errors are raised: the dispatcher tells them.
"""

from __future__ import annotations

import os
import select
import shutil
import socket
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Annotated, Final

import typer

from hansa_client import flower_node
from hansa_client.approvals import Approvals
from hansa_client.approve_command import approve
from hansa_client.audit_command import audit
from hansa_client.enroll_command import enroll
from hansa_client.fetch_command import fetch
from hansa_client.merchant_files import MerchantFiles
from hansa_client.node_user import NodeUser
from hansa_client.seals import seals_for
from hansa_client.trainer_link import SOCKET_NAME
from hansa_client.trainer_service import check_socket_folder
from hansa_common import children, durable_files
from hansa_common.addresses import Address, loopback_address
from hansa_common.enrolment_papers import decode_federation
from hansa_common.errors import MerchantError, TransportError, UsageError
from hansa_common.merchant_keys import FEDERATION
from hansa_common.publisher import TRUSTED_ENTITIES_NAME, trusted_entities_yaml
from hansa_common.stopping import stopped_by_sigterm

READY_SECONDS: Final = 900.0
CONNECT_SECONDS: Final = 5.0

client = typer.Typer(name="client", help="Take part in a federation as a merchant.", no_args_is_help=True)


@client.callback()
def _group() -> None:
    """Take part in a federation as a merchant."""


@client.command()
def start(
    agreement: Annotated[Path, typer.Argument(help="The agreement that this merchant approved (TOML).")],
    data: Annotated[Path, typer.Argument(help="This merchant's table: CSV, gzip CSV or Parquet.")],
    merchant: Annotated[str, typer.Option(help="This merchant's name, as in the agreement's roster.")],
    server: Annotated[str, typer.Option(help="The coordinator's SuperLink.")] = "127.0.0.1:8000",
    state: Annotated[
        Path | None, typer.Option(help="Where this merchant's state is kept.", show_default=".hansa/MERCHANT")
    ] = None,
    hash_key: Annotated[
        Path | None, typer.Option(help="The merchants' key for hashed categories, 64 hexadecimal digits.")
    ] = None,
    policy: Annotated[
        Path | None,
        typer.Option(
            help="What this merchant permits beyond the agreement (TOML).", show_default="STATE/merchant.toml"
        ),
    ] = None,
    trusted: Annotated[
        Path | None,
        typer.Option(help="Whose signature Flower's bundle must have (YAML).", show_default="the kit's publisher"),
    ] = None,
    node_user: Annotated[
        str | None, typer.Option(help="The user of this machine to run Flower's node as; for root.")
    ] = None,
) -> None:
    """Serve this merchant's trainer and connect it to the coordinator, until Ctrl-C."""
    state_folder = state or Path(".hansa") / merchant
    files = MerchantFiles(agreement.absolute(), data.absolute(), state_folder.absolute(), hash_key, policy)
    try:
        with stopped_by_sigterm():
            user = None if node_user is None else NodeUser.named(node_user)
            _start(files, merchant, loopback_address(server), trusted, user)
    except KeyboardInterrupt:
        typer.echo(f"{merchant}: stopped")


client.command()(enroll)
client.command()(approve)
client.command()(fetch)
client.command()(audit)


def _start(files: MerchantFiles, merchant: str, server: Address, trusted: Path | None, user: NodeUser | None) -> None:
    _check(files, merchant, trusted)
    _check_reachable(server)
    durable_files.make_private_folder(files.state)
    trusted = trusted or _kits_publisher(files)
    with _private_folder() as folder, ExitStack() as stack:
        check_socket_folder(folder)
        if user is not None:
            user.share(folder)
        trainer = _started_trainer(stack, files, merchant, folder)
        running = flower_node.running(server, folder / SOCKET_NAME, files.state, trusted_entities=trusted, user=user)
        node = stack.enter_context(running)
        typer.echo(f"{merchant}: waiting for orders from {server}; Ctrl-C stops")
        ended = children.first_to_end([trainer, node])
        where = f"; its log is {files.state / flower_node.LOG_NAME}" if ended is node else ""
        raise MerchantError(f"{ended.name} of {merchant} ended with code {ended.process.returncode}{where}")


def _kits_publisher(files: MerchantFiles) -> Path | None:
    """A file for Flower that says whose bundles the kit's coordinator publishes; None where there is no kit."""
    path, trust = files.state / FEDERATION, files.read_agreement().trust
    if trust is None or not path.exists():
        return None
    federation = decode_federation(path.read_bytes(), trust.coordinator, str(path))
    trusted = files.state / TRUSTED_ENTITIES_NAME
    durable_files.write(trusted, trusted_entities_yaml(federation.publisher).encode())
    return trusted


def _check(files: MerchantFiles, merchant: str, trusted: Path | None) -> None:
    """Refuse what can be refused before anything is started."""
    agreement = files.read_agreement()
    if agreement.roster and merchant not in agreement.roster:
        raise UsageError(f"{merchant!r} is not in the agreement's roster: {', '.join(agreement.roster)}")
    files.read_hash_key(agreement)
    if not files.data.exists():
        raise UsageError(f"there is no table at {files.data}")
    if trusted is not None and not trusted.is_file():
        raise UsageError(f"there is no file of trusted publishers at {trusted}")
    if agreement.trust is not None:
        # Without it this command, with the file that it was given, is the approval.
        Approvals(files.state).verify(agreement.fingerprint)
        seals_for(agreement, merchant, files.state)
    for line in files.policy_file().current().conflicts(agreement):
        typer.echo(f"{merchant}: {line}; such orders will be refused")


def _check_reachable(server: Address) -> None:
    try:
        socket.create_connection((server.host, server.port), CONNECT_SECONDS).close()
    except OSError as error:
        raise TransportError(
            f"nothing answers at {server} ({error.strerror or error}); start the coordinator with `hansa server start`"
        ) from error


@contextmanager
def _private_folder() -> Iterator[Path]:
    # Not in the state folder: a socket's path may be a hundred bytes long, no more.
    folder = Path(tempfile.mkdtemp(prefix="hansa-"))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _started_trainer(stack: ExitStack, files: MerchantFiles, merchant: str, folder: Path) -> children.Child:
    """The trainer, once it can take orders; it tells its own troubles."""
    told, ready = os.pipe()
    with open(told, "rb", buffering=0) as answer:  # noqa: PTH123 - a descriptor has no path
        try:
            command = _trainer_command(files, merchant, folder, ready)
            trainer = stack.enter_context(
                children.running("the trainer", command, _trainer_environment(), pass_fds=(ready,))
            )
        finally:
            # Ours goes, so that the trainer's end closes the pipe.
            os.close(ready)
        readable, _, _ = select.select([answer], [], [], READY_SECONDS)
        if not readable:
            raise MerchantError(f"the trainer of {merchant} was not ready within {READY_SECONDS:.0f} seconds")
        if not answer.read(1):
            raise typer.Exit(trainer.process.wait() or 1)
    return trainer


def _trainer_command(files: MerchantFiles, merchant: str, folder: Path, ready: int) -> list[str]:
    options = {
        "--agreement": files.agreement,
        "--data": files.data,
        "--merchant": merchant,
        "--state": files.state,
        "--folder": folder,
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
