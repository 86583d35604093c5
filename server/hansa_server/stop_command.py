"""`hansa server stop`: end the run that is going on, and the server after it, from another terminal.

A run that is ended has lost nothing that its checkpoint holds. Each is waited for, so that what follows can rely on it.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated, Final

import typer

from hansa_common.errors import CoordinatorError
from hansa_server import checkpoint, server_process, superlink
from hansa_server.status import read_status

RUN_SECONDS: Final = 60.0
_POLL_SECONDS: Final = 0.1


def stop(
    state: Annotated[Path, typer.Option(help="Where the coordinator's state is kept.")] = Path(".hansa/server"),
    run_only: Annotated[bool, typer.Option("--run-only", help="End the run, and leave the server.")] = False,
) -> None:
    """End the run that is going on, and then the server."""
    folder = state.absolute()
    server = server_process.find(folder)
    if server is None:
        typer.echo("server: is not running")
        return
    stopped = stop_runs(folder, superlink.Control.of(server.address, folder))
    for run in stopped:
        more = f"; `hansa server resume {run}` goes on with it" if checkpoint.is_kept(run) else ""
        typer.echo(f"server: the run in {run} is stopped{more}")
    if run_only:
        if not stopped:
            typer.echo("server: no run is going on")
        return
    server_process.stop(folder, server)
    typer.echo("server: stopped")


def stop_runs(state: Path, control: superlink.Control) -> list[Path]:
    """End the runs that are going on, wait for their processes, and return their folders.

    Raises:
        CoordinatorError: a run's process has not ended after RUN_SECONDS.
        TransportError: SuperLink cannot be asked.
    """
    running = [run for run in read_status(state).runs if run.state == "running"]
    for run in running:
        control.stop_run(run.flower_id)
    for run in running:
        _wait_for(run.folder)
    return [run.folder for run in running]


def _wait_for(run: Path) -> None:
    deadline = time.monotonic() + RUN_SECONDS
    while checkpoint.is_held(run):
        if time.monotonic() >= deadline:
            raise CoordinatorError(f"the run in {run} has not ended within {RUN_SECONDS:.0f} seconds")
        time.sleep(_POLL_SECONDS)
