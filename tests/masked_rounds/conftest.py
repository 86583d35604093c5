"""A cohort that makes one masked sum, each message through its bytes; whoever is absent at a step stays away from then.

Merchants hold their states here as a trainer does: the latest alone.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np
import pytest

from hansa_common import secure_round
from hansa_common.keys import public_key_of
from hansa_common.secret_sharing import SHARE_BYTES
from hansa_common.secure_keys import KeyHistory, Session, keys_from_bytes
from hansa_common.secure_round import MerchantState
from hansa_common.secure_rows import rows_from_bytes, rows_to_bytes
from hansa_common.secure_shares import SEALED_BYTES
from hansa_common.secure_thresholds import Thresholds, secure_thresholds
from hansa_server.unmasking import Closed, Keys, MaskedSum, Offers, gather_keys, gather_offers, unmasked_sum

ORDER_HASH = hashlib.sha256(b"the order of everyone").digest()


class Drawn:
    """Bytes that are the same on every machine and for every Python."""

    def __init__(self, seed: object) -> None:
        self._seed = repr(seed).encode()
        self._num_calls = 0

    def __call__(self, num_bytes: int) -> bytes:
        self._num_calls += 1
        return hashlib.shake_256(b"%d %s" % (self._num_calls, self._seed)).digest(num_bytes)


@dataclass
class Cohort:
    """Merchants of one session and the coordinator between them."""

    session: Session
    seed: int = 0
    states: dict[str, MerchantState] = field(default_factory=dict)
    histories: dict[str, KeyHistory] = field(default_factory=dict)

    @classmethod
    def of(cls, num_merchants: int, thresholds: Thresholds | None = None, seed: int = 0) -> Cohort:
        names = tuple(f"merchant {place}" for place in range(num_merchants))
        limits = thresholds or secure_thresholds(num_merchants)
        return cls(Session("ab" * 32, "run-1", 1, names, limits), seed)

    def at_round(self, number: int) -> Cohort:
        """The same merchants, with what they remember, before a later sum."""
        session = replace(self.session, round=number)
        return Cohort(session, self.seed, histories=dict(self.histories))

    def identity(self, name: str) -> bytes:
        return hashlib.sha256(f"{self.seed} identity of {name}".encode()).digest()

    @cached_property
    def identities(self) -> dict[str, str]:
        return {name: public_key_of(self.identity(name)) for name in self.session.cohort}

    def advertise(self, name: str) -> bytes:
        draw = Drawn((self.seed, self.session.round, name))
        state = secure_round.advertise(self.session, name, self.identity(name), draw)
        self.states[name] = state
        return state.advertisement.to_bytes()

    def advertise_all(self) -> Cohort:
        for name in self.session.cohort:
            self.advertise(name)
        return self

    def share(self, name: str, table: bytes) -> bytes:
        keys = keys_from_bytes(table, len(self.session.cohort))
        history = self.histories.get(name, KeyHistory())
        draw = Drawn((self.seed, self.session.round, name, "shares"))
        state = secure_round.share(self.states[name], keys, self.identities, history, draw)
        self.states[name], self.histories[name] = state, state.history
        return state.offer.to_bytes()

    def mask(self, name: str, inbox: bytes, vector: np.ndarray, order_hash: bytes = ORDER_HASH) -> np.ndarray:
        masked = vector.copy()
        sealed = rows_from_bytes(inbox, SEALED_BYTES, len(self.session.cohort))
        self.states[name] = secure_round.mask(self.states[name], masked, sealed, order_hash)
        return masked

    def unmask(self, name: str, in_sum: Collection[int]) -> bytes:
        self.states[name], opened = secure_round.unmask(self.states[name], in_sum)
        assert all(len(share) == SHARE_BYTES for share in opened.values())
        return rows_to_bytes(opened)

    def present(self, absent: Collection[int]) -> list[str]:
        return [name for place, name in enumerate(self.session.cohort) if place not in absent]

    def keys(self, absent: Collection[int] = ()) -> Keys:
        replies = {name: self.advertise(name) for name in self.present(absent)}
        return gather_keys(self.session, self.identities, KeyHistory(), replies)

    def offers(self, keys: Keys, absent: Collection[int] = ()) -> Offers:
        left = [name for name in self.present(absent) if self.session.place(name) in keys.advertisements]
        return gather_offers(keys, {name: self.share(name, keys.table()) for name in left})

    def closed(self, offers: Offers, vectors: np.ndarray, absent: Collection[int] = (), **changes) -> Closed:
        adding = MaskedSum(offers, vectors.shape[1])
        for name in self.present(absent):
            if (place := self.session.place(name)) in offers.offers:
                adding.add(name, self.mask(name, offers.inbox(name), vectors[place], **changes))
        return adding.close()

    def openings(self, closed: Closed, absent: Collection[int] = ()) -> dict[str, bytes]:
        left = [name for name in self.present(absent) if self.session.place(name) in closed.in_sum]
        return {name: self.unmask(name, closed.in_sum) for name in left}

    def total(self, vectors: np.ndarray, absent: tuple[Collection[int], ...] = ((), (), (), ())) -> np.ndarray:
        """The sum that the coordinator learns, given who is absent from each of the four steps on."""
        gone = [set().union(*absent[: step + 1]) for step in range(4)]
        closed = self.closed(self.offers(self.keys(gone[0]), gone[1]), vectors, gone[2])
        return unmasked_sum(closed, ORDER_HASH, self.openings(closed, gone[3]))[0]


@pytest.fixture(scope="session")
def cohort_of():
    """Make a cohort: `cohort_of(num_merchants, thresholds, seed)`."""
    return Cohort.of


@pytest.fixture(scope="session")
def order_hash() -> bytes:
    return ORDER_HASH


@pytest.fixture(scope="session")
def ring_vectors():
    """Vectors (num_merchants, num_elements) of the ring, uniform."""

    def vectors(num_merchants: int, num_elements: int = 9, seed: int = 0) -> np.ndarray:
        return np.random.default_rng(seed).integers(0, 2**32, (num_merchants, num_elements), dtype=np.uint32)

    return vectors
