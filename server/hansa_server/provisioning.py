"""Who is issued what: requests held against the agreement and the register, before anything is written.

| a merchant's request                            | is                                                                |
|-------------------------------------------------|-------------------------------------------------------------------|
| of a name that is not in the roster             | refused                                                           |
| one of two in the same name                     | refused                                                           |
| with a key that is another's                    | refused                                                           |
| with another identity than the agreement's      | refused: that is another roster, and needs a fresh agreement      |
| with other keys than the register's             | refused, unless what was issued has been taken back               |
| for a TLS key whose certificate was taken back  | refused: new keys are due                                         |
| for the TLS key of a certificate that stands    | answered with that one, while a third of its life is left         |
| else                                            | answered with a new certificate                                   |

An agreement without `[trust]` is given the identities of its whole roster, from the requests and the register; one
that has it is left as it is. Nothing here is done in part: either every request can be answered or none is.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from hansa_common.agreement import Agreement
from hansa_common.certificates import shown_time
from hansa_common.enrolment_papers import MAX_PAPER_BYTES, REQUEST_SUFFIX, EnrolmentRequest, decode_request
from hansa_common.errors import UsageError
from hansa_common.keys import public_pem
from hansa_common.nearest import did_you_mean
from hansa_common.trust import Trust
from hansa_server.authority import RENEWED_AT, Authority
from hansa_server.issued_register import IssuedCertificate, IssuedKeys, IssuedRegister

_FRESH: Final = "take [trust] out of the agreement for a fresh one, which every merchant has to approve anew"


@dataclass(frozen=True)
class Answer:
    """One request as it is to be answered: what the register is to hold, and which of it is new."""

    entry: IssuedKeys
    is_new: bool


def read_requests(folder: Path) -> dict[str, EnrolmentRequest]:
    """The requests in the files `*.request.json` of a folder, by merchant.

    Raises:
        UsageError: there are none, or two in one name.
        MessageError: a file is no request.
    """
    requests: dict[str, EnrolmentRequest] = {}
    sources: dict[str, Path] = {}
    for path in sorted(folder.glob(f"*{REQUEST_SUFFIX}")):
        request = _read_request(path)
        if request.merchant in requests:
            raise UsageError(
                f"{sources[request.merchant]} and {path} are both of {request.merchant!r}; "
                "ask the merchant which is its own, and take the other away"
            )
        requests[request.merchant], sources[request.merchant] = request, path
    if not requests:
        raise UsageError(f"there is no request in {folder}; merchants send files that end in {REQUEST_SUFFIX}")
    return requests


def check_requests(requests: Mapping[str, EnrolmentRequest], agreement: Agreement, register: IssuedRegister) -> None:
    """See that the requests are of this roster, and that nobody has asked for another's keys.

    Raises:
        UsageError: one is to be refused; says which.
    """
    for name, request in requests.items():
        if name not in agreement.roster:
            raise UsageError(
                f"{name!r} asks to be enrolled and is not in the roster{did_you_mean(name, agreement.roster)}"
            )
        _check_register(request, register)
    _check_distinct(requests, register)


def trusting(
    agreement: Agreement, requests: Mapping[str, EnrolmentRequest], register: IssuedRegister, coordinator: str
) -> Agreement:
    """The agreement with every merchant's identity and the coordinator's key; itself where it names them already.

    Raises:
        UsageError: it names others, or a merchant of the roster has not enrolled yet.
    """
    known = {name: entry.identity_key for name, entry in register.merchants.items() if register.standing(name)}
    known |= {name: request.identity_key for name, request in requests.items()}
    if agreement.trust is not None:
        _check_trust(agreement.trust, known, coordinator)
        return agreement
    missing = [name for name in agreement.roster if name not in known]
    if missing:
        raise UsageError(
            f"no request of {', '.join(missing)}; the agreement names the keys of the whole roster, "
            "so all of its merchants have to send one first"
        )
    merchants = {name: known[name] for name in agreement.roster}
    return agreement.with_trust(Trust(coordinator=coordinator, merchants=merchants))


def answer(
    request: EnrolmentRequest,
    register: IssuedRegister,
    authority: Authority,
    now: datetime,
    days: int,
    *,
    made_by_coordinator: bool,
) -> Answer:
    """What is to be issued for a request that was checked; nothing is written.

    Raises:
        CertificateError: the authority is at its end.
    """
    entry, standing = register.merchants.get(request.merchant), register.standing(request.merchant)
    same_keys = entry is not None and (entry.identity_key, entry.node_key) == (request.identity_key, request.node_key)
    if entry and same_keys and standing and standing.public_key() == request.tls_key and _is_young(standing, now):
        return Answer(entry, is_new=False)
    certificate = authority.issued_to_merchant(request.merchant, request.tls_key, now, days)
    before = () if entry is None else entry.certificates
    return Answer(
        IssuedKeys(
            merchant=request.merchant,
            identity_key=request.identity_key,
            node_key=request.node_key,
            certificates=(*before, IssuedCertificate.of(certificate)),
            made_by_coordinator=made_by_coordinator,
        ),
        is_new=True,
    )


def renewed(merchant: str, register: IssuedRegister, authority: Authority, now: datetime, days: int) -> Answer:
    """A new certificate for the keys that a merchant has.

    Raises:
        UsageError: it has no certificate that stands.
        CertificateError: the authority is at its end.
    """
    entry, standing = register.merchants.get(merchant), register.standing(merchant)
    if entry is None:
        raise UsageError(
            f"{merchant!r} has no certificate to renew{did_you_mean(merchant, sorted(register.merchants))}"
        )
    if standing is None:
        raise UsageError(f"the certificate of {merchant!r} was revoked; it needs new keys and a request for them")
    key = standing.public_key()
    if not isinstance(key, ec.EllipticCurvePublicKey):
        raise UsageError(f"the certificate of {merchant!r} is for a key of another kind; ask it for a new request")
    certificate = authority.issued_to_merchant(merchant, key, now, days)
    certificates = (*entry.certificates, IssuedCertificate.of(certificate))
    return Answer(entry.model_copy(update={"certificates": certificates}), is_new=True)


def why_no_kit(merchant: str, register: IssuedRegister, now: datetime) -> str | None:
    """What keeps a merchant from being sent a kit; None where nothing does."""
    standing = register.standing(merchant)
    if standing is None:
        return "its certificate was revoked" if merchant in register.merchants else "it has sent no request yet"
    if standing.not_valid_after_utc < now:
        return f"its certificate expired at {shown_time(standing.not_valid_after_utc)}; use --renew, or a new request"
    return None


def _read_request(path: Path) -> EnrolmentRequest:
    if not path.is_file():
        raise UsageError(f"{path} is not a file")
    with path.open("rb") as file:
        return decode_request(file.read(MAX_PAPER_BYTES + 1), str(path))


def _check_register(request: EnrolmentRequest, register: IssuedRegister) -> None:
    entry = register.merchants.get(request.merchant)
    if entry is None:
        return
    if register.standing(request.merchant) is not None:
        for what, held, asked in (
            ("identity key", entry.identity_key, request.identity_key),
            ("node key", entry.node_key, request.node_key),
        ):
            if held != asked:
                raise UsageError(
                    f"{request.merchant!r} is enrolled, and the request has another {what}; if the merchant itself "
                    f"says that it lost its keys, take its certificates back first: --revoke {request.merchant!r}"
                )
    for certificate in entry.certificates:
        if certificate.serial in register.revoked and certificate.parsed().public_key() == request.tls_key:
            raise UsageError(
                f"{request.merchant!r} asks for a key whose certificate was revoked; it has to make new keys"
            )


def _check_distinct(requests: Mapping[str, EnrolmentRequest], register: IssuedRegister) -> None:
    """A key is one merchant's: with another's it would speak in that one's name."""
    holders: dict[str, str] = {}
    for name, entry in register.merchants.items():
        if name not in requests:
            holders |= {entry.identity_key: name, entry.node_key: name}
            holders |= {_key_of(certificate.parsed()): name for certificate in entry.certificates}
    for name, request in requests.items():
        tls_key = public_pem(request.tls_key)
        held = (("identity key", request.identity_key), ("node key", request.node_key), ("TLS key", tls_key))
        for what, key in held:
            other = holders.setdefault(key, name)
            if other != name:
                raise UsageError(f"{name!r} asks with the {what} of {other!r}; each merchant makes keys of its own")


def _check_trust(trust: Trust, known: Mapping[str, str], coordinator: str) -> None:
    if trust.coordinator != coordinator:
        raise UsageError(
            f"the agreement trusts the coordinator {trust.coordinator}, the key here is {coordinator}; "
            f"give the --state that belongs to it, or {_FRESH}"
        )
    for name, identity in known.items():
        if name in trust.merchants and trust.merchants[name] != identity:
            raise UsageError(
                f"{name!r} has the identity key {identity}, the agreement names {trust.merchants[name]}: "
                f"that is another roster; {_FRESH}"
            )


def _key_of(certificate: x509.Certificate) -> str:
    return certificate.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode()


def _is_young(certificate: x509.Certificate, now: datetime) -> bool:
    left = certificate.not_valid_after_utc - now
    return left > (certificate.not_valid_after_utc - certificate.not_valid_before_utc) * RENEWED_AT
