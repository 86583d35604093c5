"""The Flower ClientApp: carries one message to a Trainer and its reply back. Owns nothing, decides nothing.

It always answers or its process ends, so that it never wedges its SuperNode:

- a trainer's reply, refusals among them, travels as it is;
- where no trainer can be reached, the coordinator gets a refusal with a code, which nobody has signed, or where even
  the merchant's name is unknown, an error of Flower's with one fixed word; never the text of an exception;
- in a merchant's processes, a watchdog ends this one if it outlives the order's deadline and grace.
"""

from __future__ import annotations

import faulthandler
import logging
from collections.abc import Callable
from pathlib import Path

from flwr.app import ConfigRecord, Context, Error, Message, RecordDict
from flwr.clientapp import ClientApp

from hansa_client.trainer_link import GRACE_SECONDS, Access, RemoteTrainer, Trainer, answer_seconds
from hansa_common.errors import TransportError
from hansa_common.messages import FLOWER_FIELD, FLOWER_RECORD, Refusal, encode, message_hash
from hansa_common.sealing import unverified

UNREACHABLE_CODE = 1

_log = logging.getLogger(__name__)


def client_app(find_trainer: Callable[[Context], Trainer]) -> ClientApp:
    """A ClientApp that hands every message of type "train" to the trainer that its context leads to."""
    app = ClientApp()

    @app.train()  # type: ignore[untyped-decorator]  # Flower is followed as untyped
    def carry(message: Message, context: Context) -> Message:
        order = _order(message)
        if order is None:
            return Message(Error(code=UNREACHABLE_CODE, reason="message-invalid"), reply_to=message)
        try:
            reply = find_trainer(context).answer(order)
        except TransportError as error:
            _log.error("%s", error)
            return Message(Error(code=UNREACHABLE_CODE, reason="trainer-unreachable"), reply_to=message)
        content = RecordDict({FLOWER_RECORD: ConfigRecord({FLOWER_FIELD: reply})})
        return Message(content=content, reply_to=message)

    return app


def _order(message: Message) -> bytes | None:
    record = message.content.get(FLOWER_RECORD) if message.has_content() else None
    order = record.get(FLOWER_FIELD) if isinstance(record, ConfigRecord) else None
    return order if isinstance(order, bytes) else None


class _WatchedTrainer:
    """The merchant's resident trainer, asked from a process that lives for this one message."""

    def __init__(self, socket: Path) -> None:
        self._access = Access.read(socket.parent)
        self._trainer = RemoteTrainer(socket, self._access)

    def answer(self, order: bytes) -> bytes:
        # The call has its own deadline; this is for whatever else may hang. It ends the process from a thread
        # that does not need Python to run.
        faulthandler.dump_traceback_later(answer_seconds(order) + GRACE_SECONDS, exit=True)
        try:
            return self._trainer.answer(order)
        except TransportError as error:
            _log.error("%s", error)
            order_hash = message_hash(unverified(order))
            return encode(Refusal(merchant=self._access.merchant, order_hash=order_hash, code="failed"))
        finally:
            faulthandler.cancel_dump_traceback_later()
            self._trainer.close()


def _resident_trainer(context: Context) -> Trainer:
    socket = context.node_config.get("trainer")
    if not isinstance(socket, str):
        raise TransportError("the node's configuration names no trainer; start the node with `hansa client start`")
    return _WatchedTrainer(Path(socket))


app = client_app(_resident_trainer)
