"""`hansa client check`: is this merchant's side in order? It tells each piece, and changes and sends nothing."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from hansa_client.participation import Given
from hansa_client.state_folders import state_folder

if TYPE_CHECKING:
    from hansa_client.checks import Check

_COLOURS: Final = {"good": "green", "look": "yellow", "wrong": "red"}


def check(
    data: Annotated[Path, typer.Option(help="This merchant's table: CSV, gzip CSV or Parquet.")],
    state: Annotated[
        Path | None,
        typer.Option(help="Where this merchant has enrolled.", show_default="the one merchant's in .hansa"),
    ] = None,
    agreement: Annotated[
        Path | None, typer.Option(help="Another agreement (TOML).", show_default="the one approved last")
    ] = None,
    policy: Annotated[
        Path | None, typer.Option(help="What this merchant permits (TOML).", show_default="STATE/merchant.toml")
    ] = None,
    hash_key: Annotated[
        Path | None, typer.Option(help="The merchants' key for hashed categories, 64 hexadecimal digits.")
    ] = None,
    ledger: Annotated[
        Path | None,
        typer.Option(
            help="The privacy ledger's folder, where several federations share one.", show_default="STATE/ledger"
        ),
    ] = None,
    ledger_head: Annotated[
        Path | None,
        typer.Option(help="The file outside it that says how far it is.", show_default="among this user's state"),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """See whether keys, agreement, policy, data, records, clock and gateway are in order; nothing of them leaves."""
    # Late: gRPC and certificates are imported with it.
    from hansa_client.checks import checks

    given = Given(data, state_folder(state), agreement, hash_key, policy, ledger, ledger_head)
    found = list(checks(given, datetime.now(UTC)))
    if as_json:
        pieces = [{"piece": check.piece, "verdict": check.verdict, "told": check.told} for check in found]
        typer.echo(json.dumps({"good": not _is_wrong(found), "checks": pieces}))
    else:
        _show(found, Console(highlight=False))
    if _is_wrong(found):
        raise typer.Exit(1)


def _is_wrong(found: list[Check]) -> bool:
    return any(check.verdict == "wrong" for check in found)


def _show(found: list[Check], console: Console) -> None:
    table = Table("Piece", "", "What was found")
    for check in found:
        table.add_row(Text(check.piece), Text(check.verdict, _COLOURS[check.verdict]), Text(check.told))
    console.print(table)
