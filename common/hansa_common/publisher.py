"""Whose bundles a node takes: the publisher's key in the words of Flower's `--trusted-entities`, and its signatures.

The key is the coordinator's, for this alone. A signature says who sent a bundle, not that it is harmless, and never
expires: a node of ours takes one bundle only, by its hash (flower_bundle.py), and of those with it, signed ones.
"""

from __future__ import annotations

import base64
import hashlib
import json
from typing import Final

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

KEY_ID: Final = "fpk_hansa"
# In a merchant's state folder.
TRUSTED_ENTITIES_NAME: Final = "trusted.yaml"
_COMMENT: Final = "hansa"
_TIME_BYTES: Final = 8


def trusted_entities_yaml(public_key: str) -> str:
    r"""The file for `--trusted-entities` that trusts one publisher, by its Ed25519 key of 64 hexadecimal digits.

    >>> trusted_entities_yaml("d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a")
    'fpk_hansa: "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAINdamAGCsQq31Uv+08lkBzoO4XLz2qYjJa8CGmj3B1Ea hansa"\n'
    """
    key = Ed25519PublicKey.from_public_bytes(bytes.fromhex(public_key))
    ssh = key.public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH).decode()
    return f'{KEY_ID}: "{ssh} {_COMMENT}"\n'


def signed_by(private_key: bytes, bundle: bytes, signed_at: int) -> dict[str, str]:
    """What Flower carries beside a bundle to prove its publisher: the signature by an Ed25519 key of 32 bytes.

    `signed_at`, in seconds since 1970, is signed too; nothing reads it but people.
    """
    message = signed_at.to_bytes(_TIME_BYTES, "big") + hashlib.sha256(bundle).digest()
    signature = Ed25519PrivateKey.from_private_bytes(private_key).sign(message)
    record = {"signature": base64.urlsafe_b64encode(signature).decode(), "signed_at": signed_at}
    # Flower asks its Hub for a license; what a node looks at is only that something stands here.
    return {"valid_license": "Valid", KEY_ID: json.dumps(record)}
