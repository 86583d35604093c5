"""`hansa compress`: what a finished simulated run's model may lose to become small, choice by choice.

Errors are raised: the dispatcher tells them. Everything heavy is imported inside the command.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from hansa_common.errors import UsageError
from hansa_simulations.cli import DEMO_SOURCE, demo_scenario, merchant_tables, progress_to_stderr, quieten_tensorflow

if TYPE_CHECKING:
    from hansa_client.data import MerchantTable
    from hansa_server.run_folder import FinishedRun

MAX_SPARSITY: Final = 0.95

compress = typer.Typer(
    name="compress", help="Try how small a finished run's model can be, and what that costs.", add_completion=False
)


@compress.command()
def try_choices(
    run: Annotated[Path, typer.Argument(help="The folder of a finished simulation.")],
    data: Annotated[Path | None, typer.Argument(help="The table it was made from; a demo's makes itself.")] = None,
    sparsity: Annotated[str, typer.Option(help="Shares of zeros in the hidden kernels; int8 alone comes first.")] = (
        "0.5,0.8"
    ),
    max_loss: Annotated[
        float | None, typer.Option(min=0, max=1, help="Validation PR-AUC that may be lost [default: the agreement's].")
    ] = None,
    rounds: Annotated[
        int | None, typer.Option(min=1, max=100, help="Rounds to reach the sparsity [default: the agreement's].")
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="The folder of what comes of it [default: RUN/compress].")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="End with choices.json; progress to stderr.")] = False,
) -> None:
    """Try how small a finished run's model can be, and what that costs."""
    asked = parse_sparsities(sparsity)
    quieten_tensorflow()
    with progress_to_stderr(as_json):
        from hansa_server.run_folder import COMPRESS, open_finished
        from hansa_simulations.choices import Limits, Trial, with_compression, with_search
        from hansa_simulations.choices_display import ChoicesDisplay, print_choices
        from hansa_simulations.choices_files import FIGURE, Choices, check_free, leave

        out = run / COMPRESS if out is None else out
        finished = open_finished(run)
        check_free(out)
        agreed = finished.agreement.compression
        limits = Limits(
            agreed.max_pr_auc_loss if max_loss is None else max_loss,
            agreed.pruning_rounds if rounds is None else rounds,
        )
        for share in asked:
            # At once, where the network has nothing to prune.
            with_compression(finished.agreement, share, limits)
        tables = tables_of_run(finished, run, data)
        with ChoicesDisplay(1 + len(asked), limits.pruning_rounds) as display:
            trial = Trial(finished, tables, limits, display.show)

            def made(sparsity: float, is_asked: bool) -> Any:
                display.begin(sparsity)
                choice = trial.made(sparsity, is_asked)
                display.end(choice)
                return choice

            choices = Choices(finished, limits, with_search(made, asked))
        leave(choices, out)
    if as_json:
        typer.echo(json.dumps(choices.to_json()))
        return
    print_choices(choices)
    typer.echo(f"All choices are in {out}, drawn in {out / FIGURE}")


def parse_sparsities(text: str) -> tuple[float, ...]:
    """Read what stands after --sparsity.

    Raises:
        UsageError: a word is no share of weights that can be pruned.

    >>> parse_sparsities("0.8, 0.5"), parse_sparsities("0")
    ((0.5, 0.8), ())
    """
    found = set()
    for word in text.split(","):
        try:
            share = float(word)
        except ValueError:
            raise UsageError(f"--sparsity: {word.strip()!r} is not a number; give shares like 0.5,0.8") from None
        if not 0 <= share <= MAX_SPARSITY:
            raise UsageError(f"--sparsity: {word.strip()} is not a share from 0 to {MAX_SPARSITY:g}; give 0.8 for 80 %")
        found.add(share)
    return tuple(sorted(found - {0.0}))


def tables_of_run(finished: FinishedRun, folder: Path, data: Path | None) -> Mapping[str, MerchantTable]:
    """The merchants' tables that a simulated run was made from.

    Raises:
        UsageError: the run was no simulation, its table was not given, or the one given is not it.
    """
    about, agreement = finished.metrics.get("data"), finished.agreement
    if not isinstance(about, dict):
        raise UsageError(
            f"{folder} is not a simulation, so its rows are with its merchants; write the [compression] to try into "
            "the agreement and train again"
        )
    if data is None and about.get("source") == DEMO_SOURCE:
        tables = demo_scenario(agreement.seed).tables
    elif data is None or "silos" not in about:
        raise UsageError(
            f"the rows of {folder} are in {about.get('source', 'a table')!r}, and a run's folder does not say where; "
            f"give the file: hansa compress {folder} FILE"
        )
    else:
        from hansa_client.silos import parse_silo, split_silos
        from hansa_client.tables import read_frame

        frames = split_silos(read_frame(data), parse_silo(str(about["silos"])), int(about["min_silo_rows"]))
        tables = merchant_tables(agreement, frames, str(data))
    _check_rows(finished, tables, data or folder)
    return tables


def _check_rows(finished: FinishedRun, tables: Mapping[str, MerchantTable], source: Path) -> None:
    for name, table in tables.items():
        rows, expected = len(table.train), finished.metrics["merchants"].get(name, {}).get("num_train_rows")
        if rows != expected:
            raise UsageError(
                f"{source}: {name} has {rows:,} training rows there, and had {expected} in the run; give the table "
                "of the run, as it was"
            )
