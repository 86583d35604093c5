"""`hansa client approve`: an agreement in plain words, what is new in it, and this merchant's yes to it.

Nobody approves what he has not looked at: on a terminal the words come before the question, and a script must name the
fingerprint that it says yes to. What is approved is on record in the state folder (approvals.py); under an agreement
with `[trust]` a trainer starts with nothing else.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from hansa_client.agreement_words import differences, plain_words
from hansa_client.approvals import Approvals
from hansa_client.merchant_policy import POLICY_NAME, PolicyFile
from hansa_client.participation_options import StartedStateOption
from hansa_client.state_folders import state_folder
from hansa_common.agreement import Agreement
from hansa_common.agreement_file import read_agreement
from hansa_common.errors import MerchantError, UsageError
from hansa_common.keys import public_key_of, read_signing_key
from hansa_common.merchant_keys import IDENTITY_KEY
from hansa_common.privacy_costs import check_affordable


def approve(
    agreement: Annotated[Path, typer.Argument(help="The agreement (TOML).")],
    state: StartedStateOption = None,
    yes_to: Annotated[
        str | None, typer.Option(metavar="FINGERPRINT", help="Approve without a question, if it is this agreement.")
    ] = None,
) -> None:
    """Read an agreement in plain words, see what is new in it, and approve it."""
    agreed, _ = read_agreement(agreement)
    folder = state_folder(state)
    if yes_to is not None and yes_to != agreed.fingerprint:
        raise UsageError(f"--yes-to names {yes_to}, {agreement} has the fingerprint {agreed.fingerprint}")
    approvals = Approvals(folder)
    for line in _told(agreed, folder, approvals):
        typer.echo(line)
    if yes_to is None:
        _ask(agreed)
    approvals.approve(agreed)
    typer.echo(f"approved: {agreed.fingerprint}")


def _ask(agreed: Agreement) -> None:
    if not sys.stdin.isatty():
        raise UsageError(f"to approve it without a terminal, say which one: --yes-to {agreed.fingerprint}")
    if not typer.confirm("Have the others the same fingerprints, and do you approve this agreement?"):
        raise MerchantError("not approved")


def _told(agreed: Agreement, state: Path, approvals: Approvals) -> list[str]:
    check_affordable(agreed)
    lines = [f"  - {line}" for line in plain_words(agreed)]
    if agreed.trust is not None:
        lines.append(f"  - you are {_own_name(agreed, state)!r} in it")
    before = approvals.latest()
    if before is None:
        lines.append("It is the first agreement to be approved here.")
    else:
        new = differences(before, agreed.model_dump(mode="json"))
        lines.append("New since the agreement approved last:" if new else "Nothing is new since the one approved last.")
        lines += [f"  - {line}" for line in new]
    refused = PolicyFile(state / POLICY_NAME).current().conflicts(agreed)
    lines += [f"Your {POLICY_NAME} will refuse orders under it: {line}" for line in refused]
    lines.append(f"agreement fingerprint  {agreed.fingerprint}")
    if agreed.roster_fingerprint is not None:
        lines.append(f"roster fingerprint     {agreed.roster_fingerprint}")
    return lines


def _own_name(agreed: Agreement, state: Path) -> str:
    """The name under which the agreement has this merchant's key.

    Raises:
        UsageError: under none, or there is no key.
    """
    key = public_key_of(read_signing_key(state / IDENTITY_KEY, "the identity key"))
    names = [] if agreed.trust is None else [name for name, known in agreed.trust.merchants.items() if known == key]
    if not names:
        raise UsageError(
            f"the agreement knows no merchant with your identity key {key}; "
            "tell the others that key, and agree anew, or give the --state that holds the right one"
        )
    return names[0]
