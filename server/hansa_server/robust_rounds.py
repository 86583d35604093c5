"""From a round's accepted updates to one step, by the rule that was agreed on (robust_agreement.py).

| rule             | what is in memory              | who counts how much                         |
|------------------|--------------------------------|---------------------------------------------|
| mean             | one sum                        | merchants by their training rows            |
| any other        | every update as it was sent    | merchants alike                             |
| with groups      | one sum for each group         | groups alike, merchants in them by rows     |

- The bytes of a step depend on the round's number and the updates in roster order, not on when they came.
- Groups are drawn anew each round from the agreement's seed, so that no merchant chooses its company. Whoever lies
  spoils its own group at most, with whatever count it states; so f dishonest merchants spoil at most f groups.
- A group with fewer than cohort.min_merchants updates is left out: its mean would be about those few.

Grouping: Velicheti et al., "Secure Byzantine-Robust Distributed Learning via Clustering" (2021). The rules are
robust.py's; whether an update is believed at all is replies.py's.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from hansa_common.agreement import Agreement
from hansa_common.robust_agreement import Robustness
from hansa_common.secure_groups import drawn_groups
from hansa_common.vectors import Vector, l2_norm
from hansa_server import robust
from hansa_server.aggregation import Doubles, WeightedSum
from hansa_server.robust import Updates


@dataclass(frozen=True)
class Decided:
    """A round's step (num_params,), and whose updates alone it is made of where the rule selects; else nobody."""

    step: Doubles
    selected: tuple[str, ...] = ()


class Gathering(Protocol):
    """A round's updates on their way to one step."""

    def add(self, merchant: str, update: Vector, num_rows: int) -> None:
        """Take an accepted update (num_params,), in roster order."""
        ...

    @property
    def is_enough(self) -> bool:
        """Whether the step would be what was agreed on."""
        ...

    def decided(self) -> Decided:
        """The step.

        Raises:
            ValueError: there is not enough for one.
        """
        ...


def gathering(agreement: Agreement, cohort: Sequence[str], round_number: int, num_params: int) -> Gathering:
    """What gathers the updates of one round, whose cohort is given in roster order."""
    robustness, least = agreement.robustness, agreement.cohort.min_merchants
    if robustness.is_mean:
        return _Averaged(num_params, least)
    if robustness.groups is None:
        return _Held(robustness, least)
    groups = drawn_groups(cohort, robustness.groups, agreement.seed, round_number)
    return _Grouped(robustness, least, groups, num_params)


def robust_step(robustness: Robustness, names: Sequence[str], updates: Updates) -> Decided:
    """What the rule makes of updates (num_units, num_params) of merchants, or of groups, of these names.

    Raises:
        ValueError: they are too few for the rule to hold, or the rule is the mean, which is no robust one.
    """
    if len(updates) < robustness.least_units:
        raise ValueError(
            f"{robustness.rule} against {robustness.num_dishonest} needs {robustness.least_units} updates, there are "
            f"{len(updates)}"
        )
    num_dishonest = robustness.num_dishonest
    match robustness.rule:
        case "median":
            step = robust.median(updates)
        case "trimmed-mean":
            step = robust.trimmed_mean(updates, num_dishonest)
        case "mixed-mean":
            step = robust.mixed_mean(updates, num_dishonest)
        case "krum":
            chosen = robust.krum_choice(updates, num_dishonest)
            return Decided(updates[chosen].astype(np.float64), (names[chosen],))
        case "multi-krum":
            step = robust.multi_krum(updates, num_dishonest)
        case "geometric-median":
            step = robust.geometric_median(updates)
        case "clipped-mean":
            step = robust.clipped_mean(updates, robustness.max_norm or _median_norm(updates))
        case _:
            raise ValueError("a mean is no robust rule")
    return Decided(step)


class _Averaged:
    """The mean by rows; an update is added at once and forgotten."""

    def __init__(self, num_params: int, least: int) -> None:
        self._sum = WeightedSum(num_params)
        self._least, self._number = least, 0

    def add(self, merchant: str, update: Vector, num_rows: int) -> None:
        del merchant
        self._sum.add(update, num_rows)
        self._number += 1

    @property
    def is_enough(self) -> bool:
        return self._number >= self._least

    def decided(self) -> Decided:
        return Decided(self._sum.mean())


class _Held:
    """All updates, held as they came: a rule needs them side by side."""

    def __init__(self, robustness: Robustness, least: int) -> None:
        self._robustness = robustness
        self._least = max(least, robustness.least_units)
        self._updates: dict[str, Vector] = {}

    def add(self, merchant: str, update: Vector, num_rows: int) -> None:
        del num_rows
        self._updates[merchant] = update

    @property
    def is_enough(self) -> bool:
        return len(self._updates) >= self._least

    def decided(self) -> Decided:
        return robust_step(self._robustness, list(self._updates), list(self._updates.values()))


class _Grouped:
    """A sum for each group, as secure aggregation would give it, and the rule across their means."""

    def __init__(
        self, robustness: Robustness, least: int, groups: tuple[tuple[str, ...], ...], num_params: int
    ) -> None:
        self._robustness, self._least = robustness, least
        self._place: Mapping[str, int] = {name: place for place, group in enumerate(groups) for name in group}
        self._sums = [WeightedSum(num_params) for _ in groups]
        self._members: list[list[str]] = [[] for _ in groups]

    def add(self, merchant: str, update: Vector, num_rows: int) -> None:
        place = self._place[merchant]
        self._sums[place].add(update, num_rows)
        self._members[place].append(merchant)

    @property
    def is_enough(self) -> bool:
        return len(self._whole) >= self._robustness.least_units

    @property
    def _whole(self) -> list[int]:
        return [place for place, members in enumerate(self._members) if len(members) >= self._least]

    def decided(self) -> Decided:
        whole = self._whole
        decided = robust_step(
            self._robustness, [str(place) for place in whole], [self._sums[place].mean() for place in whole]
        )
        members = (name for place in decided.selected for name in self._members[int(place)])
        return Decided(decided.step, tuple(members))


def _median_norm(updates: Updates) -> float:
    # Updates that are all zero have nothing to be cut.
    return float(np.median([l2_norm(update) for update in updates])) or float(np.finfo(np.float64).tiny)
