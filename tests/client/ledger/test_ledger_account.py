"""A limit lets through what fits it and nothing more, in whatever order costs come, and asks the accountant rarely."""

from __future__ import annotations

from collections import Counter

from hypothesis import given, settings
from hypothesis import strategies as st

from hansa_client import ledger_account
from hansa_client.ledger_account import Headroom, Limit, Tally, mechanisms_of, tally_of
from hansa_common.errors import BudgetError
from hansa_common.privacy import Gaussian, SampledGaussian, epsilon

COSTS = [Gaussian(8.0), Gaussian(20.0), Gaussian(3.0, num_releases=2)]


def lets_through(headroom: Headroom, spent: Tally, cost: Tally) -> bool:
    try:
        headroom.check(spent, cost)
    except BudgetError:
        return False
    return True


@settings(max_examples=15, deadline=None)
@given(order=st.lists(st.sampled_from(COSTS), min_size=1, max_size=40), most=st.floats(0.3, 4.0))
def test_limit_lets_through_exactly_what_fits_it(order, most):
    headroom, spent = Headroom(Limit(most, 1e-5, "the test")), Tally()
    for cost in (tally_of([mechanism]) for mechanism in order):
        fits = epsilon(mechanisms_of(spent + cost), 1e-5) <= most
        assert lets_through(headroom, spent, cost) == fits
        if fits:
            spent += cost


def test_accountant_is_asked_about_the_logarithm_of_the_orders(monkeypatch):
    asked = Counter()
    for name in ("epsilon", "epsilon_by_rdp"):
        real = getattr(ledger_account, name)
        monkeypatch.setattr(
            ledger_account, name, lambda *words, name=name, real=real: asked.update([name]) or real(*words)
        )
    cost, limit, spent = tally_of([SampledGaussian(1.1, 0.005, 10)]), Limit(1.5, 1e-5, "the test"), Tally()
    headroom, num_orders = Headroom(limit), 0
    while lets_through(headroom, spent, cost):
        spent += cost
        num_orders += 1
    assert num_orders > 300
    assert asked["epsilon_by_rdp"] < 40
    assert asked["epsilon"] < 30
    # Once refused, it is known that no such order fits; what was spent is told from memory.
    before = asked["epsilon_by_rdp"]
    assert not any(lets_through(headroom, spent, cost) for _ in range(10))
    assert asked["epsilon_by_rdp"] == before


def test_tally_counts_what_is_applied_and_gives_it_back_composed():
    mechanisms = (
        SampledGaussian(1.0, 0.1, 30),
        Gaussian(2.0, 3),
        SampledGaussian(1.0, 0.1, 12),
        SampledGaussian(1.0, 0.2, 1),
    )
    tally = tally_of(mechanisms)
    assert set(mechanisms_of(tally)) == {SampledGaussian(1.0, 0.1, 42), Gaussian(2.0, 3), SampledGaussian(1.0, 0.2, 1)}
    assert epsilon(mechanisms_of(tally), 1e-5) == epsilon(mechanisms, 1e-5)
