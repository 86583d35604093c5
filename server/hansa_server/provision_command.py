"""`hansa provision`: the coordinator's keys, the server's certificate, and an answer to merchants who want to enroll.

Two exchanges: merchants send requests, the coordinator sends kits. In between it fills the agreement's [trust]; after
that merchants compare the roster's fingerprint with each other and approve. Errors are raised: the dispatcher tells
them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Final

import typer

from hansa_common import durable_files
from hansa_common.addresses import Address, parse_address
from hansa_common.agreement import Agreement
from hansa_common.agreement_file import read_agreement
from hansa_common.certificates import parse_certificate, shown_time
from hansa_common.enrolment_papers import GATEWAY_PORT, EnrolmentRequest
from hansa_common.errors import UsageError
from hansa_common.keys import public_key_of
from hansa_common.nearest import did_you_mean
from hansa_common.trust import check_names_differ
from hansa_server import issued_register, kits, provisioning
from hansa_server.authority import (
    DEFAULT_DAYS,
    SERVER_CERTIFICATE,
    open_authority,
    renew_server_certificate,
)
from hansa_server.issued_register import IssuedRegister
from hansa_server.kits import Sender
from hansa_server.signing import publisher_key, signing_key

ADDRESS_NAME: Final = "address"
_MAX_DAYS: Final = 3650
_NOWHERE: Final = frozenset({"0.0.0.0", "::"})  # noqa: S104 - refused

provision = typer.Typer(name="provision", add_completion=False)


@dataclass(frozen=True)
class Asked:
    """What one command line asks for."""

    agreement: Agreement
    text: str
    state: Path
    kits: Path
    requests: Path | None
    development: bool
    renew: Sequence[str]
    days: int


@provision.command()
def run_provision(
    agreement: Annotated[Path, typer.Argument(help="The agreement (TOML), with the whole roster.")],
    host: Annotated[
        str | None, typer.Option(help="Where merchants reach the gateway: a name or an address, with :PORT or without.")
    ] = None,
    out: Annotated[Path, typer.Option("--out", "-o", help="Where the kits go.")] = Path("kits"),
    state: Annotated[Path, typer.Option(help="Where the coordinator's state is kept.")] = Path(".hansa/server"),
    requests: Annotated[Path | None, typer.Option(help="A folder of merchants' requests to answer.")] = None,
    development: Annotated[
        bool, typer.Option("--development", help="Make the merchants' private keys too. Never for real ones.")
    ] = False,
    days: Annotated[int, typer.Option(min=1, max=_MAX_DAYS, help="For how long certificates hold.")] = DEFAULT_DAYS,
    renew: Annotated[list[str] | None, typer.Option(help="A merchant who gets a new certificate, same keys.")] = None,
    revoke: Annotated[list[str] | None, typer.Option(help="A merchant whose certificates are taken back.")] = None,
) -> None:
    """Make the coordinator's keys and certificates, and answer merchants' requests with kits."""
    agreed, text = read_agreement(agreement)
    _check_roster(agreed)
    now = datetime.now(UTC)
    durable_files.make_private_folder(state)
    durable_files.make_private_folder(state / issued_register.ISSUED)
    with durable_files.exclusive(state / issued_register.ISSUED):
        if revoke:
            if requests or development or renew:
                raise UsageError("--revoke stands alone; answer requests in another call")
            _revoke(state, revoke, now)
            return
        asked = Asked(agreed, text, state, out, requests, development, renew or (), days)
        _provision(asked, _address(state, host), now)


def _provision(asked: Asked, address: Address, now: datetime) -> None:
    sender = _sender(asked, address, now)
    requests = provisioning.read_requests(asked.requests) if asked.requests else {}
    register = IssuedRegister.read(asked.state)
    made = _development_requests(asked, requests, register)
    if not requests and not made and not register.merchants:
        typer.echo(
            "provision: no merchant has enrolled yet; each runs `hansa client enroll NAME` and sends its request, "
            "then run this again with --requests FOLDER"
        )
        return
    everyone = {**requests, **made}
    twice = sorted(everyone.keys() & set(asked.renew))
    if twice:
        raise UsageError(f"{twice[0]!r} has sent a request, which is answered without --renew")
    provisioning.check_requests(everyone, asked.agreement, register)
    trusted = provisioning.trusting(asked.agreement, everyone, register, sender.coordinator)
    answers = [
        provisioning.answer(
            request, register, sender.authority, now, asked.days, made_by_coordinator=request.merchant in made
        )
        for request in everyone.values()
    ]
    answers += [provisioning.renewed(name, register, sender.authority, now, asked.days) for name in asked.renew]
    for given in answers:
        if given.is_new:
            # Before the kit: no certificate is outside that the register does not know.
            issued_register.record(asked.state, given.entry)
    _write_kits(asked, trusted, sender, now)


def _check_roster(agreement: Agreement) -> None:
    if not agreement.roster:
        raise UsageError('the agreement has no roster; name its merchants: roster = ["alder", "birch"]')
    if kits.AGREEMENT in {name.casefold() for name in agreement.roster}:
        raise UsageError(f"a merchant cannot be named {kits.AGREEMENT!r}: that file stands beside the kits")
    try:
        check_names_differ(agreement.roster)
    except ValueError as error:
        raise UsageError(str(error)) from None


def _address(state: Path, host: str | None) -> Address:
    path = state / ADDRESS_NAME
    if host is None:
        if not path.exists():
            raise UsageError("where do merchants reach the gateway? Give --host, for example --host fl.example.com")
        return parse_address(path.read_text(encoding="ascii").strip())
    try:
        address = parse_address(host)
    except UsageError:
        bracketed = f"[{host}]" if ":" in host and not host.startswith("[") else host
        address = parse_address(f"{bracketed}:{GATEWAY_PORT}")
    if address.host in _NOWHERE:
        raise UsageError(f"{address.host} is where a server listens; give --host as merchants reach it")
    durable_files.write(path, f"{address}\n".encode())
    return address


def _sender(asked: Asked, address: Address, now: datetime) -> Sender:
    authority = open_authority(asked.state, now)
    is_new = renew_server_certificate(asked.state, authority, address.host, now, asked.days)
    path = asked.state / SERVER_CERTIFICATE
    end = shown_time(parse_certificate(path.read_bytes(), str(path)).not_valid_after_utc)
    typer.echo(f"provision: {'new' if is_new else 'the'} certificate of the server at {address}, until {end}")
    signing, publisher = signing_key(asked.state), publisher_key(asked.state)
    return Sender(address, authority, public_key_of(publisher), signing)


def _development_requests(
    asked: Asked, requests: dict[str, EnrolmentRequest], register: IssuedRegister
) -> dict[str, EnrolmentRequest]:
    if not asked.development:
        for name in asked.agreement.roster:
            kits.check_holds_no_private_key(asked.kits, name)
        return {}
    enrolled_themselves = {
        name for name, entry in register.merchants.items() if not entry.made_by_coordinator
    } | requests.keys()
    names = [name for name in asked.agreement.roster if name not in enrolled_themselves]
    if names:
        typer.secho(
            f"provision: DEVELOPMENT: making the private keys of {', '.join(names)} here, in {asked.kits}. "
            "Whoever has them can act as these merchants; never use them with real data.",
            fg="red",
            err=True,
        )
    return {name: kits.development_request(asked.kits, name) for name in names}


def _write_kits(asked: Asked, agreement: Agreement, sender: Sender, now: datetime) -> None:
    register = IssuedRegister.read(asked.state)
    text = kits.agreement_text(asked.text, agreement)
    before = kits.write_agreement(asked.kits, text)
    for name in agreement.roster:
        obstacle = provisioning.why_no_kit(name, register, now)
        if obstacle is not None:
            typer.echo(f"provision: {name}: no kit, {obstacle}")
            continue
        entry = register.merchants[name]
        kits.write_kit(asked.kits, name, kits.kit_files(entry, agreement, text, sender))
        made_here = " (DEVELOPMENT: its keys were made here)" if entry.made_by_coordinator else ""
        end = shown_time(entry.certificates[-1].parsed().not_valid_after_utc)
        typer.echo(f"provision: {name}: identity key {entry.identity_key}, certificate until {end}{made_here}")
    typer.echo(
        f"provision: each merchant gets its own folder in {asked.kits}; the agreement is {asked.kits / kits.AGREEMENT}"
    )
    if before is not None:
        typer.echo(
            f"provision: this is another agreement than before ({before}): every merchant has to approve it anew"
        )
    typer.echo(f"provision: the agreement's fingerprint is {agreement.fingerprint}")
    typer.echo(
        f"provision: the roster's fingerprint is {agreement.roster_fingerprint}; "
        "merchants compare it with each other, by telephone or in person, before they approve"
    )


def _revoke(state: Path, merchants: Sequence[str], now: datetime) -> None:
    known = IssuedRegister.read(state).merchants
    for name in merchants:
        if name not in known:
            raise UsageError(f"{name!r} has no certificate{did_you_mean(name, sorted(known))}")
    for name in merchants:
        num_revoked = issued_register.revoke(state, name, now)
        typer.echo(f"provision: {name}: {num_revoked} certificates revoked; the gateway refuses them from now on")
