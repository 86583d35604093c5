"""`hansa attack`: what dishonest merchants would do to a model, rule by rule, on one table's silos.

Errors are raised: the dispatcher tells them. Everything heavy is imported inside the command.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from hansa_common.agreement_file import read_agreement
from hansa_simulations.cli import merchant_tables, progress_to_stderr, quieten_tensorflow

attack = typer.Typer(
    name="attack", help="Try attacks of dishonest merchants against rules that withstand them.", add_completion=False
)


@attack.command()
def try_attacks(
    scenario: Annotated[Path, typer.Argument(help="Defences, attacks and marks (TOML).")],
    agreement: Annotated[Path, typer.Argument(help="The agreement (TOML); an empty roster takes all silos.")],
    data: Annotated[Path, typer.Argument(help="A table of all merchants' rows: CSV, gzip CSV or Parquet.")],
    silo: Annotated[str, typer.Option(help="The column whose values are the merchants, or bands: Amount:0,1,10.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="The folder of what comes of it.")],
    min_silo_rows: Annotated[int, typer.Option(min=1, help="Merge silos with fewer rows into one.")] = 1,
    seed: Annotated[int | None, typer.Option(help="Another seed than the agreement's.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="End with results.json; progress to stderr.")] = False,
) -> None:
    """Try attacks of dishonest merchants against rules that withstand them."""
    quieten_tensorflow()
    with progress_to_stderr(as_json):
        from hansa_client.silos import parse_silo, split_silos
        from hansa_client.tables import read_frame
        from hansa_simulations.attack_display import AttackDisplay, print_results
        from hansa_simulations.attack_results import FIGURE, Results, leave, out_folder
        from hansa_simulations.attack_scenario import read_scenario
        from hansa_simulations.attack_trials import Trial

        out_folder(out).check_free()
        asked, (agreed, _) = read_scenario(scenario), read_agreement(agreement)
        agreed = agreed if seed is None else agreed.with_seed(seed)
        frames = split_silos(read_frame(data), parse_silo(silo), min_silo_rows)
        agreed = agreed.without_trust() if agreed.roster else agreed.with_roster(tuple(frames))
        tables = merchant_tables(agreed, frames, str(data))
        with AttackDisplay(asked, agreed.training.rounds) as display:
            cells = Trial(asked, agreed, tables, display.show).cells(display.end, display.begin)
        about = {"source": data.name, "silos": silo, "min_silo_rows": min_silo_rows}
        results = Results(asked, agreed, tuple(cells), about)
        leave(results, out)
    if as_json:
        typer.echo(json.dumps(results.to_json()))
        return
    print_results(results)
    typer.echo(f"All cells are in {out}, drawn in {out / FIGURE}")
