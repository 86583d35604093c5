"""`[robustness]`: how a round's updates become one step although some merchants lie, and what that asks of the rest.

Under every rule but `mean`, for whoever the `num_dishonest` are and whatever they send:

- each merchant, or each group of them, counts alike: the row counts that merchants state weigh nothing;
- preprocessing is fitted to the median of the merchants' statistics, not to their sum;
- the last model is kept, after all agreed rounds: no merchant's word on its validation rows chooses a model;
- a round with fewer updates than the rule needs against so many is abandoned.

A combination under which the rule would promise nothing is refused here, with the reason. The rules' arithmetic is the
coordinator's.
"""

from __future__ import annotations

from typing import Annotated, Final, Literal, Self

from pydantic import Field, model_validator

from hansa_common.agreement_sections import Cohort, Training
from hansa_common.schema import Section

Rule = Literal["mean", "median", "trimmed-mean", "mixed-mean", "krum", "multi-krum", "geometric-median", "clipped-mean"]

# What a rule needs beyond twice the dishonest, and how its bound is said.
_BEYOND_TWICE: Final[dict[Rule, tuple[int, str]]] = {
    "median": (1, "2 f < n"),
    "trimmed-mean": (1, "2 f < n, or nothing is left between the trimmed ends"),
    "mixed-mean": (1, "2 f < n"),
    "krum": (3, "2 f + 2 < n"),
    "multi-krum": (3, "2 f + 2 < n"),
    "geometric-median": (1, "2 f < n"),
    "clipped-mean": (1, "2 f < n"),
}
_MIN_GROUP: Final = 2


class Robustness(Section):
    """The rule, how many dishonest merchants it is to withstand, and what else it needs.

    `max_norm` is the length that `clipped-mean` cuts updates to; left out, the median of the round's lengths. With
    `groups` the cohort is divided anew each round, and the rule is over the groups' means.
    """

    rule: Rule = "mean"
    num_dishonest: Annotated[int, Field(ge=0, le=5_000)] = 0
    max_norm: Annotated[float, Field(gt=0, le=1e6)] | None = None
    groups: Annotated[int, Field(ge=3, le=5_000)] | None = None

    @model_validator(mode="after")
    def _says_one_thing(self) -> Self:
        if self.rule == "mean":
            self._refuse_what_a_mean_cannot_do()
        elif self.num_dishonest == 0:
            raise ValueError(
                f"rule {self.rule!r} against num_dishonest = 0 defends against nobody and costs accuracy; say how "
                "many merchants may be dishonest, or set rule = 'mean'"
            )
        if self.max_norm is not None and self.rule != "clipped-mean":
            raise ValueError(f"max_norm is for rule 'clipped-mean', not {self.rule!r}; leave it out")
        return self

    def _refuse_what_a_mean_cannot_do(self) -> None:
        if self.num_dishonest:
            raise ValueError(
                f"rule 'mean' withstands nobody: one dishonest merchant moves it at will, and num_dishonest is "
                f"{self.num_dishonest}; choose another rule, or set num_dishonest = 0"
            )
        if self.groups is not None:
            raise ValueError("groups are for a rule across them, and a mean of means is no such; choose another rule")

    @property
    def is_mean(self) -> bool:
        """Whether updates are averaged by rows, as if everyone were honest."""
        return self.rule == "mean"

    @property
    def least_units(self) -> int:
        """How many updates, or groups' means, the rule needs for what it promises; 1 for the mean.

        >>> Robustness(rule="krum", num_dishonest=1).least_units, Robustness().least_units
        (5, 1)
        """
        return 1 if self.rule == "mean" else 2 * self.num_dishonest + _BEYOND_TWICE[self.rule][0]


def least_replies(robustness: Robustness, cohort: Cohort) -> int:
    """With fewer accepted replies no round comes to a step.

    >>> least_replies(Robustness(rule="median", num_dishonest=2), Cohort(min_merchants=3))
    5
    """
    if robustness.groups is not None:
        return robustness.least_units * max(_MIN_GROUP, cohort.min_merchants)
    return max(robustness.least_units, cohort.min_merchants)


def robust_words(robustness: Robustness) -> list[str]:
    """What the section means, one sentence a line; nothing where everyone is believed.

    >>> robust_words(Robustness(rule="median", num_dishonest=2, groups=5))
    ['up to 2 merchants may lie: a round makes its step by median over 5 groups, drawn anew each time, that count alike,
      whatever rows they say; all rounds are done, and the last model is kept']
    """
    if robustness.is_mean:
        return []
    number = robustness.num_dishonest
    liars = "up to 1 merchant" if number == 1 else f"up to {number} merchants"
    over = "merchants that" if robustness.groups is None else f"{robustness.groups} groups, drawn anew each time, that"
    step = (
        f"{liars} may lie: a round makes its step by {robustness.rule} over {over} count alike, whatever rows they say"
    )
    return [f"{step}; all rounds are done, and the last model is kept"]


def check_robustness_fits(robustness: Robustness, training: Training, cohort: Cohort, roster: tuple[str, ...]) -> None:
    """Refuse an agreement in which the rule would promise nothing.

    Raises:
        ValueError: the reason, and what to change.
    """
    if robustness.is_mean:
        return
    named = f"robustness.rule {robustness.rule!r}"
    if not roster:
        raise ValueError(
            f"{named} needs a roster: where whoever comes takes part, one dishonest party comes under many names"
        )
    _check_training(named, training)
    _check_numbers(robustness, cohort, min(len(roster), cohort.size or len(roster)))
    if robustness.max_norm is not None and robustness.max_norm >= cohort.max_update_norm:
        raise ValueError(
            f"robustness.max_norm {robustness.max_norm:g} cuts nothing: updates longer than cohort.max_update_norm "
            f"{cohort.max_update_norm:g} are left out already; set a smaller one, or none for the median length"
        )


def _check_training(named: str, training: Training) -> None:
    if any(plan.algorithm == "scaffold" for plan in training.plans):
        raise ValueError(
            f"{named} treats updates, and algorithm 'scaffold' also adds up the merchants' variates, by which one "
            "dishonest merchant would steer everyone's training; take 'fedavg' or another algorithm without variates"
        )
    if training.algorithm == "auto":
        raise ValueError(
            f"{named} and algorithm = 'auto': plans are chosen by validation figures, which a dishonest merchant can "
            "make up; agree on one plan"
        )


def _check_numbers(robustness: Robustness, cohort: Cohort, num_merchants: int) -> None:
    units, what = num_merchants, "merchants in a round"
    if robustness.groups is not None:
        units, what = robustness.groups, "groups"
        least = max(_MIN_GROUP, cohort.min_merchants)
        if num_merchants // robustness.groups < least:
            raise ValueError(
                f"robustness.groups {robustness.groups} of {num_merchants} merchants leave "
                f"{num_merchants // robustness.groups} in a group, and cohort.min_merchants holds in each: at least "
                f"{least}; have fewer groups"
            )
    if units < robustness.least_units:
        beyond, bound = _BEYOND_TWICE[robustness.rule]
        most = max(0, (units - beyond) // 2)
        advice = f"set num_dishonest to at most {most}" if most else "take another rule, or more of them"
        raise ValueError(
            f"robustness.rule {robustness.rule!r} promises nothing against {robustness.num_dishonest} dishonest of "
            f"{units} {what}: it needs {bound}; {advice}"
        )
