"""Flower's grid inside one process: the real ServerApp and ClientApps, with neither Ray, nor a daemon, nor a network.

Promises: what travels is what travels across companies, the encoded bytes of messages.py in Flower's own messages;
a merchant works when its reply is asked for, one merchant at a time, and a reply asked for is there at once, so that
a coordinator that polls never waits and at most one reply is in memory besides those it holds itself.
Like Flower's: a ClientApp that raises gives an error reply, and the round goes on. Unlike Flower's: nothing expires.

The only module that touches Flower's private names (`TaskIdentity`, a message's id): they may move in any version.
"""

from __future__ import annotations

import itertools
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Final

from flwr.app import Context, Error, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp
from flwr.supercore.run import Run
from flwr.supercore.task_identity import TaskIdentity

from hansa_client.app import client_app
from hansa_client.trainer_link import Trainer

RUN_ID: Final = 1
SERVER_NODE_ID: Final = 1
_FIRST_CLIENT_NODE_ID: Final = 2
# flwr.common.constant.ErrorCode.CLIENT_APP_RAISED_EXCEPTION, a number of Flower's protocol.
_CLIENT_APP_RAISED: Final = 2
_MERCHANT: Final = "merchant"

_log = logging.getLogger(__name__)


class LocalGrid(Grid):  # type: ignore[misc]  # Flower is followed as untyped
    """Nodes of one process, each a ClientApp over one merchant's trainer; for one run, in one thread.

    `nodes` is keyed by merchant name; node ids follow its order.
    """

    def __init__(self, nodes: Mapping[str, Trainer]) -> None:
        """Connect every merchant's trainer through the ClientApp that runs across companies."""
        app = client_app(lambda context: nodes[str(context.node_config[_MERCHANT])])
        self._nodes = {
            node_id: (app, _context(node_id, {_MERCHANT: name}))
            for node_id, name in enumerate(nodes, _FIRST_CLIENT_NODE_ID)
        }
        self._waiting: dict[str, Message] = {}
        self._message_numbers = itertools.count(1)
        self._run = Run.create_empty(RUN_ID)

    def set_run(self, run: Run) -> None:
        """Take Flower's description of the run."""
        self._run = run

    @property
    def run(self) -> Run:
        """Flower's description of the run."""
        return self._run

    def create_message(
        self, content: RecordDict, message_type: str, dst_node_id: int, group_id: str, ttl: float | None = None
    ) -> Message:
        """Make a message to a node."""
        return Message(content, dst_node_id, message_type, ttl=ttl, group_id=group_id)

    def get_node_ids(self) -> list[int]:
        """The nodes, all of them always connected."""
        return list(self._nodes)

    def push_messages(self, messages: Iterable[Message]) -> list[str]:
        """Take messages and give their ids; one to a node that is not there gets none, as from Flower."""
        return [self._taken(message) for message in messages if message.metadata.dst_node_id in self._nodes]

    def pull_messages(self, message_ids: Iterable[str]) -> list[Message]:
        """The reply to the first of these messages that has not been answered yet; its merchant works now."""
        first = next((message_id for message_id in message_ids if message_id in self._waiting), None)
        return [] if first is None else [self._answered(self._waiting.pop(first))]

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> list[Message]:
        """Push messages and pull all replies; `timeout` is Flower's, and no reply here comes late."""
        del timeout
        return [reply for message_id in self.push_messages(messages) for reply in self.pull_messages([message_id])]

    def _taken(self, message: Message) -> str:
        message_id = f"message-{next(self._message_numbers)}"
        message.metadata.__dict__["_message_id"] = message_id
        self._waiting[message_id] = message
        return message_id

    def _answered(self, message: Message) -> Message:
        app, context = self._nodes[message.metadata.dst_node_id]
        reply = _run_client(app, message, context)
        reply.metadata.__dict__["_message_id"] = f"message-{next(self._message_numbers)}"
        # Who answers is what the transport knows, not what the app says.
        reply.metadata.__dict__["_src_node_id"] = message.metadata.dst_node_id
        return reply


@contextmanager
def server_identity() -> Iterator[None]:
    """Lend this process the identity that Flower gives to the process of a ServerApp, from which messages are made."""
    before = {name: getattr(TaskIdentity, name) for name in ("_run_id", "_node_id", "_task_id")}
    TaskIdentity.run_id, TaskIdentity.node_id, TaskIdentity.task_id = RUN_ID, SERVER_NODE_ID, RUN_ID
    try:
        yield
    finally:
        for name, value in before.items():
            setattr(TaskIdentity, name, value)


def run_server_app(app: ServerApp, grid: Grid, run_config: Mapping[str, str]) -> None:
    """Run a ServerApp over a grid to its end; what it raises is raised here."""
    with server_identity():
        app(grid, Context(RUN_ID, SERVER_NODE_ID, {}, RecordDict(), dict(run_config)))


def _context(node_id: int, node_config: dict[str, str]) -> Context:
    return Context(RUN_ID, node_id, node_config, RecordDict(), {})


def _run_client(app: Callable[[Message, Context], Message] | ClientApp, message: Message, context: Context) -> Message:
    try:
        return app(message, context)
    except Exception:  # noqa: BLE001 - as Flower's own runtime does, so that one merchant's fault does not end the run
        _log.exception("the ClientApp of node %d raised", context.node_id)
        return Message(Error(_CLIENT_APP_RAISED, "ClientApp raised"), reply_to=message)
