"""`hansa agree`: a first agreement, drafted from a table, with what a person must decide. Errors are raised: the
dispatcher tells them.

pandas is imported inside the command, so that `hansa --help` stays quick.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from hansa_common.errors import UsageError

if TYPE_CHECKING:
    from hansa_client.drafting import Draft

agree = typer.Typer(name="agree", help="Draft the agreement from a table.", add_completion=False)


@agree.command()
def draft(
    data: Annotated[Path, typer.Argument(help="A table of what merchants hold; or an agreement, to be told in words.")],
    label: Annotated[str | None, typer.Option(help="The column to predict.")] = None,
    silo: Annotated[
        str | None, typer.Option(help="The column whose values are the merchants, or bands: Amount:0,1,10.")
    ] = None,
    min_silo_rows: Annotated[int, typer.Option(min=1, help="Merge silos with fewer rows into one.")] = 1,
    task: Annotated[
        Literal["fraud", "purchase"] | None,
        typer.Option(help="What is learned; if not said, fraud where positives are below 5 %."),
    ] = None,
    name: Annotated[str, typer.Option(help="The federation's name.")] = "hansa",
    positive: Annotated[
        str | None, typer.Option(help="The label's positive value; if not said, the true one or the rarer.")
    ] = None,
    out: Annotated[Path, typer.Option("-o", "--out", help="Where the draft is written.")] = Path("agreement.toml"),
    force: Annotated[bool, typer.Option("--force", help="Write over an existing file.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the summary as JSON.")] = False,
) -> None:
    """Draft the agreement from a table: column kinds, missing values, and what a person should look at. Given an
    agreement (TOML) instead, say in words what it means.
    """
    if data.suffix == ".toml":
        _tell(data, as_json=as_json)
        return
    if label is None:
        raise UsageError("which column is to be predicted? Name it: --label COLUMN")
    from hansa_client.drafting import draft_agreement
    from hansa_client.silos import parse_silo
    from hansa_client.tables import read_frame

    _refuse_overwriting(out, force=force)
    drafted = draft_agreement(
        read_frame(data),
        label=label,
        source=str(data),
        silo=None if silo is None else parse_silo(silo),
        min_silo_rows=min_silo_rows,
        task=task,
        name=name,
        positive=positive,
    )
    _refuse_overwriting(out, force=force)
    out.write_text(drafted.toml, encoding="utf-8")
    if as_json:
        typer.echo(json.dumps(_summary(drafted, out)))
    else:
        _show(drafted, out)


def _tell(path: Path, *, as_json: bool) -> None:
    from hansa_client.agreement_words import plain_words
    from hansa_common.agreement_file import read_agreement
    from hansa_common.privacy_costs import check_affordable

    agreement, _ = read_agreement(path)
    check_affordable(agreement)
    words = plain_words(agreement)
    if as_json:
        typer.echo(json.dumps({"agreement": str(path), "fingerprint": agreement.fingerprint, "words": words}))
        return
    for line in (*words, f"its fingerprint is {agreement.fingerprint}"):
        typer.echo(f"- {line}")


def _refuse_overwriting(out: Path, *, force: bool) -> None:
    if out.exists() and not force:
        raise UsageError(f"{out} exists; give another file with -o, or --force to write over it")


def _summary(drafted: Draft, out: Path) -> dict[str, Any]:
    agreement = drafted.agreement
    return {
        "agreement": str(out),
        "fingerprint": agreement.fingerprint,
        "task": agreement.task,
        "positive": agreement.label.positive,
        "num_rows": drafted.num_rows,
        "num_positives": drafted.num_positives,
        "features": [feature.name for feature in agreement.features],
        "left_out": list(drafted.left_out),
        "roster": list(agreement.roster),
        "findings": [
            {"column": f.column, "code": f.code, "message": f.message, "leaves_out": f.leaves_out}
            for f in drafted.findings
        ],
    }


def _show(drafted: Draft, out: Path) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    agreement = drafted.agreement
    share = drafted.num_positives / drafted.num_rows
    table = Table("To decide", "Column", "What was seen", title_justify="left", expand=False)
    for finding in drafted.findings:
        verb = Text("left out", "yellow") if finding.leaves_out else Text("check", "cyan")
        table.add_row(verb, Text(finding.column or "(rows)"), Text(f"{finding.code}: {finding.message}"))
    console = Console(highlight=False)
    console.print(
        Text(
            f"{drafted.num_rows:,} rows, {drafted.num_positives:,} of them positive ({share:.2%}): {agreement.task}; "
            f"{len(agreement.features)} features, {len(agreement.roster) or 'no'} merchants in the roster"
        )
    )
    if drafted.findings:
        console.print(table)
    console.print(Text(f"The draft is {out}; read it, decide, and agree on it with the others."), soft_wrap=True)
