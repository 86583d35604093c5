"""`hansa compress`: what a finished simulated run's model may lose to become small, choice by choice.

Errors are raised: the dispatcher tells them. Everything heavy is imported inside the command.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any, Final

import typer

from hansa_common.errors import UsageError
from hansa_simulations.cli import progress_to_stderr, quieten_tensorflow

MAX_SPARSITY: Final = 0.95
# Of real processes, where nobody here has the rows.
INSTEAD: Final = "write the [compression] to try into the agreement and train again"

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
        float | None,
        typer.Option(min=0, max=1, show_default="the agreement's", help="Validation PR-AUC that may be lost."),
    ] = None,
    rounds: Annotated[
        int | None, typer.Option(min=1, max=100, show_default="the agreement's", help="Rounds to reach the sparsity.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", show_default="RUN/compress", help="The folder of what comes of it.")
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
        from hansa_simulations.choices_files import FIGURE, Choices, leave, out_folder
        from hansa_simulations.run_tables import tables_of_run

        out = run / COMPRESS if out is None else out
        finished = open_finished(run)
        out_folder(out).check_free()
        agreed = finished.agreement.compression
        limits = Limits(
            agreed.max_pr_auc_loss if max_loss is None else max_loss,
            agreed.pruning_rounds if rounds is None else rounds,
        )
        for share in asked:
            # At once, where the network has nothing to prune.
            with_compression(finished.agreement, share, limits)
        tables = tables_of_run(finished, run, data, command="compress", instead=INSTEAD)
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
