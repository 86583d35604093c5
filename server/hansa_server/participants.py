"""The merchants of a run, and the one way to ask them something.

Every question goes to merchants in roster order, every reply is checked before it is used, and every one that is
left out is told as an event with its reason.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Generic, TypeVar

from hansa_common.agreement import Agreement
from hansa_common.errors import ReplyError
from hansa_common.record_types import Order, Reply
from hansa_server.exchange import AWAY, Addressed, Answer, Exchange
from hansa_server.ledger_events import LedgerTold
from hansa_server.masked_state import MaskedState
from hansa_server.run_events import Event, ReplyDropped

Checked = TypeVar("Checked")

# Why a merchant is left out whose privacy ledger went back, where that was agreed on.
LEFT_OUT: Final = "ledger-went-back"

_log: Final = logging.getLogger(__name__)


@dataclass(frozen=True)
class Merchant:
    """A merchant that takes part: its name in the roster, its node, and what it introduced itself with.

    `node_id` is AWAY while it is not connected. `num_train_rows` is what it registered with its statistics, 0 before;
    its replies weigh that much.
    """

    name: str
    node_id: int
    backend: str
    device: str
    num_train_rows: int = 0


@dataclass(frozen=True)
class Heard(Generic[Checked]):
    """What came of asking one merchant: a checked reply, or the reason why there is none."""

    merchant: Merchant
    answer: Answer
    reply: Checked | None
    reason: str


class ExchangeNumbers:
    """Counts a run's exchanges, so that a merchant can tell an order that was held back or sent again.

    A run that is resumed goes on after the last exchange of its checkpoint: what it asks anew has the old numbers.
    """

    def __init__(self, last: int = 0) -> None:
        self.last = last

    def advance(self) -> None:
        """Begin the next exchange."""
        self.last += 1


@dataclass(frozen=True)
class Run:
    """One run under one agreement: how to reach its merchants, whom to tell what happens, and where it stands in its
    exchanges and masked sums. Who `is_left_out`, by name, is asked nothing, and an answer that it gives all the same
    counts for nothing.
    """

    exchange: Exchange
    agreement: Agreement
    fingerprint: str
    run_id: str
    on_event: Callable[[Event], None]
    numbers: ExchangeNumbers = field(default_factory=ExchangeNumbers)
    sums: MaskedState = field(default_factory=MaskedState)
    is_left_out: Callable[[str], bool] = lambda _: False

    def __post_init__(self) -> None:
        if self.exchange.seals.trust != self.agreement.trust:
            raise ValueError("a run's messages must be signed as its agreement says")

    def tell(self, event: Event) -> None:
        """Log an event and hand it on."""
        _log.log(event.level, "%s", event.line)
        self.on_event(event)

    def tell_ledger(self, merchant: str, answer: Answer) -> None:
        """Hand on what an answer says of its merchant's privacy ledger, if anything."""
        if answer.ledger:
            self.tell(LedgerTold(merchant, answer.ledger, answer.sent.sent_at))

    def header(self, recipient: str) -> dict[str, Any]:
        """The fields that every order of the current exchange has."""
        return {
            "run_id": self.run_id,
            "sequence": self.numbers.last,
            "recipient": recipient,
            "fingerprint": self.fingerprint,
            "deadline_seconds": self.agreement.cohort.deadline_seconds,
        }

    def ask(
        self,
        stage: str,
        merchants: Sequence[Merchant],
        order: Callable[[Merchant], Order],
        check: Callable[[Merchant, Reply], Checked],
    ) -> Iterator[Heard[Checked]]:
        """Send each merchant its order and yield what came of it, in the order of the merchants.

        `check` raises ReplyError for a reply that is not to be believed; then the reply is None.
        """
        self.numbers.advance()
        orders = (Addressed(self._node_of(merchant), order(merchant)) for merchant in merchants)
        answers = self.exchange.ask(orders, self.agreement.cohort.deadline_seconds)
        for merchant, answer in zip(merchants, answers, strict=True):
            self.tell_ledger(merchant.name, answer)
            # Asked again: it is what this very answer told that can leave it out.
            is_left_out = self.is_left_out(merchant.name)
            heard = ReplyError(LEFT_OUT, "") if is_left_out else _heard(merchant, answer, check)
            if isinstance(heard, ReplyError):
                self.tell(ReplyDropped(merchant.name, stage, heard.reason, str(heard)))
                heard = Heard[Checked](merchant, answer, None, heard.reason)
            yield heard

    def _node_of(self, merchant: Merchant) -> int:
        return AWAY if self.is_left_out(merchant.name) else merchant.node_id


def _heard(
    merchant: Merchant, answer: Answer, check: Callable[[Merchant, Reply], Checked]
) -> Heard[Checked] | ReplyError:
    if answer.reply is None:
        return ReplyError(answer.code, "")
    try:
        return Heard(merchant, answer, check(merchant, answer.reply), "")
    except ReplyError as error:
        return error
