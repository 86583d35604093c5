"""The deployable model: files under one signed manifest, made, verified and opened as bytes. Nothing here opens a file.

file                 holds
manifest.json        canonical JSON: SHA-256 and size of every other file, agreement, run, versions, sparsity
manifest.sig         the signer's public key, then its Ed25519 signature of manifest.json; hexadecimal, a line each
float.tflite         the network in float32; inputs as tflite.py tells them, output one logit a row
int8.tflite          the same with an int8 body, where the run made one that passed its gate
spec.json, weights.npz, preprocessing.json    the model as plain values, see model.py
metrics.json         the federation's figures; no merchant's, and no threshold
card.md              the model card

- What `verify_bundle` accepts is what the holder of the trusted key signed, whole: a changed byte in any file, a
  missing or an additional file, another format, a missing signature and another's are refused, naming the file.
- The same parts and key give the same bytes. The private key is passed in, and stands in no file.
- A threshold is a merchant's own and never in a bundle; metrics that hold one are refused.

Files under a valid signature are believed to be a model, not to be harmless: the TFLite files are read by native code
(see tflite.py). Files and folders are the client's.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Final, Literal

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from pydantic import Field, ValidationError

from hansa_common import __version__
from hansa_common.agreement import Agreement
from hansa_common.errors import BundleError, MessageError
from hansa_common.features import FittedPreprocessing
from hansa_common.keys import check_public_key, public_key_of
from hansa_common.model import MODEL_NAMES, ModelSpec, model_files, model_parts
from hansa_common.model_card import model_card
from hansa_common.record_types import Digest, Name
from hansa_common.schema import Section
from hansa_common.vectors import Vector

MANIFEST_NAME: Final = "manifest.json"
SIGNATURE_NAME: Final = "manifest.sig"
FLOAT_NAME: Final = "float.tflite"
INT8_NAME: Final = "int8.tflite"
METRICS_NAME: Final = "metrics.json"
CARD_NAME: Final = "card.md"
# Beside a bundle, never in it: whom to trust.
TRUSTED_KEY_NAME: Final = "coordinator.pub"
FORMAT: Final = "hansa-bundle-1"

_NEEDED: Final = frozenset({FLOAT_NAME, METRICS_NAME, CARD_NAME, *MODEL_NAMES})
# What a bundle's files are called, and nothing else in one is.
FILE_NAMES: Final = frozenset({MANIFEST_NAME, SIGNATURE_NAME, INT8_NAME, *_NEEDED})
_MAX_MANIFEST_BYTES: Final = 1 << 20
_SIGNATURE: Final = re.compile(rb"([0-9a-f]{64})\n([0-9a-f]{128})\n")
# A signature of a manifest is never one of anything else that the key may sign.
_CONTEXT: Final = b"hansa bundle manifest 1\0"
# Of a run's figures, what speaks of the federation; what speaks of a merchant stays out.
_KEPT_METRICS: Final = ("task", "label", "seed", "best_round", "validation", "federated", "compressed")
_MAX_PROBLEM_CHARS: Final = 300

Share = Annotated[float, Field(ge=0, le=1)]


class FileEntry(Section):
    """What the manifest says of one file."""

    sha256: Digest
    size: Annotated[int, Field(ge=0, lt=2**40)]


class Manifest(Section):
    """What is signed. `hash_key_id` is the SHA-256 of the key that merchants hash categories with and keep."""

    format: Literal["hansa-bundle-1"] = FORMAT
    hansa_version: Name
    agreement_fingerprint: Digest
    hash_key_id: Digest | None
    run_id: Name
    made_with: Annotated[dict[Name, Name], Field(max_length=100)]
    sparsity: Annotated[dict[Name, Share], Field(max_length=1000)]
    files: dict[str, FileEntry]

    def canonical_json(self) -> bytes:
        """Sorted keys, no spaces, UTF-8: the bytes that are signed."""
        return _canonical(self.model_dump(mode="json"))


@dataclass(frozen=True)
class BundleParts:
    """What a bundle is made of. `metrics` is a run's metrics.json, of which only the federation's own figures are
    taken; `sparsity` holds shares of zeros by name, `made_with` versions by name; `int8_tflite` may be left out.
    `hash_key_id` is of the key that was hashed with where the agreement names none, as in a simulation.
    """

    agreement: Agreement
    run_id: str
    spec: ModelSpec
    weights: Vector
    preprocessing: FittedPreprocessing
    float_tflite: bytes
    int8_tflite: bytes | None
    metrics: Mapping[str, Any]
    sparsity: Mapping[str, float]
    made_with: Mapping[str, str]
    hash_key_id: str | None = None


@dataclass(frozen=True)
class Bundle:
    """A bundle that was verified and read. `bundle_id` is the SHA-256 of its manifest: equal bundles, and no others,
    have equal ids; a merchant's threshold names the one that it belongs to.
    """

    bundle_id: str
    signer: str
    manifest: Manifest
    spec: ModelSpec
    weights: Vector
    preprocessing: FittedPreprocessing
    metrics: dict[str, Any]
    card: str
    networks: dict[str, bytes]

    @property
    def network_name(self) -> str:
        """The file that scores unless another is asked for: int8 where there is one."""
        return INT8_NAME if INT8_NAME in self.networks else FLOAT_NAME


def make_bundle(parts: BundleParts, private_key: bytes) -> dict[str, bytes]:
    """The files of a bundle by name, signed with a key of 32 bytes.

    Raises:
        ValueError: the parts do not make a bundle.
    """
    metrics = _federations_own(parts.metrics)
    files = {
        **model_files(parts.spec, parts.weights, parts.preprocessing),
        FLOAT_NAME: parts.float_tflite,
        METRICS_NAME: _canonical(metrics) + b"\n",
    }
    if parts.int8_tflite is not None:
        files[INT8_NAME] = parts.int8_tflite
    sizes: dict[str, int] = {name: len(files[name]) for name in (INT8_NAME, FLOAT_NAME) if name in files}
    files[CARD_NAME] = model_card(parts.agreement, parts.spec, metrics, parts.sparsity, sizes).encode()
    manifest = Manifest(
        hansa_version=__version__,
        agreement_fingerprint=parts.agreement.fingerprint,
        hash_key_id=parts.agreement.privacy.hash_key_id or parts.hash_key_id,
        run_id=parts.run_id,
        made_with=dict(parts.made_with),
        sparsity=dict(parts.sparsity),
        files={name: _entry(content) for name, content in files.items()},
    )
    content = manifest.canonical_json()
    return {MANIFEST_NAME: content, SIGNATURE_NAME: _signature(content, private_key), **files}


def verify_bundle(files: Mapping[str, bytes], trusted_key: str) -> Manifest:
    """The manifest of files, name -> bytes, that the holder of the trusted key (64 hexadecimal digits) signed.

    Raises:
        UsageError: the trusted key is not one.
        BundleError: the files are anything else; says which.
    """
    manifest = _signed_manifest(files, check_public_key(trusted_key))
    present = set(files) - {MANIFEST_NAME, SIGNATURE_NAME}
    for name in sorted(present | set(manifest.files)):
        if name not in files:
            raise BundleError(f"{name} is missing; {MANIFEST_NAME} lists it")
        if name not in manifest.files:
            raise BundleError(f"{name} does not belong here; {MANIFEST_NAME} does not list it")
        if _entry(files[name]) != manifest.files[name]:
            raise BundleError(f"{name} was changed: it is not the file of which {MANIFEST_NAME} has the SHA-256")
    if set(manifest.files) - {INT8_NAME} != _NEEDED:
        raise BundleError(f"{MANIFEST_NAME} lists {sorted(manifest.files)}; a bundle has {sorted(_NEEDED)}")
    return manifest


def open_bundle(files: Mapping[str, bytes], trusted_key: str) -> Bundle:
    """Verify files, name -> bytes, and read the model.

    Raises:
        UsageError: the trusted key is not one.
        BundleError: the files are not what was signed, or not a model; says which.
    """
    manifest = verify_bundle(files, trusted_key)
    try:
        spec, weights, preprocessing = model_parts(files)
        metrics = _metrics(files[METRICS_NAME])
        card = files[CARD_NAME].decode()
    except (ValueError, RecursionError, MessageError) as error:
        raise BundleError(f"the bundle holds no model: {str(error)[:_MAX_PROBLEM_CHARS]}") from error
    networks = {name: files[name] for name in (INT8_NAME, FLOAT_NAME) if name in files}
    bundle_id = hashlib.sha256(files[MANIFEST_NAME]).hexdigest()
    return Bundle(bundle_id, trusted_key, manifest, spec, weights, preprocessing, metrics, card, networks)


def claimed_signer(files: Mapping[str, bytes]) -> str:
    """The public key that the signature says it is by; whether that is so, and whom to trust, is another question.

    Raises:
        BundleError: there is no manifest, or no signature.
    """
    return _parsed_signature(files)[0]


def _signed_manifest(files: Mapping[str, bytes], trusted_key: str) -> Manifest:
    signer, signature = _parsed_signature(files)
    if signer != trusted_key:
        raise BundleError(f"{SIGNATURE_NAME} is by the key {signer}, and the one to trust is {trusted_key}")
    content = files[MANIFEST_NAME]
    try:
        Ed25519PublicKey.from_public_bytes(bytes.fromhex(trusted_key)).verify(signature, _CONTEXT + content)
    except (InvalidSignature, ValueError):
        raise BundleError(
            f"{MANIFEST_NAME} and {SIGNATURE_NAME} do not belong together: one of them was changed after signing"
        ) from None
    # Only now: nothing unsigned is parsed.
    return _manifest(content)


def _parsed_signature(files: Mapping[str, bytes]) -> tuple[str, bytes]:
    if MANIFEST_NAME not in files:
        raise BundleError(f"{MANIFEST_NAME} is missing, so this is no bundle")
    if SIGNATURE_NAME not in files:
        raise BundleError(
            f"{SIGNATURE_NAME} is missing: {MANIFEST_NAME} is unsigned, and nothing in it can be believed"
        )
    found = _SIGNATURE.fullmatch(files[SIGNATURE_NAME])
    if found is None:
        raise BundleError(f"{SIGNATURE_NAME} does not hold a public key and a signature")
    return found[1].decode(), bytes.fromhex(found[2].decode())


def _manifest(content: bytes) -> Manifest:
    if len(content) > _MAX_MANIFEST_BYTES:
        raise BundleError(f"{MANIFEST_NAME} has {len(content):,} bytes, allowed are {_MAX_MANIFEST_BYTES:,}")
    try:
        manifest = Manifest.model_validate_json(content)
    except ValidationError as error:
        first = error.errors(include_input=False)[0]
        place = ".".join(map(str, first["loc"])) or MANIFEST_NAME
        raise BundleError(
            f"{MANIFEST_NAME} is not one of {FORMAT}: {place}: {first['msg'][:_MAX_PROBLEM_CHARS]}"
        ) from None
    if manifest.canonical_json() != content:
        raise BundleError(f"{MANIFEST_NAME} is not canonical JSON")
    return manifest


def _signature(content: bytes, private_key: bytes) -> bytes:
    signature = Ed25519PrivateKey.from_private_bytes(private_key).sign(_CONTEXT + content)
    return f"{public_key_of(private_key)}\n{signature.hex()}\n".encode()


def _entry(content: bytes) -> FileEntry:
    return FileEntry(sha256=hashlib.sha256(content).hexdigest(), size=len(content))


def _canonical(values: Any) -> bytes:
    return json.dumps(values, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode()


def _federations_own(metrics: Mapping[str, Any]) -> dict[str, Any]:
    kept = {name: metrics[name] for name in _KEPT_METRICS if name in metrics}
    return {name: _without_thresholds(value) for name, value in kept.items()}


def _without_thresholds(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _without_thresholds(entry) for key, entry in value.items() if "threshold" not in key}
    return value


def _metrics(content: bytes) -> dict[str, Any]:
    values = json.loads(content, parse_constant=_refuse_constant)
    if not isinstance(values, dict):
        raise ValueError(f"{METRICS_NAME} does not hold a run's figures")  # noqa: TRY004 - one kind of error for a file
    if any("threshold" in key for key in _keys(values)):
        raise ValueError(f"{METRICS_NAME} holds a threshold; thresholds are each merchant's own")
    return values


def _refuse_constant(name: str) -> float:
    raise ValueError(f"{METRICS_NAME} holds {name}, which is no figure")


def _keys(value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        yield from value
    if isinstance(value, dict | list):
        for entry in value.values() if isinstance(value, dict) else value:
            yield from _keys(entry)
