"""What a merchant is sent: a folder of public files, and the agreement with the keys that everyone believes.

file               holds
agreement.toml     the agreement as its author wrote it, with [trust]; the same one in every kit
federation.toml    where the gateway is, and what belongs together, under the coordinator's signature
tls.crt, ca.crt    the merchant's certificate, and the authority that the server's is verified by

No private key is in a kit. With `--development` the coordinator makes the merchants' keys too, into the same folder,
which is then a merchant's whole state: a coordinator who does that can speak in every merchant's name.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from hansa_common import durable_files
from hansa_common.addresses import Address
from hansa_common.agreement import Agreement, parse_agreement
from hansa_common.certificates import certificate_fingerprint, certificate_pem
from hansa_common.enrolment_papers import EnrolmentRequest, make_request, sign_federation
from hansa_common.errors import UsageError
from hansa_common.keys import public_key_of
from hansa_common.merchant_keys import (
    AUTHORITY_CERTIFICATE,
    FEDERATION,
    PRIVATE,
    TLS_CERTIFICATE,
    make_keys,
)
from hansa_common.trust import Trust
from hansa_server.authority import Authority
from hansa_server.issued_register import IssuedKeys

AGREEMENT: Final = "agreement.toml"
_FOR_ALL: Final = 0o644


@dataclass(frozen=True)
class Sender:
    """The coordinator that kits come from; the signing key is not shown."""

    address: Address
    authority: Authority
    publisher: str
    signing_key: bytes = field(repr=False)

    @property
    def coordinator(self) -> str:
        """The public key that the agreement names."""
        return public_key_of(self.signing_key)


def agreement_text(text: str, agreement: Agreement) -> str:
    """An author's text that says this agreement: itself, or with [trust] at its end.

    Raises:
        UsageError: the text says something else.
    """
    if agreement.trust is not None and parse_agreement(text, "the agreement").trust is None:
        text = f"{text.rstrip()}\n\n{_trust_toml(agreement.trust)}"
    if parse_agreement(text, "the agreement with [trust]") != agreement:
        raise UsageError("the agreement cannot be written with [trust] at its end; move its last table up")
    return text


def kit_files(entry: IssuedKeys, agreement: Agreement, text: str, sender: Sender) -> dict[str, bytes]:
    """The files of one merchant's kit by name. The agreement has [trust]; the newest certificate is sent."""
    federation = sign_federation(
        {
            "merchant": entry.merchant,
            "server": str(sender.address),
            "coordinator": sender.coordinator,
            "publisher": sender.publisher,
            "authority": certificate_fingerprint(sender.authority.certificate),
            "agreement": agreement.fingerprint,
            "roster": agreement.roster_fingerprint,
            "keys_made_by_coordinator": entry.made_by_coordinator,
        },
        sender.signing_key,
    )
    return {
        AGREEMENT: text.encode(),
        FEDERATION: federation.to_toml(),
        TLS_CERTIFICATE: certificate_pem(entry.certificates[-1].parsed()),
        AUTHORITY_CERTIFICATE: certificate_pem(sender.authority.certificate),
    }


def check_holds_no_private_key(kits: Path, merchant: str) -> None:
    """See that what is sent to a merchant is public.

    Raises:
        UsageError: there is a private key in its folder, from an earlier call.
    """
    found = [name for name in PRIVATE if (kits / merchant / name).exists()]
    if found:
        raise UsageError(
            f"{kits / merchant} holds private keys ({', '.join(found)}), which --development made; "
            "give another -o for kits that are sent"
        )


def write_kit(kits: Path, merchant: str, files: dict[str, bytes]) -> None:
    """Put a kit in a folder with the merchant's name; what is there of an earlier one is replaced.

    Raises:
        UsageError: the folder is one that others can open.
    """
    folder = kits / merchant
    durable_files.make_private_folder(folder)
    for name, content in files.items():
        durable_files.write(folder / name, content)


def write_agreement(kits: Path, text: str) -> str | None:
    """Put the agreement beside the kits; the fingerprint of one that was there and said something else."""
    kits.mkdir(parents=True, exist_ok=True)
    path = kits / AGREEMENT
    before = parse_agreement(path.read_text(encoding="utf-8"), str(path)) if path.exists() else None
    durable_files.write(path, text.encode(), _FOR_ALL)
    if before is None or before == parse_agreement(text, str(path)):
        return None
    return before.fingerprint


def development_request(kits: Path, merchant: str) -> EnrolmentRequest:
    """Make a merchant's keys in its kit's folder, or take those that are there, and ask in its name.

    Raises:
        UsageError: others can open the folder, or read a key.
    """
    durable_files.make_private_folder(kits / merchant)
    return make_request(merchant, make_keys(kits / merchant))


def _trust_toml(trust: Trust) -> str:
    # Quoted, because a name may have a dot or a space.
    merchants = [f'"{name}" = "{key}"' for name, key in trust.merchants.items()]
    head = "# Written by `hansa provision`: whose keys are believed."
    return "\n".join([head, "[trust]", f'coordinator = "{trust.coordinator}"', "", "[trust.merchants]", *merchants, ""])
