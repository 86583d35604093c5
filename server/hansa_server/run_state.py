"""What a run knows between two of its steps, as one value: with the same replies, all its further bytes follow from it.

A step is one exchange with the merchants, or the choice of a plan, and takes a state to the next one. Random choices
come from the agreement's seed and a round's number, so nothing else is carried. `checkpoint.py` keeps a state on disk,
field by field: a field more here is kept there without a word.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from hansa_common.metrics import Metrics
from hansa_common.record_types import Stage
from hansa_server.participants import Merchant
from hansa_server.run_events import RoundFinished
from hansa_server.selection import Course


@dataclass(frozen=True)
class RunState:
    """A run after the exchange of number `sequence`; 0: none has been.

    run_id         merchants keep SCAFFOLD's variates and their log of orders under it; no weight depends on it
    merchants      those whose statistics are in the preprocessing, in roster order; nobody before
    preprocessing  fitted, as JSON
    courses        one for each of the agreement's plans
    chosen         the plan that goes on, None while plans are on trial
    stages         the courses of the kept model's pruning and of its control, once they have begun
    rounds         all rounds so far, of every stage
    last_sum       the last number of a masked sum that was used; 0: nothing is masked
    num_train_rows of all merchants together, where nothing is known of one alone
    test           the kept model's figures on test rows, which masked merchants give once
    """

    run_id: str
    sequence: int = 0
    merchants: tuple[Merchant, ...] = ()
    preprocessing: str = ""
    courses: tuple[Course, ...] = ()
    chosen: int | None = None
    stages: Mapping[Stage, Course] = field(default_factory=dict)
    rounds: tuple[RoundFinished, ...] = ()
    last_sum: int = 0
    num_train_rows: int = 0
    test: Metrics | None = None

    @property
    def course(self) -> Course:
        """The chosen plan's course.

        Raises:
            ValueError: none is chosen yet.
        """
        if self.chosen is None:
            raise ValueError("plans are on trial: no course is chosen yet")
        return self.courses[self.chosen]

    @property
    def training_rounds(self) -> tuple[RoundFinished, ...]:
        """The rounds of training, without those of pruning."""
        return tuple(entry for entry in self.rounds if entry.stage == "train")

    def with_course(self, course: Course) -> RunState:
        """The state with this course in the place of its plan's."""
        courses = tuple(course if own.plan == course.plan else own for own in self.courses)
        return replace(self, courses=courses)

    def with_round(self, finished: RoundFinished) -> RunState:
        """The state with one more round in its history."""
        return replace(self, rounds=(*self.rounds, finished))
