"""The coordinator's half of a masked sum: who takes part, what is passed on, and the sum once enough shares are there.

gather_keys      signed keys in                       -> Keys: who may share
gather_offers    sealed shares in                     -> Offers: who may mask; each one's inbox
MaskedSum        masked vectors in, as they come      -> Closed: who is in the sum, and the masked sum
unmasked_sum     opened shares in                     -> the sum, in the ring

- The sum is that of the vectors in it, to the bit, or RoundAbandonedError says why there is none.
- A merchant whose reply does not hold drops out at that step, with its reason; what comes late is not added.
- For nobody are both halves of the secrets put together: one for who is in the sum, the other for who is not.

reason of who drops out   its reply
silent                    did not come
malformed                 is none of this step
not-signed                bears keys that are not its own for this session
key                       bears keys that nothing can be shared under, or that were there before
shares                    has shares for others than those who advertised
late, twice, stranger     a vector that comes too late, again, or from who handed out no shares
wrong-length              a vector of another length

reason of an abandoned round
too-few-keys, too-few-shares, too-few-vectors, too-few-openings
shares-inconsistent       shares give back another secret than the one that was shared
implausible               the sum is none of this cohort's vectors

What nobody can find here: a vector within all bounds that was made up. The merchants' half is secure_round.py's.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Final, TypeVar

import numpy as np
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from numpy.typing import NDArray

from hansa_common.errors import MessageError, ReplayError, ReplyError, RoundAbandonedError, SignatureError
from hansa_common.masking import FixedPoint, Ring, pair_key, self_key, unmask_dropped, unmask_self
from hansa_common.secret_sharing import SHARE_BYTES, combine
from hansa_common.secure_keys import Advertisement, KeyHistory, Session, keys_to_bytes, mask_context
from hansa_common.secure_rows import rows_from_bytes, rows_to_bytes
from hansa_common.secure_shares import Offer, check_secret

_PROBE: Final = X25519PrivateKey.from_private_bytes(bytes(range(32)))
_Part = TypeVar("_Part")


@dataclass(frozen=True)
class Keys:
    """Who advertised, by place, who dropped out by then, name -> reason, and the run's keys with these among them."""

    session: Session
    advertisements: Mapping[int, Advertisement]
    dropped: Mapping[str, str]
    history: KeyHistory

    def table(self) -> bytes:
        """Everybody's keys, as each of them gets them."""
        return keys_to_bytes(self.advertisements)


@dataclass(frozen=True)
class Offers:
    """Who handed out shares, by place, and who dropped out by then."""

    keys: Keys
    offers: Mapping[int, Offer]
    dropped: Mapping[str, str]

    @property
    def session(self) -> Session:
        return self.keys.session

    @property
    def taking_part(self) -> dict[int, Advertisement]:
        """The keys of those whose masks are between one another, by place."""
        return {place: self.keys.advertisements[place] for place in self.offers}

    def inbox(self, merchant: str) -> bytes:
        """The shares for one of those taking part, by who handed them out."""
        place = self.session.place(merchant)
        return rows_to_bytes({other: offer.sealed[place] for other, offer in self.offers.items() if other != place})


@dataclass(frozen=True)
class Closed:
    """Who is in the sum, by place, the masked sum (num_elements,), and who dropped out by then."""

    offers: Offers
    in_sum: tuple[int, ...]
    masked_sum: Ring = field(repr=False)
    dropped: Mapping[str, str]


def gather_keys(
    session: Session, identities: Mapping[str, str], history: KeyHistory, replies: Mapping[str, bytes]
) -> Keys:
    """Take advertisements, by name; `identities` are the agreement's keys, `history` the run's.

    Raises:
        RoundAbandonedError: too few hold.
        ReplayError: the session's round was there.
    """
    before, here = history.at(session), KeyHistory()

    def taken(place: int, content: bytes) -> Advertisement:
        nonlocal here
        advertised = Advertisement.from_bytes(content)
        try:
            advertised.verify(session, place, identities[session.cohort[place]])
        except SignatureError as error:
            raise ReplyError("not-signed", str(error)) from error
        try:
            for key in (advertised.mask_key, advertised.share_key):
                pair_key(_PROBE, key, b"")
            # Or every merchant would refuse the round for this one's sake.
            before.check([advertised])
            here = here.with_keys([advertised])
        except (ValueError, ReplayError) as error:
            raise ReplyError("key", f"{session.cohort[place]!r} advertises a key that is not to be used") from error
        return advertised

    there = dict.fromkeys(range(len(session.cohort)))
    held, dropped = _gathered(session, there, replies, taken)
    _check_enough(session, held, "too-few-keys")
    return Keys(session, held, dropped, before.with_keys(held.values()))


def gather_offers(keys: Keys, replies: Mapping[str, bytes]) -> Offers:
    """Take sealed shares, by name, from those who advertised.

    Raises:
        RoundAbandonedError: too few hold.
    """
    session, there = keys.session, keys.advertisements

    def taken(place: int, content: bytes) -> Offer:
        offer = Offer.from_bytes(content, len(session.cohort))
        if offer.sealed.keys() != there.keys() - {place}:
            raise ReplyError("shares", f"{session.cohort[place]!r} has shares for others than those who advertised")
        return offer

    held, dropped = _gathered(session, there, replies, taken)
    _check_enough(session, held, "too-few-shares")
    return Offers(keys, held, {**keys.dropped, **dropped})


class MaskedSum:
    """Adds masked vectors up as they come; only their sum is in memory."""

    def __init__(self, offers: Offers, num_elements: int) -> None:
        self._offers = offers
        self._sum: Ring = np.zeros(num_elements, np.uint32)
        self._in_sum: set[int] = set()
        self._refused: dict[str, str] = {}
        self._is_closed = False

    def add(self, merchant: str, vector: Ring) -> None:
        """Add one merchant's masked vector.

        Raises:
            ReplyError: late, twice, stranger, wrong-length; it is not added.
        """
        session = self._offers.session
        if merchant not in session.cohort or session.place(merchant) not in self._offers.offers:
            raise ReplyError("stranger", f"{merchant!r} handed out no shares for the masked sum {session.round}")
        if self._is_closed:
            raise ReplyError("late", f"the vector of {merchant!r} came after the masked sum {session.round} was closed")
        if session.place(merchant) in self._in_sum:
            raise ReplyError("twice", f"the vector of {merchant!r} is in the masked sum {session.round} already")
        if vector.dtype != np.uint32 or vector.shape != self._sum.shape:
            self._refused[merchant] = "wrong-length"
            raise ReplyError("wrong-length", f"a vector of {vector.size} elements, the sum has {self._sum.size}")
        np.add(self._sum, vector, out=self._sum)
        self._in_sum.add(session.place(merchant))

    def close(self) -> Closed:
        """Nothing is added from now on.

        Raises:
            RoundAbandonedError: too few came.
        """
        self._is_closed = True
        offers, session = self._offers, self._offers.session
        _check_enough(session, self._in_sum, "too-few-vectors")
        missing = [session.cohort[place] for place in offers.offers if place not in self._in_sum]
        dropped = {name: self._refused.get(name, "silent") for name in missing}
        return Closed(offers, tuple(sorted(self._in_sum)), self._sum, {**offers.dropped, **dropped})


def unmasked_sum(closed: Closed, order_hash: bytes, replies: Mapping[str, bytes]) -> tuple[Ring, dict[str, str]]:
    """The sum of the vectors in it (num_elements,), from opened shares by name, and who opened none, name -> reason.

    `order_hash` is that of the order without its recipient. The masked sum is unmasked in place.

    Raises:
        RoundAbandonedError: too few shares hold, or they are not of what was shared.
    """
    session, taking_part = closed.offers.session, closed.offers.taking_part

    def taken(place: int, content: bytes) -> dict[int, bytes]:
        rows = rows_from_bytes(content, SHARE_BYTES, len(session.cohort))
        if rows.keys() != taking_part.keys():
            raise ReplyError("shares", f"{session.cohort[place]!r} opens shares of others than those taking part")
        return rows

    opened, silent = _gathered(session, dict.fromkeys(closed.in_sum), replies, taken)
    if len(opened) < session.thresholds.threshold:
        raise _abandoned(session, "too-few-openings", f"{len(opened)} of {session.thresholds.threshold} opened shares")
    context = mask_context(session, order_hash, taking_part)
    for place in taking_part:
        shares = {opener: rows[place] for opener, rows in opened.items()}
        try:
            secret = combine(shares, session.thresholds.threshold)
            _remove_masks(closed, place, secret, context)
        except ValueError as error:
            reason = f"what was opened of {session.cohort[place]!r}: {error}"
            raise _abandoned(session, "shares-inconsistent", reason) from error
    return closed.masked_sum, silent


def decoded_mean(session: Session, fixed: FixedPoint, ring_sum: Ring) -> tuple[NDArray[np.float64], int]:
    """The mean update (num_params,) and how many examples are in it.

    Raises:
        RoundAbandonedError: the sum is none of vectors that `fixed` encodes: somebody sent something else.
    """
    try:
        return fixed.decode_mean(ring_sum)
    except ValueError as error:
        raise _abandoned(session, "implausible", str(error)) from error


def _remove_masks(closed: Closed, place: int, secret: bytes, context: bytes) -> None:
    if place in closed.in_sum:
        check_secret(secret, closed.offers.offers[place].commitment)
        unmask_self(closed.masked_sum, self_key(secret, context))
        return
    keys = closed.offers.taking_part
    private_key = X25519PrivateKey.from_private_bytes(secret)
    if private_key.public_key().public_bytes_raw() != keys[place].mask_key:
        raise ValueError("the shares give another key than the one that was advertised")
    pair_keys = {other: pair_key(private_key, keys[other].mask_key, context) for other in closed.in_sum}
    unmask_dropped(closed.masked_sum, place, pair_keys)


def _gathered(
    session: Session,
    there: Mapping[int, object],
    replies: Mapping[str, bytes],
    taken: Callable[[int, bytes], _Part],
) -> tuple[dict[int, _Part], dict[str, str]]:
    """What holds of the replies of those who are still there, by place, and why the others drop out, by name."""
    held: dict[int, _Part] = {}
    dropped: dict[str, str] = {}
    for place in sorted(there):
        name = session.cohort[place]
        if name not in replies:
            dropped[name] = "silent"
            continue
        try:
            held[place] = taken(place, replies[name])
        except ReplyError as error:
            dropped[name] = error.reason
        except MessageError:
            dropped[name] = "malformed"
    return held, dropped


def _check_enough(session: Session, held: Mapping[int, object] | set[int], reason: str) -> None:
    least = session.thresholds.least
    if len(held) < least:
        raise _abandoned(session, reason, f"{len(held)} merchants are left, {least} are needed")


def _abandoned(session: Session, reason: str, why: str) -> RoundAbandonedError:
    return RoundAbandonedError(reason, f"the masked sum {session.round} is abandoned: {why}")
