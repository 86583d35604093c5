"""`hansa privacy`: what an agreement promises, and which plan to agree on for an epsilon.

Errors are raised: the dispatcher tells them. Everything heavy is imported inside the commands.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from hansa_common.agreement_file import read_agreement
from hansa_common.errors import UsageError
from hansa_simulations.cli import merchant_tables, progress_to_stderr, quieten_tensorflow

privacy = typer.Typer(
    name="privacy",
    help="Choose and check what an agreement promises each person.",
    no_args_is_help=True,
    add_completion=False,
)


@privacy.command()
def statement(
    agreement: Annotated[Path, typer.Argument(help="The agreement (TOML).")],
    as_json: Annotated[bool, typer.Option("--json", help="Print it as JSON.")] = False,
) -> None:
    """Say what a private agreement promises, or that a run would cost more than that."""
    from hansa_common.privacy_costs import check_affordable
    from hansa_common.privacy_statement import privacy_json

    agreed, _ = read_agreement(agreement)
    check_affordable(agreed)
    told = privacy_json(agreed)
    if told is None:
        raise UsageError(f"{agreement} has no [privacy.dp]; `hansa privacy plan` finds one for an epsilon")
    typer.echo(json.dumps(told) if as_json else "\n".join(f"  - {line}" for line in told["statement"]))


@privacy.command()
def plan(
    agreement: Annotated[Path, typer.Argument(help="The agreement (TOML); an empty roster takes all silos.")],
    data: Annotated[Path, typer.Argument(help="A public table, or your own, that stands for the merchants' rows.")],
    silo: Annotated[str, typer.Option(help="The column whose values are the merchants, or bands: Amount:0,1,10.")],
    epsilon: Annotated[float, typer.Option(min=0.01, max=100, help="What a whole run may cost each person.")],
    delta: Annotated[float, typer.Option(min=1e-12, max=0.01, help="The chance that it does not hold.")] = 1e-5,
    min_silo_rows: Annotated[int, typer.Option(min=1, help="Merge silos with fewer rows into one.")] = 1,
    as_json: Annotated[bool, typer.Option("--json", help="End with the plan as JSON; progress to stderr.")] = False,
) -> None:
    """Try models, noise and steps on a table, and recommend what to agree on for an epsilon."""
    quieten_tensorflow()
    with progress_to_stderr(as_json):
        from hansa_client.silos import parse_silo, split_silos
        from hansa_client.tables import read_frame
        from hansa_simulations.privacy_display import PlanDisplay, plan_lines
        from hansa_simulations.privacy_plan import find_plan

        spec = parse_silo(silo)
        agreed, _ = read_agreement(agreement)
        frames = split_silos(read_frame(data), spec, min_silo_rows)
        agreed = agreed.without_trust() if agreed.roster else agreed.with_roster(tuple(frames))
        tables = merchant_tables(agreed, frames, str(data))
        with PlanDisplay() as display:
            found = find_plan(agreed, tables, epsilon, delta, display)
    typer.echo(json.dumps(found.to_json()) if as_json else "\n".join(plan_lines(found, data.name)))
