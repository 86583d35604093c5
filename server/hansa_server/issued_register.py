"""What the coordinator has issued and what it has taken back: certificate -> merchant -> node key.

file in the state folder     holds
issued/NAME.json             the merchant's identity and node keys, and every certificate it was issued
revoked.json                 the serial numbers of certificates that were taken back, with whose they were and when

For the gateway: `IssuedRegister.read(state)` is both as they stand; `lookup(serial)` gives the merchant that holds the
certificate and the one node key that may speak over it, or raises. Certificates are revoked while the gateway runs, so
it reads anew when `changed_at(state)` has changed. Dates are not looked at here: TLS does that.

Files are replaced whole; one writer at a time is the caller's to ensure.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Final, TypeVar

from cryptography import x509
from pydantic import Field, TypeAdapter, ValidationError

from hansa_common import durable_files
from hansa_common.certificates import MAX_CERTIFICATE_BYTES, certificate_pem, parse_certificate
from hansa_common.errors import CertificateRevokedError, CertificateUnknownError, CoordinatorError
from hansa_common.schema import Section
from hansa_common.trust import MerchantName, PublicKey

ISSUED: Final = "issued"
REVOKED_NAME: Final = "revoked.json"

_SUFFIX: Final = ".json"
_MAX_FILE_BYTES: Final = 1 << 24
# Of a serial number X.509 takes 20 bytes.
Serial = Annotated[str, Field(pattern=r"^[0-9a-f]{1,40}$")]
Moment = Annotated[str, Field(pattern=r"^[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9:]{8}\+00:00$")]
_NAME: Final = TypeAdapter(MerchantName)
_Kind = TypeVar("_Kind", bound=Section)


class IssuedCertificate(Section):
    """One certificate; serial number and end stand beside it for people who look."""

    serial: Serial
    not_after: Moment
    pem: Annotated[str, Field(max_length=MAX_CERTIFICATE_BYTES)]

    @classmethod
    def of(cls, certificate: x509.Certificate) -> IssuedCertificate:
        """The entry of a certificate."""
        end = certificate.not_valid_after_utc.isoformat(timespec="seconds")
        return cls(serial=f"{certificate.serial_number:x}", not_after=end, pem=certificate_pem(certificate).decode())

    def parsed(self) -> x509.Certificate:
        """The certificate itself.

        Raises:
            CertificateError: it is none.
        """
        return parse_certificate(self.pem.encode(), f"the certificate {self.serial} in the register")


class IssuedKeys(Section):
    """What a merchant has been issued: its keys, and its certificates, the newest last.

    `node_key` is a PEM. `made_by_coordinator` says that its private keys were, for development.
    """

    merchant: MerchantName
    identity_key: PublicKey
    node_key: Annotated[str, Field(max_length=1000)]
    certificates: Annotated[tuple[IssuedCertificate, ...], Field(min_length=1, max_length=10_000)]
    made_by_coordinator: bool = False


class Revoked(Section):
    """When a certificate was taken back, and whose it was."""

    merchant: MerchantName
    at: Moment


class _Revocations(Section):
    serials: Annotated[dict[Serial, Revoked], Field(max_length=1_000_000)]


@dataclass(frozen=True)
class Issued:
    """Whose a certificate is: the merchant, its node key (PEM, as Flower sends it), its identity key (hexadecimal)."""

    merchant: str
    node_key: str
    identity_key: str


@dataclass(frozen=True)
class IssuedRegister:
    """The register as it stood when it was read: by merchant, and the serial numbers that were taken back."""

    merchants: Mapping[str, IssuedKeys]
    revoked: Mapping[str, Revoked]

    @classmethod
    def read(cls, state: Path) -> IssuedRegister:
        """Read the register in the coordinator's state folder; one that is not there is empty.

        Raises:
            CoordinatorError: a file of it is damaged.
        """
        paths = sorted((state / ISSUED).glob(f"*{_SUFFIX}"))
        merchants = {path.name.removesuffix(_SUFFIX): _read(path, IssuedKeys) for path in paths}
        for name, entry in merchants.items():
            if entry.merchant != name:
                raise CoordinatorError(f"{state / ISSUED / name}{_SUFFIX} is of {entry.merchant!r}; restore the file")
        path = state / REVOKED_NAME
        return cls(merchants, _read(path, _Revocations).serials if path.exists() else {})

    def lookup(self, serial: int) -> Issued:
        """Whom the certificate with this serial number was issued to.

        Raises:
            CertificateUnknownError: nobody.
            CertificateRevokedError: it was taken back.
        """
        wanted = f"{serial:x}"
        if wanted in self.revoked:
            raise CertificateRevokedError(f"the certificate {wanted} was revoked")
        for entry in self.merchants.values():
            if any(certificate.serial == wanted for certificate in entry.certificates):
                return Issued(entry.merchant, entry.node_key, entry.identity_key)
        raise CertificateUnknownError(f"the certificate {wanted} was not issued here")

    def standing(self, merchant: str) -> x509.Certificate | None:
        """The merchant's newest certificate, whatever its dates; None where there is none or it was taken back."""
        entry = self.merchants.get(merchant)
        if entry is None or entry.certificates[-1].serial in self.revoked:
            return None
        return entry.certificates[-1].parsed()


def changed_at(state: Path) -> tuple[int, ...]:
    """Something that is another after every change of the register, and cheap to ask for."""
    found = [path.stat() for path in (state / ISSUED, state / REVOKED_NAME) if path.exists()]
    return tuple(value for status in found for value in (status.st_ino, status.st_mtime_ns))


def record(state: Path, entry: IssuedKeys) -> None:
    """Put what a merchant has been issued on disk, in place of what stood there of it."""
    _NAME.validate_python(entry.merchant)
    folder = state / ISSUED
    durable_files.make_private_folder(folder)
    durable_files.write(folder / f"{entry.merchant}{_SUFFIX}", _written(entry))


def revoke(state: Path, merchant: str, now: datetime) -> int:
    """Take back every certificate of a merchant; how many there were that stood.

    Raises:
        CoordinatorError: the register is damaged.
    """
    register = IssuedRegister.read(state)
    entry = register.merchants.get(merchant)
    held = [] if entry is None else [certificate.serial for certificate in entry.certificates]
    standing = [serial for serial in held if serial not in register.revoked]
    moment = now.astimezone(UTC).isoformat(timespec="seconds")
    taken_back = {serial: Revoked(merchant=merchant, at=moment) for serial in standing}
    if taken_back:
        durable_files.write(state / REVOKED_NAME, _written(_Revocations(serials={**register.revoked, **taken_back})))
    return len(standing)


def _written(section: Section) -> bytes:
    return json.dumps(section.model_dump(mode="json"), indent=1, sort_keys=True).encode() + b"\n"


def _read(path: Path, kind: type[_Kind]) -> _Kind:
    with path.open("rb") as file:
        content = file.read(_MAX_FILE_BYTES + 1)
    try:
        return kind.model_validate_json(content)
    except ValidationError as error:
        first = error.errors(include_input=False, include_url=False)[0]
        place = ".".join(map(str, first["loc"])) or "the file"
        raise CoordinatorError(f"{path} is damaged: {place}: {first['msg']}; restore it") from None
