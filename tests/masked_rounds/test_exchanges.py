"""A run of masked sums in the exchanges that it takes: two before the first sum, then two for each."""

from dataclasses import replace

import numpy as np
import pytest

from hansa_client.masked_round import MaskedRounds
from hansa_common.errors import HansaError, PolicyError, ReplayError, RoundAbandonedError
from hansa_common.secure_keys import KeyHistory
from hansa_server.unmasking import MaskedSum, gather_keys, gather_offers, unmasked_sum


class Run:
    """Merchants of a cohort and the coordinator between them, over several sums; counts the exchanges."""

    def __init__(self, cohort, order_hash):
        self.first, self.order_hash = cohort.session, order_hash
        names = self.first.cohort
        self.merchants = {name: MaskedRounds(name, cohort.identities, cohort.identity(name)) for name in names}
        self.history, self.identities = KeyHistory(), cohort.identities
        self.offers, self.num_exchanges = None, 0

    def session(self, number):
        return replace(self.first, round=number)

    def keys_of(self, number, replies):
        keys = gather_keys(self.session(number), self.identities, self.history, replies)
        self.history = keys.history
        return keys

    def begin(self, number, names):
        """The two exchanges that mask nothing."""
        replies = {}
        for name in names:
            self.merchants[name], replies[name] = self.merchants[name].begin(self.session(number))
        keys, offers = self.keys_of(number, replies), {}
        for name in names:
            self.merchants[name], opened, offers[name] = self.merchants[name].opened((), keys.table())
            assert opened == b""
        self.offers = gather_offers(keys, offers)
        self.num_exchanges += 2

    def sum(self, number, vectors, *, absent=(), leaving=(), is_last=False, is_left=False):
        """One sum in two exchanges: those absent are in neither, those leaving not in the second. One that is left has
        no elements.
        """
        following, offers = None if is_last else self.session(number + 1), self.offers
        there = [self.first.cohort[place] for place in offers.offers if self.first.cohort[place] not in absent]
        adding, advertised = MaskedSum(offers, vectors.shape[1]), {}
        for name in there:
            vector = vectors[self.first.place(name)].copy()
            self.merchants[name], advertised[name] = self.merchants[name].masked(
                self.session(number), offers.inbox(name), self.order_hash, vector, following
            )
            adding.add(name, vector)
        self.num_exchanges += 2
        closed, table, keys = adding.close(), b"", None
        if not is_last:
            keys = self.keys_of(number + 1, advertised)
            table = keys.table()
        openings, shares = {}, {}
        for name in (name for name in there if name not in leaving):
            in_sum = () if is_left else closed.in_sum
            self.merchants[name], openings[name], shares[name] = self.merchants[name].opened(in_sum, table)
        self.offers = None if keys is None else gather_offers(keys, shares)
        if is_left:
            assert set(openings.values()) == {b""}
            return np.zeros(0, np.uint32)
        return unmasked_sum(closed, self.order_hash, openings)[0]


@pytest.fixture
def run(cohort_of, order_hash):
    return Run(cohort_of(6), order_hash)


def plain(vectors, places):
    return vectors[list(places)].sum(axis=0, dtype=np.uint32)


def test_a_sum_takes_two_exchanges_once_a_run_has_begun(run, ring_vectors):
    run.begin(1, run.first.cohort)
    for number in range(1, 5):
        vectors = ring_vectors(6, seed=number)
        np.testing.assert_array_equal(run.sum(number, vectors, is_last=number == 4), plain(vectors, range(6)))
    assert run.num_exchanges == 2 + 2 * 4


def test_who_drops_out_of_a_sum_is_out_of_the_next_and_comes_back_by_beginning_anew(run, ring_vectors):
    vectors = ring_vectors(6)
    run.begin(1, run.first.cohort)
    np.testing.assert_array_equal(run.sum(1, vectors, absent=["merchant 4"]), plain(vectors, (0, 1, 2, 3, 5)))
    found = run.sum(2, vectors, leaving=["merchant 0"])
    np.testing.assert_array_equal(found, plain(vectors, (0, 1, 2, 3, 5)))
    np.testing.assert_array_equal(run.sum(3, vectors), plain(vectors, (1, 2, 3, 5)))
    run.begin(5, run.first.cohort)
    np.testing.assert_array_equal(run.sum(5, vectors), plain(vectors, range(6)))


def test_a_sum_that_is_abandoned_does_not_keep_the_next_from_being_made(run, ring_vectors):
    vectors = ring_vectors(6)
    run.begin(1, run.first.cohort)
    with pytest.raises(RoundAbandonedError, match="2 merchants are left, 4 are needed"):
        run.sum(1, vectors, leaving=["merchant 0", "merchant 1", "merchant 2", "merchant 3"])
    # Two of them have shared for the second: it has a number that nobody uses again.
    run.begin(3, run.first.cohort)
    np.testing.assert_array_equal(run.sum(3, vectors), plain(vectors, range(6)))


def test_a_sum_that_is_left_is_never_opened_and_the_next_begins_with_its_exchanges(run, ring_vectors):
    vectors = ring_vectors(6)
    run.begin(1, run.first.cohort)
    np.testing.assert_array_equal(run.sum(1, vectors, is_left=True), np.zeros(0, np.uint32))
    for merchant in run.merchants.values():
        with pytest.raises(PolicyError, match="the step after Masked of the masked sum 2 is asked for"):
            merchant.opened(range(6), b"")
    np.testing.assert_array_equal(run.sum(2, vectors), plain(vectors, range(6)))
    assert run.num_exchanges == 2 + 2 * 2


def test_a_merchant_that_lost_its_state_is_in_no_sum_until_it_begins_anew(run, ring_vectors):
    vectors = ring_vectors(6)
    run.begin(1, run.first.cohort)
    lost = run.merchants["merchant 2"]
    run.merchants["merchant 2"] = replace(lost, current=None, following=None)
    with pytest.raises(PolicyError, match="'merchant 2' has handed out no shares for this masked sum 1"):
        run.sum(1, vectors)
    with pytest.raises(ReplayError, match="allowed is a number above 1"):
        run.merchants["merchant 2"].begin(run.session(1))


@pytest.mark.parametrize("other", [{"round": 2}, {"run_id": "run-2"}, {"cohort": tuple("abcdef")}])
def test_a_merchant_masks_only_in_the_session_that_it_shared_in(run, ring_vectors, order_hash, other):
    run.begin(1, run.first.cohort)
    vector = ring_vectors(1)[0]
    with pytest.raises(PolicyError, match="has handed out no shares"):
        run.merchants["merchant 0"].masked(
            replace(run.first, **other), run.offers.inbox("merchant 0"), order_hash, vector, None
        )
    np.testing.assert_array_equal(vector, ring_vectors(1)[0])


def test_what_is_asked_beside_the_steps_of_an_exchange_is_refused(run, ring_vectors, order_hash):
    begun, _ = run.merchants["merchant 0"].begin(run.first)
    with pytest.raises(PolicyError, match="is asked to open a sum of 4, and none is under way"):
        begun.opened((0, 1, 2, 3), b"")
    run.begin(1, run.first.cohort)
    merchant, inbox = run.merchants["merchant 0"], run.offers.inbox("merchant 0")
    for in_sum, table in (((0, 1, 2, 3), b""), ((), run.offers.keys.table())):
        with pytest.raises(HansaError):
            merchant.opened(in_sum, table)
    with pytest.raises(ReplayError, match="allowed is a number above 1"):
        merchant.masked(run.session(1), inbox, order_hash, ring_vectors(1)[0], run.session(1))
    masked, keys = merchant.masked(run.session(1), inbox, order_hash, ring_vectors(1)[0], None)
    assert keys == b""
    with pytest.raises(PolicyError, match="is asked to share for a masked sum for which it drew no keys"):
        masked.opened(range(6), run.offers.keys.table())
    opened, _, sealed = masked.opened(range(6), b"")
    assert sealed == b""
    with pytest.raises(ReplayError, match="a step is taken once"):
        opened.opened(range(6), b"")


def test_no_secret_is_in_the_repr_of_where_a_merchant_stands(run):
    merchant = run.merchants["merchant 0"]
    assert repr(merchant.identity_private_key) not in repr(merchant)
