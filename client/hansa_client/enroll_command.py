"""`hansa client enroll`: a merchant's keys and its request, and the kit that the coordinator answers with."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import typer
from pydantic import TypeAdapter, ValidationError

from hansa_client import enrolment
from hansa_common.certificates import shown_time
from hansa_common.errors import UsageError
from hansa_common.merchant_keys import MerchantKeys
from hansa_common.trust import MerchantName


def enroll(
    merchant: Annotated[str, typer.Argument(help="This merchant's name, as in the agreement's roster.")],
    state: Annotated[
        Path | None, typer.Option(help="Where this merchant's state is kept.", show_default=".hansa/MERCHANT")
    ] = None,
    kit: Annotated[Path | None, typer.Option(help="The folder that the coordinator answered with.")] = None,
    renew: Annotated[bool, typer.Option("--renew", help="Ask for a new certificate, with a new TLS key.")] = False,
) -> None:
    """Make this merchant's keys and a request for the coordinator; or install the kit that answers it."""
    _check_name(merchant)
    folder = state or Path(".hansa") / merchant
    if kit is None:
        held, path = enrolment.renew(folder, merchant) if renew else enrolment.enroll(folder, merchant)
        _tell_request(merchant, folder, held, path)
    elif renew:
        raise UsageError("--renew makes a request, --kit installs what answers one; give one of them")
    else:
        _tell_kit(merchant, enrolment.install_kit(folder, merchant, kit, datetime.now(UTC)))


def _check_name(merchant: str) -> None:
    try:
        TypeAdapter(MerchantName).validate_python(merchant)
    except ValidationError:
        raise UsageError(
            f"{merchant[:80]!r} cannot be a merchant's name: at most 64 letters, digits and ' ._()<>=+-', "
            "first a letter or digit"
        ) from None


def _tell_request(merchant: str, folder: Path, held: MerchantKeys, path: Path) -> None:
    typer.echo(f"{merchant}: the private keys are in {folder}; keep a copy where nobody else can read it")
    typer.echo(f"{merchant}: the identity key is {held.identity_key}; tell it to the other merchants yourself")
    typer.echo(f"{merchant}: send {path} to the coordinator; it holds no secret")


def _tell_kit(merchant: str, kit: enrolment.Kit) -> None:
    if kit.federation.keys_made_by_coordinator:
        typer.secho(
            f"{merchant}: DEVELOPMENT: the coordinator made the private keys of this merchant and can act as it; "
            "never use them with real data",
            fg="red",
            err=True,
        )
    end = shown_time(kit.certificate.not_valid_after_utc)
    typer.echo(f"{merchant}: the coordinator is at {kit.federation.server}; the certificate holds until {end}")
    for name, key in kit.trust.merchants.items():
        typer.echo(f"  {name}: {key}{' (this merchant)' if name == merchant else ''}")
    typer.echo(f"  the coordinator: {kit.trust.coordinator}")
    typer.echo(f"{merchant}: the agreement's fingerprint is {kit.agreement.fingerprint}")
    typer.echo(
        f"{merchant}: the roster's fingerprint is {kit.trust.roster_fingerprint}; compare it with the other merchants, "
        f"by telephone or in person, before you approve {kit.folder / enrolment.AGREEMENT}"
    )
