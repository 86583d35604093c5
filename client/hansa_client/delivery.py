"""A delivered bundle at the merchant: verified, decided with on this merchant's own rows, kept until it is fetched.

file in the state folder   holds
coordinator.pub            the key that a bundle must be signed with: the agreement's, else that of the first delivery
delivered.bundle           the last bundle's files with own.json, packed (parcel.py): one file, so it is there whole

| what comes                                                               | outcome                          |
|--------------------------------------------------------------------------|----------------------------------|
| signed with another key than the trusted one                             | PolicyError, and both keys told  |
| a byte changed, a file too many or too few, a name that is no bundle's   | MessageError                     |
| of another agreement, other features, another network or hash key        | PolicyError                      |
| a network that gives no threshold on these rows                          | kept without one, and why        |

The last two lines differ so that what the coordinator is told depends on no row. The network runs where it can do
nothing but compute (candidate.py); what a fetched bundle is to its user is bundle_files.py's.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Final, Literal, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, ValidationError

from hansa_client.bundle_files import trusted_key
from hansa_client.candidate import candidate_logits
from hansa_common import durable_files
from hansa_common.agreement import Agreement
from hansa_common.bundle import FILE_NAMES, TRUSTED_KEY_NAME, Bundle, Share, claimed_signer, open_bundle
from hansa_common.errors import BundleError, MerchantError, MessageError, PolicyError
from hansa_common.features import Inputs
from hansa_common.metrics import metrics_from_histogram, score_histogram
from hansa_common.model import ModelSpec
from hansa_common.parcel import pack, unpack
from hansa_common.record_types import Digest
from hansa_common.schema import Section
from hansa_common.vectors import num_params

DELIVERED_NAME: Final = "delivered.bundle"
OWN_NAME: Final = "own.json"
# Two TFLite files and an archive of the weights, all of them together less than this.
_MOST_BYTES_PER_PARAM: Final = 16
_MOST_OTHER_BYTES: Final = 64 * 2**20

Origin = Literal["agreement", "first delivery"]

_log = logging.getLogger(__name__)


class OwnDecision(Section):
    """From which score on this merchant decides with a bundle, found on its validation rows; `reason` says why there
    is no threshold, and is empty where there is one. `key_from` tells why the bundle's signer is trusted.
    """

    bundle: Digest
    key_from: Origin
    num_rows: Annotated[int, Field(ge=0)]
    num_positives: Annotated[int, Field(ge=0)]
    threshold: Share | None = None
    f1: Share | None = None
    reason: str = ""


@dataclass(frozen=True)
class Arrived:
    """A delivered bundle that was verified: its files by name, and what they are."""

    files: dict[str, bytes]
    bundle: Bundle
    key_from: Origin

    def decided(self, inputs: Inputs, labels: NDArray[np.uint8]) -> OwnDecision:
        """The threshold with the best F1 of the bundle's own scores on these validation rows; labels: (rows,).

        Never raises for what the bundle's network does.
        """
        name = self.bundle.network_name
        known = OwnDecision(
            bundle=self.bundle.bundle_id,
            key_from=self.key_from,
            num_rows=len(labels),
            num_positives=int(labels.sum()),
        )
        try:
            logits = candidate_logits(self.bundle.networks[name], inputs, name=name)
        except MerchantError as error:
            return known.model_copy(update={"reason": str(error)})
        metrics = metrics_from_histogram(score_histogram(logits, labels))
        if metrics is None:
            return known.model_copy(update={"reason": "the validation rows hold one class only"})
        return known.model_copy(update={"threshold": metrics.best_f1_threshold, "f1": metrics.best_f1})


@dataclass(frozen=True)
class Inbox:
    """Where one merchant's deliveries under one agreement go: its state folder."""

    state: Path
    agreement: Agreement

    def opened(self, packed: NDArray[np.uint8]) -> Arrived:
        """Verify what an order brings; nothing is kept yet.

        Raises:
            PolicyError: it is not signed by who is trusted, or not of this agreement.
            MessageError: it is no bundle, or not the one that was signed.
        """
        self._check_size(packed)
        files = unpack(packed.tobytes(), FILE_NAMES)
        try:
            trusted, key_from = self._trusted(claimed_signer(files))
            bundle = open_bundle(files, trusted)
        except BundleError as error:
            raise MessageError(f"the delivered bundle is not what was signed: {error}") from error
        self._check_agreed(bundle)
        return Arrived(files, bundle, key_from)

    def keep(self, arrived: Arrived, own: OwnDecision) -> None:
        """Put the bundle in the place of an earlier one, after its key: on disk when this returns."""
        pin = f"{arrived.bundle.signer}\n".encode()
        if not self._pin.exists() or self._pin.read_bytes() != pin:
            durable_files.write(self._pin, pin)
        content = pack({**arrived.files, OWN_NAME: own.model_dump_json().encode()})
        durable_files.write(self.state / DELIVERED_NAME, content)
        outcome = own.reason or f"own threshold {own.threshold:.6g}"
        _log.info("bundle %s was delivered, %s; `hansa client fetch` brings it", own.bundle[:12], outcome)

    @property
    def _pin(self) -> Path:
        return self.state / TRUSTED_KEY_NAME

    def _trusted(self, signer: str) -> tuple[str, Origin]:
        """The key to verify with, which must be the signer's: the agreement's, else the kept one, else the signer's."""
        agreed = None if self.agreement.trust is None else self.agreement.trust.coordinator
        kept = trusted_key(self.state, str(self._pin)) if self._pin.exists() else None
        trusted = agreed or kept or signer
        if signer != trusted:
            where = (
                "the agreement names"
                if agreed
                else f"{self._pin} holds (remove it only if the coordinator says, by another way, that its key is new)"
            )
            raise PolicyError(f"the bundle is signed by {signer}, not by {trusted}, the key that {where}")
        return trusted, "agreement" if agreed else "first delivery"

    def _check_size(self, packed: NDArray[np.uint8]) -> None:
        most = _MOST_BYTES_PER_PARAM * num_params(self._spec.shapes) + _MOST_OTHER_BYTES
        if packed.size > most:
            raise PolicyError(f"the delivered bundle has {packed.size:,} bytes, one of this model at most {most:,}")

    def _check_agreed(self, bundle: Bundle) -> None:
        agreed = self.agreement
        found = bundle.manifest.agreement_fingerprint
        if found != agreed.fingerprint:
            raise PolicyError(f"the bundle is of agreement {found}, approved is {agreed.fingerprint}")
        if bundle.preprocessing.features != agreed.features:
            raise PolicyError("the bundle's preprocessing.json is for other features than the agreement's")
        if bundle.spec != self._spec:
            raise PolicyError("the bundle's spec.json is of another network than the agreement's")
        if bundle.manifest.hash_key_id != agreed.privacy.hash_key_id:
            raise PolicyError(
                f"the bundle hashes with key {bundle.manifest.hash_key_id}, agreed is {agreed.privacy.hash_key_id}"
            )

    @property
    def _spec(self) -> ModelSpec:
        return ModelSpec.from_agreement(self.agreement)


@dataclass(frozen=True)
class Kept:
    """The last delivered bundle of a state folder, verified again, and this merchant's decision with it."""

    files: dict[str, bytes]
    bundle: Bundle
    own: OwnDecision

    @classmethod
    def read(cls, state: Path) -> Self:
        """Read it; a trainer may run meanwhile.

        Raises:
            MerchantError: nothing was delivered yet.
            UsageError: the trusted key cannot be read.
            BundleError: it is no longer what was delivered.
        """
        path = state / DELIVERED_NAME
        try:
            content = path.read_bytes()
        except FileNotFoundError:
            raise MerchantError(
                f"nothing was delivered to {state} yet: let `hansa client start` run while the coordinator trains, or "
                "until it says `hansa server deliver`"
            ) from None
        try:
            files = unpack(content, FILE_NAMES | {OWN_NAME})
            own = OwnDecision.model_validate_json(files.pop(OWN_NAME, b""))
            bundle = open_bundle(files, trusted_key(path, None))
        except (MessageError, ValidationError, BundleError) as error:
            reason = "own.json is missing or changed" if isinstance(error, ValidationError) else str(error)
            raise BundleError(f"{path} is not what was delivered: {reason}; have it delivered again") from error
        if own.bundle != bundle.bundle_id:
            raise BundleError(f"{path} is not what was delivered: own.json is of another bundle")
        return cls(files, bundle, own)
