"""The coordinator's signing key: 32 bytes that the operating system drew, in a file that only this user may read.

Its public half is what merchants compare out of band and trust a bundle by. The key is never printed or logged.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

from hansa_common import durable_files
from hansa_common.errors import UsageError

KEY_NAME: Final = "signing.key"
KEY_BYTES: Final = 32


def signing_key(state: Path) -> bytes:
    """The key in the coordinator's state folder, drawn at its first use.

    Raises:
        UsageError: others may read it, or it is no key.
    """
    path = state / KEY_NAME
    durable_files.make_private_folder(state)
    if not path.exists():
        durable_files.write(path, f"{os.urandom(KEY_BYTES).hex()}\n".encode())
    if path.stat().st_mode & 0o077:
        raise UsageError(f"others can read the signing key {path}; make it yours alone: chmod 600")
    try:
        key = bytes.fromhex(path.read_text(encoding="ascii").strip())
    except ValueError:
        key = b""
    if len(key) != KEY_BYTES:
        raise UsageError(f"{path} is no signing key, which has {2 * KEY_BYTES} hexadecimal digits; restore it")
    return key
