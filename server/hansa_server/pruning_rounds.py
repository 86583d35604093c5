"""The kept model pruned over the merchants: rounds in which weights chosen here are held at zero there.

From the kept model, twice the same rounds: same numbers, so the same cohorts, shuffles and dropout.

stage `prune`     each round, the mask of the schedule's sparsity is chosen from the weights of that moment; they are
                  masked before they are sent and after the step, and the merchants hold them at zero meanwhile
stage `control`   no masks: what these rounds alone are worth, so that pruning is neither blamed nor praised for them

compression.pruning_rounds reach the agreed sparsity, and as many again train on at it, since the model goes on
recovering while it does. Of the models from there on, the best on validation rows is kept; the control keeps one of the
same rounds by the same rule. Each keeps its model's figures on test rows too, which choose nothing.

Either stage begins with the algorithm's state and the merchants' variates anew. Where one of them had no averaged
round, nothing is pruned. Which weights a mask takes is pruning.py's; whether the pruned model is good enough is for
finishing.py's judges.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any, Final

from hansa_common.metrics import Metrics
from hansa_common.model import ModelSpec
from hansa_common.pruning import magnitude_mask, masked, pack_mask, scheduled_sparsity
from hansa_common.record_types import Stage
from hansa_common.vectors import Vector
from hansa_server.algorithms import initial_state
from hansa_server.evaluation import evaluate
from hansa_server.participants import Merchant, Run
from hansa_server.replies import Split
from hansa_server.rounds import PlanState, Round, run_round
from hansa_server.run_events import ModelPruned, PruningStarted, RoundFinished, areas
from hansa_server.run_state import RunState
from hansa_server.selection import Course, Model

PRUNE: Final[Stage] = "prune"
CONTROL: Final[Stage] = "control"
# The courses of the stages that have begun.
Stages = Mapping[Stage, Course]
NOT_BEGUN: Final[Stages] = MappingProxyType({})


@dataclass(frozen=True)
class StageModel:
    """The model that a stage keeps: its weights (num_params,), the round that made them, and what the federation's
    validation and test rows say of it, None where withheld.
    """

    weights: Vector
    round: int = 0
    validation: Metrics | None = None
    test: Metrics | None = None


@dataclass(frozen=True)
class Pruned:
    """What the rounds came to: the pruned model and the control, both None where `reason` says that nothing was pruned.

    `num_rounds` is the agreed number, in which the sparsity was reached.
    """

    sparsity: float
    num_rounds: int
    model: StageModel | None
    control: StageModel | None = None
    reason: str = ""

    @property
    def weights(self) -> Vector | None:
        """The pruned weights (num_params,)."""
        return None if self.model is None else self.model.weights

    def to_json(self) -> dict[str, Any]:
        """The part of metrics.json that tells of it."""
        stages = {"pruned": self.model, "control": self.control}
        return {
            "sparsity": self.sparsity,
            "rounds": self.num_rounds,
            "pruned": self.model is not None,
            "reason": self.reason,
            "best_round": {name: None if kept is None else kept.round for name, kept in stages.items()},
            "validation": {name: None if kept is None else areas(kept.validation) for name, kept in stages.items()},
            "test": {name: None if kept is None else areas(kept.test) for name, kept in stages.items()},
        }


@dataclass(frozen=True)
class Pruning:
    """The pruning of one model over the merchants of its run, under the plan that made it.

    `rounds_before` is how many rounds the run has had: these are numbered from there.
    """

    run: Run
    merchants: tuple[Merchant, ...]
    spec: ModelSpec
    preprocessing: str
    plan_index: int
    rounds_before: int

    def pruned(self, weights: Vector, stages: Stages = NOT_BEGUN) -> Pruned:
        """Prune the model of these weights (num_params,) as the agreement's compression says, and look at what came of
        it; `stages` is what has been done.
        """
        while (after := self.step(weights, stages)) is not None:
            stages, _ = after
        agreed, pruned, control = self.run.agreement.compression, stages[PRUNE].kept, stages[CONTROL].kept
        if pruned is None or control is None:
            stage, least = PRUNE if pruned is None else CONTROL, self.run.agreement.cohort.min_merchants
            reason = f"none of {2 * agreed.pruning_rounds} rounds of stage {stage!r} had {least} valid replies"
            self.run.tell(ModelPruned(reason, None, None))
            return Pruned(agreed.sparsity, agreed.pruning_rounds, None, reason=reason)
        figures = (None if model.validation is None else model.validation.pr_auc for model in (pruned, control))
        self.run.tell(ModelPruned("", *figures))
        tested = self._tested(pruned, PRUNE), self._tested(control, CONTROL)
        return Pruned(agreed.sparsity, agreed.pruning_rounds, *tested)

    def step(self, weights: Vector, stages: Stages) -> tuple[Stages, RoundFinished | None] | None:
        """The stages after the next exchange, and the round that it was, if one; None where both are over."""
        agreed = self.run.agreement.compression
        if not stages:
            self.run.tell(PruningStarted(agreed.sparsity, agreed.pruning_rounds))
        for stage in (PRUNE, CONTROL):
            course = stages.get(stage) or self._begun(weights)
            if course.num_rounds < 2 * agreed.pruning_rounds:
                course, finished = self._after_round(course, stage)
                return {**stages, stage: course}, finished
            if course.awaits_validation and self.run.agreement.chooses_by_validation:
                found = self._evaluated("validation", course.state.server.weights, stage)
                return {**stages, stage: course.with_validation(found)}, None
        return None

    def _begun(self, weights: Vector) -> Course:
        plan = self.run.agreement.training.plans[self.plan_index]
        return Course(self.plan_index, PlanState(initial_state(weights, plan)))

    def _after_round(self, course: Course, stage: Stage) -> tuple[Course, RoundFinished]:
        """The course after one more round; only models made once the sparsity is reached may be kept."""
        place = course.num_rounds + 1
        mask = self._mask(course.state.server.weights, place) if stage == PRUNE else None
        asked = self._round(_held(course.state, mask), place, stage, mask)
        state, finished = run_round(self.run, self.merchants, asked)
        if finished.aggregated and place > self.run.agreement.compression.pruning_rounds:
            validation = finished.validation if self.run.agreement.chooses_by_validation else None
            course = course.with_validation(validation)
        # Again, since the momentum of the coordinator's own step remembers from before a weight was pruned.
        course = replace(course, state=_held(state, mask), num_rounds=place)
        return (course.stepped(course.state, asked.number) if finished.aggregated else course), finished

    def _mask(self, weights: Vector, place: int) -> Vector:
        agreed = self.run.agreement.compression
        reached = min(place, agreed.pruning_rounds)
        return magnitude_mask(self.spec, weights, scheduled_sparsity(agreed.sparsity, reached, agreed.pruning_rounds))

    def _round(self, state: PlanState, place: int, stage: Stage, mask: Vector | None) -> Round:
        plan = self.run.agreement.training.plans[self.plan_index]
        asked = Round(self.rounds_before + place, self.plan_index, plan, self.preprocessing, state, stage)
        return asked if mask is None else replace(asked, masks=pack_mask(self.spec, mask))

    def _tested(self, model: Model, stage: Stage) -> StageModel:
        test = self._evaluated("test", model.weights, stage)
        return StageModel(model.weights, model.round, model.validation, test)

    def _evaluated(self, split: Split, weights: Vector, stage: Stage) -> Metrics | None:
        return evaluate(self.run, self.merchants, split, self.preprocessing, weights, stage).metrics


def _held(state: PlanState, mask: Vector | None) -> PlanState:
    if mask is None:
        return state
    return replace(state, server=replace(state.server, weights=masked(state.server.weights, mask)))


def prune_step(run: Run, state: RunState) -> RunState | None:
    """The state of a run after the next exchange of its pruning; None where that is over, or nothing is agreed."""
    kept, agreed = state.course.kept, run.agreement.compression
    if kept is None or agreed.format == "none" or not agreed.sparsity:
        return None
    spec, num_rounds = ModelSpec.from_agreement(run.agreement), len(state.training_rounds)
    pruning = Pruning(run, state.merchants, spec, state.preprocessing, state.course.plan, num_rounds)
    after = pruning.step(kept.weights, state.stages)
    if after is None:
        return None
    stages, finished = after
    state = replace(state, stages=stages)
    return state if finished is None else state.with_round(finished)
