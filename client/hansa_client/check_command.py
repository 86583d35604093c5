"""`hansa client check`: is this merchant's side in order? It tells each piece, and changes and sends nothing."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated, Final

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from hansa_client.participation import Given
from hansa_client.participation_options import (
    AgreementOption,
    HashKeyOption,
    LedgerHeadOption,
    LedgerOption,
    PolicyOption,
    StateOption,
    TableOption,
)
from hansa_client.state_folders import state_folder

if TYPE_CHECKING:
    from hansa_client.checks import Check

_COLOURS: Final = {"good": "green", "look": "yellow", "wrong": "red"}


def check(
    data: TableOption,
    state: StateOption = None,
    agreement: AgreementOption = None,
    policy: PolicyOption = None,
    hash_key: HashKeyOption = None,
    ledger: LedgerOption = None,
    ledger_head: LedgerHeadOption = None,
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
