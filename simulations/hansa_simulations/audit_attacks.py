"""Attacks on membership in figures: on the models that would be released, and on the shadows by each other.

What an attack tells apart is training rows and test rows. Where chance divided them, it tells membership. Where test
rows are later ones, it also tells time: a model fits the time that it was trained on, and so the loss, and LiRA too,
whose shadows knew some rows of the later time where the run knew none, find more than there is. Then `evidence` goes by
what shadows find out of each other alone: chance divided their rows, and they are of the same two times.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from hansa_common.agreement import Agreement
from hansa_common.audit_agreement import Attack
from hansa_common.bootstrap import Interval
from hansa_common.randomness import generator
from hansa_simulations.audit_membership import Shadows, Variant, lira
from hansa_simulations.audit_rates import (
    FALSE_POSITIVE_RATES,
    AttackRates,
    Rate,
    allowed,
    attack_rates,
    clopper_pearson,
    least_non_members,
    shares_above,
)

VARIANTS: Final[tuple[Variant, ...]] = ("online", "offline")
_RESAMPLES: Final = 2000


@dataclass(frozen=True)
class MembershipAttack:
    """One attack on one model; `variant` is LiRA's, empty for the other."""

    attack: Attack
    variant: str
    model: str
    rates: AttackRates

    @property
    def name(self) -> str:
        """The attack in a word or two."""
        return f"LiRA, {self.variant}" if self.attack == "lira" else "loss threshold"

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return {"attack": self.attack, "variant": self.variant, "model": self.model, **self.rates.to_json()}


@dataclass(frozen=True)
class FederationRates:
    """What the others find out of a shadow, the mean over the shadows: rate of false positives -> true positives, with
    the interval of a bootstrap over shadows. `num_members` and `num_non_members` are of the one with fewest.
    """

    num_shadows: int
    num_members: int
    num_non_members: int
    true_positives: Mapping[float, Interval]

    @property
    def rates(self) -> tuple[Rate, ...]:
        """The same as the rates of one attack, counted as if on one shadow, with the wider of two intervals: all
        shadows divide the same rows, so more of them say no more of other rows than one does.
        """
        found = []
        for rate, mean in self.true_positives.items():
            num_found = round(mean.estimate * self.num_members)
            exact = clopper_pearson(num_found, self.num_members)
            interval = Interval(mean.estimate, min(mean.low, exact.low), max(mean.high, exact.high))
            found.append(Rate(rate, interval, num_found, allowed(rate, self.num_non_members)))
        return tuple(found)

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        rates = [
            {"false_positive_rate": rate, "true_positive_rate": found.to_json()}
            for rate, found in self.true_positives.items()
        ]
        return {"num_shadows": self.num_shadows, "num_non_members": self.num_non_members, "rates": rates}


def membership_attacks(
    targets: Mapping[str, NDArray[np.float64]], is_member: NDArray[np.bool_], shadows: Shadows | None, seed: int
) -> tuple[MembershipAttack, ...]:
    """Attack models by their confidences of rows (rows,), of which some (rows,) are members; LiRA where there are
    shadows, the stronger variants first.
    """
    found = []
    for model, confidences in targets.items():
        if shadows is not None:
            scores = {variant: lira(confidences, shadows, variant) for variant in VARIANTS}
            found += [_attacked("lira", variant, model, scores[variant], is_member, seed) for variant in VARIANTS]
        found.append(_attacked("loss", "", model, confidences, is_member, seed))
    return tuple(found)


def _attacked(
    attack: Attack, variant: str, model: str, scores: NDArray[np.float64], is_member: NDArray[np.bool_], seed: int
) -> MembershipAttack:
    rng = generator(seed, "audit", "intervals", attack, variant, model)
    return MembershipAttack(attack, variant, model, attack_rates(scores[is_member], scores[~is_member], rng))


def federation_rates(shadows: Shadows, seed: int) -> FederationRates:
    """Attack each shadow with the others."""
    num_shadows = len(shadows.is_in)
    found: dict[float, list[float]] = {}
    members, least = (min(int(part.sum()) for part in parts) for parts in (shadows.is_in, ~shadows.is_in))
    for shadow in range(num_shadows):
        is_in = shadows.is_in[shadow]
        scores = lira(shadows.confidences[shadow], shadows.without(shadow))
        above = shares_above(scores[is_in], scores[~is_in])
        for rate in FALSE_POSITIVE_RATES:
            if least >= least_non_members(rate):
                found.setdefault(rate, []).append(float(above[allowed(rate, len(above))]))
    rng = generator(seed, "audit", "shadows")
    rates = {rate: _mean(np.array(shares), rng) for rate, shares in found.items()}
    return FederationRates(num_shadows, members, least, rates)


def _mean(shares: NDArray[np.float64], rng: np.random.Generator) -> Interval:
    means = shares[rng.integers(len(shares), size=(_RESAMPLES, len(shares)))].mean(axis=1)
    low, high = np.quantile(means, [0.025, 0.975])
    return Interval(float(shares.mean()), float(low), float(high))


@dataclass(frozen=True)
class Finding:
    """What an attack on `target` found at one rate, of how many."""

    attack: str
    target: str
    rate: Rate
    num_members: int
    num_non_members: int

    @property
    def name(self) -> str:
        """Who found it where."""
        return f"{self.attack} on {self.target}"


def has_later_test_rows(agreement: Agreement) -> bool:
    """Whether test rows can be told from training rows by their time alone."""
    return agreement.data.split == "time"


def evidence(
    agreement: Agreement, attacks: Sequence[MembershipAttack], federation: FederationRates | None
) -> Iterator[Finding]:
    """What may be held against, or for, the training, at every rate that the rows suffice for: what attacks found on
    the models, or where that can be time's doing, what shadows found out of each other; nothing where there are none.
    """
    if not has_later_test_rows(agreement):
        for attack in attacks:
            rates = attack.rates
            for rate in rates.rates:
                yield Finding(attack.name, f"the {attack.model}", rate, rates.num_members, rates.num_non_members)
    elif federation is not None:
        for rate in federation.rates:
            yield Finding(
                "LiRA, online,", "each shadow by the others", rate, federation.num_members, federation.num_non_members
            )
