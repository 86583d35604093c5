"""What attacks find out of a finished simulated run, and whether its agreement lets the model go for that.

- What would be released is attacked: the kept model, and the small one where there is one.
- Members are the run's training rows, non-members its test rows.
- The gate judges the agreed attack, on each model, by the upper end of its interval: a model is let go where the rows
  make sure that it gives no more away. An audit with fewer shadows than agreed, or by another attack, opens nothing.
- The federation itself is attacked too: each shadow in turn by the others. That says what such runs give away, with
  many more non-members than one run has, while the other figures are of this very model. Where test rows are later
  ones, which inflates those, gate and bound go by it alone.

Figures of membership are audit_attacks.py's, other attacks audit_inversion.py's and audit_attributes.py's, files
audit_files.py's. Only membership has a part in the gate.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from hansa_common.agreement import Agreement
from hansa_common.audit_agreement import GATE_FALSE_POSITIVE_RATE
from hansa_common.privacy_costs import run_epsilon
from hansa_server.run_folder import FinishedRun
from hansa_simulations.audit_attacks import FederationRates, Finding, MembershipAttack, evidence, has_later_test_rows
from hansa_simulations.audit_attributes import AttributeInference
from hansa_simulations.audit_inversion import Inversion
from hansa_simulations.audit_rates import (
    FALSE_POSITIVE_RATES,
    Rate,
    clopper_pearson,
    least_epsilon,
    least_non_members,
    most_true_positives,
)

MODEL: Final = "model"
SMALL_MODEL: Final = "small model"


@dataclass(frozen=True)
class Gate:
    """What the agreement asks of a release, and whether this audit gives it; `reason` says it in a sentence."""

    max_true_positive_rate: float
    passed: bool
    reason: str


def judged(
    run: FinishedRun, attacks: tuple[MembershipAttack, ...], federation: FederationRates | None, num_shadows: int
) -> Gate | None:
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
    known = evidence(run.agreement, those, federation)
    at_rate = [finding for finding in known if finding.rate.false_positive_rate == GATE_FALSE_POSITIVE_RATE]
    if not at_rate:
        # Test rows are later ones, or the run would not have been attacked.
        few = f"{least_non_members(GATE_FALSE_POSITIVE_RATE):,} rows outside it to tell membership from time at {rate}"
        return Gate(most, False, f"test rows are later ones, and some shadow federation has not the {few}")
    worst = max(at_rate, key=lambda finding: finding.rate.true_positives.high)
    found = worst.rate.true_positives
    told = f"{worst.name} finds {found.estimate:.2%} of the members at {rate}"
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
    `least_epsilon` is what the strongest of the attacks says that epsilon cannot be below. Neither goes by what time
    can have done.
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


def dp_bound(
    agreement: Agreement, attacks: tuple[MembershipAttack, ...], federation: FederationRates | None
) -> Bound | None:
    """The bound of a run's own epsilon beside what was found; None without [privacy.dp]."""
    dp = agreement.privacy.dp
    if dp is None:
        return None
    epsilon, known = run_epsilon(agreement), [*evidence(agreement, attacks, federation)]
    broken = [finding.name for finding in known if _is_above(finding, epsilon, dp.delta)]
    least = [least_epsilon(finding.rate, finding.num_members, finding.num_non_members, dp.delta) for finding in known]
    curve = tuple((float(rate), most_true_positives(epsilon, dp.delta, rate)) for rate in np.geomspace(1e-4, 1, 100))
    return Bound(epsilon, dp.delta, curve, broken[0] if broken else "", max(least, default=0.0))


def _is_above(finding: Finding, epsilon: float, delta: float) -> bool:
    mistaken = clopper_pearson(finding.rate.num_false_positives, finding.num_non_members).high
    found = clopper_pearson(finding.rate.num_true_positives, finding.num_members).low
    return found > most_true_positives(epsilon, delta, mistaken)


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
        told += self._free_of_time()
        if self.bound is not None:
            most = most_true_positives(self.bound.epsilon, self.bound.delta, GATE_FALSE_POSITIVE_RATE)
            told += f" Epsilon {self.bound.epsilon:.4g} leaves at most {most:.2%} to any attack."
            if self.bound.broken_by:
                told += f" {self.bound.broken_by} finds more: the training is NOT as private as it says."
        if self.gate is None:
            return told
        return f"{told} {'Released' if self.gate.passed else 'NOT released'}: {self.gate.reason}."

    def _free_of_time(self) -> str:
        """What is told where test rows are later ones; nothing elsewhere."""
        if not has_later_test_rows(self.run.agreement):
            return ""
        told = " Its test rows are later ones, so part of this can be time's doing"
        known = evidence(self.run.agreement, (), self.federation)
        rate = next((k.rate for k in known if k.rate.false_positive_rate == GATE_FALSE_POSITIVE_RATE), None)
        if rate is None:
            return f"{told}; how much is not known without shadow federations."
        found = rate.true_positives
        return (
            f"{told}; what each shadow gives away to the others is free of that: {found.estimate:.2%} "
            f"(95 %: {found.low:.2%} to {found.high:.2%})."
        )

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
