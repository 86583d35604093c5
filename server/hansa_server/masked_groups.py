"""Masked sums of all groups at once: four exchanges, in each of which every merchant is asked for its own group's sum.

keys       fresh ones, for the sum of one's group (secure_groups.py)
shares     among those of the group who have keys
vectors    the order itself; a masked vector
openings   of those in the sum of the group

- A group's sum is of its own members' vectors, exactly; or there is none, with a reason. The other groups do not wait
  for it: which rule makes something of those that there are is robust_masked.py's.
- No sum leads to the next, as masked_sums.py's do: the next groups are others, who have no keys in common yet.

The protocol's own rules are unmasking.py's.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import TypeVar

from hansa_common.errors import RoundAbandonedError
from hansa_common.record_types import Order, Reply
from hansa_common.secure_agreement import identities_of
from hansa_common.secure_groups import num_groups_of, session_of
from hansa_common.secure_keys import Session
from hansa_common.secure_messages import KeysOrder, KeysReply, MaskedReply, Masking, UnmaskOrder, UnmaskReply
from hansa_common.secure_round import common_order_hash
from hansa_server.masked_exchanges import VECTORS, MaskedExchanges, Taken
from hansa_server.masked_sums import OrderOf, SumAbandoned, Summed, octets, of_kind
from hansa_server.participants import Merchant, Run
from hansa_server.unmasking import Closed, Keys, MaskedSum, Offers, gather_keys, gather_offers, unmasked_sum

Step = TypeVar("Step")


def group_sums(
    run: Run,
    merchants: Sequence[Merchant],
    what: str,
    order: OrderOf,
    num_elements: int,
    *,
    on_reply: Callable[[str], None] = lambda _: None,
) -> tuple[Summed, ...]:
    """Ask these merchants, in roster order, for the vectors of their groups' sums; what came of each group's."""
    asking = _Groups(run, what, on_reply, merchants, _next_sessions(run))
    keys = asking.keys()
    offers = asking.offers(keys)
    closed, order_hashes = asking.vectors(offers, order, num_elements)
    return asking.opened(closed, order_hashes)


def _next_sessions(run: Run) -> list[Session]:
    """One for each group, numbered from the beginning of a batch."""
    num_groups = num_groups_of(run.agreement)
    first = -(-run.sums.last // num_groups) * num_groups + 1
    run.sums.last = first + num_groups - 1
    numbers = range(first, first + num_groups)
    return [session_of(run.agreement, run.fingerprint, run.run_id, number) for number in numbers]


@dataclass
class _Groups(MaskedExchanges):
    """The exchanges of one batch of sums; a group that is abandoned is in no later one."""

    merchants: Sequence[Merchant]
    sessions: list[Session]
    abandoned: dict[int, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.group_of: Mapping[str, int] = {
            name: group for group, session in enumerate(self.sessions) for name in session.cohort
        }

    def keys(self) -> dict[int, Keys]:
        """Everyone's keys, by group."""
        advertised = self.asked(
            "keys",
            self.merchants,
            lambda merchant: KeysOrder(**self.run.header(merchant.name), sum=self._session(merchant.name).round),
            lambda _, reply: of_kind(reply, KeysReply).keys.tobytes(),
        )
        identities, found = identities_of(self.run.agreement), dict[int, Keys]()
        for group, session in enumerate(self.sessions):
            own = self._of_group(group, advertised)
            keys = self._tried(group, partial(gather_keys, session, identities, self.run.sums.history, own))
            if keys is not None:
                self.run.sums.history = keys.history
                self.dropped |= keys.dropped
                found[group] = keys
        return found

    def offers(self, keys: Mapping[int, Keys]) -> dict[int, Offers]:
        """Their shares, by group."""
        tables = {group: octets(held.table()) for group, held in keys.items()}
        names = {name for held in keys.values() for name in _names(held.session, held.advertisements)}

        def asked_of(merchant: Merchant) -> UnmaskOrder:
            group = self.group_of[merchant.name]
            header, number = self.run.header(merchant.name), self.sessions[group].round
            return UnmaskOrder(**header, sum=0, in_sum=(), next_sum=number, keys=tables[group])

        shares = self.asked(
            "shares", self._only(names), asked_of, lambda _, reply: of_kind(reply, UnmaskReply).shares.tobytes()
        )
        tried = {
            group: self._tried(group, partial(gather_offers, held, self._of_group(group, shares)))
            for group, held in keys.items()
        }
        return {group: offers for group, offers in tried.items() if offers is not None}

    def vectors(
        self, offers: Mapping[int, Offers], order: OrderOf, num_elements: int
    ) -> tuple[dict[int, Closed], dict[int, bytes]]:
        """The masked sums, by group, and the hash of what each group was asked."""
        adding = {group: MaskedSum(held, num_elements) for group, held in offers.items()}
        order_hashes: dict[int, bytes] = {}

        def asked_of(merchant: Merchant) -> Order:
            group = self.group_of[merchant.name]
            masking = Masking(sum=self.sessions[group].round, next_sum=0)
            shares = octets(offers[group].inbox(merchant.name))
            made = order(merchant, {**self.run.header(merchant.name), "masking": masking, "shares": shares})
            if group not in order_hashes:
                order_hashes[group] = common_order_hash(made)
            return made

        def taken(merchant: Merchant, reply: Reply) -> None:
            adding[self.group_of[merchant.name]].add(merchant.name, of_kind(reply, MaskedReply).vector)

        names = {name for held in offers.values() for name in _names(held.session, held.offers)}
        self.asked(VECTORS, self._only(names), asked_of, taken)
        tried = {group: self._tried(group, own.close) for group, own in adding.items()}
        return {group: closed for group, closed in tried.items() if closed is not None}, order_hashes

    def opened(self, closed: Mapping[int, Closed], order_hashes: Mapping[int, bytes]) -> tuple[Summed, ...]:
        """What came of each group's sum."""

        def asked_of(merchant: Merchant) -> UnmaskOrder:
            own, header = closed[self.group_of[merchant.name]], self.run.header(merchant.name)
            number = own.offers.session.round
            return UnmaskOrder(**header, sum=number, in_sum=own.in_sum, next_sum=0, keys=octets(b""))

        in_sum = {group: _names(own.offers.session, own.in_sum) for group, own in closed.items()}
        names = {name for members in in_sum.values() for name in members}
        openings = self.asked(
            "openings", self._only(names), asked_of, lambda _, reply: of_kind(reply, UnmaskReply).openings.tobytes()
        )
        unmasked = {
            group: self._tried(group, partial(unmasked_sum, own, order_hashes[group], self._of_group(group, openings)))
            for group, own in closed.items()
        }
        totals = {group: found[0] for group, found in unmasked.items() if found is not None}
        return tuple(
            Summed(
                total=totals.get(group),
                in_sum={name: self.hashes[name] for name in in_sum[group]} if group in totals else {},
                dropped=self._of_group(group, self.dropped),
                bytes_received=self.bytes_received,
                bytes_sent=self.bytes_sent,
                abandoned=self.abandoned.get(group, ""),
            )
            for group in range(len(self.sessions))
        )

    def _session(self, name: str) -> Session:
        return self.sessions[self.group_of[name]]

    def _only(self, names: set[str]) -> list[Merchant]:
        return [merchant for merchant in self.merchants if merchant.name in names]

    def _of_group(self, group: int, found: Mapping[str, Taken]) -> dict[str, Taken]:
        return {name: value for name, value in found.items() if self.group_of[name] == group}

    def _tried(self, group: int, step: Callable[[], Step]) -> Step | None:
        """What a step of one group's sum comes to; None where it ends there, which is told."""
        try:
            return step()
        except RoundAbandonedError as error:
            self.abandoned[group] = error.reason
            self.run.tell(SumAbandoned(f"{self.what}, group {group + 1}", error.reason, str(error)))
            return None


def _names(session: Session, places: Sequence[int] | Mapping[int, object]) -> list[str]:
    return [session.cohort[place] for place in places]
