"""Whether a merchant's side is in order, looked at piece by piece, before and while it takes part; nothing is changed.

| piece       | is looked at                                                                                       |
|-------------|----------------------------------------------------------------------------------------------------|
| keys        | the private keys: there, whole, and for this user alone                                            |
| agreement   | is one approved, and what was approved                                                             |
| certificate | the kit belongs to keys and agreement, and holds now                                               |
| policy      | `merchant.toml` holds, and what of the agreement it will refuse                                    |
| hash key    | is the agreed one                                                                                  |
| data        | the table fits the agreement; its quality                                                          |
| orders      | the record of orders taken is whole                                                                |
| audit       | every line follows from the one before it                                                          |
| ledger      | every line follows from the one before it, and its head file knows of no more                      |
| gateway     | TLS both ways, the clocks, whether SuperLink answers behind it; one request without a word of data |
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Final, Literal

from hansa_client.approvals import Approvals
from hansa_client.audit import AUDIT_NAME, verified
from hansa_client.enrolment import read_enrolment
from hansa_client.forwarder import Forwarder
from hansa_client.gateway_link import GatewayLink, client_context
from hansa_client.ledger import read
from hansa_client.merchant_files import MerchantFiles
from hansa_client.order_log import ORDERS_NAME, OrderLog
from hansa_client.participation import Given, agreement_in, enrolled_name
from hansa_common import durable_files
from hansa_common.agreement import Agreement
from hansa_common.certificates import parse_certificate, shown_time
from hansa_common.enrolment_papers import decode_federation
from hansa_common.errors import HansaError, UsageError
from hansa_common.merchant_keys import FEDERATION, TLS_CERTIFICATE, read_keys

RENEW_WITHIN: Final = timedelta(days=30)

Verdict = Literal["good", "look", "wrong"]
Found = tuple[Verdict, str]


@dataclass(frozen=True)
class Check:
    """One piece, what is thought of it, and why: `look` is for what works and wants somebody's eye."""

    piece: str
    verdict: Verdict
    told: str


def checks(given: Given, now: datetime) -> Iterator[Check]:
    """Look at each piece in turn; what needs a piece that is not there is not looked at."""
    yield _checked("keys", lambda: _keys(given.state))
    agreed = _Agreed(given, now)
    yield _checked("agreement", agreed.look)
    if agreed.agreement is not None:
        agreement, files = agreed.agreement, given.files(Path())
        yield _checked("certificate", agreed.certificate)
        yield _checked("policy", lambda: _policy(files, agreement))
        yield _checked("hash key", lambda: _hash_key(files, agreement))
        yield _checked("data", lambda: _data(files, agreement))
    yield _checked("orders", lambda: _orders(given.state))
    yield _checked("audit", lambda: _audit(given.state))
    yield _checked("ledger", lambda: _ledger(given))
    if agreed.agreement is not None:
        yield _checked("gateway", agreed.gateway)


def _checked(piece: str, look: Callable[[], Found]) -> Check:
    try:
        return Check(piece, *look())
    except HansaError as error:
        return Check(piece, "wrong", str(error))


@dataclass
class _Agreed:
    """What hangs on the agreement, which is there once it was looked at."""

    given: Given
    now: datetime
    agreement: Agreement | None = None

    def look(self) -> Found:
        self.agreement = agreement_in(self.given)
        Approvals(self.given.state).verify(self.agreement.fingerprint)
        if self.agreement.trust is None:
            raise UsageError("the agreement has no [trust]; approve the one from the coordinator's kit")
        roster = self.agreement.trust.roster_fingerprint
        return "good", f"{self.agreement.fingerprint} is approved; the roster's fingerprint is {roster}"

    def certificate(self) -> Found:
        if self.agreement is None:
            raise UsageError("there is no agreement to hold it against")
        name, path = enrolled_name(self.given.state, self.agreement), self.given.state / TLS_CERTIFICATE
        read_enrolment(self.given.state, name, self.agreement, self.now)
        end = parse_certificate(path.read_bytes(), str(path)).not_valid_after_utc
        told = f"{name} until {shown_time(end)}"
        if end - self.now < RENEW_WITHIN:
            return "look", f"{told}; ask for the next one: hansa client enroll {name!r} --renew"
        return "good", told

    def gateway(self) -> Found:
        if self.agreement is None or self.agreement.trust is None:
            raise UsageError("the agreement does not say whose gateway may be believed")
        path = self.given.state / FEDERATION
        address = decode_federation(path.read_bytes(), self.agreement.trust.coordinator, str(path)).address
        Forwarder(GatewayLink(address, client_context(self.given.state)), os.getuid()).check()
        return "good", f"{address} lets this merchant in, SuperLink answers behind it, and the clocks agree"


def _keys(state: Path) -> Found:
    durable_files.make_private_folder(state)
    return "good", f"the identity key is {read_keys(state).identity_key}"


def _policy(files: MerchantFiles, agreement: Agreement) -> Found:
    policy = files.policy_file().current()
    refused = policy.conflicts(agreement)
    if policy.paused:
        refused.append("it says paused = true, so every order will be refused")
    return ("look", "; ".join(refused)) if refused else ("good", "it refuses nothing of what was agreed")


def _hash_key(files: MerchantFiles, agreement: Agreement) -> Found:
    key = files.read_hash_key(agreement)
    return "good", "none is needed" if key is None else "it is the agreed one"


def _data(files: MerchantFiles, agreement: Agreement) -> Found:
    # Late: pandas takes a second to import.
    from hansa_client.data import load_table

    quality = load_table(files.data, agreement, "this merchant").quality
    return ("look" if quality.constant else "good"), quality.line


def _orders(state: Path) -> Found:
    folder = state / ORDERS_NAME
    if not folder.exists():
        return "good", "none was taken yet"
    OrderLog(folder)
    return "good", "the record of those taken is whole"


def _audit(state: Path) -> Found:
    path = state / AUDIT_NAME
    if not path.exists():
        return "good", "there is none yet"
    chain = verified(path)
    return "good", f"{chain.num_lines} lines follow from each other; the last one's SHA-256 is {chain.head}"


def _ledger(given: Given) -> Found:
    if not given.files(Path()).ledger_folder.exists():
        return "good", "nothing was charged yet"
    _, entries = read(given.files(Path()).ledger_files())
    num_charged = sum(entry.what == "charged" for entry in entries)
    return "good", f"{num_charged} orders charged; its lines follow from each other, and its head file knows of no more"
