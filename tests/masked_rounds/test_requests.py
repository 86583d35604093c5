"""Everything that a coordinator can ask of honest merchants in small cohorts, and what it then holds.

A merchant's answers depend on what it is asked and on the keys and sealed shares that it is shown, which its peers make
whatever else they are asked. So what can be had of one merchant is found by asking it everything, in every order, and
what can be had of all is any combination of that: more than can be reached, if anything.
"""

from itertools import chain, combinations, product

import numpy as np
import pytest

from hansa_common import secure_round
from hansa_common.errors import HansaError
from hansa_common.secure_keys import KeyHistory
from hansa_common.secure_round import Advertised, Masked, Shared, Unmasked
from hansa_common.secure_thresholds import secure_thresholds

STEPS = (Advertised, Shared, Masked, Unmasked)
SELF_SECRET, MASK_KEY = "its own mask's secret", "its masks' private key"


def subsets(places):
    return chain.from_iterable(combinations(places, size) for size in range(len(places) + 1))


class Honest:
    """One merchant, asked by a coordinator that holds everybody's keys and a sealed share of each peer for it."""

    def __init__(self, cohort, place, order_hash):
        self.cohort, self.place, self.order_hash = cohort, place, order_hash
        self.name = cohort.session.cohort[place]
        self.keys = {peer: cohort.states[name].before.advertisement for peer, name in enumerate(cohort.session.cohort)}
        offers = [cohort.states[name].offer for name in cohort.session.cohort]
        self.inbox = {peer: offer.sealed[place] for peer, offer in enumerate(offers) if peer != place}
        self.halves_opened = set()
        self.num_states = 0

    def requests(self):
        """Each step with each choice that the coordinator has, as a function from a state to the one after it."""
        everyone = range(len(self.keys))
        for places in subsets(everyone):
            yield lambda state, places=places: self.share(state, places)
        for places in subsets([peer for peer in everyone if peer != self.place]):
            yield lambda state, places=places: self.mask(state, places)
        for places in subsets(everyone):
            yield lambda state, places=places: self.unmask(state, places)

    def share(self, state, places):
        keys = {peer: self.keys[peer] for peer in places}
        return secure_round.share(state, keys, self.cohort.identities, KeyHistory())

    def mask(self, state, places):
        sealed = {peer: self.inbox[peer] for peer in places}
        return secure_round.mask(state, np.zeros(1, np.uint32), sealed, self.order_hash)

    def unmask(self, state, places):
        after, opened = secure_round.unmask(state, places)
        held = {place: (pair.of_self_secret, pair.of_mask_key) for place, pair in state.held.items()}
        kinds = {place: (SELF_SECRET, MASK_KEY)[held[place].index(share)] for place, share in opened.items()}
        assert len(places) >= self.cohort.session.thresholds.least
        self.halves_opened.add(frozenset(kinds.items()))
        return after

    def explore(self, state):
        """Ask everything, in every order, until nothing is answered any more."""
        self.num_states += 1
        for request in self.requests():
            try:
                after = request(state)
            except HansaError:
                continue
            # Each step is taken once: what is answered leads on and never back, so this ends.
            assert STEPS.index(type(after)) == STEPS.index(type(state)) + 1
            self.explore(after)


def asked_everything(cohort, order_hash):
    cohort.offers(cohort.keys())
    merchants = [Honest(cohort, place, order_hash) for place in range(len(cohort.session.cohort))]
    for merchant in merchants:
        merchant.explore(cohort.states[merchant.name].before)
    return merchants


def most_of_the_lesser_half(merchants, honest, victim, num_colluders):
    """Over all that the honest can be asked: how many shares of the half of which there are fewer."""
    choices = [
        {kind for opened in merchants[place].halves_opened for whose, kind in opened if whose == victim} | {None}
        for place in honest
    ]
    return max(
        min(sum(kind == half for kind in given) for half in (SELF_SECRET, MASK_KEY)) + num_colluders
        for given in product(*choices)
    )


def can_hold_both_halves(merchants, num_colluders, threshold):
    everyone = range(len(merchants))
    return any(
        most_of_the_lesser_half(merchants, set(everyone) - set(colluders), victim, num_colluders) >= threshold
        for colluders in combinations(everyone, num_colluders)
        for victim in set(everyone) - set(colluders)
    )


@pytest.mark.parametrize(
    ("num_merchants", "threshold"), [(3, 2), (3, 3), (4, 3), (4, 4)], ids=["2 of 3", "3 of 3", "3 of 4", "4 of 4"]
)
def test_nobody_can_ask_for_both_halves_of_a_secret(cohort_of, order_hash, num_merchants, threshold):
    merchants = asked_everything(cohort_of(num_merchants, secure_thresholds(num_merchants, 0, threshold)), order_hash)
    assert all(merchant.num_states >= len(STEPS) and merchant.halves_opened for merchant in merchants)
    tolerated = min(2 * threshold - num_merchants - 1, num_merchants - 2)
    assert not any(can_hold_both_halves(merchants, number, threshold) for number in range(tolerated + 1))


def test_with_one_colluder_too_many_both_halves_can_be_had(cohort_of, order_hash):
    # So the exploration sees such states where there are any.
    merchants = asked_everything(cohort_of(4, secure_thresholds(4, 0, 3)), order_hash)
    assert can_hold_both_halves(merchants, 2, 3)


@pytest.mark.parametrize("num_merchants", [3, 4])
def test_no_merchant_ever_opens_both_halves_of_anyone(cohort_of, order_hash, num_merchants):
    for merchant in asked_everything(cohort_of(num_merchants), order_hash):
        for opened in merchant.halves_opened:
            places = [place for place, _ in opened]
            assert len(places) == len(set(places))
            # Of itself it opens the secret alone that takes its own mask off: it knows that it is in the sum.
            assert dict(opened)[merchant.place] == SELF_SECRET
