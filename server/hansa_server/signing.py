"""The coordinator's signing keys, each in a file that only this user may read.

signing.key      its public half is what merchants compare out of band and trust a model by
publisher.key    signs the one bundle that Flower carries, and nothing else

Keys are never printed or logged.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

from hansa_common import durable_files, keys

KEY_NAME: Final = "signing.key"
PUBLISHER_KEY_NAME: Final = "publisher.key"


def signing_key(state: Path) -> bytes:
    """The key for models in the coordinator's state folder, drawn at its first use.

    Raises:
        UsageError: others may read it, or it is no key.
    """
    return _key(state / KEY_NAME, "the signing key")


def publisher_key(state: Path) -> bytes:
    """The key for Flower's bundle in the coordinator's state folder, drawn at its first use.

    Raises:
        UsageError: others may read it, or it is no key.
    """
    return _key(state / PUBLISHER_KEY_NAME, "the publisher key")


def _key(path: Path, what: str) -> bytes:
    durable_files.make_private_folder(path.parent)
    return keys.read_signing_key(path, what) if path.exists() else keys.make_signing_key(path)
