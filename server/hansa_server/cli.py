"""`hansa server`: serve merchants, train a model over those that are connected, and deliver it.

What listens where, with keys and in development, is serving.py's. Errors are raised: the dispatcher tells them.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TextIO

import typer

from hansa_common.addresses import loopback_address
from hansa_common.agreement import Agreement
from hansa_common.agreement_file import read_agreement
from hansa_common.errors import CoordinatorError, RunFailedError, TransportError, UsageError
from hansa_common.stopping import stopped_by_sigterm
from hansa_server import checkpoint, run_folder, run_process, server_process, serving, superlink
from hansa_server.export_command import export
from hansa_server.seals import seals_for
from hansa_server.serving import DEVELOPMENT_ADDRESS
from hansa_server.signing import KEY_NAME, signing_key
from hansa_server.status_command import status
from hansa_server.stop_command import stop

if TYPE_CHECKING:
    from hansa_server.delivery import Consignment

server = typer.Typer(name="server", help="Coordinate a federation.", no_args_is_help=True)


@server.command()
def start(
    address: Annotated[
        str | None,
        typer.Option(help="Where merchants connect.", show_default=f"as provisioned, else {DEVELOPMENT_ADDRESS}"),
    ] = None,
    state: Annotated[Path, typer.Option(help="Where the coordinator's state is kept.")] = Path(".hansa/server"),
) -> None:
    """Serve the merchants that were provisioned, or in development any on this machine, until Ctrl-C."""
    try:
        with stopped_by_sigterm():
            serving.serve(state.absolute(), address, lambda line: typer.echo(f"server: {line}"))
    except KeyboardInterrupt:
        typer.echo("server: stopped")


@server.command()
def train(
    agreement: Annotated[Path, typer.Argument(help="The agreement (TOML).")],
    out: Annotated[Path, typer.Option(help="The run's folder; must not exist yet.")],
    server: Annotated[str | None, typer.Option(help="The SuperLink.", show_default="the one of --state")] = None,
    state: Annotated[Path, typer.Option(help="Where the coordinator's signing key is kept.")] = Path(".hansa/server"),
    seed: Annotated[int | None, typer.Option(help="Another seed than the agreement's; merchants must agree.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="End with the results as JSON; progress to stderr.")] = False,
) -> None:
    """Train one model over the connected merchants, and leave it with its metrics in a folder."""
    agreed, _ = read_agreement(agreement)
    if seed is not None:
        agreed = agreed.with_seed(seed)
    with stopped_by_sigterm():
        key_file = _order_key(agreed, state.absolute())
        control = _control(server, state.absolute())
        run_folder.create(out.absolute(), agreed, signing_key_file=key_file)
        checkpoint.prepare(out.absolute())
        _to_its_end(out, control, state.absolute(), as_json=as_json)


@server.command()
def resume(
    run: Annotated[Path, typer.Argument(help="The folder of a run that did not come to its end.")],
    server: Annotated[str | None, typer.Option(help="The SuperLink.", show_default="the one of --state")] = None,
    state: Annotated[Path, typer.Option(help="Where the coordinator's signing key is kept.")] = Path(".hansa/server"),
    as_json: Annotated[bool, typer.Option("--json", help="End with the results as JSON; progress to stderr.")] = False,
) -> None:
    """Go on with a run that was stopped, or that a crash broke off, as if nothing had been."""
    with stopped_by_sigterm():
        if run_folder.is_unsigned(run):
            control = _control(server, state.absolute())
            _close(run, run_folder.read_outcome(run), control, state.absolute(), as_json=as_json)
            return
        agreed = run_process.open_resumable(run.absolute())
        key_file = _order_key(agreed, state.absolute())
        if key_file is not None:
            run_folder.name_signing_key(run.absolute(), key_file)
        control = _control(server, state.absolute())
        _to_its_end(run, control, state.absolute(), as_json=as_json)


@server.command()
def deliver(
    run: Annotated[Path, typer.Argument(help="A finished run's folder.")],
    server: Annotated[str | None, typer.Option(help="The SuperLink.", show_default="the one of --state")] = None,
    state: Annotated[Path, typer.Option(help="Where the coordinator's signing key is kept.")] = Path(".hansa/server"),
    as_json: Annotated[bool, typer.Option("--json", help="End with who has it as JSON; progress to stderr.")] = False,
) -> None:
    """Deliver a run's signed bundle to those of its merchants that are connected now, as after a training."""
    if not run_folder.has_bundle(run):
        _sign(run, state.absolute(), err=as_json)
    with stopped_by_sigterm():
        control = _control(server, state.absolute())
        consignment = _deliver(run.absolute(), control, sys.stderr if as_json else sys.stdout)
    if as_json:
        typer.echo(json.dumps({"bundle": consignment.bundle_id, "merchants": dict(consignment.words)}))
    if consignment.missing:
        raise CoordinatorError(_outstanding(consignment, run))


server.command()(status)
server.command()(stop)
server.command()(export)


def _control(server: str | None, state: Path) -> superlink.Control:
    """The way to the SuperLink that was named, or that runs with this state folder."""
    running = server_process.find(state)
    if server is not None:
        address = loopback_address(server)
    else:
        address = loopback_address(DEVELOPMENT_ADDRESS) if running is None else running.address
    if not superlink.is_superlink(address):
        raise TransportError(f"no SuperLink answers at {address}; start one with `hansa server start`")
    return superlink.Control.of(address, state)


def _order_key(agreement: Agreement, state: Path) -> Path | None:
    """Where the key is that orders are signed with, once it is seen to be the one that the agreement trusts."""
    if agreement.trust is None:
        if serving.is_provisioned(state):
            raise UsageError(
                f"the agreement has no [trust], and {state} is provisioned for merchants who believe signed orders "
                "only; train with the agreement that `hansa provision` wrote beside the kits"
            )
        return None
    seals_for(agreement, state / KEY_NAME)
    return state / KEY_NAME


def _to_its_end(run: Path, control: superlink.Control, state: Path, *, as_json: bool) -> None:
    """Run what is in the folder, and close it."""
    metrics = run_process.run_to_its_end(run.absolute(), control, sys.stderr if as_json else sys.stdout)
    _close(run, metrics, control, state, as_json=as_json)


def _close(run: Path, metrics: Mapping[str, Any], control: superlink.Control, state: Path, *, as_json: bool) -> None:
    """Sign and deliver the small model of a finished run, if it has one, and tell the figures."""
    if run_folder.has_small_model(run):
        _sign(run, state, err=as_json)
        consignment = _deliver(run.absolute(), control, sys.stderr if as_json else sys.stdout)
        if consignment.missing:
            typer.echo(f"server: {_outstanding(consignment, run)}", err=as_json)
    if as_json:
        typer.echo(json.dumps(metrics))


def _sign(folder: Path, state: Path, *, err: bool) -> None:
    public_key = run_folder.write_bundle(folder, signing_key(state))
    typer.echo(f"server: {folder / run_folder.BUNDLE} is signed by {public_key}", err=err)


def _deliver(folder: Path, control: superlink.Control, progress: TextIO) -> Consignment:
    """Hand the folder to Flower once more: what is signed in it is delivered."""
    # Late: Flower's server side takes a second to import.
    from hansa_server.delivery import Consignment

    # Before anything is started, because it can be refused.
    Consignment.of_run(folder)
    _run(folder, control, progress)
    return Consignment.of_run(folder)


def _run(folder: Path, control: superlink.Control, progress: TextIO) -> None:
    run_id = control.start_run(folder)
    try:
        control.follow_run(run_id, progress.buffer)
    except KeyboardInterrupt:
        control.stop_run(run_id)
        raise RunFailedError(f"run {run_id} was stopped before its end") from None


def _outstanding(consignment: Consignment, folder: Path) -> str:
    names = ", ".join(f"{name} ({word})" for name, word in consignment.missing.items())
    return f"not everyone has the bundle yet: {names}; when they are connected: hansa server deliver {folder}"
