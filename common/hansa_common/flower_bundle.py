"""The one bundle that Flower may start at either party: a few lines of text that name what is installed, and no code.

- Every party makes the same bytes from what it has installed itself, so that each can refuse any other bundle by its
  hash alone, whoever signed it.
- The bytes depend on Hansa's version and on nothing else: no clock, no file, and no compression, whose output differs
  between builds of one library.
"""

from __future__ import annotations

import hashlib
import io
import zipfile
from typing import Final

from hansa_common import __version__

PUBLISHER: Final = "hansa"
NAME: Final = "hansa"
# How Flower calls the app: without and with its mark of a publisher.
APP_ID: Final = f"{PUBLISHER}/{NAME}"
APP_SPEC: Final = f"@{APP_ID}"
RUN_FOLDER_KEY: Final = "run-folder"

_TOML: Final = f"""\
[project]
name = "{NAME}"
version = "%s"
description = "Federated learning for merchants who keep their own books"
license = "Apache-2.0"

[tool.flwr.app]
publisher = "{PUBLISHER}"
fab-include = ["/README.md"]

[tool.flwr.app.components]
serverapp = "hansa_server.app:app"
clientapp = "hansa_client.app:app"

[tool.flwr.app.config]
{RUN_FOLDER_KEY} = ""
"""
_README: Final = "Hansa carries no code in its bundle: each side runs the code that it has installed.\n"
_DATE: Final = (1980, 1, 1, 0, 0, 0)
_UNIX: Final = 3
_READABLE: Final = 0o600 << 16


def bundle_toml(version: str = __version__) -> str:
    """What the bundle says of itself; the project's own pyproject.toml says the same."""
    return _TOML % version


def flower_bundle(version: str = __version__) -> bytes:
    """The bundle of a version of Hansa, as Flower installs it: a ZIP of texts with a list of their hashes.

    >>> zipfile.ZipFile(io.BytesIO(flower_bundle())).namelist()
    ['pyproject.toml', 'README.md', '.info/CONTENT']
    """
    files = {"pyproject.toml": bundle_toml(version).encode(), "README.md": _README.encode()}
    lines = [f"{name},{hashlib.sha256(text).hexdigest()},{8 * len(text)}" for name, text in files.items()]
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        for name, text in {**files, ".info/CONTENT": "\n".join(lines).encode()}.items():
            archive.writestr(_entry(name), text)
    return packed.getvalue()


def bundle_hash(bundle: bytes) -> str:
    """What Flower knows a bundle by: its SHA-256, 64 hexadecimal digits."""
    return hashlib.sha256(bundle).hexdigest()


def _entry(name: str) -> zipfile.ZipInfo:
    entry = zipfile.ZipInfo(name, _DATE)
    # Both would otherwise be the machine's.
    entry.create_system = _UNIX
    entry.external_attr = _READABLE
    return entry
