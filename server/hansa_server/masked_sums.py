"""One masked sum over a run's merchants: two exchanges, beside those of the next sum; two more where it is to begin.

begin    everybody's keys are asked for, then shares among those who have some
mask     the order itself, with the others' shares: a masked vector, and keys for the next sum; who is not in this sum
         (it came back, or dropped out of the last) is asked for keys alone
open     who is in the sum, with everybody's new keys: opened shares, and sealed ones for the next sum

- The sum is of the vectors of `in_sum`, exactly; or there is none, with a reason, and whatever depends on it stays.
- Vectors are added as they come, so one is in memory; what comes late is not looked at.
- Nothing is asked for, and nothing known, that is one merchant's alone. The protocol's own rules are unmasking.py's.

reason of who is left out   beside those of exchange.py and unmasking.py
joining                     had no part in this sum, and has sent keys for the next
wrong-kind                  its answer is of another kind than was asked for
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from hansa_common.errors import ReplyError, RoundAbandonedError
from hansa_common.masking import Ring
from hansa_common.record_types import Order, Reply
from hansa_common.secure_agreement import identities_of
from hansa_common.secure_groups import session_of
from hansa_common.secure_keys import Session
from hansa_common.secure_messages import (
    KeysOrder,
    KeysReply,
    MaskableOrder,
    MaskedReply,
    Masking,
    UnmaskOrder,
    UnmaskReply,
)
from hansa_common.secure_round import common_order_hash
from hansa_server.masked_exchanges import VECTORS, MaskedExchanges
from hansa_server.participants import Merchant, Run
from hansa_server.run_events import Event, ReplyDropped
from hansa_server.unmasking import Closed, Keys, MaskedSum, Offers, gather_keys, gather_offers, unmasked_sum

# A merchant's order, given the header and the fields that mask its answer.
OrderOf = Callable[[Merchant, dict[str, Any]], MaskableOrder]
ReplyKind = TypeVar("ReplyKind", bound=Reply)


@dataclass(frozen=True)
class SumAbandoned(Event):
    """A masked sum cannot be known, or none can follow it yet; what would have depended on it stays as it is."""

    what: str
    reason: str
    detail: str

    @property
    def level(self) -> int:
        return logging.WARNING

    @property
    def line(self) -> str:
        return f"{self.what}: {self.reason} ({self.detail})"


@dataclass(frozen=True)
class Summed:
    """What came of a masked sum: `total` (num_elements,) in the ring, None where `abandoned` says why there is none.

    `in_sum` has the hash of each masked reply in it, by merchant; `dropped` why others are not, by merchant.
    """

    total: Ring | None
    in_sum: Mapping[str, str]
    dropped: Mapping[str, str]
    bytes_received: int
    bytes_sent: int
    abandoned: str = ""


def masked_sum(
    run: Run,
    merchants: Sequence[Merchant],
    what: str,
    order: OrderOf,
    num_elements: int,
    *,
    is_last: bool = False,
    on_reply: Callable[[str], None] = lambda _: None,
) -> Summed:
    """Ask these merchants, in roster order, for the vectors of one sum, of which each has num_elements.

    `is_last`: no sum follows in this run. `on_reply` hears the name of each merchant that is done with.
    """
    asking = _Asking(run, what, on_reply, merchants)
    try:
        offers = run.sums.take_offers() or asking.begun()
        closed, order_hash, keys = asking.masked(offers, order, num_elements, is_last=is_last)
        openings = asking.opened(closed, keys)
        total, _ = unmasked_sum(closed, order_hash, openings)
    except RoundAbandonedError as error:
        run.tell(SumAbandoned(what, error.reason, str(error)))
        return Summed(None, {}, asking.dropped, asking.bytes_received, asking.bytes_sent, error.reason)
    in_sum = {name: asking.hashes[name] for name in asking.names_at(closed.in_sum)}
    dropped = {name: reason for name, reason in asking.dropped.items() if name not in in_sum}
    return Summed(total, in_sum, dropped, asking.bytes_received, asking.bytes_sent)


@dataclass
class _Asking(MaskedExchanges):
    """The exchanges of one sum, and what they came to so far."""

    merchants: Sequence[Merchant]

    def begun(self) -> Offers:
        """Shares for a sum that no other has led to.

        Raises:
            RoundAbandonedError: too few have keys or shares.
        """
        session = self._session(self.run.sums.new_number())
        advertised = self.asked(
            "keys",
            self.merchants,
            lambda merchant: KeysOrder(**self.run.header(merchant.name), sum=session.round),
            lambda _, reply: of_kind(reply, KeysReply).keys.tobytes(),
        )
        keys = self._gathered(session, advertised)
        return gather_offers(keys, self._shares(keys))

    def masked(
        self, offers: Offers, order: OrderOf, num_elements: int, *, is_last: bool
    ) -> tuple[Closed, bytes, Keys | None]:
        """Ask for the masked vectors, and for keys; the masked sum, the hash of what everyone was asked, and the keys
        of those who take part in the next, None where there is none.

        Raises:
            RoundAbandonedError: too few vectors came.
        """
        session, taking_part = offers.session, set(self.names_at(offers.offers))
        next_number = 0 if is_last else self.run.sums.new_number()
        adding, order_hashes = MaskedSum(offers, num_elements), list[bytes]()

        def asked_of(merchant: Merchant) -> Order:
            header = self.run.header(merchant.name)
            if merchant.name not in taking_part:
                return KeysOrder(**header, sum=next_number)
            masking = Masking(sum=session.round, next_sum=next_number)
            made = order(merchant, {**header, "masking": masking, "shares": octets(offers.inbox(merchant.name))})
            if not order_hashes:
                # Once: what is hashed is the whole model, and the same for everyone.
                order_hashes.append(common_order_hash(made))
            return made

        def taken(merchant: Merchant, reply: Reply) -> bytes:
            if merchant.name not in taking_part:
                self.dropped[merchant.name] = "joining"
                return of_kind(reply, KeysReply).keys.tobytes()
            masked = of_kind(reply, MaskedReply)
            adding.add(merchant.name, masked.vector)
            return masked.keys.tobytes()

        asked = [merchant for merchant in self.merchants if merchant.name in taking_part or next_number]
        advertised = self.asked(VECTORS, asked, asked_of, taken)
        closed = adding.close()
        keys = self._keys_if_enough(self._session(next_number), advertised) if next_number else None
        return closed, order_hashes[0], keys

    def opened(self, closed: Closed, keys: Keys | None) -> dict[str, bytes]:
        """Ask those in the sum for opened shares, by name, and those with keys for shares of the next sum."""
        in_sum = set(self.names_at(closed.in_sum))
        following = set() if keys is None else set(self.names_at(keys.advertisements))
        table = octets(b"" if keys is None else keys.table())
        openings, shares = dict[str, bytes](), dict[str, bytes]()

        def asked_of(merchant: Merchant) -> UnmaskOrder:
            is_in_sum, goes_on = merchant.name in in_sum, keys is not None and merchant.name in following
            return UnmaskOrder(
                **self.run.header(merchant.name),
                sum=closed.offers.session.round if is_in_sum else 0,
                in_sum=closed.in_sum if is_in_sum else (),
                next_sum=keys.session.round if keys is not None and goes_on else 0,
                keys=table if goes_on else octets(b""),
            )

        def taken(merchant: Merchant, reply: Reply) -> None:
            unmasked = of_kind(reply, UnmaskReply)
            if merchant.name in in_sum:
                openings[merchant.name] = unmasked.openings.tobytes()
            if merchant.name in following:
                shares[merchant.name] = unmasked.shares.tobytes()

        self.asked("openings", [m for m in self.merchants if m.name in in_sum | following], asked_of, taken)
        if keys is not None:
            self._keep_offers(keys, shares)
        return openings

    def names_at(self, places: Iterable[int]) -> list[str]:
        """The names of merchants at places of the roster."""
        return [self.run.agreement.roster[place] for place in places]

    def _shares(self, keys: Keys) -> dict[str, bytes]:
        """Sealed shares, by name, of those who have keys, for a sum that none leads to."""
        names, table = set(self.names_at(keys.advertisements)), octets(keys.table())

        def asked_of(merchant: Merchant) -> UnmaskOrder:
            header = self.run.header(merchant.name)
            return UnmaskOrder(**header, sum=0, in_sum=(), next_sum=keys.session.round, keys=table)

        def taken(_: Merchant, reply: Reply) -> bytes:
            return of_kind(reply, UnmaskReply).shares.tobytes()

        return self.asked("shares", [m for m in self.merchants if m.name in names], asked_of, taken)

    def _keys_if_enough(self, session: Session, advertised: Mapping[str, bytes]) -> Keys | None:
        try:
            return self._gathered(session, advertised)
        except RoundAbandonedError as error:
            self.run.tell(SumAbandoned(f"keys after {self.what}", error.reason, str(error)))
            return None

    def _keep_offers(self, keys: Keys, shares: Mapping[str, bytes]) -> None:
        try:
            self.run.sums.offers = gather_offers(keys, shares)
        except RoundAbandonedError as error:
            self.run.tell(SumAbandoned(f"shares after {self.what}", error.reason, str(error)))

    def _gathered(self, session: Session, advertised: Mapping[str, bytes]) -> Keys:
        keys = gather_keys(session, identities_of(self.run.agreement), self.run.sums.history, advertised)
        self.run.sums.history = keys.history
        for name, reason in keys.dropped.items():
            # Who sent nothing was told of already.
            if name in advertised:
                self.run.tell(ReplyDropped(name, self.what, reason, "its keys for a masked sum"))
        return keys

    def _session(self, number: int) -> Session:
        return session_of(self.run.agreement, self.run.fingerprint, self.run.run_id, number)


def of_kind(reply: Reply, kind: type[ReplyKind]) -> ReplyKind:
    """The reply, if it is of this kind.

    Raises:
        ReplyError: wrong-kind.
    """
    if not isinstance(reply, kind):
        raise ReplyError("wrong-kind", f"a {kind.KIND} was asked for, {reply.KIND} came")
    return reply


def octets(content: bytes) -> NDArray[np.uint8]:
    """Bytes as a field of a record."""
    return np.frombuffer(content, np.uint8)
