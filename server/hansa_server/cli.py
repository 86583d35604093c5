"""`hansa server`: start the coordinator's SuperLink, and train a model over the merchants connected to it.

Development mode: everything listens on this machine only, because nothing here encrypts or authenticates. Errors are
raised: the dispatcher tells them.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path
from typing import Annotated, Any, TextIO

import typer

from hansa_common.addresses import Address, loopback_address
from hansa_common.agreement import Agreement
from hansa_common.agreement_file import read_agreement
from hansa_common.errors import RunFailedError, TransportError
from hansa_common.stopping import stopped_by_sigterm
from hansa_server import run_folder, superlink
from hansa_server.signing import signing_key

server = typer.Typer(name="server", help="Coordinate a federation.", no_args_is_help=True)


@server.command()
def start(
    address: Annotated[str, typer.Option(help="Where to listen, on this machine.")] = "127.0.0.1:8000",
    state: Annotated[Path, typer.Option(help="Where the coordinator's state is kept.")] = Path(".hansa/server"),
) -> None:
    """Start the SuperLink that merchants connect to, until Ctrl-C."""
    try:
        with stopped_by_sigterm():
            _start(loopback_address(address), state.absolute())
    except KeyboardInterrupt:
        typer.echo("server: stopped")


@server.command()
def train(
    agreement: Annotated[Path, typer.Argument(help="The agreement (TOML).")],
    out: Annotated[Path, typer.Option(help="The run's folder; must not exist yet.")],
    server: Annotated[str, typer.Option(help="The SuperLink.")] = "127.0.0.1:8000",
    state: Annotated[Path, typer.Option(help="Where the coordinator's signing key is kept.")] = Path(".hansa/server"),
    seed: Annotated[int | None, typer.Option(help="Another seed than the agreement's; merchants must agree.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="End with the results as JSON; progress to stderr.")] = False,
) -> None:
    """Train one model over the connected merchants, and leave it with its metrics in a folder."""
    agreed, _ = read_agreement(agreement)
    if seed is not None:
        agreed = agreed.with_seed(seed)
    with stopped_by_sigterm():
        metrics = _train(agreed, out.absolute(), loopback_address(server), sys.stderr if as_json else sys.stdout)
    if run_folder.has_small_model(out):
        public_key = run_folder.write_bundle(out, signing_key(state.absolute()))
        typer.echo(f"server: {out / run_folder.BUNDLE} is signed by {public_key}", err=as_json)
    if as_json:
        typer.echo(json.dumps(metrics))


def _start(address: Address, state: Path) -> None:
    superlink.check_port_is_free(address)
    with superlink.running(address, state) as child:
        typer.echo(f"server: SuperLink on {address}; Ctrl-C stops")
        code = child.process.wait()
        raise TransportError(f"SuperLink ended with code {code}; its log is {state / superlink.LOG_NAME}")


def _train(agreement: Agreement, out: Path, address: Address, progress: TextIO) -> dict[str, Any]:
    if not superlink.is_superlink(address):
        raise TransportError(f"no SuperLink answers at {address}; start one with `hansa server start`")
    run_folder.create(out, agreement)
    with tempfile.TemporaryDirectory(prefix="hansa-") as workspace:
        control = superlink.Control.prepared(Path(workspace), address)
        run_id = control.start_run(out)
        try:
            control.follow_run(run_id, progress.buffer)
        except KeyboardInterrupt:
            control.stop_run(run_id)
            raise RunFailedError(f"run {run_id} was stopped before its end") from None
    return run_folder.read_outcome(out)
