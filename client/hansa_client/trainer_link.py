"""How a ClientApp reaches the trainer: the Trainer interface, and the adapter to the resident process.

The link carries orders and replies as they travel, signed or not, and reads neither, but for an order's deadline. It
needs neither TensorFlow nor the merchant's data code, because a ClientApp is a fresh process for every message. Two
files in one folder that only the merchant's user can open make a link: the socket, and the access file with the token.
"""

from __future__ import annotations

import json
import os
import secrets
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final, Protocol

import grpc

from hansa_client import trainer_pb2
from hansa_client.node_user import is_shared
from hansa_common.errors import MessageError, TransportError
from hansa_common.messages import MAX_MESSAGE_BYTES, decode
from hansa_common.record_types import Order
from hansa_common.sealing import unverified

SERVICE: Final = "hansa.client.v1.Trainer"
TOKEN_METADATA: Final = "hansa-token"  # noqa: S105 - the name of the field, not a token
SOCKET_NAME: Final = "trainer.sock"
ACCESS_NAME: Final = "access.json"
# Beyond an order's deadline, for what the trainer does outside it: reading weights, a first compilation.
GRACE_SECONDS: Final = 30.0
UNREADABLE_ORDER_SECONDS: Final = 30.0
# Room for the seal of the largest message.
MAX_ORDER_BYTES: Final = MAX_MESSAGE_BYTES + 1024
# An order comes in pieces, so that a caller who does not know the token makes the trainer hold one and no more.
PIECE_BYTES: Final = 1 << 20
# Room for the few bytes that protobuf adds.
_PROTOBUF_BYTES: Final = 1024
SERVER_OPTIONS: Final = (("grpc.max_receive_message_length", PIECE_BYTES + _PROTOBUF_BYTES),)
_CHANNEL_OPTIONS: Final = (("grpc.max_receive_message_length", MAX_ORDER_BYTES + _PROTOBUF_BYTES),)


class Trainer(Protocol):
    """Answers one order with one reply, both as they travel. A refusal is a reply; a trainer does not raise for it."""

    def answer(self, order: bytes) -> bytes: ...


@dataclass(frozen=True)
class Access:
    """What a peer of the socket must know: whose trainer it is, and its token."""

    merchant: str
    token: str

    def write(self, folder: Path) -> None:
        """Leave the access file in a folder, readable by this user, and by the folder's group where it is shared."""
        mode = 0o640 if is_shared(folder) else 0o600
        descriptor = os.open(folder / ACCESS_NAME, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
        with os.fdopen(descriptor, "w") as file:
            # Whatever the umask takes away.
            os.fchmod(descriptor, mode)
            json.dump(asdict(self), file)

    @classmethod
    def read(cls, folder: Path) -> Access:
        """Read the access file.

        Raises:
            TransportError: there is none, or it is not one: the trainer is not running.
        """
        try:
            return cls(**json.loads((folder / ACCESS_NAME).read_text()))
        except (OSError, ValueError, TypeError) as error:
            raise TransportError(f"no trainer has left its access file in {folder}: {error}") from error


def new_access(merchant: str) -> Access:
    """Access with a fresh random token."""
    return Access(merchant, secrets.token_hex(32))


class RemoteTrainer:
    """A trainer in another process of the same machine and user.

    Every call ends: at the latest GRACE_SECONDS after the order's own deadline.
    """

    def __init__(self, socket: Path, access: Access) -> None:
        self._access = access
        self._channel = grpc.insecure_channel(f"unix:{socket}", options=_CHANNEL_OPTIONS)
        self._answer = self._channel.stream_unary(
            f"/{SERVICE}/Answer",
            request_serializer=trainer_pb2.OrderPiece.SerializeToString,
            response_deserializer=trainer_pb2.Reply.FromString,
        )

    def answer(self, order: bytes, seconds: float | None = None) -> bytes:
        """Carry the order over and its reply back, within so many seconds if they are fewer than the order's own.

        Raises:
            TransportError: the trainer cannot be reached, does not know the token, or did not answer in time.
        """
        try:
            reply = self._answer(
                _pieces(order),
                timeout=answer_seconds(order) if seconds is None else max(0.0, min(seconds, answer_seconds(order))),
                metadata=((TOKEN_METADATA, self._access.token),),
            )
        except grpc.RpcError as error:
            raise TransportError(f"the trainer of {self._access.merchant} did not answer: {error.code()}") from error
        return bytes(reply.encoded)

    def close(self) -> None:
        """Close the connection."""
        self._channel.close()


def _pieces(order: bytes) -> Iterator[trainer_pb2.OrderPiece]:
    for place in range(0, len(order), PIECE_BYTES):
        yield trainer_pb2.OrderPiece(encoded=order[place : place + PIECE_BYTES])


def answer_seconds(order: bytes) -> float:
    """How long a caller waits for the reply to an order.

    an order -> its deadline and GRACE_SECONDS | anything else -> UNREADABLE_ORDER_SECONDS, to hear the refusal
    """
    try:
        record = decode(unverified(order))
    except MessageError:
        return UNREADABLE_ORDER_SECONDS
    return record.deadline_seconds + GRACE_SECONDS if isinstance(record, Order) else UNREADABLE_ORDER_SECONDS
