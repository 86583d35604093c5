"""What attacks find out of a finished simulated run, and whether its agreement lets the model go for that.

- What would be released is attacked: the kept model, and the small one where there is one.
- Members are the run's training rows, non-members its test rows. Where these are of another time, what tells them apart
  can be the time: the loss sees it, and so do shadows, which know some rows of that time where the run knew none. What
  shadows find out of each other is free of it, since chance divided their rows.
- The gate judges the agreed attack, on each model, by the upper end of its interval: a model is let go where the rows
  make sure that it gives no more away. An audit with fewer shadows than agreed, or by another attack, opens nothing.
- The federation itself is attacked too: each shadow in turn by the others. That says what such runs give away, with
  many more non-members than one run has, while the other figures are of this very model.

Attacks are audit_membership.py's, audit_inversion.py's and audit_attributes.py's, figures audit_rates.py's, files
audit_files.py's. Only membership has a part in the gate.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from hansa_common.agreement import Agreement
from hansa_common.audit_agreement import GATE_FALSE_POSITIVE_RATE, Attack
from hansa_common.bootstrap import Interval
from hansa_common.privacy_costs import run_epsilon
from hansa_common.randomness import generator
from hansa_server.run_folder import FinishedRun
from hansa_simulations.audit_attributes import AttributeInference
from hansa_simulations.audit_inversion import Inversion
from hansa_simulations.audit_membership import Shadows, Variant, lira
from hansa_simulations.audit_rates import (
    FALSE_POSITIVE_RATES,
    AttackRates,
    Rate,
    allowed,
    attack_rates,
    clopper_pearson,
    least_epsilon,
    least_non_members,
    most_true_positives,
    shares_above,
)

VARIANTS: Final[tuple[Variant, ...]] = ("online", "offline")
MODEL: Final = "model"
SMALL_MODEL: Final = "small model"
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
    the interval of a bootstrap over shadows. `num_non_members` is of one of them.
    """

    num_shadows: int
    num_non_members: int
    true_positives: Mapping[float, Interval]

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
    least = min(int((~is_in).sum()) for is_in in shadows.is_in)
    for shadow in range(num_shadows):
        is_in = shadows.is_in[shadow]
        scores = lira(shadows.confidences[shadow], shadows.without(shadow))
        above = shares_above(scores[is_in], scores[~is_in])
        for rate in FALSE_POSITIVE_RATES:
            if least >= least_non_members(rate):
                found.setdefault(rate, []).append(float(above[allowed(rate, len(above))]))
    rng = generator(seed, "audit", "shadows")
    return FederationRates(num_shadows, least, {rate: _mean(np.array(shares), rng) for rate, shares in found.items()})


def _mean(shares: NDArray[np.float64], rng: np.random.Generator) -> Interval:
    means = shares[rng.integers(len(shares), size=(_RESAMPLES, len(shares)))].mean(axis=1)
    low, high = np.quantile(means, [0.025, 0.975])
    return Interval(float(shares.mean()), float(low), float(high))


@dataclass(frozen=True)
class Gate:
    """What the agreement asks of a release, and whether this audit gives it; `reason` says it in a sentence."""

    max_true_positive_rate: float
    passed: bool
    reason: str


def judged(run: FinishedRun, attacks: tuple[MembershipAttack, ...], num_shadows: int) -> Gate | None:
    """The agreement's gate over these attacks; None where it has none."""
    asked = run.agreement.audit
    if asked.max_true_positive_rate is None:
        return None
    most, rate = asked.max_true_positive_rate, f"{GATE_FALSE_POSITIVE_RATE:.0%} false positives"
    those = [attack for attack in attacks if attack.attack == asked.attack]
    if not those:
        return Gate(most, False, f"the agreement asks for the attack {asked.attack!r}, which was not run")
    if asked.attack == "lira" and num_shadows < asked.shadows:
        few = f"the agreement asks for {asked.shadows} shadow federations, there were {num_shadows}"
        return Gate(most, False, few)
    worst = max(those, key=lambda attack: _gate_rate(attack).true_positives.high)
    found = _gate_rate(worst).true_positives
    told = f"{worst.name} on the {worst.model} finds {found.estimate:.2%} of the members at {rate}"
    if found.high > most:
        return Gate(most, False, f"{told}, up to {found.high:.2%} within its interval; agreed is at most {most:.2%}")
    return Gate(most, True, f"{told}, at most {found.high:.2%} within its interval; agreed is at most {most:.2%}")


def _gate_rate(attack: MembershipAttack) -> Rate:
    rate = attack.rates.at(GATE_FALSE_POSITIVE_RATE)
    if rate is None:
        raise ValueError(f"{attack.rates.num_non_members} non-members are too few to judge by")
    return rate


@dataclass(frozen=True)
class Bound:
    """What the agreement's [privacy.dp] leaves to any attack: at most `curve`, (false positives, true positives), each.

    `broken_by` names the attack whose exact interval is above it, which no private training can give; empty: none.
    `least_epsilon` is what the strongest of the attacks says that epsilon cannot be below.
    """

    epsilon: float
    delta: float
    curve: tuple[tuple[float, float], ...]
    broken_by: str
    least_epsilon: float

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        most = [
            {
                "false_positive_rate": rate,
                "most_true_positives": most_true_positives(self.epsilon, self.delta, rate),
            }
            for rate in FALSE_POSITIVE_RATES
        ]
        told = {"epsilon": self.epsilon, "delta": self.delta, "rates": most}
        return {**told, "broken_by": self.broken_by, "least_epsilon": self.least_epsilon}


def dp_bound(agreement: Agreement, attacks: tuple[MembershipAttack, ...]) -> Bound | None:
    """The bound of a run's own epsilon beside what was found; None without [privacy.dp]."""
    dp = agreement.privacy.dp
    if dp is None:
        return None
    epsilon = run_epsilon(agreement)
    broken = [attack for attack in attacks if _is_above(attack, epsilon, dp.delta)]
    least = [
        least_epsilon(rate, attack.rates.num_members, attack.rates.num_non_members, dp.delta)
        for attack in attacks
        for rate in attack.rates.rates
    ]
    curve = tuple((float(rate), most_true_positives(epsilon, dp.delta, rate)) for rate in np.geomspace(1e-4, 1, 100))
    return Bound(epsilon, dp.delta, curve, f"{broken[0].name} on the {broken[0].model}" if broken else "", max(least))


def _is_above(attack: MembershipAttack, epsilon: float, delta: float) -> bool:
    rates = attack.rates
    return any(
        clopper_pearson(rate.num_true_positives, rates.num_members).low
        > most_true_positives(epsilon, delta, clopper_pearson(rate.num_false_positives, rates.num_non_members).high)
        for rate in rates.rates
    )


@dataclass(frozen=True)
class Audit:
    """All that was found of a run."""

    run: FinishedRun
    num_shadows: int
    attacks: tuple[MembershipAttack, ...]
    federation: FederationRates | None
    gate: Gate | None
    bound: Bound | None = None
    inversions: tuple[Inversion, ...] = ()
    attribute: AttributeInference | None = None

    @property
    def strongest(self) -> MembershipAttack:
        """The attack that finds most at the gate's rate; of equal ones the first."""
        return max(self.attacks, key=lambda attack: _gate_rate(attack).true_positives.estimate)

    @property
    def verdict(self) -> str:
        """What was found, in words."""
        rates, found = self.strongest.rates, _gate_rate(self.strongest).true_positives
        told = (
            f"At {GATE_FALSE_POSITIVE_RATE:.0%} false positives the strongest attack on membership "
            f"({self.strongest.name}, on the {self.strongest.model}) finds {found.estimate:.2%} of the training rows "
            f"(95 %: {found.low:.2%} to {found.high:.2%}); guessing finds {GATE_FALSE_POSITIVE_RATE:.0%}. Its area is "
            f"{rates.roc_auc.estimate:.3f}, where guessing has 0.5."
        )
        if self.run.agreement.data.split == "time":
            told += " Its test rows are later ones, so part of this can be time's doing" + (
                "." if self.federation is None else "; what each shadow gives away to the others is free of that."
            )
        if self.bound is not None:
            most = most_true_positives(self.bound.epsilon, self.bound.delta, GATE_FALSE_POSITIVE_RATE)
            told += f" Epsilon {self.bound.epsilon:.4g} leaves at most {most:.2%} to any attack."
            if self.bound.broken_by:
                told += f" {self.bound.broken_by} finds more: the training is NOT as private as it says."
        if self.gate is None:
            return told
        return f"{told} {'Released' if self.gate.passed else 'NOT released'}: {self.gate.reason}."

    def to_json(self) -> dict[str, Any]:
        """What stands in audit.json."""
        return {
            **self.summary(),
            "attacks": [attack.to_json() for attack in self.attacks],
            "federation": None if self.federation is None else self.federation.to_json(),
            "privacy": None if self.bound is None else self.bound.to_json(),
            "inversion": [inversion.to_json() for inversion in self.inversions],
            "attribute": None if self.attribute is None else self.attribute.to_json(),
        }

    def summary(self) -> dict[str, Any]:
        """What metrics.json, and so the report and a bundle, hold of it."""
        metrics, rates = self.run.metrics, self.strongest.rates
        gate = self.gate
        return {
            "run_id": metrics["run_id"],
            "agreement_fingerprint": metrics["agreement_fingerprint"],
            "model": hashlib.sha256(self.run.weights.tobytes()).hexdigest(),
            "num_shadows": self.num_shadows,
            "num_members": rates.num_members,
            "num_non_members": rates.num_non_members,
            "strongest": {
                "attack": self.strongest.attack,
                "variant": self.strongest.variant,
                "model": self.strongest.model,
                "roc_auc": rates.roc_auc.to_json(),
                "rates": [rate.to_json() for rate in rates.rates],
            },
            "max_true_positive_rate": None if gate is None else gate.max_true_positive_rate,
            "passed": None if gate is None else gate.passed,
            "verdict": self.verdict,
        }
