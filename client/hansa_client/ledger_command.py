"""`hansa client ledger`: the privacy that this merchant has spent, order by order, and what is left.

It works while the trainer runs. A line that does not follow from those before it, and a ledger that is behind its head
file, end it with an error.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from hansa_client.ledger_entries import MechanismCharge, SampledCharge
from hansa_client.participation_options import LedgerHeadOption, LedgerOption, PolicyOption, StartedStateOption
from hansa_client.state_folders import state_folder
from hansa_common.errors import UsageError

if TYPE_CHECKING:
    from hansa_client.ledger_summary import Order, Spent, Summary


def ledger(
    state: StartedStateOption = None,
    ledger: LedgerOption = None,
    ledger_head: LedgerHeadOption = None,
    policy: PolicyOption = None,
    last: Annotated[int, typer.Option(min=0, help="How many of the last orders to show; 0: all.")] = 40,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    png: Annotated[Path | None, typer.Option(help="Draw what was spent into this file.")] = None,
    write_head: Annotated[
        bool, typer.Option("--write-head", help="Write the head file that is missing: this ledger is the newest.")
    ] = False,
) -> None:
    """Verify and show the privacy that was spent, and what is left."""
    # Late: what composes and draws takes a second to import.
    from hansa_client import ledger as ledgers
    from hansa_client.ledger_summary import summary
    from hansa_client.merchant_files import MerchantFiles

    nothing = Path()
    folder = state_folder(state)
    files = MerchantFiles(nothing, nothing, folder, policy=policy, ledger=ledger, ledger_head=ledger_head)
    if write_head:
        number = ledgers.write_head(files.ledger_files()).number
        typer.echo(f"{files.ledger_files().head.path} says that the ledger is at line {number}")
        return
    reached, entries = ledgers.read(files.ledger_files())
    found = summary(reached, entries, files.policy_file().current().limit)
    if png is not None:
        _draw(found, png)
    if as_json:
        typer.echo(json.dumps(_json(found, last)))
    else:
        _show(found, last, Console(highlight=False))


def _draw(found: Summary, png: Path) -> None:
    from hansa_client.ledger_figure import spent_png
    from hansa_client.ledger_summary import curve

    if found.together is None:
        raise UsageError(f"nothing was charged yet, so there is nothing to draw into {png}")
    together, limits = found.together, list[tuple[str, float]]()
    if together.allowed is not None:
        limits.append(("merchant.toml", together.allowed))
    # An agreement's limit is of its own orders, at its own delta: the curve is of those where there is one agreement.
    for spent in found.agreements:
        if len(found.agreements) == 1 and spent.delta == together.delta and spent.allowed is not None:
            limits.append((_whose(spent), spent.allowed))
    png.write_bytes(spent_png(curve(found.orders, together.delta), together.delta, limits))


def _json(found: Summary, last: int) -> dict[str, Any]:
    return {
        "num_lines": found.state.number,
        "head": found.state.head,
        "agreements": {spent.agreement: spent.to_json() for spent in found.agreements},
        "payers": dict(found.num_orders_by_payer),
        "together": None if found.together is None else found.together.to_json(),
        "orders": [
            {**json.loads(order.charged.line()), "answered": order.is_answered} for order in _last(found.orders, last)
        ],
    }


def _show(found: Summary, last: int, console: Console) -> None:
    table = Table("Line", "When", "Order", "Agreement", "Times x noise (rate)", "Answered")
    for order in _last(found.orders, last):
        table.add_row(*map(Text, _cells(order)))
    if found.orders:
        console.print(table)
    for spent in found.agreements:
        console.print(Text(_told(spent)), soft_wrap=True)
    if found.together is not None and (len(found.agreements) != 1 or found.together.allowed is not None):
        console.print(Text(_told(found.together)), soft_wrap=True)
    if len(found.num_orders_by_payer) > 1:
        console.print(Text(_told_payers(found)), soft_wrap=True)
    if not found.orders:
        console.print(Text("nothing was charged yet"))
    console.print(
        Text(f"{found.state.number} lines, none changed or missing; the last one's SHA-256 is {found.state.head}"),
        soft_wrap=True,
    )


def _last(orders: tuple[Order, ...], last: int) -> tuple[Order, ...]:
    return orders[-last:] if last else orders


def _cells(order: Order) -> list[str]:
    entry = order.charged
    return [
        str(entry.number),
        # A row is to fit into 80 characters.
        entry.at[5:16].replace("T", " "),
        entry.kind,
        (entry.agreement or "")[:8],
        ", ".join(map(_in_words, entry.mechanisms)),
        "yes" if order.is_answered else "no",
    ]


def _in_words(charge: MechanismCharge) -> str:
    if isinstance(charge, SampledCharge):
        return f"{charge.num_steps} x {charge.noise_multiplier:g} ({charge.sampling_rate:g})"
    return f"{charge.num_releases} x {charge.noise_multiplier:g}"


def _whose(spent: Spent) -> str:
    return f"agreement {spent.agreement[:12]}" if spent.agreement else "all together"


def _told(spent: Spent) -> str:
    allowed = "" if spent.allowed is None else f" of {spent.allowed:g}"
    return f"{_whose(spent)}: {_orders(spent.num_orders)}, epsilon {spent.epsilon:g}{allowed} at delta {spent.delta:g}"


def _told_payers(found: Summary) -> str:
    payers = found.num_orders_by_payer.items()
    told = [f"{payer[:8] or 'before folders had ids'}: {_orders(number)}" for payer, number in payers]
    return f"charged for {len(told)} state folders ({', '.join(told)})"


def _orders(number: int) -> str:
    return "1 order" if number == 1 else f"{number} orders"
