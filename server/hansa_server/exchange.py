"""Orders out, replies in, over Flower: one exchange at a time, each bounded in time and in memory.

Promises: every order gets exactly one answer, in the order they were given, whatever arrives when; an answer
holds a reply only if it decodes, answers this very order, names the merchant it was sent to and, where the agreement
has `[trust]`, is signed by that merchant (seals.py); else it holds a short code. At most WINDOW replies are held here;
the others wait where Flower keeps them. An order that was lost with a node that is back is sent once more: a merchant
obeys it once. An exchange ends at the latest GRACE_SECONDS after its deadline. Whether a reply's content can be
believed is replies.py's.

code                what happened
unreachable         Flower could not deliver the order or the reply
client-error        the node answered with an error of Flower's; its text is not looked at
deadline            nothing came in time
message-invalid     what came is not one whole record
not-signed          what came is not signed with the key that the agreement names for the merchant
wrong-kind          a record, but no reply
wrong-order         a reply to another order: an old one, or one that was never sent
wrong-merchant      a reply from another node, or in another merchant's name
any Refusal code    the merchant refused
"""

from __future__ import annotations

import itertools
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final

from flwr.app import ConfigRecord, Message, RecordDict
from flwr.serverapp import Grid

from hansa_common.errors import MessageError, ReplyError
from hansa_common.messages import FLOWER_FIELD, FLOWER_RECORD, Refusal, decode, encode, message_hash
from hansa_common.record_types import EVERYONE, Order, Reply
from hansa_common.sealing import unopened_hash, unverified
from hansa_common.stamping import answer_hash
from hansa_server.seals import Seals

GRACE_SECONDS: Final = 15.0
WINDOW: Final = 8
# Where there is no node: Flower's ids are not negative.
AWAY: Final = -1
# What Flower says of a message that it has no more: SuperLink forgets those of a node that died when it comes back.
LOST_CODE: Final = 3
FIRST_WAIT_SECONDS: Final = 0.05
LONGEST_WAIT_SECONDS: Final = 0.5
_WAIT_GROWTH: Final = 1.5


@dataclass(frozen=True)
class Clock:
    """Where time comes from: seconds on a clock that never goes back, a way to let some pass, and the date, which this
    machine's other processes see too.
    """

    now: Callable[[], float] = time.monotonic
    wait: Callable[[float], None] = time.sleep
    date: Callable[[], datetime] = lambda: datetime.now(UTC)


@dataclass(frozen=True)
class Addressed:
    """An order and the node it goes to; AWAY where there is none."""

    node_id: int
    order: Order


@dataclass(frozen=True)
class Sent:
    """What is remembered of an order that went out: its hash, and what names its bytes for a merchant who refuses
    without opening them; `message_id` is None where it could not go, `sent_at` when it had not gone yet.
    """

    node_id: int
    recipient: str
    order_hash: str
    unopened_hash: str
    num_bytes: int
    message_id: str | None
    sent_at: datetime


@dataclass(frozen=True)
class Answer:
    """A reply that answers its order, or the code of what happened instead (`code` is '' with a reply), with the name
    of the merchant whose refusal it is. `is_lost` says that the order went under with its node; `ledger` is what a
    reply or a refusal says of the merchant's privacy ledger.
    """

    sent: Sent
    code: str
    reply: Reply | None = None
    reply_hash: str = ""
    bytes_received: int = 0
    refused_by: str = ""
    is_lost: bool = False
    ledger: str = ""


class Patience:
    """How long to wait before looking again: short at first, longer the longer nothing comes."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._seconds = FIRST_WAIT_SECONDS

    def reset(self) -> None:
        """Something came: look again soon."""
        self._seconds = FIRST_WAIT_SECONDS

    def wait(self, until: float) -> None:
        """Wait, but not beyond a moment of the clock."""
        self._clock.wait(min(self._seconds, max(0.0, until - self._clock.now())))
        self._seconds = min(self._seconds * _WAIT_GROWTH, LONGEST_WAIT_SECONDS)


class Exchange:
    """The coordinator's end of Flower's grid."""

    def __init__(self, grid: Grid, clock: Clock, seals: Seals) -> None:
        self.clock = clock
        self.seals = seals
        self._grid = grid

    def node_ids(self) -> list[int]:
        """The nodes connected now, in ascending order."""
        return sorted(int(node_id) for node_id in self._grid.get_node_ids())

    def ask(self, orders: Iterable[Addressed], deadline_seconds: float) -> Iterator[Answer]:
        """Send orders and yield their answers, in the order given.

        Each order is encoded when it is sent, and its bytes are not kept.
        """
        # As many seconds again, so that a reply that waits its turn to be fetched does not expire meanwhile.
        ttl = 2 * (deadline_seconds + GRACE_SECONDS)
        once_more = {self.send(addressed, ttl): addressed for addressed in orders}
        sent = deque(once_more)
        until = self.clock.now() + deadline_seconds + GRACE_SECONDS
        patience, early = Patience(self.clock), dict[Sent, Answer]()
        while sent:
            head = sent[0]
            if head in early or head.message_id is None:
                sent.popleft()
                yield early.pop(head, Answer(head, "unreachable"))
            elif arrived := self.fetch(item for item in itertools.islice(sent, WINDOW) if item not in early):
                for answer in arrived:
                    addressed = once_more.pop(answer.sent, None)
                    if answer.is_lost and addressed is not None:
                        sent[sent.index(answer.sent)] = self.send(addressed, ttl)
                    else:
                        early[answer.sent] = answer
                patience.reset()
            elif self.clock.now() >= until:
                sent.popleft()
                yield Answer(head, "deadline")
            else:
                patience.wait(until)

    def send(self, addressed: Addressed, ttl: float) -> Sent:
        """Send one order; Flower forgets it, undelivered, after ttl seconds."""
        encoded = encode(addressed.order)
        sealed, sent_at = self.seals.close_order(encoded), self.clock.date()
        message_id = None if addressed.node_id == AWAY else self._pushed(sealed, addressed.node_id, ttl)
        return Sent(
            addressed.node_id,
            addressed.order.recipient,
            message_hash(encoded),
            unopened_hash(sealed),
            len(sealed),
            message_id,
            sent_at,
        )

    def _pushed(self, sealed: bytes, node_id: int, ttl: float) -> str | None:
        content = RecordDict({FLOWER_RECORD: ConfigRecord({FLOWER_FIELD: sealed})})
        message_id = next(iter(self._grid.push_messages([Message(content, node_id, "train", ttl=ttl)])), None)
        return None if message_id is None else str(message_id)

    def fetch(self, sent: Iterable[Sent]) -> list[Answer]:
        """The answers to these orders that are there by now, each handed out once."""
        by_id = {item.message_id: item for item in sent if item.message_id is not None}
        if not by_id:
            return []
        answers = []
        for message in self._grid.pull_messages(list(by_id)):
            # Flower's own errors come from another node than the one asked: only this id says what they answer.
            item = by_id.pop(message.metadata.reply_to_message_id, None)
            if item is not None:
                answers.append(_answer(message, item, self.seals))
        return answers


def _answer(message: Message, sent: Sent, seals: Seals) -> Answer:
    from_its_node = message.metadata.src_node_id == sent.node_id
    if message.has_error():
        is_lost = not from_its_node and message.error.code == LOST_CODE
        return Answer(sent, "client-error" if from_its_node else "unreachable", is_lost=is_lost)
    content = _content(message)
    try:
        opened = seals.open_reply(content, _claimed_name(content, sent))
        reply = _reply(opened, sent)
    except MessageError as error:
        return Answer(sent, error.code, bytes_received=len(content))
    except ReplyError as error:
        return Answer(sent, error.reason, bytes_received=len(content))
    if not from_its_node:
        return Answer(sent, "wrong-merchant", bytes_received=len(content))
    if isinstance(reply, Refusal):
        return Answer(sent, reply.code, bytes_received=len(content), refused_by=reply.merchant, ledger=reply.ledger)
    return Answer(sent, "", reply, answer_hash(reply, opened), len(content), ledger=reply.ledger)


def _content(message: Message) -> bytes:
    """The one field of the one record, or no bytes at all, which decode to nothing."""
    content = message.content if message.has_content() else {}
    record = content.get(FLOWER_RECORD) if len(content) == 1 else None
    if not isinstance(record, ConfigRecord) or len(record) != 1:
        return b""
    field = record.get(FLOWER_FIELD)
    return field if isinstance(field, bytes) else b""


def _claimed_name(content: bytes, sent: Sent) -> str:
    """Whose signature a reply must bear: the merchant's who was asked, or where that was everyone, whose it says."""
    return sent.recipient if sent.recipient != EVERYONE else _decoded(unverified(content)).merchant


def _decoded(message: bytes) -> Reply:
    reply = decode(message)
    if not isinstance(reply, Reply):
        raise ReplyError("wrong-kind", f"{reply.KIND} is no reply")
    return reply


def _reply(opened: bytes, sent: Sent) -> Reply:
    reply = _decoded(opened)
    is_refused_unopened = isinstance(reply, Refusal) and reply.order_hash == sent.unopened_hash
    if reply.order_hash != sent.order_hash and not is_refused_unopened:
        raise ReplyError("wrong-order", "the reply answers another order")
    if sent.recipient not in {EVERYONE, reply.merchant}:
        raise ReplyError("wrong-merchant", f"{sent.recipient!r} was asked, {reply.merchant!r} answered")
    return reply
