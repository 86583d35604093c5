"""A merchant's enrolment: its keys and the request for a certificate, the kit that answers it, and what both must be.

- Private keys are made here and never leave the state folder; a request holds public ones.
- A kit is installed whole or not at all, after everything in it was held against the keys, the agreement, and the
  coordinator's signature: the certificate is for the TLS key and in the merchant's name, the authority issued it and it
  holds now; the agreement names the merchant's own identity and the coordinator's key. It takes the place of a kit of
  the same coordinator, and of no other's.
- What a kit says of others' identities is not known to be true until merchants have compared the roster's fingerprint
  with each other: this is said, and left to people.
- A renewal keeps the identity and the node's key. The TLS key in use stays until the next one's certificate is there.

Time is passed in. What is asked for and what is approved are policy.py's.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Final

from cryptography import x509

from hansa_common import durable_files
from hansa_common.agreement import Agreement, parse_agreement
from hansa_common.certificates import (
    Purpose,
    certificate_fingerprint,
    check_authority,
    check_issued,
    common_name,
    has_key,
    parse_certificate,
)
from hansa_common.enrolment_papers import (
    REQUEST_SUFFIX,
    Federation,
    decode_federation,
    encode_request,
    make_request,
)
from hansa_common.errors import CertificateError, MessageError, SignatureError, UsageError
from hansa_common.keys import read_node_key, read_tls_key
from hansa_common.merchant_keys import (
    AUTHORITY_CERTIFICATE,
    FEDERATION,
    NEXT_TLS_KEY,
    NODE_KEY,
    TLS_CERTIFICATE,
    TLS_KEY,
    MerchantKeys,
    make_keys,
    make_next_tls_key,
    read_keys,
)
from hansa_common.trust import Trust

AGREEMENT: Final = "agreement.toml"
# A vocabulary of an agreement may be long; a kit is read whole.
_MAX_FILE_BYTES: Final = 1 << 26


@dataclass(frozen=True)
class Kit:
    """The files of a kit, read and parsed; nothing of it is believed yet."""

    folder: Path
    agreement: Agreement
    trust: Trust
    federation: Federation
    certificate: x509.Certificate
    authority: x509.Certificate
    content: dict[str, bytes] = field(repr=False)


@dataclass(frozen=True)
class Enrolment:
    """What an enrolled merchant takes part with; the identity key is not shown."""

    federation: Federation
    state: Path
    identity: bytes = field(repr=False)


def enroll(state: Path, merchant: str) -> tuple[MerchantKeys, Path]:
    """The merchant's keys, made where they are not there yet, and the file of a request for a certificate.

    Raises:
        UsageError: the name cannot be a merchant's, others can open the folder, or a key of it has gone.
    """
    durable_files.make_private_folder(state)
    return _requested(state, merchant, make_keys(state))


def renew(state: Path, merchant: str) -> tuple[MerchantKeys, Path]:
    """The same for a TLS key that follows the one in use, which stays in use until a kit answers.

    Raises:
        UsageError: the merchant has no keys yet, or others can read them.
    """
    return _requested(state, merchant, make_next_tls_key(state))


def install_kit(state: Path, merchant: str, folder: Path, now: datetime) -> Kit:
    """Verify a kit and put its certificates and its federation.toml into the state folder.

    Raises:
        UsageError: it is no kit, for another merchant, of keys that are not here, or of another coordinator than the
            one with whom this merchant takes part.
        MessageError: federation.toml is none, or the coordinator of the agreement did not sign it.
        CertificateError: a certificate does not hold, or not now.
    """
    held, kit = read_keys(state), read_kit(folder)
    _check_parties(kit, merchant, held)
    _check_certificates(kit, merchant, now)
    _check_coordinator_stays(state, kit)
    if held.next_tls is not None and has_key(kit.certificate, held.next_tls):
        durable_files.rename(state / NEXT_TLS_KEY, state / TLS_KEY)
    elif not has_key(kit.certificate, held.tls):
        raise UsageError(
            f"{folder / TLS_CERTIFICATE} is for another key than those in {state}; "
            "the kit must answer the newest request that was sent"
        )
    for name in (AUTHORITY_CERTIFICATE, TLS_CERTIFICATE, FEDERATION):
        durable_files.write(state / name, kit.content[name])
    return kit


def read_kit(folder: Path) -> Kit:
    """Read the files of a kit.

    Raises:
        UsageError: a file is not there, or the agreement names no keys.
        MessageError: federation.toml is none, or the coordinator of the agreement did not sign it.
        CertificateError: a certificate is none.
    """
    names = (AGREEMENT, FEDERATION, TLS_CERTIFICATE, AUTHORITY_CERTIFICATE)
    content = {name: _read(folder / name) for name in names}
    agreement = parse_agreement(_text(content[AGREEMENT], folder / AGREEMENT), str(folder / AGREEMENT))
    if agreement.trust is None:
        raise UsageError(f"{folder / AGREEMENT} has no [trust], so it is not the one that `hansa provision` wrote")
    return Kit(
        folder,
        agreement,
        agreement.trust,
        decode_federation(content[FEDERATION], agreement.trust.coordinator, str(folder / FEDERATION)),
        parse_certificate(content[TLS_CERTIFICATE], str(folder / TLS_CERTIFICATE)),
        parse_certificate(content[AUTHORITY_CERTIFICATE], str(folder / AUTHORITY_CERTIFICATE)),
        content,
    )


def read_enrolment(state: Path, merchant: str, agreement: Agreement, now: datetime) -> Enrolment:
    """What the merchant takes part with under an agreement with [trust], held against it and the clock.

    Raises:
        UsageError: it has no keys or no kit yet, they do not belong together, or are not those of the agreement.
        MessageError: federation.toml is none, or the coordinator of the agreement did not sign it.
        CertificateError: the certificate does not hold, or not now: it has expired, or the clock is wrong.
    """
    if agreement.trust is None:
        raise UsageError("the agreement has no [trust]; take the one from the coordinator's kit")
    held = read_keys(state)
    if not (state / TLS_CERTIFICATE).exists():
        raise UsageError(
            f"{merchant} has keys and no certificate yet; send {request_path(state, merchant)} to the coordinator, "
            f"and take its kit with `hansa client enroll {merchant!r} --kit FOLDER`"
        )
    federation = decode_federation(_read(state / FEDERATION), agreement.trust.coordinator, str(state / FEDERATION))
    _check_identity(agreement.trust, merchant, held, "the agreement")
    certificate, authority = (
        parse_certificate(_read(state / name), str(state / name)) for name in (TLS_CERTIFICATE, AUTHORITY_CERTIFICATE)
    )
    if federation.merchant != merchant or federation.authority != certificate_fingerprint(authority):
        raise UsageError(f"the files in {state} are of two kits; install the newest again")
    if not has_key(certificate, held.tls):
        raise UsageError(f"{state / TLS_CERTIFICATE} is not of the key {state / TLS_KEY}; install the newest kit again")
    check_authority(authority, str(state / AUTHORITY_CERTIFICATE), now)
    check_issued(certificate, authority, Purpose.CLIENT, str(state / TLS_CERTIFICATE), now)
    return Enrolment(federation, state, held.identity)


def read_node_side(folder: Path, now: datetime) -> Federation:
    """What a merchant's node takes part with where it runs apart from the trainer: a kit, and beside it the node's key
    and the TLS key; not the identity, which it has no use for.

    Raises:
        UsageError: a file of the kit or a key is not there, or they do not belong together.
        MessageError: federation.toml is none, or the coordinator of the agreement did not sign it.
        CertificateError: a certificate does not hold, or not now.
    """
    kit = read_kit(folder)
    read_node_key(folder / NODE_KEY, "the node's key")
    _check_certificates(kit, kit.federation.merchant, now)
    if not has_key(kit.certificate, read_tls_key(folder / TLS_KEY, "the TLS key")):
        raise UsageError(f"{folder / TLS_CERTIFICATE} is for another key than {folder / TLS_KEY}; copy both again")
    return kit.federation


def request_path(state: Path, merchant: str) -> Path:
    """Where the merchant's request is."""
    return state / f"{merchant}{REQUEST_SUFFIX}"


def _requested(state: Path, merchant: str, held: MerchantKeys) -> tuple[MerchantKeys, Path]:
    path = request_path(state, merchant)
    durable_files.write(path, encode_request(make_request(merchant, held)))
    return held, path


def _check_parties(kit: Kit, merchant: str, held: MerchantKeys) -> None:
    if kit.federation.merchant != merchant:
        raise UsageError(f"the kit {kit.folder} is for {kit.federation.merchant!r}, not for {merchant!r}")
    if kit.federation.agreement != kit.agreement.fingerprint or kit.federation.roster != kit.trust.roster_fingerprint:
        raise UsageError(
            f"{kit.folder / AGREEMENT} is not the agreement that this kit was made for; take the kit whole"
        )
    _check_identity(kit.trust, merchant, held, str(kit.folder / AGREEMENT))


def _check_identity(trust: Trust, merchant: str, held: MerchantKeys, source: str) -> None:
    named = trust.merchants.get(merchant)
    if named != held.identity_key:
        raise UsageError(
            f"{source} names {named or 'no key'} for {merchant!r}, the identity key here is {held.identity_key}: "
            "do not approve it, and tell the other merchants"
        )


def _check_coordinator_stays(state: Path, kit: Kit) -> None:
    path = state / FEDERATION
    if not path.exists():
        return
    try:
        decode_federation(_read(path), kit.trust.coordinator, str(path))
    except SignatureError:
        raise UsageError(
            f"the merchant of {state} takes part with another coordinator than that of the kit {kit.folder}, "
            f"{kit.trust.coordinator}; give this kit a --state of its own, or, to leave that federation, remove {path}"
        ) from None
    except MessageError:
        # It is damaged, and a kit is how it is made good.
        return


def _check_certificates(kit: Kit, merchant: str, now: datetime) -> None:
    authority, certificate = (str(kit.folder / name) for name in (AUTHORITY_CERTIFICATE, TLS_CERTIFICATE))
    if certificate_fingerprint(kit.authority) != kit.federation.authority:
        raise CertificateError(f"{authority} is not the authority that the coordinator signed for")
    check_authority(kit.authority, authority, now)
    check_issued(kit.certificate, kit.authority, Purpose.CLIENT, certificate, now)
    try:
        name = common_name(kit.certificate.subject)
    except ValueError:
        name = ""
    if name != merchant:
        raise CertificateError(f"{certificate} is not in the name of {merchant!r}")


def _read(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            content = file.read(_MAX_FILE_BYTES + 1)
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror}; take the coordinator's kit whole") from error
    if len(content) > _MAX_FILE_BYTES:
        raise UsageError(f"{path} is too long to be of a kit")
    return content


def _text(content: bytes, path: Path) -> str:
    try:
        return content.decode()
    except UnicodeDecodeError:
        raise UsageError(f"{path} is not a text in UTF-8") from None
