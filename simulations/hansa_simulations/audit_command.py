"""`hansa audit`: what attacks find out of a finished simulated run about the rows it was trained on.

Errors are raised: the dispatcher tells them. Everything heavy is imported inside the command.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Annotated, Final

import typer

from hansa_common.audit_agreement import Attack
from hansa_simulations.cli import progress_to_stderr, quieten_tensorflow

MAX_PROCESSES: Final = 64

audit = typer.Typer(
    name="audit", help="Attack a finished run's model, and say what it gives away of its rows.", add_completion=False
)


@audit.command()
def attack_run(
    run: Annotated[Path, typer.Argument(help="The folder of a finished simulation.")],
    data: Annotated[Path | None, typer.Argument(help="The table it was made from; a demo's makes itself.")] = None,
    attack: Annotated[
        Attack | None,
        typer.Option(show_default="the agreed", help="On membership: with shadow federations, or without."),
    ] = None,
    shadows: Annotated[
        int | None, typer.Option(min=4, max=1024, show_default="the agreed", help="How many shadow federations.")
    ] = None,
    attribute: Annotated[
        str | None, typer.Option(help="A category or boolean to guess from a row's other columns and the model.")
    ] = None,
    inversion: Annotated[bool, typer.Option(help="Try to tell rows from a merchant's update.")] = True,
    processes: Annotated[
        int | None, typer.Option(min=1, max=MAX_PROCESSES, show_default="one a core", help="That train them.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="End with audit.json; progress to stderr.")] = False,
) -> None:
    """Attack a finished run's model, and say what it gives away of its rows."""
    quieten_tensorflow()
    with progress_to_stderr(as_json):
        from hansa_simulations.audit_display import AuditDisplay, print_audit
        from hansa_simulations.audit_files import leave
        from hansa_simulations.audit_run import Auditor, Settings

        num_processes = processes or len(os.sched_getaffinity(0))
        auditor = Auditor(run, data, Settings(attack, shadows, num_processes, inversion, attribute))
        with AuditDisplay(auditor.num_shadows) as display:
            found = auditor.audited(display.trained)
        leave(found, run)
    if as_json:
        typer.echo(json.dumps(found.to_json()))
    else:
        print_audit(found)
        typer.echo(f"The audit is in {run / 'audit'}")
    if found.gate is not None and not found.gate.passed:
        raise typer.Exit(1)
