"""What a merchant takes part with: its name, the agreement, its files, and where the coordinator is.

| a merchant        | its name, and where the coordinator is | the agreement                                          |
|-------------------|----------------------------------------|--------------------------------------------------------|
| that has enrolled | from its kit, under a signature        | the one approved last, or another one that is approved |
| in development    | from the command line                  | from the command line, one without `[trust]`           |

What is read here is held against the keys and the clock before anything is started.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Final

from hansa_client.approvals import Approvals
from hansa_client.enrolment import Enrolment, read_enrolment
from hansa_client.merchant_files import MerchantFiles
from hansa_common.addresses import Address
from hansa_common.agreement import Agreement
from hansa_common.agreement_file import read_agreement
from hansa_common.enrolment_papers import decode_federation
from hansa_common.errors import MerchantError, UsageError
from hansa_common.merchant_keys import FEDERATION

DEVELOPMENT_SERVER: Final = "127.0.0.1:8000"


@dataclass(frozen=True)
class Given:
    """The files that a command line names; what is None is in the state folder, or not needed."""

    data: Path
    state: Path
    agreement: Path | None = None
    hash_key: Path | None = None
    policy: Path | None = None
    ledger: Path | None = None
    ledger_head: Path | None = None

    def files(self, agreement: Path) -> MerchantFiles:
        """The files to start with, under this agreement's."""
        return MerchantFiles(
            agreement.absolute(),
            self.data.absolute(),
            self.state.absolute(),
            self.hash_key,
            self.policy,
            self.ledger,
            self.ledger_head,
        )


@dataclass(frozen=True)
class Participation:
    """A merchant that can take part. `coordinator` is the gateway, or in development, where `enrolment` is None,
    SuperLink itself.
    """

    merchant: str
    agreement: Agreement
    files: MerchantFiles
    coordinator: Address
    enrolment: Enrolment | None = None

    def check(self) -> list[str]:
        """See that the files are there and belong together; what the merchant's policy will refuse, in words.

        Raises:
            UsageError: they are not; says which.
        """
        self.files.read_hash_key(self.agreement)
        if not self.files.data.exists():
            raise UsageError(f"there is no table at {self.files.data}")
        if self.files.keeps_ledger(self.agreement):
            self.files.ledger_files()
        return self.files.policy_file().current().conflicts(self.agreement)


def enrolled(given: Given, now: datetime) -> Participation:
    """The participation of a merchant that has enrolled and approved.

    Raises:
        UsageError: it has not enrolled, or the files of its kit do not belong together, or to its keys.
        MerchantError: it has not approved the agreement, or none.
        MessageError: the coordinator of the agreement did not sign the kit.
        CertificateError: its certificate does not hold, or not now.
    """
    _check_enrolled(given.state)
    agreement = agreement_in(given)
    path = Approvals(given.state).file_of(agreement.fingerprint)
    merchant = enrolled_name(given.state, agreement)
    enrolment = read_enrolment(given.state, merchant, agreement, now)
    return Participation(merchant, agreement, given.files(path), enrolment.federation.address, enrolment)


def agreement_in(given: Given) -> Agreement:
    """The agreement that was named, be it approved or not, else the one approved last.

    Raises:
        MerchantError: none is approved, or the file is not what was.
        AgreementError: it is none.
    """
    if given.agreement is not None:
        return read_agreement(given.agreement)[0]
    approvals = Approvals(given.state)
    path = approvals.latest_file()
    if path is None:
        raise MerchantError(
            f"no agreement is approved in {given.state}; read the one from the coordinator's kit, and approve it: "
            f"hansa client approve KIT/agreement.toml --state {given.state}"
        )
    # Held against its fingerprint first.
    approvals.latest()
    return read_agreement(path)[0]


def enrolled_name(state: Path, agreement: Agreement) -> str:
    """Who has enrolled in a state folder with the coordinator whom the agreement names.

    Raises:
        UsageError: nobody, or the agreement names no coordinator.
        MessageError: another coordinator signed the kit.
    """
    _check_enrolled(state)
    if agreement.trust is None:
        raise UsageError("the agreement has no [trust]; approve the one from the coordinator's kit")
    content = (state / FEDERATION).read_bytes()
    return decode_federation(content, agreement.trust.coordinator, str(state / FEDERATION)).merchant


def _check_enrolled(state: Path) -> None:
    if not (state / FEDERATION).exists():
        raise UsageError(
            f"nobody has enrolled in {state}: begin with `hansa client enroll NAME`, and install the coordinator's "
            "kit; to try Hansa on this machine alone, say --development"
        )


def in_development(given: Given, merchant: str | None, server: Address) -> Participation:
    """The participation of a merchant on one machine, where nothing is signed and nobody enrolls.

    Raises:
        UsageError: no agreement or name is given, or the agreement is for parties who have keys.
    """
    if given.agreement is None or merchant is None:
        raise UsageError("--development takes --agreement FILE and --merchant NAME: nobody has enrolled or approved")
    agreement, _ = read_agreement(given.agreement)
    if agreement.trust is not None:
        raise UsageError(
            f"{given.agreement} names whose keys are believed in [trust]; enroll, approve it, and start without "
            "--development"
        )
    if agreement.roster and merchant not in agreement.roster:
        raise UsageError(f"{merchant!r} is not in the agreement's roster: {', '.join(agreement.roster)}")
    return Participation(merchant, agreement, given.files(given.agreement), server)
