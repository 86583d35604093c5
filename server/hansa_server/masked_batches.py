"""The masked sums that are made at once, one of each group, and where they stand; the whole roster is one group.

- A batch has as many numbers as there are groups, one after another. Among whom each sum is follows from its number and
  the agreement (secure_groups.py).
- A group whose sum ends before its time is in no later step, and its reason is kept; the others do not wait for it.

A number is used once in a run, whatever became of its sum.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Generic, TypeVar

from hansa_common.agreement import Agreement
from hansa_common.errors import RoundAbandonedError
from hansa_common.secure_groups import num_groups_of, session_of
from hansa_common.secure_keys import Session

Part = TypeVar("Part")
After = TypeVar("After")
OfOne = TypeVar("OfOne")


@dataclass(frozen=True)
class Batch:
    """The sessions of a batch's sums, by group."""

    sessions: tuple[Session, ...]

    @classmethod
    def after(cls, last: int, agreement: Agreement, fingerprint: str, run_id: str) -> Batch:
        """The first batch whose numbers are all above `last`."""
        num_groups = num_groups_of(agreement)
        first = -(-last // num_groups) * num_groups + 1
        numbers = range(first, first + num_groups)
        return cls(tuple(session_of(agreement, fingerprint, run_id, number) for number in numbers))

    @property
    def last(self) -> int:
        """The last of its numbers."""
        return self.sessions[-1].round

    @cached_property
    def group_of(self) -> Mapping[str, int]:
        """In which group each merchant of the roster is."""
        return {name: group for group, session in enumerate(self.sessions) for name in session.cohort}

    def number_of(self, merchant: str) -> int:
        """The number of the sum that a merchant is to be in."""
        return self.sessions[self.group_of[merchant]].round

    def of_group(self, group: int, found: Mapping[str, OfOne]) -> dict[str, OfOne]:
        """What is a group's members' of what was found by merchant."""
        return {name: value for name, value in found.items() if self.group_of[name] == group}


@dataclass(frozen=True)
class Sums(Generic[Part]):
    """A batch after one step: what that came to in each group, and why the other groups' sums have ended, by group."""

    batch: Batch
    parts: Mapping[int, Part]
    ended: Mapping[int, str] = field(default_factory=dict)

    @classmethod
    def of_answers(cls, batch: Batch, found: Mapping[str, OfOne]) -> Sums[dict[str, OfOne]]:
        """Before any step: what was found by merchant, in its group."""
        groups = range(len(batch.sessions))
        return Sums(batch, {group: batch.of_group(group, found) for group in groups})

    def stepped(
        self, step: Callable[[int, Part], After], ends: Callable[[int, RoundAbandonedError], None]
    ) -> Sums[After]:
        """The next step of each group's sum; `ends` hears of those for which it is the last."""
        parts, ended = dict[int, After](), dict(self.ended)
        for group, part in self.parts.items():
            try:
                parts[group] = step(group, part)
            except RoundAbandonedError as error:
                ended[group] = error.reason
                ends(group, error)
        return Sums(self.batch, parts, ended)

    def by_member(self, places: Callable[[Part], Iterable[int]]) -> dict[str, Part]:
        """Their group's part, by merchant, of those who are at these places of it."""
        return {
            self.batch.sessions[group].cohort[place]: part
            for group, part in self.parts.items()
            for place in places(part)
        }
