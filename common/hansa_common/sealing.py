"""Messages under a signature: an order under the coordinator's, a reply under its merchant's.

On the wire a seal is `HSEAL`, a version byte, an Ed25519 signature of 64 bytes, then the message as it is.

- What `open_seal` returns is byte for byte what the holder of the key sealed for this purpose. An order's signature is
  none of a reply, nor of a bundle or anything else that a key may sign.
- The same message and key give the same seal. A seal says nothing of when: what was sealed once stays sealed, and that
  an old order is not obeyed again is the order log's to see to.
- A message without a seal is refused where one is due, and a sealed one is no message where none is.
- What was not opened has a name of its own (`unopened_hash`): its refusal cannot be passed off as one of the message.

Whose key it must be is the agreement's `[trust]`; what a message says is messages.py's.
"""

from __future__ import annotations

import hashlib
from typing import Final, Literal

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from hansa_common.errors import MessageError, SignatureError
from hansa_common.messages import MAX_MESSAGE_BYTES

Purpose = Literal["order", "reply"]

SIGNATURE_BYTES: Final = 64
_PREFIX: Final = b"HSEAL\x01"
SEAL_BYTES: Final = len(_PREFIX) + SIGNATURE_BYTES
# No message begins so.
_UNOPENED: Final = b"hansa/unopened/v1\0"


def seal(message: bytes, private_key: bytes, purpose: Purpose) -> bytes:
    """A message under the signature of a private key of 32 bytes."""
    signature = Ed25519PrivateKey.from_private_bytes(private_key).sign(_context(purpose) + message)
    return b"".join([_PREFIX, signature, message])


def open_seal(sealed: bytes, public_key: str, purpose: Purpose) -> bytes:
    """The message under a seal, if the holder of this public key (64 hexadecimal digits) sealed it for this purpose.

    Raises:
        SignatureError: it has no seal, or not this one.
        MessageError: it is longer than a message may be; it was not looked at.
    """
    if len(sealed) > SEAL_BYTES + MAX_MESSAGE_BYTES:
        raise MessageError(f"a message has at most {MAX_MESSAGE_BYTES} bytes, this one {len(sealed) - SEAL_BYTES}")
    if not _is_sealed(sealed):
        raise SignatureError(f"the {purpose} is not signed; under an agreement with [trust] it must be")
    message, signature = sealed[SEAL_BYTES:], sealed[len(_PREFIX) : SEAL_BYTES]
    try:
        Ed25519PublicKey.from_public_bytes(bytes.fromhex(public_key)).verify(signature, _context(purpose) + message)
    except (InvalidSignature, ValueError):
        raise SignatureError(f"the {purpose} does not bear the signature of {public_key}") from None
    return message


def unverified(sealed: bytes) -> bytes:
    """The message under whatever seal there is, or the bytes themselves: for who carries it and believes nothing of it.

    >>> unverified(seal(b"HANSA...", bytes(32), "order")), unverified(b"HANSA...")
    (b'HANSA...', b'HANSA...')
    """
    return sealed[SEAL_BYTES:] if _is_sealed(sealed) else sealed


def unopened_hash(sealed: bytes) -> str:
    """What names bytes as they came, 64 hexadecimal digits, for who has not opened them: never what a message is named
    by, be it the one under a wrong seal or without one. So who refuses them refuses nothing else.
    """
    digest = hashlib.sha256(_UNOPENED)
    digest.update(sealed)
    return digest.hexdigest()


def _is_sealed(sealed: bytes) -> bool:
    return len(sealed) >= SEAL_BYTES and sealed.startswith(_PREFIX)


def _context(purpose: Purpose) -> bytes:
    return f"hansa/{purpose}/v1".encode() + b"\0"
