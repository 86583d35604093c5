"""Shared noise in a ledger: a line of a kind of its own, which costs what its mechanism does, beside all others."""

from __future__ import annotations

from hansa_client.ledger import Ledger
from hansa_client.ledger_account import Limit, tally_of
from hansa_client.ledger_command import _in_words
from hansa_client.ledger_entries import entries
from hansa_common.errors import BudgetError
from hansa_common.privacy import Gaussian, SampledDiscreteGaussian, SampledGaussian, epsilon

SHARED = SampledDiscreteGaussian(1.2, 0.01, 1)


def test_line_says_that_noise_was_discrete_and_is_read_as_that(files, opened, charge) -> None:
    opened().charge(charge(1, mechanisms=(SHARED, Gaussian(20.0))))
    (charged,) = entries(files.path)
    assert charged.cost == tally_of([SHARED, Gaussian(20.0)])
    assert '"kind":"sampled-discrete-gaussian"' in files.path.read_text().replace(" ", "")
    assert _in_words(charged.mechanisms[0]) == "1 x 1.2 (0.01)"
    assert isinstance(opened(), Ledger)


def test_budget_ends_where_shared_noise_together_with_other_noise_would_pass_it(opened, charge) -> None:
    agreed = Limit(2.0, 1e-5, "the agreement allows 2")
    kinds = (SampledDiscreteGaussian(1.5, 0.02, 20), SampledGaussian(1.5, 0.02, 20))
    ledger, taken = opened(), []
    while True:
        cost = kinds[len(taken) % 2]
        try:
            ledger.charge(charge(len(taken), mechanisms=(cost,), agreed=agreed))
        except BudgetError:
            break
        taken.append(cost)
    assert epsilon(taken, 1e-5) <= 2.0 < epsilon([*taken, cost], 1e-5)
