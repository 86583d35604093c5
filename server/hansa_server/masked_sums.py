"""Masked sums over a run's merchants, of the whole roster or of all groups at once: two exchanges, beside those of the
next sums; two more where they are to begin.

begin    everybody's keys are asked for, then shares among those who have some
mask     masked vectors, and keys for the next sums: of other groups, where there are groups
open     opened shares, and sealed ones for the next sums

- A group's sum is of the vectors of `in_sum`, exactly; or there is none, with a reason, and whatever depends on it
  stays. The other groups do not wait for it. The whole roster is one group.
- A sum that ends early keeps nobody from the next: its merchants leave it, and share for the next all the same.
- A group with too few keys or shares for the next sum has none: its merchants send keys beside the others' vectors,
  and are in the one after that. Where fewer groups are left than the agreed rule needs, all begin anew.
- Vectors are added as they come, so one is in memory for each group; what comes late is not looked at.

The protocol's own rules are unmasking.py's, what is asked of whom masked_exchanges.py's. Which rule makes something of
several groups' sums is robust_masked.py's.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from hansa_common.errors import RoundAbandonedError
from hansa_common.masking import Ring
from hansa_common.secure_agreement import identities_of
from hansa_server.masked_batches import Batch, Sums
from hansa_server.masked_exchanges import MaskedExchanges, OrderOf
from hansa_server.participants import Merchant, Run
from hansa_server.run_events import Event, ReplyDropped
from hansa_server.unmasking import Closed, Keys, Offers, gather_keys, gather_offers, unmasked_sum

# Hears at which step a group's sum has ended, and why.
Ends = Callable[[int, RoundAbandonedError], None]


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
    """What came of one group's sum: `total` (num_elements,) in the ring, None where `abandoned` says why there is none.

    `in_sum` has the hash of each masked reply in it, by merchant; `dropped` why others are not, by merchant.
    """

    total: Ring | None
    in_sum: Mapping[str, str]
    dropped: Mapping[str, str]
    abandoned: str = ""


@dataclass(frozen=True)
class AllSummed:
    """What came of the sums of all groups, and the bytes of the exchanges that they took."""

    of_groups: tuple[Summed, ...]
    bytes_received: int
    bytes_sent: int

    @property
    def of_roster(self) -> Summed:
        """The one sum, where everyone is in it.

        Raises:
            ValueError: there are several groups.
        """
        (summed,) = self.of_groups
        return summed


def masked_sums(
    run: Run,
    merchants: Sequence[Merchant],
    what: str,
    order: OrderOf,
    num_elements: int,
    *,
    is_last: bool = False,
    on_reply: Callable[[str], None] = lambda _: None,
) -> AllSummed:
    """Ask these merchants, in roster order, for the vectors of their groups' sums, of which each has num_elements.

    `is_last`: no sum follows in this run. `on_reply` hears the name of each merchant that is done with.
    """
    asking = MaskedExchanges(run, what, merchants, on_reply)
    return _Making(run, what, asking).made(order, num_elements, is_last=is_last)


@dataclass(frozen=True)
class _Making:
    """One batch of sums, through its exchanges, and the next as far as it travels with them."""

    run: Run
    what: str
    asking: MaskedExchanges

    def made(self, order: OrderOf, num_elements: int, *, is_last: bool) -> AllSummed:
        offers = self._offers()
        # Without a sum there is nothing to ask for, nor anything that the next could travel with.
        if not offers.parts:
            return self._told(offers.batch, {}, {}, offers.ended)
        following = None if is_last else self._next_batch()
        vectors = self.asking.vectors(offers, order, num_elements, following)
        closed = vectors.sums.stepped(lambda _, own: own.close(), self._ends)
        keys = None if following is None else self._keys(following, vectors.advertised, self._ends_after)
        openings = self._opened(closed, keys)

        def unmasked(group: int, own: Closed) -> Ring:
            total, _ = unmasked_sum(own, vectors.order_hashes[group], closed.batch.of_group(group, openings))
            return total

        totals = closed.stepped(unmasked, self._ends)
        return self._told(totals.batch, totals.parts, _in_sum(closed), totals.ended)

    def _opened(self, closed: Sums[Closed], keys: Sums[Keys] | None) -> dict[str, bytes]:
        """Opened shares, by merchant; the shares for the next sums are kept."""
        with_keys = {} if keys is None else _with_keys(keys)
        openings, shares = self.asking.opened("openings", _in_sum(closed), with_keys)
        self.run.sums.offers = None if keys is None else self._shared(keys, shares, self._ends_after)
        return openings

    def _offers(self) -> Sums[Offers]:
        """The shares that the last sums have led to; or those of a batch that is begun, where too few have any."""
        offers = self.run.sums.take_offers()
        return offers if offers is not None and len(offers.parts) >= _least_groups(self.run) else self._begun()

    def _begun(self) -> Sums[Offers]:
        batch = self._next_batch()
        keys = self._keys(batch, self.asking.keys(batch), self._ends)
        _, shares = self.asking.opened("shares", {}, _with_keys(keys))
        return self._shared(keys, shares, self._ends)

    def _next_batch(self) -> Batch:
        run = self.run
        batch = Batch.after(run.sums.last, run.agreement, run.fingerprint, run.run_id)
        run.sums.last = batch.last
        return batch

    def _keys(self, batch: Batch, advertised: Mapping[str, bytes], ends: Ends) -> Sums[Keys]:
        identities = identities_of(self.run.agreement)

        def gathered(group: int, own: Mapping[str, bytes]) -> Keys:
            keys = gather_keys(batch.sessions[group], identities, self.run.sums.history, own)
            self.run.sums.history = keys.history
            self._tell_dropped(keys.dropped, own, "its keys for a masked sum")
            return keys

        return Sums.of_answers(batch, advertised).stepped(gathered, ends)

    def _shared(self, keys: Sums[Keys], shares: Mapping[str, bytes], ends: Ends) -> Sums[Offers]:
        def gathered(group: int, own: Keys) -> Offers:
            answers = keys.batch.of_group(group, shares)
            offers = gather_offers(own, answers)
            self._tell_dropped(offers.dropped, answers, "its shares for a masked sum")
            return offers

        return keys.stepped(gathered, ends)

    def _tell_dropped(self, dropped: Mapping[str, str], answers: Mapping[str, bytes], detail: str) -> None:
        for name, reason in dropped.items():
            # Who sent nothing was told of already.
            if name in answers:
                self.run.tell(ReplyDropped(name, self.what, reason, detail))

    def _ends(self, group: int, error: RoundAbandonedError) -> None:
        self.run.tell(SumAbandoned(named(self.run, self.what, group), error.reason, str(error)))

    def _ends_after(self, group: int, error: RoundAbandonedError) -> None:
        self.run.tell(SumAbandoned(named(self.run, f"after {self.what}", group), error.reason, str(error)))

    def _told(
        self, batch: Batch, totals: Mapping[int, Ring], in_sum: Mapping[str, object], ended: Mapping[int, str]
    ) -> AllSummed:
        asking = self.asking
        counted = {name: asking.hashes[name] for name in in_sum if batch.group_of[name] in totals}
        left_out = {name: reason for name, reason in asking.dropped.items() if name not in counted}
        of_groups = (
            Summed(
                totals.get(group),
                batch.of_group(group, counted),
                batch.of_group(group, left_out),
                ended.get(group, ""),
            )
            for group in range(len(batch.sessions))
        )
        return AllSummed(tuple(of_groups), asking.bytes_received, asking.bytes_sent)


def named(run: Run, what: str, group: int) -> str:
    """How one group's part of `what` is told of; the whole roster's is `what` itself."""
    return what if run.agreement.robustness.groups is None else f"{what}, group {group + 1}"


def _in_sum(closed: Sums[Closed]) -> dict[str, Closed]:
    return closed.by_member(lambda own: own.in_sum)


def _with_keys(keys: Sums[Keys]) -> dict[str, Keys]:
    return keys.by_member(lambda own: own.advertisements)


def _least_groups(run: Run) -> int:
    """With fewer groups' sums no more would come of a round than of none."""
    robustness = run.agreement.robustness
    return 1 if robustness.groups is None else robustness.least_units
