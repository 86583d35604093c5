"""What a ledger comes to: its orders, what was spent under each agreement and together, what is left, and the curve."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Final

from hansa_client.ledger_account import Limit, Tally, epsilon_of
from hansa_client.ledger_entries import Entry
from hansa_common.ledger_state import LedgerState

# Each is a composition to compute: enough for a picture.
MAX_POINTS: Final = 24


@dataclass(frozen=True)
class Order:
    """An order that was charged, and whether an answer to it left."""

    charged: Entry
    is_answered: bool


@dataclass(frozen=True)
class Spent:
    """What so many orders cost together, and the limit that is on them; `agreement` is empty for all of them."""

    agreement: str
    num_orders: int
    epsilon: float
    delta: float
    allowed: float | None

    @property
    def left(self) -> float | None:
        """The epsilon up to the limit, which is not what one more order may cost: costs do not add up plainly."""
        return None if self.allowed is None else max(0.0, self.allowed - self.epsilon)

    def to_json(self) -> dict[str, Any]:
        """The same as plain values."""
        known = {"orders": self.num_orders, "epsilon": self.epsilon, "delta": self.delta}
        return {**known, "max_epsilon": self.allowed, "left": self.left}


@dataclass(frozen=True)
class Summary:
    """A whole ledger. `together` is None where nothing was charged and no limit is set."""

    state: LedgerState
    orders: tuple[Order, ...]
    agreements: tuple[Spent, ...]
    together: Spent | None

    @property
    def num_orders_by_payer(self) -> Counter[str]:
        """How many orders each state folder was charged for, by its id; '' of before there were ids."""
        return Counter(order.charged.payer for order in self.orders)


def summary(state: LedgerState, entries: Iterable[Entry], own: Limit | None) -> Summary:
    """Sum a ledger's lines up; `own` is the merchant's limit on all of them, None where there is none."""
    orders = _orders(entries)
    by_agreement: dict[str, list[Entry]] = {}
    for order in orders:
        by_agreement.setdefault(order.charged.agreement or "", []).append(order.charged)
    together = None
    if orders or own is not None:
        together = _spent("", [order.charged for order in orders], own)
    agreements = tuple(_spent(name, charged, None) for name, charged in by_agreement.items())
    return Summary(state, orders, agreements, together)


def curve(orders: Sequence[Order], delta: float) -> list[tuple[int, float]]:
    """What the first 0, ..., n orders cost together at this delta, at MAX_POINTS places at most: (orders, epsilon)."""
    places = sorted({round(len(orders) * point / MAX_POINTS) for point in range(MAX_POINTS + 1)})
    spent, points = Tally(), []
    for number, order in enumerate([None, *orders]):
        spent += Tally() if order is None else order.charged.cost
        if number in places:
            points.append((number, epsilon_of(spent, delta)))
    return points


def _orders(entries: Iterable[Entry]) -> tuple[Order, ...]:
    """Each charge, with the answer that it paid for."""
    charged: list[Entry] = []
    answered: set[int] = set()
    unanswered: dict[tuple[str, str], int] = {}
    for entry in entries:
        if entry.what == "charged":
            unanswered[entry.answer] = len(charged)
            charged.append(entry)
        else:
            answered.add(unanswered.pop(entry.answer, -1))
    return tuple(Order(entry, place in answered) for place, entry in enumerate(charged))


def _spent(agreement: str, charged: Sequence[Entry], limit: Limit | None) -> Spent:
    tally = Tally()
    for entry in charged:
        tally.update(entry.cost)
    last = charged[-1] if charged else None
    # Of all agreements together nobody but the merchant says what is allowed; then the last one's delta is as good.
    delta = limit.delta if limit is not None else (last.delta if last is not None else None) or 1e-5
    allowed = limit.epsilon if limit is not None else last.epsilon if agreement and last is not None else None
    return Spent(agreement, len(charged), epsilon_of(tally, delta), delta, allowed)
