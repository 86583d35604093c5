"""Everything that a coordinator can ask of one merchant over two sums of different groups, in every order: to begin, to
mask and draw keys for another sum, to open, to leave a sum unopened, to share for the next.

Whatever is asked, of each sum it opens what it would open if that sum were the only one, at most once, and nothing of a
sum that it has left. What can come of that of all merchants together is test_requests.py's.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from itertools import chain, combinations

import numpy as np
import pytest

from hansa_client.masked_round import MaskedRounds
from hansa_common import secure_round
from hansa_common.errors import HansaError
from hansa_common.keys import public_key_of
from hansa_common.secret_sharing import SHARE_BYTES
from hansa_common.secure_keys import Advertisement, KeyHistory, Session, keys_to_bytes
from hansa_common.secure_round import Advertised, Masked, Shared, Unmasked
from hansa_common.secure_rows import rows_from_bytes, rows_to_bytes
from hansa_common.secure_shares import SEALED_BYTES
from hansa_common.secure_thresholds import secure_thresholds

VICTIM = "alder"
GROUPS = {1: (VICTIM, "birch", "cedar"), 2: (VICTIM, "dogwood", "elm")}
LIMITS = secure_thresholds(3)
ORDER_HASH = bytes(range(32))
SELF_SECRET, MASK_KEY = "its own mask's secret", "its masks' private key"


def subsets(places):
    return chain.from_iterable(combinations(places, size) for size in range(len(places) + 1))


def identity(name):
    return name.encode().ljust(32, b".")


IDENTITIES = {name: public_key_of(identity(name)) for group in GROUPS.values() for name in group}


def session_of(number):
    return Session("ab" * 32, "run", number, GROUPS[number], LIMITS)


@dataclass(frozen=True)
class Asked:
    """The merchant after some requests: where it stands, the keys it drew last, and what it has opened and left."""

    rounds: MaskedRounds = field(default_factory=lambda: MaskedRounds(VICTIM, IDENTITIES, identity(VICTIM)))
    own_keys: tuple[tuple[int, Advertisement], ...] = ()
    opened: tuple[tuple[int, frozenset], ...] = ()
    left: frozenset[int] = frozenset()

    @property
    def place_among_states(self):
        """The same for two states that answer alike: keys and shares differ, what is done with them does not."""
        current, following = self.rounds.current, self.rounds.following
        parts = None if current is None else frozenset(getattr(current, "held", getattr(current, "keys", ())))
        where = None if current is None else (type(current), current.session.round, parts)
        drawn_for = None if following is None else following.session.round
        return where, drawn_for, self.rounds.history.round, self.opened, self.left


class Coordinator:
    """Holds everybody's keys, and has every peer share with whomever it likes."""

    def __init__(self):
        self.peers = {
            number: {
                place: secure_round.advertise(session_of(number), name, identity(name))
                for place, name in enumerate(GROUPS[number])
                if name != VICTIM
            }
            for number in GROUPS
        }

    def keys(self, asked, number):
        peers = {place: state.advertisement for place, state in self.peers[number].items()}
        own = dict(asked.own_keys).get(number)
        return peers if own is None else {session_of(number).place(VICTIM): own, **peers}

    def inbox(self, asked, number, places):
        keys, own_place = self.keys(asked, number), session_of(number).place(VICTIM)
        offers = {
            place: secure_round.share(self.peers[number][place], keys, IDENTITIES, KeyHistory()).offer
            for place in places
        }
        nothing = bytes(SEALED_BYTES)
        return rows_to_bytes({place: offer.sealed.get(own_place, nothing) for place, offer in offers.items()})

    def answers(self, asked):
        """What the merchant is after each request that it does not refuse."""
        for request in self.requests(asked):
            try:
                yield request()
            except HansaError:
                continue

    def requests(self, asked):
        for number in GROUPS:
            yield lambda number=number: begun(asked, number)
            for places, after in product_of(subsets(self.peers[number]), (None, *GROUPS)):
                yield lambda number=number, places=places, after=after: self.masked(asked, number, places, after)
        for in_sum, following in product_of(subsets(range(3)), (None, *self.tables(asked))):
            yield lambda in_sum=in_sum, following=following: opened(asked, in_sum, following)

    def tables(self, asked):
        for number in GROUPS:
            keys = self.keys(asked, number)
            for places in subsets(keys):
                if places:
                    yield number, {place: keys[place] for place in places}

    def masked(self, asked, number, places, after):
        inbox = self.inbox(asked, number, places)
        following = None if after is None else session_of(after)
        rounds, keys = asked.rounds.masked(session_of(number), inbox, ORDER_HASH, np.zeros(1, np.uint32), following)
        return with_keys(replace(asked, rounds=rounds), after, keys) if after else replace(asked, rounds=rounds)


def product_of(firsts, seconds):
    seconds = tuple(seconds)
    return ((first, second) for first in firsts for second in seconds)


def with_keys(asked, number, keys):
    return replace(asked, own_keys=((number, Advertisement.from_bytes(keys)),))


def begun(asked, number):
    rounds, keys = asked.rounds.begin(session_of(number))
    return with_keys(replace(asked, rounds=rounds, left=asked.left | under_way(asked)), number, keys)


def opened(asked, in_sum, following):
    number, keys = (None, {}) if following is None else following
    rounds, openings, _ = asked.rounds.opened(in_sum, keys_to_bytes(keys))
    if following is not None:
        # A number that was not drawn for is none of this merchant's.
        assert asked.rounds.following.session.round == number
    if not in_sum:
        assert openings == b""
        return replace(asked, rounds=rounds, left=asked.left | under_way(asked))
    current = asked.rounds.current
    assert isinstance(current, Masked)
    assert len(in_sum) >= LIMITS.least
    rows = rows_from_bytes(openings, SHARE_BYTES, 3)
    kinds = {
        place: SELF_SECRET if share == current.held[place].of_self_secret else MASK_KEY for place, share in rows.items()
    }
    halves = frozenset(kinds.items())
    return replace(asked, rounds=rounds, opened=(*asked.opened, (current.session.round, halves)))


def under_way(asked):
    current = asked.rounds.current
    return frozenset() if current is None or isinstance(current, Unmasked) else frozenset({current.session.round})


def explored():
    """Every state that can be reached, one of each that answer alike."""
    coordinator, found, waiting = Coordinator(), {}, [Asked()]
    while waiting:
        asked = waiting.pop()
        if asked.place_among_states not in found:
            found[asked.place_among_states] = asked
            waiting.extend(coordinator.answers(asked))
    return list(found.values())


@pytest.fixture(scope="module")
def reached():
    return explored()


def test_each_sum_is_opened_once_at_most_and_none_that_was_left(reached):
    for asked in reached:
        numbers = [number for number, _ in asked.opened]
        assert len(numbers) == len(set(numbers))
        assert asked.left.isdisjoint(numbers)


def test_both_sums_can_be_made_one_after_the_other_and_a_sum_that_is_left_does_not_end_the_run(reached):
    assert any([number for number, _ in asked.opened] == [1, 2] for asked in reached)
    assert any([number for number, _ in asked.opened] == [2] and 1 in asked.left for asked in reached)
    kinds = {type(asked.rounds.current) for asked in reached}
    assert kinds == {type(None), Shared, Masked, Unmasked}
    assert {type(asked.rounds.following) for asked in reached} == {type(None), Advertised}


def test_of_each_sum_the_same_can_be_had_as_if_it_were_the_only_one(cohort_of, reached):
    """So whatever holds of one sum, whomever else its merchants are asked for, holds of each."""
    alone = halves_of_one_sum(cohort_of(3, LIMITS))
    for number in GROUPS:
        assert {halves for asked in reached for at, halves in asked.opened if at == number} == alone


def halves_of_one_sum(cohort):
    """What the merchant at place 0 opens of one sum, asked with every choice of who shared and who is in the sum."""
    found = set()
    keys = cohort.keys().advertisements
    offers = {}
    for place, name in enumerate(cohort.session.cohort):
        offers[place] = secure_round.share(cohort.states[name], keys, cohort.identities, KeyHistory()).offer
    for asked in subsets(keys):
        for shared in subsets(offers.keys() - {0}):
            for in_sum in subsets(keys):
                found |= opened_alone(cohort, {place: keys[place] for place in asked}, offers, shared, in_sum)
    return found


def opened_alone(cohort, keys, offers, shared, in_sum):
    try:
        state = secure_round.share(cohort.states["merchant 0"], keys, cohort.identities, KeyHistory())
        sealed = {place: offers[place].sealed[0] for place in shared}
        masked = secure_round.mask(state, np.zeros(1, np.uint32), sealed, ORDER_HASH)
        _, rows = secure_round.unmask(masked, in_sum)
    except HansaError:
        return set()
    kinds = {
        place: SELF_SECRET if share == masked.held[place].of_self_secret else MASK_KEY for place, share in rows.items()
    }
    return {frozenset(kinds.items())}
