"""How far a merchant's ledger is, on a reply as it leaves: told anew every time, and no part of what was answered.

A reply that is sent once more says what the ledger is now, not what it was; what tells two answers apart is the hash of
the rest. Under [trust] the signature covers all of it.
"""

from __future__ import annotations

from hansa_common.errors import MessageError
from hansa_common.messages import decode, encode, message_hash
from hansa_common.record_types import Reply


def stamped(message: bytes, ledger: str) -> bytes:
    """A reply's message with this state of the ledger, in place of whatever it said.

    Raises:
        MessageError: it is no reply.
    """
    reply = decode(message)
    if not isinstance(reply, Reply):
        raise MessageError(f"{reply.KIND} is no reply, and says nothing of a ledger")
    return message if reply.ledger == ledger else encode(reply.model_copy(update={"ledger": ledger}))


def answer_hash(reply: Reply, message: bytes) -> str:
    """The hash of what was answered: of the reply's message, as it was before it was stamped."""
    return message_hash(message if not reply.ledger else stamped(message, ""))
