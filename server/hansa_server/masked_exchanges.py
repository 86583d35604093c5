"""The exchanges of masked sums: what each merchant is asked for its own group's, and what came of it so far.

keys      of everyone, for sums that no others have led to; whatever was under way is left
vectors   the order itself, with the others' shares; a masked vector, and keys for the next sum. Who is not in its
          group's sum (it came back, or dropped out of the last, or that sum has ended) is asked for keys alone
opened    who is in the sum, with everybody's new keys: opened shares, and sealed ones for the next sum. Where a sum has
          ended its merchants are told so, and open nothing

Nothing is asked for, and nothing known, that is one merchant's alone. When there is which is masked_sums.py's.

reason of who is left out   beside those of exchange.py and unmasking.py
joining                     had no part in this sum, and has sent keys for the next
wrong-kind                  its answer is of another kind than was asked for
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, TypeVar

import numpy as np
from numpy.typing import NDArray

from hansa_common.errors import ReplyError
from hansa_common.record_types import Order, Reply
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
from hansa_server.masked_batches import Batch, Sums
from hansa_server.participants import Merchant, Run
from hansa_server.unmasking import Closed, Keys, MaskedSum, Offers

# A merchant's order, given the header and the fields that mask its answer.
OrderOf = Callable[[Merchant, dict[str, Any]], MaskableOrder]
Taken = TypeVar("Taken")
ReplyKind = TypeVar("ReplyKind", bound=Reply)
_JOINING: Final = "joining"


@dataclass(frozen=True)
class Vectors:
    """The masked sums with what came, the hash of what each group was asked, and keys for the next, by merchant."""

    sums: Sums[MaskedSum]
    order_hashes: Mapping[int, bytes]
    advertised: Mapping[str, bytes]


@dataclass
class MaskedExchanges:
    """Asks these merchants, in roster order, for `what`, and counts. `on_reply` hears whose vector came, or did not."""

    run: Run
    what: str
    merchants: Sequence[Merchant]
    on_reply: Callable[[str], None]
    dropped: dict[str, str] = field(default_factory=dict, kw_only=True)
    hashes: dict[str, str] = field(default_factory=dict, kw_only=True)
    bytes_received: int = field(default=0, kw_only=True)
    bytes_sent: int = field(default=0, kw_only=True)

    def keys(self, batch: Batch) -> dict[str, bytes]:
        """Fresh keys, by merchant."""

        def asked_of(merchant: Merchant) -> KeysOrder:
            return KeysOrder(**self.run.header(merchant.name), sum=batch.number_of(merchant.name))

        return self._asked("keys", self.merchants, asked_of, lambda _, reply: _keys_in(reply))

    def vectors(self, offers: Sums[Offers], order: OrderOf, num_elements: int, following: Batch | None) -> Vectors:
        """The masked sums over what came, each of num_elements; `following`: the batch to draw keys for, if any."""
        adding = Sums(
            offers.batch, {group: MaskedSum(own, num_elements) for group, own in offers.parts.items()}, offers.ended
        )
        taking_part, group_of = offers.by_member(lambda own: own.offers), offers.batch.group_of
        order_hashes: dict[int, bytes] = {}

        def asked_of(merchant: Merchant) -> Order:
            header = self.run.header(merchant.name)
            next_sum = 0 if following is None else following.number_of(merchant.name)
            if merchant.name not in taking_part:
                return KeysOrder(**header, sum=next_sum)
            own, group = taking_part[merchant.name], group_of[merchant.name]
            masking = Masking(sum=own.session.round, next_sum=next_sum)
            made = order(merchant, {**header, "masking": masking, "shares": _octets(own.inbox(merchant.name))})
            if group not in order_hashes:
                # Once: what is hashed is the whole model, and the same for everyone in the group.
                order_hashes[group] = common_order_hash(made)
            return made

        def taken(merchant: Merchant, reply: Reply) -> bytes:
            if merchant.name not in taking_part:
                self.dropped[merchant.name] = _JOINING
                return _keys_in(reply)
            masked = _of_kind(reply, MaskedReply)
            adding.parts[group_of[merchant.name]].add(merchant.name, masked.vector)
            return masked.keys.tobytes()

        asked = [merchant for merchant in self.merchants if merchant.name in taking_part or following is not None]
        return Vectors(adding, order_hashes, self._asked("vectors", asked, asked_of, taken, is_told=True))

    def opened(
        self, step: str, in_sum: Mapping[str, Closed], following: Mapping[str, Keys]
    ) -> tuple[dict[str, bytes], dict[str, bytes]]:
        """Opened shares of those in a sum, and sealed ones of those with keys for the next, by merchant."""
        tables = {keys.session.round: _octets(keys.table()) for keys in following.values()}

        def asked_of(merchant: Merchant) -> UnmaskOrder:
            own, keys = in_sum.get(merchant.name), following.get(merchant.name)
            return UnmaskOrder(
                **self.run.header(merchant.name),
                sum=0 if own is None else own.offers.session.round,
                in_sum=() if own is None else own.in_sum,
                next_sum=0 if keys is None else keys.session.round,
                keys=_octets(b"") if keys is None else tables[keys.session.round],
            )

        asked = [merchant for merchant in self.merchants if merchant.name in in_sum.keys() | following.keys()]
        answers = self._asked(step, asked, asked_of, lambda _, reply: _of_kind(reply, UnmaskReply))
        openings = {name: reply.openings.tobytes() for name, reply in answers.items() if name in in_sum}
        shares = {name: reply.shares.tobytes() for name, reply in answers.items() if name in following}
        return openings, shares

    def _asked(
        self,
        step: str,
        merchants: Sequence[Merchant],
        order: Callable[[Merchant], Order],
        taken: Callable[[Merchant, Reply], Taken],
        *,
        is_told: bool = False,
    ) -> dict[str, Taken]:
        """What was taken of each valid answer, by name; why there is none of the others is noted."""
        found: dict[str, Taken] = {}
        if not merchants:
            return found
        for heard in self.run.ask(f"{self.what}, {step}", merchants, order, taken):
            self.bytes_received += heard.answer.bytes_received
            self.bytes_sent += heard.answer.sent.num_bytes
            if heard.reason:
                self.dropped[heard.merchant.name] = heard.reason
            else:
                found[heard.merchant.name] = heard.reply  # type: ignore[assignment]  # None is what `taken` may return
            if is_told:
                self.hashes[heard.merchant.name] = heard.answer.reply_hash
                self.on_reply(heard.merchant.name)
        return found


def _keys_in(reply: Reply) -> bytes:
    return _of_kind(reply, KeysReply).keys.tobytes()


def _of_kind(reply: Reply, kind: type[ReplyKind]) -> ReplyKind:
    if not isinstance(reply, kind):
        raise ReplyError("wrong-kind", f"a {kind.KIND} was asked for, {reply.KIND} came")
    return reply


def _octets(content: bytes) -> NDArray[np.uint8]:
    return np.frombuffer(content, np.uint8)
