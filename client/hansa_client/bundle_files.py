"""A bundle's folder on a merchant's disk, and the two files beside it that are the merchant's own.

place                        holds
BUNDLE/                      the files that the coordinator signed, and no others
threshold.json, beside it    from which score on this merchant decides; names the bundle that it was computed for
coordinator.pub, beside it   the public key that this merchant trusts, 64 hexadecimal digits

What the bundle's files must be is hansa_common.bundle's to say; here they are only read.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Annotated, Final

from pydantic import Field, ValidationError

from hansa_common import durable_files
from hansa_common.bundle import (
    TRUSTED_KEY_NAME,
    Bundle,
    claimed_signer,
    open_bundle,
)
from hansa_common.errors import BundleError, UsageError
from hansa_common.keys import check_public_key, is_public_key
from hansa_common.record_types import Digest
from hansa_common.schema import Section

THRESHOLD_NAME: Final = "threshold.json"
MAX_BUNDLE_BYTES: Final = 2**31
_MAX_FILES: Final = 100


class OwnThreshold(Section):
    """A merchant's threshold; `bundle` is the bundle_id that it was computed for."""

    bundle: Digest
    threshold: Annotated[float, Field(ge=0, le=1)]


def read_files(folder: Path) -> dict[str, bytes]:
    """All files of a bundle's folder, name -> bytes.

    Raises:
        UsageError: there is no such folder, or a file may not be read.
        BundleError: it holds something that is no file, or more than a bundle can be.
    """
    try:
        with os.scandir(folder) as found:
            entries = sorted(found, key=lambda entry: entry.name)
        for entry in entries:
            if not entry.is_file(follow_symlinks=False):
                raise BundleError(f"{folder}: {entry.name} is not a plain file; a bundle has nothing else")
        size = sum(entry.stat(follow_symlinks=False).st_size for entry in entries)
        if len(entries) > _MAX_FILES or size > MAX_BUNDLE_BYTES:
            raise BundleError(
                f"{folder} holds {len(entries)} files of {size:,} bytes; a bundle has at most {_MAX_FILES} files of "
                f"{MAX_BUNDLE_BYTES:,} bytes"
            )
        return {entry.name: Path(entry.path).read_bytes() for entry in entries}
    except OSError as error:
        raise UsageError(f"the bundle {folder} cannot be read: {error.strerror}") from error


def open_trusted(folder: Path, key: str | None) -> Bundle:
    """Read and verify a bundle under the key that this merchant trusts.

    Raises:
        UsageError: the folder or the key cannot be read, or there is no key.
        BundleError: the bundle is not what the key's holder signed; says what is wrong.
    """
    return _opened(folder, read_files(folder), trusted_key(folder, key))


def open_claimed(folder: Path) -> Bundle:
    """Read a bundle and verify it under the key that it names itself: whole, but by whom is not known.

    Raises:
        UsageError: the folder cannot be read.
        BundleError: the bundle is not what somebody signed; says what is wrong.
    """
    files = read_files(folder)
    try:
        signer = claimed_signer(files)
    except BundleError as error:
        raise BundleError(f"{folder}: {error}") from error
    return _opened(folder, files, signer)


def trusted_key(folder: Path, key: str | None) -> str:
    """The public key to trust: the one given, as 64 hexadecimal digits or as a file of them, or the file beside the
    bundle.

    Raises:
        UsageError: there is none, or it is not one.
    """
    beside = _beside(folder, TRUSTED_KEY_NAME)
    if key is not None and is_public_key(key):
        return key
    if key is None and not beside.exists():
        raise UsageError(
            f"whose signature do you trust? Give the coordinator's public key with --key, or keep it in {beside}"
        )
    path = beside if key is None else Path(key)
    try:
        return check_public_key(path.read_text(encoding="ascii").strip())
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(
            f"{path} is neither a public key, 64 hexadecimal digits, nor a file that can be read: {error}"
        ) from error


def read_threshold(folder: Path, bundle_id: str) -> float | None:
    """This merchant's threshold for this bundle; None where there is no file.

    Raises:
        UsageError: the file holds something else, or is for another bundle.
    """
    path = _beside(folder, THRESHOLD_NAME)
    try:
        own = OwnThreshold.model_validate_json(path.read_bytes())
    except FileNotFoundError:
        return None
    except (OSError, ValidationError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error.errors()[0]["msg"])
        raise UsageError(f"the threshold {path} cannot be read: {reason}") from error
    if own.bundle != bundle_id:
        raise UsageError(
            f"{path} was computed for bundle {own.bundle[:12]}, this is {bundle_id[:12]}, whose scores mean something "
            "else; compute it anew, or give one with --threshold"
        )
    return own.threshold


def write_threshold(folder: Path, bundle_id: str, threshold: float) -> None:
    """Keep this merchant's threshold for this bundle beside it."""
    own = OwnThreshold(bundle=bundle_id, threshold=threshold)
    durable_files.write(_beside(folder, THRESHOLD_NAME), (json.dumps(own.model_dump()) + "\n").encode())


def _beside(folder: Path, name: str) -> Path:
    # Resolved, so that `.` has a place beside it too.
    return folder.resolve().parent / name


def _opened(folder: Path, files: dict[str, bytes], key: str) -> Bundle:
    try:
        return open_bundle(files, key)
    except BundleError as error:
        raise BundleError(f"{folder}: {error}") from error
