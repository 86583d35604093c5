"""Among whom a masked sum is: the whole roster, or the group that the sum's number stands for.

With `robustness.groups` each sum is of one group. Groups are drawn anew for each batch of as many sums, from the
agreement's seed: so a sum's number alone says, to the coordinator and to every merchant alike, which batch and which of
its groups it is, and nobody chooses its company.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

from hansa_common.agreement import Agreement
from hansa_common.randomness import generator
from hansa_common.secure_keys import Session
from hansa_common.secure_thresholds import secure_thresholds

T = TypeVar("T")


def drawn_groups(members: Sequence[T], num_groups: int, seed: int, draw: int) -> tuple[tuple[T, ...], ...]:
    """The members in that many groups of nearly equal size, drawn anew for each `draw`; each in the members' order.

    >>> drawn_groups(["a", "b", "c", "d", "e"], 2, seed=0, draw=1)
    (('b', 'c', 'd'), ('a', 'e'))
    """
    order = generator(seed, "groups", draw).permutation(len(members))
    places = (sorted(order[group::num_groups].tolist()) for group in range(num_groups))
    return tuple(tuple(members[place] for place in group) for group in places)


def num_groups_of(agreement: Agreement) -> int:
    """How many groups there are; 1 where everyone is in one sum."""
    return agreement.robustness.groups or 1


def session_of(agreement: Agreement, fingerprint: str, run_id: str, number: int) -> Session:
    """The masked sum of this number, among the roster or its group.

    `fingerprint` is the agreement's, which takes long to compute.
    """
    num_groups = num_groups_of(agreement)
    batch, place = divmod(number - 1, num_groups)
    cohort = agreement.roster
    if num_groups > 1:
        cohort = drawn_groups(agreement.roster, num_groups, agreement.seed, batch)[place]
    section = agreement.secure_aggregation
    limits = secure_thresholds(len(cohort), section.colluders, section.threshold, agreement.cohort.min_merchants)
    return Session(fingerprint, run_id, number, cohort, limits)
