"""The file that says which defences meet which attacks: TOML, checked once, against the agreement too.

    attackers = ["birch"]            # whose part an attack takes that names nobody of its own

    [[defences]]                     # as [robustness] in an agreement; the plain mean always stands first
    rule = "median"
    num_dishonest = 1

    [[attacks]]                      # attacks.py says which kinds there are, and what each may be told
    kind = "sign-flip"

    [marks]                          # what a defence is asked for; what misses it is told, and stays in the table
    max_loss = 0.02

Unknown keys are refused with the nearest right one.
"""

from __future__ import annotations

import tomllib
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Final

from pydantic import Field, ValidationError

from hansa_common.agreement import Agreement, validate_agreement
from hansa_common.errors import AgreementError, UsageError
from hansa_common.robust_agreement import Robustness
from hansa_common.schema import Section
from hansa_common.trust import MerchantName
from hansa_simulations.attacks import MIN_COLLUDERS, AnyAttack, Attack, Backdoor, Colluders

UNDEFENDED: Final = Robustness()


class Marks(Section):
    """What is asked of every defence but the plain mean; a mark that is left out asks nothing.

    `max_loss`: PR-AUC below the same defence unattacked. `max_backdoor`: the backdoor's success.
    `max_backdoor_share`: that, as a share of its success against the plain mean.
    """

    max_loss: Annotated[float, Field(ge=0, le=1)] | None = None
    max_backdoor: Annotated[float, Field(ge=0, le=1)] | None = None
    max_backdoor_share: Annotated[float, Field(ge=0, le=1)] | None = None


class AttackScenario(Section):
    """Defences, attacks, and who attacks."""

    attackers: Annotated[tuple[MerchantName, ...], Field(min_length=1, max_length=100)]
    defences: Annotated[tuple[Robustness, ...], Field(max_length=100)] = ()
    attacks: Annotated[tuple[AnyAttack, ...], Field(min_length=1, max_length=100)]
    marks: Marks = Marks()

    @property
    def all_defences(self) -> tuple[Robustness, ...]:
        """The plain mean, then the others as they stand in the file."""
        return (UNDEFENDED, *(defence for defence in self.defences if not defence.is_mean))

    @property
    def attacks_by_name(self) -> Mapping[str, Attack]:
        """Each attack by its kind; several of one kind are numbered."""
        times, seen = Counter(attack.kind for attack in self.attacks), Counter[str]()
        found: dict[str, Attack] = {}
        for attack in self.attacks:
            seen[attack.kind] += 1
            found[f"{attack.kind} {seen[attack.kind]}" if times[attack.kind] > 1 else attack.kind] = attack
        return found

    def attackers_of(self, attack: Attack) -> tuple[str, ...]:
        """Who carries an attack out."""
        return attack.merchants or self.attackers

    def check(self, agreement: Agreement) -> None:
        """See that it can be run under an agreement.

        Raises:
            UsageError: an attacker is not in the roster, everyone attacks, colluders are too few, a trigger fits no
                feature, or the algorithm has variates.
        """
        if any(plan.algorithm == "scaffold" for plan in agreement.training.plans):
            raise UsageError(
                "attacks are tried under algorithms without variates, and every robust rule refuses 'scaffold'; set "
                "training.algorithm = 'fedavg' in the agreement"
            )
        for attack in self.attacks:
            _check_attack(attack, self.attackers_of(attack), agreement)


def _check_attack(attack: Attack, attackers: tuple[str, ...], agreement: Agreement) -> None:
    strangers = [name for name in attackers if name not in agreement.roster]
    if strangers:
        raise UsageError(f"attackers {strangers} are not among the merchants {list(agreement.roster)}")
    if len(set(attackers)) == len(agreement.roster):
        raise UsageError("everyone attacks: there is no honest merchant whose rows could judge the model")
    if isinstance(attack, Colluders) and len(set(attackers)) < MIN_COLLUDERS:
        raise UsageError(
            f"colluders are at least {MIN_COLLUDERS}, and {list(attackers)} is one; name them: merchants = [...]"
        )
    if isinstance(attack, Backdoor):
        attack.trigger.check(agreement.features)


def named(defence: Robustness) -> str:
    """A defence in a few words.

    >>> named(Robustness(rule="median", num_dishonest=1)), named(Robustness(rule="krum", num_dishonest=2, groups=7))
    ('median', 'krum of 7 groups')
    """
    norm = "" if defence.max_norm is None else f" to {defence.max_norm:g}"
    groups = "" if defence.groups is None else f" of {defence.groups} groups"
    return f"{defence.rule}{norm}{groups}"


def under(agreement: Agreement, defence: Robustness) -> Agreement:
    """The agreement with this defence in the place of its own.

    Raises:
        AgreementError: the defence would promise nothing there.
    """
    values = {**agreement.model_dump(mode="json"), "robustness": defence.model_dump(mode="json")}
    return validate_agreement(values, f"the defence {named(defence)!r}")


def why_not(error: AgreementError) -> str:
    """The one reason in a refused agreement's lines."""
    return str(error).splitlines()[-1].strip().removeprefix("agreement: ")


def read_scenario(path: Path) -> AttackScenario:
    """Read a scenario.

    Raises:
        UsageError: there is no such file, or it is no scenario; names every place.
    """
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(f"the scenario {path} cannot be read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{path} is not TOML: {error}") from error
    try:
        return AttackScenario.model_validate(values)
    except ValidationError as error:
        lines = [
            f"  {'.'.join(map(str, problem['loc'])) or 'scenario'}: {problem['msg'].removeprefix('Value error, ')}"
            for problem in error.errors(include_url=False, include_input=False)
        ]
        raise UsageError("\n".join([f"{path} does not hold:", *lines])) from None
