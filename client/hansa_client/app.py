"""The Flower ClientApp: carries one message to a Trainer and its reply back. Owns nothing, decides nothing.

It always answers or its process ends, so that it never wedges its SuperNode:

- a trainer's reply, refusals among them, travels as it is;
- a trainer that has died is being started again: it is waited for, and given the same order, which it obeys once;
- where no trainer can be reached in time, the coordinator gets a refusal with a code, which nobody has signed, or where
  even the merchant's name is unknown, an error of Flower's with one fixed word; never the text of an exception;
- in a merchant's processes, a watchdog ends this one if it outlives the order's deadline and grace.
"""

from __future__ import annotations

import faulthandler
import logging
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Final

from flwr.app import ConfigRecord, Context, Error, Message, RecordDict
from flwr.clientapp import ClientApp

from hansa_client.trainer_link import GRACE_SECONDS, Access, RemoteTrainer, Trainer, answer_seconds
from hansa_common.errors import TransportError
from hansa_common.messages import FLOWER_FIELD, FLOWER_RECORD, Refusal, encode, message_hash
from hansa_common.sealing import unverified

UNREACHABLE_CODE: Final = 1
# Loading rows and libraries, on a slow machine.
RESTART_SECONDS: Final = 120.0
ASK_AGAIN_SECONDS: Final = 0.5

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
        self._socket = socket
        self._merchant = ""

    def answer(self, order: bytes) -> bytes:
        # The calls have their own deadline; this is for whatever else may hang. It ends the process from a thread
        # that does not need Python to run.
        faulthandler.dump_traceback_later(answer_seconds(order) + GRACE_SECONDS, exit=True)
        try:
            return self._ask_while_it_may_come_back(order)
        except TransportError:
            if not self._merchant:
                raise
            order_hash = message_hash(unverified(order))
            return encode(Refusal(merchant=self._merchant, order_hash=order_hash, code="failed"))
        finally:
            faulthandler.cancel_dump_traceback_later()

    def _ask_while_it_may_come_back(self, order: bytes) -> bytes:
        now = time.monotonic()
        give_up, until = now + answer_seconds(order) - GRACE_SECONDS, now + answer_seconds(order)
        trouble = ""
        while True:
            try:
                return self._ask(order, until - time.monotonic())
            except TransportError as error:
                now = time.monotonic()
                if str(error) != trouble:
                    trouble = str(error)
                    _log.error("%s", trouble)
                give_up = min(give_up, now + RESTART_SECONDS)
                if now >= give_up:
                    raise
            time.sleep(ASK_AGAIN_SECONDS)

    def _ask(self, order: bytes, seconds: float) -> bytes:
        access = Access.read(self._socket.parent)
        self._merchant = access.merchant
        with closing(RemoteTrainer(self._socket, access)) as trainer:
            return trainer.answer(order, seconds)


def _resident_trainer(context: Context) -> Trainer:
    socket = context.node_config.get("trainer")
    if not isinstance(socket, str):
        raise TransportError("the node's configuration names no trainer; start the node with `hansa client start`")
    return _WatchedTrainer(Path(socket))


app = client_app(_resident_trainer)
