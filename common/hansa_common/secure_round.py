"""A merchant's half of a masked sum, as steps from one state to the next; each step is taken once.

advertise   two fresh keys, signed                                                      -> Advertised
share       everybody's keys in; a share of both halves of its secrets for each, sealed -> Shared
mask        the others' shares in; the one masked vector                                -> Masked
unmask      who is in the sum; for each of these a share of its own mask's secret, for
            the others of their masks' private key                                      -> Unmasked

Promised to the merchant whose states these are, whatever the coordinator and `colluders` others do:
- its vector is known to nobody but as part of a sum over at least `smallest_sum` merchants, two of them honest;
- that sum is of vectors for one and the same order, or nothing can be read of it;
- it opens shares once, never both halves of one merchant's secret, never for fewer than `least`.

A step asks what it needs and raises what it refuses; a refused step leaves the state as it was. A state whose step was
taken is spent: who holds states keeps the latest alone, and a merchant that lost it is out of that sum.

Source: Bonawitz et al., "Practical Secure Aggregation for Privacy-Preserving Machine Learning" (2017); the order in the
context of the masks, against Pasquini et al., "Eluding Secure Aggregation in Federated Learning via Model
Inconsistency" (2022). Vectors are masking.py's, thresholds secure_thresholds.py's, the coordinator's half is
unmasking.py's.
"""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Final, TypeVar

import numpy as np
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from hansa_common.errors import MessageError, PolicyError, ReplayError
from hansa_common.masking import Ring, pair_key, self_key
from hansa_common.masking import mask as add_masks
from hansa_common.messages import RoundOrder, encode
from hansa_common.record_types import EVERYONE, Order
from hansa_common.secret_sharing import SECRET_BYTES, DrawBytes, split
from hansa_common.secure_keys import Advertisement, KeyHistory, Session, mask_context, sign_keys
from hansa_common.secure_messages import MaskableOrder
from hansa_common.secure_shares import Channel, Offer, SharePair, commitment


@dataclass(frozen=True)
class Advertised:
    """Keys are drawn, and their public halves signed."""

    session: Session
    place: int
    mask_key: X25519PrivateKey
    share_key: X25519PrivateKey
    advertisement: Advertisement


@dataclass(frozen=True)
class Shared:
    """Both halves of the secrets are in shares; `keys` are those of everyone who advertised, by place."""

    before: Advertised
    keys: Mapping[int, Advertisement]
    self_secret: bytes = field(repr=False)
    own_pair: SharePair
    offer: Offer
    history: KeyHistory

    @property
    def session(self) -> Session:
        return self.before.session

    @property
    def place(self) -> int:
        return self.before.place


@dataclass(frozen=True)
class Masked:
    """The vector is out; of secrets there is left this merchant's share of each one's, its own among them, by place."""

    session: Session
    place: int
    held: Mapping[int, SharePair]


@dataclass(frozen=True)
class Unmasked:
    """Shares were opened; nothing is left that could be."""

    session: Session
    place: int


MerchantState = Advertised | Shared | Masked | Unmasked
_STEPS: Final[tuple[type[MerchantState], ...]] = (Advertised, Shared, Masked, Unmasked)
_State = TypeVar("_State", Advertised, Shared, Masked)


def common_order_hash(order: Order) -> bytes:
    """SHA-256 of what an order says to everyone in a sum alike: all of it but whom it is addressed to, the shares for
    that one, for which sum it draws its next keys, and which of its replies counted.
    """
    own: dict[str, object] = {"recipient": EVERYONE}
    if isinstance(order, MaskableOrder):
        own["shares"] = np.zeros(0, np.uint8)
        if order.masking is not None:
            # Who is in one group now may be in different ones next.
            own["masking"] = order.masking.model_copy(update={"next_sum": 0})
    if isinstance(order, RoundOrder):
        own["included"] = ""
    return hashlib.sha256(encode(order.model_copy(update=own))).digest()


def advertise(
    session: Session, merchant: str, identity_private_key: bytes, draw: DrawBytes = secrets.token_bytes
) -> Advertised:
    """Draw two keys for a session and sign them; `draw` gives random bytes, the operating system's unless simulated.

    Raises:
        PolicyError: the merchant is not in the cohort.
    """
    place = session.place(merchant)
    mask_key, share_key = (X25519PrivateKey.from_private_bytes(draw(SECRET_BYTES)) for _ in range(2))
    mask_public, share_public = (key.public_key().public_bytes_raw() for key in (mask_key, share_key))
    advertisement = sign_keys(session, place, mask_public, share_public, identity_private_key)
    return Advertised(session, place, mask_key, share_key, advertisement)


def share(
    state: MerchantState,
    keys: Mapping[int, Advertisement],
    identities: Mapping[str, str],
    history: KeyHistory,
    draw: DrawBytes = secrets.token_bytes,
) -> Shared:
    """Share both secrets among those whose keys these are, by place. `identities` are the agreement's, name -> key;
    `history` is the merchant's of this run, and the state after this holds the next one.

    Raises:
        PolicyError: too few keys, or this merchant's own are not among them, or one is of who is not in the cohort.
        SignatureError: keys that are not their merchant's own for this session.
        ReplayError: a key that was used before, or this step was taken.
        MessageError: a key that nothing can be shared under.
    """
    advertised = _ready(state, Advertised)
    session, place = advertised.session, advertised.place
    _check_taking_part(session, place, keys)
    if keys[place] != advertised.advertisement:
        raise PolicyError(f"other keys than its own are said to be {session.cohort[place]!r}'s")
    for other, advertisement in keys.items():
        advertisement.verify(session, other, _identity(identities, session.cohort[other]))
    next_history = history.at(session).with_keys(keys.values())
    self_secret = draw(SECRET_BYTES)
    pairs = _shares(advertised, self_secret, draw)
    sealed = {
        other: Channel(session, place, other).seal(pairs[other], advertised.share_key, peer.share_key, draw)
        for other, peer in keys.items()
        if other != place
    }
    offer = Offer(commitment(self_secret), sealed)
    return Shared(advertised, dict(keys), self_secret, pairs[place], offer, next_history)


def mask(state: MerchantState, vector: Ring, sealed: Mapping[int, bytes], order_hash: bytes) -> Masked:
    """Mask a vector, in place, with all who handed out shares; `sealed` are the others' for this merchant, by place.

    Raises:
        PolicyError: too few shares, or some of who advertised no keys, or the step before was not taken.
        MessageError: shares that do not open, or a key that nothing can be shared under; the vector is not masked.
        ReplayError: this step was taken.
        ValueError: the vector is not (num_elements,) uint32.
    """
    shared = _ready(state, Shared)
    session, place = shared.session, shared.place
    if vector.dtype != np.uint32 or vector.ndim != 1:
        raise ValueError(f"a vector of the ring is one-dimensional uint32, this one {vector.ndim}-d {vector.dtype}")
    taking_part = {place, *sealed}
    _check_taking_part(session, place, taking_part)
    if place in sealed or not taking_part <= shared.keys.keys():
        raise PolicyError(f"shares for the masked sum {session.round} of who has none to hand out")
    held = {place: shared.own_pair}
    for other, content in sealed.items():
        channel = Channel(session, other, place)
        held[other] = channel.open(content, shared.before.share_key, shared.keys[other].share_key)
    context = mask_context(session, order_hash, {other: shared.keys[other] for other in taking_part})
    pair_keys = _pair_keys(shared, taking_part, context)
    add_masks(vector, place, self_key(shared.self_secret, context), pair_keys)
    return Masked(session, place, held)


def unmask(state: MerchantState, in_sum: Collection[int]) -> tuple[Unmasked, dict[int, bytes]]:
    """Shares by place, of everyone who handed out shares: of the own mask's secret for who is in the sum, and of the
    masks' private key for who is not.

    Raises:
        PolicyError: too few are in the sum, or not this merchant, or one that has masked nothing.
        ReplayError: this step was taken.
    """
    masked = _ready(state, Masked)
    survivors = set(in_sum)
    _check_taking_part(masked.session, masked.place, survivors)
    if not survivors <= masked.held.keys():
        raise PolicyError(f"the masked sum {masked.session.round} is said to hold who handed out no shares")
    opened = {
        other: pair.of_self_secret if other in survivors else pair.of_mask_key for other, pair in masked.held.items()
    }
    return Unmasked(masked.session, masked.place), opened


def _ready(state: MerchantState, wanted: type[_State]) -> _State:
    if isinstance(state, wanted):
        return state
    there, asked = type(state), _STEPS.index(wanted)
    what = f"the step after {wanted.__name__} of the masked sum {state.session.round}"
    if _STEPS.index(there) > asked:
        raise ReplayError(f"{what} was taken; a step is taken once")
    raise PolicyError(f"{what} is asked for, and this merchant has only {there.__name__}")


def _check_taking_part(session: Session, place: int, places: Collection[int]) -> None:
    if place not in places:
        raise PolicyError(
            f"{session.cohort[place]!r} is asked for its part in a masked sum that is said to be without it"
        )
    if len(places) < session.thresholds.least:
        raise PolicyError(
            f"the masked sum {session.round} is asked for {len(places)} merchants; allowed are "
            f"{session.thresholds.least} at least"
        )
    if not all(0 <= other < len(session.cohort) for other in places):
        raise PolicyError(f"the masked sum {session.round} is said to be with who is not in its cohort")


def _identity(identities: Mapping[str, str], merchant: str) -> str:
    if merchant not in identities:
        raise PolicyError(f"the agreement names no key of {merchant!r}")
    return identities[merchant]


def _shares(advertised: Advertised, self_secret: bytes, draw: DrawBytes) -> list[SharePair]:
    """A pair for each place of the cohort; only those go out whose merchants advertised."""
    num_shares, threshold = len(advertised.session.cohort), advertised.session.thresholds.threshold
    halves = (self_secret, advertised.mask_key.private_bytes_raw())
    return [
        SharePair(*pair) for pair in zip(*(split(half, num_shares, threshold, draw) for half in halves), strict=True)
    ]


def _pair_keys(shared: Shared, taking_part: Collection[int], context: bytes) -> dict[int, bytes]:
    others = sorted(set(taking_part) - {shared.place})
    try:
        return {other: pair_key(shared.before.mask_key, shared.keys[other].mask_key, context) for other in others}
    except ValueError:
        raise MessageError(f"a key for the masked sum {shared.session.round} is none that can be shared with") from None
