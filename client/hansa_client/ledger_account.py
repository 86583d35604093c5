"""What a merchant has spent, as arithmetic: how often each mechanism was applied, and whether more fits a limit.

- Everything composes: whatever was charged, for whichever run, agreement or coordinator, adds up.
- A limit is never passed: what is let through was shown to fit by the accountant, by itself or together with more.
- The accountant is asked rarely. It is monotone: less than what fits fits, and more than what does not fit does not.
  So it is asked for many orders ahead, twice as many each time, and about the logarithm of their number in all.

Epsilons are hansa_common/privacy.py's; what an order costs is privacy_costs.py's; files are ledger.py's.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import Final

from hansa_common.errors import BudgetError
from hansa_common.privacy import Gaussian, Mechanism, SampledGaussian, epsilon, epsilon_by_rdp

# How many orders like the first are tried ahead at once.
_FIRST_STRIDE: Final = 8
# Tallies that are remembered as fitting, or as not: one for each kind of order, and some.
_MAX_REMEMBERED: Final = 16

# A mechanism that was applied once -> how often.
Tally = Counter[Mechanism]


@dataclass(frozen=True)
class Limit:
    """At most so much epsilon at this delta; `said_by` says who says so and in which words."""

    epsilon: float
    delta: float
    said_by: str


def tally_of(mechanisms: Iterable[Mechanism]) -> Tally:
    """Mechanisms by what is applied once.

    >>> tally_of([Gaussian(2.0), SampledGaussian(1.0, 0.1, 30), Gaussian(2.0, num_releases=4)])[Gaussian(2.0)]
    5
    """
    tally = Tally()
    for mechanism in mechanisms:
        match mechanism:
            case SampledGaussian():
                tally[replace(mechanism, num_steps=1)] += mechanism.num_steps
            case Gaussian():
                tally[replace(mechanism, num_releases=1)] += mechanism.num_releases
    return tally


def mechanisms_of(tally: Tally) -> tuple[Mechanism, ...]:
    """A tally as mechanisms, equal ones as one.

    >>> mechanisms_of(Tally({SampledGaussian(1.0, 0.1, 1): 30}))
    (SampledGaussian(noise_multiplier=1.0, sampling_rate=0.1, num_steps=30),)
    """
    return tuple(
        replace(once, num_steps=times) if isinstance(once, SampledGaussian) else replace(once, num_releases=times)
        for once, times in tally.items()
    )


def epsilon_of(tally: Tally, delta: float) -> float:
    """What a tally costs at this delta."""
    return epsilon(mechanisms_of(tally), delta)


@dataclass
class Headroom:
    """How far a limit is known to reach; one object for one limit and one growing tally."""

    limit: Limit
    _fitting: list[Tally] = field(default_factory=list)
    _beyond: list[Tally] = field(default_factory=list)
    _stride: int = _FIRST_STRIDE

    def check(self, spent: Tally, cost: Tally) -> None:
        """Let so much more be spent.

        Raises:
            BudgetError: it would pass the limit.
        """
        after = spent + cost
        if any(after <= known for known in self._fitting):
            return
        if any(known <= after for known in self._beyond):
            raise self._refusal(spent, None)
        if self._fits_ahead(spent, cost):
            return
        if not self._fits(after):
            _remember(self._beyond, after)
            raise self._refusal(spent, epsilon_of(after, self.limit.delta))
        _remember(self._fitting, after)

    def _fits(self, tally: Tally) -> bool:
        # Renyi's bound takes a hundredth of the time, and is enough while there is room.
        mechanisms, limit = mechanisms_of(tally), self.limit
        return any(cost(mechanisms, limit.delta) <= limit.epsilon for cost in (epsilon_by_rdp, epsilon))

    def _fits_ahead(self, spent: Tally, cost: Tally) -> bool:
        if self._stride == 1:
            return False
        ahead = spent + Tally({once: times * self._stride for once, times in cost.items()})
        if not self._fits(ahead):
            self._stride //= 2
            return False
        self._stride *= 2
        _remember(self._fitting, ahead)
        return True

    def _refusal(self, spent: Tally, total: float | None) -> BudgetError:
        limit = self.limit
        asked = "to more" if total is None else f"to epsilon {total:g}"
        return BudgetError(
            f"the order would bring what this merchant has spent from epsilon {epsilon_of(spent, limit.delta):g} "
            f"{asked} at delta {limit.delta:g}; {limit.said_by}"
        )


def _remember(tallies: list[Tally], tally: Tally) -> None:
    tallies.append(tally)
    del tallies[:-_MAX_REMEMBERED]


@dataclass
class Account:
    """All that was spent: under each agreement, by its fingerprint, and together."""

    total: Tally = field(default_factory=Tally)
    by_agreement: dict[str, Tally] = field(default_factory=dict)
    _headroom: dict[tuple[str, float, float], Headroom] = field(default_factory=dict)

    def add(self, agreement: str, cost: Tally) -> None:
        """Take down what an order under this agreement has cost."""
        self.total.update(cost)
        self.by_agreement.setdefault(agreement, Tally()).update(cost)

    def check(self, agreement: str, cost: Tally, agreed: Limit, own: Limit | None) -> None:
        """See that an order fits what was agreed on, and the merchant's own limit if there is one.

        Raises:
            BudgetError: it does not; says asked and allowed.
        """
        self._known(agreement, agreed).check(self.by_agreement.get(agreement, Tally()), cost)
        if own is not None:
            self._known("", own).check(self.total, cost)

    def _known(self, scope: str, limit: Limit) -> Headroom:
        # Once: merchant.toml is read anew for every order, and mostly says what it said.
        return self._headroom.setdefault((scope, limit.epsilon, limit.delta), Headroom(limit))
