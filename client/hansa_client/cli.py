"""`hansa client`: what a merchant does in a federation, each command in a module of its own. Errors are raised: the
dispatcher tells them.
"""

from __future__ import annotations

import typer

from hansa_client.approve_command import approve
from hansa_client.audit_command import audit
from hansa_client.check_command import check
from hansa_client.enroll_command import enroll
from hansa_client.fetch_command import fetch
from hansa_client.ledger_command import ledger
from hansa_client.start_command import node, start

client = typer.Typer(name="client", help="Take part in a federation as a merchant.", no_args_is_help=True)


@client.callback()
def _group() -> None:
    """Take part in a federation as a merchant."""


for _command in (enroll, approve, check, start, node, fetch, audit, ledger):
    client.command()(_command)
