"""`hansa server status`: the merchants by name, the runs, and whether the server runs."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Final

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from hansa_server.run_events import traffic
from hansa_server.server_process import ServerProcess
from hansa_server.status import MerchantStatus, Status, read_status

_APPROVED: Final = {True: "yes", False: "no", None: "-"}
_MINUTE_SECONDS: Final = 60
_HOUR_SECONDS: Final = 3600
_DAY_SECONDS: Final = 86_400


def status(
    state: Annotated[Path, typer.Option(help="Where the coordinator's state is kept.")] = Path(".hansa/server"),
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Show the merchants by name (connected, last seen, version, agreement approved, rounds served), and the runs."""
    found = read_status(state.absolute())
    if as_json:
        typer.echo(json.dumps(found.to_json()))
    else:
        show(found, Console(highlight=False), datetime.now(UTC))


def show(found: Status, console: Console, now: datetime) -> None:
    """Print a status for people."""
    server = found.server
    lines = ["server: is not running" if server is None else f"server: {_where(server)}, process {server.pid}"]
    for run in found.runs:
        came_and_went = traffic(run.bytes_received, run.bytes_sent)
        lines.append(f"run in {run.folder}: {run.state}, rounds done: {run.rounds_done}, {came_and_went}")
    if found.num_unknown_nodes:
        lines.append(f"connected, not introduced yet: {found.num_unknown_nodes}")
    for merchant in found.merchants:
        if merchant.in_two_places is not None:
            when = ago((now - merchant.in_two_places).total_seconds())
            lines.append(
                f"WARNING: the certificate of {merchant.name} was in use in two places ({when}); was it copied?"
            )
        if merchant.ledger_went_back is not None:
            when = ago((now - merchant.ledger_went_back).total_seconds())
            lines.append(
                f"WARNING: the privacy ledger of {merchant.name} went back{_lines(merchant)} ({when}); was an older "
                "copy of it put back? What that does not know of can be spent again"
            )
    for line in lines:
        console.print(Text(line), soft_wrap=True)
    if found.merchants:
        table = Table("Merchant", "Connected", "Last seen", "Version", "Agreement approved", "Rounds served")
        for merchant in found.merchants:
            table.add_row(*map(Text, _cells(merchant, now)))
        console.print(table)


def _lines(merchant: MerchantStatus) -> str:
    lines = merchant.ledger_lines
    return "" if lines is None else f" from line {lines[0]} to line {lines[1]}"


def _where(server: ServerProcess) -> str:
    """Where merchants connect, first of all."""
    own = f"SuperLink on {server.address}"
    return own if server.gateway is None else f"gateway on {server.gateway}, {own}"


def _cells(merchant: MerchantStatus, now: datetime) -> list[str]:
    return [
        merchant.name,
        "yes" if merchant.is_connected else "no",
        "never" if merchant.last_seen is None else ago((now - merchant.last_seen).total_seconds()),
        merchant.version or "-",
        _APPROVED[merchant.has_approved],
        str(merchant.rounds_served),
    ]


def ago(seconds: float) -> str:
    """How long ago, in one unit.

    >>> ago(3), ago(150), ago(7300), ago(200_000)
    ('now', '2 min ago', '2 h ago', '2 d ago')
    """
    for unit, size in (("d", _DAY_SECONDS), ("h", _HOUR_SECONDS), ("min", _MINUTE_SECONDS)):
        if seconds >= size:
            return f"{seconds // size:.0f} {unit} ago"
    return "now"
