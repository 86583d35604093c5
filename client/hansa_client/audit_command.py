"""`hansa client audit`: what was asked of this merchant and what it answered, verified line by line as it is shown.

It works while the trainer runs. A line that does not follow from those before it ends it with an error.
"""

from __future__ import annotations

import json
from collections import deque
from typing import Annotated, Any

import typer

from hansa_client.audit import AUDIT_NAME, Entry, entries, verified
from hansa_client.participation_options import StartedStateOption
from hansa_client.state_folders import state_folder
from hansa_common.errors import UsageError


def audit(
    state: StartedStateOption = None,
    last: Annotated[int, typer.Option(min=0, help="How many of the last lines to show; 0: all.")] = 40,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Verify and show what was asked of this merchant and what it answered."""
    path = state_folder(state) / AUDIT_NAME
    if not path.exists():
        raise UsageError(f"there is no {path}: no trainer has served from this state folder yet")
    chain = verified(path)
    shown = deque(entries(path), maxlen=last or None)
    if as_json:
        lines = [json.loads(entry.line()) for entry in shown]
        facts = {"num_lines": chain.num_lines, "head": chain.head, "unfinished_bytes": chain.num_torn_bytes}
        typer.echo(json.dumps({**facts, "lines": lines}))
        return
    for entry in shown:
        typer.echo(told(entry))
    typer.echo(f"{chain.num_lines} lines, none changed or missing up to the last; its SHA-256 is {chain.head}")
    if chain.num_torn_bytes:
        typer.echo("a last line is being written, or was cut off by a kill; the trainer's next start takes it off")


def told(entry: Entry) -> str:
    """One line of the audit in words."""
    unnoted = [f"({entry.num_unnoted} more were not worked on before)"] if entry.num_unnoted else []
    return " ".join([f"{entry.number:>6}", entry.at, *_facts(entry), *unnoted])


def _facts(entry: Entry) -> list[str]:
    match entry.what:
        case "started":
            return [f"started under agreement {entry.agreement}"]
        case "repaired":
            return [f"took off {entry.num_bytes} bytes of an unfinished line"]
        case "asked":
            return ["asked   ", entry.kind, *_place(entry)]
    refused = [f"refused: {entry.code};", entry.reason] if entry.decision == "refused" else []
    return ["answered", *(refused or [_decision(entry)]), *_place(entry)]


def _decision(entry: Entry) -> str:
    return "again, as before" if entry.decision == "stored" else "as asked"


def _place(entry: Entry) -> list[str]:
    facts: dict[str, Any] = {"round": entry.round, "order": (entry.order or "")[:12], "bytes": entry.num_bytes}
    facts |= {"run": entry.run[:12]}
    return [f"{name} {value}" for name, value in facts.items() if value not in {None, ""}]
