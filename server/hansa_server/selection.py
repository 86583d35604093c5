"""Which model of a run is kept: the best on the federation's validation rows, among those that were trained.

A round validates the model that comes in, so a model's figure is known one exchange after the model. The test
rows have no part in this. All values are frozen; nothing here sends anything.

| case                                              | kept                                        |
|---------------------------------------------------|---------------------------------------------|
| figures are known                                 | the highest PR-AUC; of equal ones the first |
| every figure is withheld, or no class is present  | the last model                              |
| no round was averaged                             | none                                        |
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from hansa_common.metrics import Metrics
from hansa_common.vectors import Vector
from hansa_server.rounds import PlanState


@dataclass(frozen=True)
class Model:
    """The weights after a round, and their validation where it is known."""

    round: int
    weights: Vector
    validation: Metrics | None = None


@dataclass(frozen=True)
class Course:
    """One plan's way so far: its state, the round that made it (0: none yet), and the best model met.

    `num_rounds` is how many rounds it has had, averaged or not. `validated` tells that the state's own model has been
    validated, whether or not a figure came of it; `models_since_best` counts the validated models since the best one.
    """

    plan: int
    state: PlanState
    num_rounds: int = 0
    model_round: int = 0
    validated: bool = False
    best: Model | None = None
    models_since_best: int = 0

    def stepped(self, state: PlanState, round_number: int) -> Course:
        """The course after a round that was averaged."""
        return replace(self, state=state, model_round=round_number, validated=False)

    def with_validation(self, metrics: Metrics | None) -> Course:
        """The course once its present model has been validated; metrics is None where no figure came of it.

        A model that was never trained is no candidate, and one that is validated again is not counted again.
        """
        if self.model_round == 0 or self.validated or metrics is None:
            return replace(self, validated=True)
        if self.best_pr_auc is not None and metrics.pr_auc <= self.best_pr_auc:
            return replace(self, validated=True, models_since_best=self.models_since_best + 1)
        best = Model(self.model_round, self.state.server.weights, metrics)
        return replace(self, validated=True, best=best, models_since_best=0)

    @property
    def best_pr_auc(self) -> float | None:
        """The best model's validation PR-AUC, None where no figure is known."""
        return None if self.best is None or self.best.validation is None else self.best.validation.pr_auc

    @property
    def awaits_validation(self) -> bool:
        """Whether it has a model that was trained and not validated."""
        return self.model_round > 0 and not self.validated

    @property
    def kept(self) -> Model | None:
        """The model to keep if training ended here."""
        if self.best is not None or self.model_round == 0:
            return self.best
        return Model(self.model_round, self.state.server.weights)


def best_course(courses: Sequence[Course]) -> Course:
    """The course whose best model has the highest validation PR-AUC; of equal ones, and where none is known, the
    first that has a model, else the first.
    """
    return max(courses, key=lambda course: (course.model_round > 0, course.best_pr_auc or 0.0))
