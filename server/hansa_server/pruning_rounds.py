"""The kept model pruned over the merchants: rounds in which weights chosen here are held at zero there.

From the kept model, twice the same rounds: same numbers, so the same cohorts, shuffles and dropout.

stage `prune`     each round, the mask of the schedule's sparsity is chosen from the weights of that moment; they are
                  masked before they are sent and after the step, and the merchants hold them at zero meanwhile
stage `control`   no masks: what these rounds alone are worth, so that pruning is neither blamed nor praised for them

Either stage begins with the algorithm's state and the merchants' variates anew. Where one of them had no averaged
round, nothing is pruned. Which weights a mask takes is pruning.py's; whether the pruned model is good enough is for
finishing.py's judges.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Final

from hansa_common.messages import Stage
from hansa_common.metrics import Metrics
from hansa_common.model import ModelSpec
from hansa_common.pruning import magnitude_mask, masked, pack_mask, scheduled_sparsity
from hansa_common.vectors import Vector
from hansa_server.algorithms import initial_state
from hansa_server.evaluation import evaluate
from hansa_server.participants import Merchant, Run
from hansa_server.rounds import PlanState, Round, run_round
from hansa_server.run_events import ModelPruned, PruningStarted, areas

PRUNE: Final[Stage] = "prune"
CONTROL: Final[Stage] = "control"


@dataclass(frozen=True)
class Pruned:
    """What the rounds came to: the pruned weights (num_params,), None where `reason` says that nothing was pruned, and
    what the federation's validation rows say of it, of the control, and of nothing where withheld.
    """

    sparsity: float
    num_rounds: int
    weights: Vector | None
    reason: str = ""
    validation: Metrics | None = None
    control: Metrics | None = None

    def to_json(self) -> dict[str, Any]:
        """The part of metrics.json that tells of it."""
        return {
            "sparsity": self.sparsity,
            "rounds": self.num_rounds,
            "pruned": self.weights is not None,
            "reason": self.reason,
            "validation": {"pruned": areas(self.validation), "control": areas(self.control)},
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

    def pruned(self, weights: Vector) -> Pruned:
        """Prune the model of these weights (num_params,) as the agreement's compression says."""
        agreed = self.run.agreement.compression
        nothing = Pruned(agreed.sparsity, agreed.pruning_rounds, None)
        self.run.tell(PruningStarted(agreed.sparsity, agreed.pruning_rounds))
        pruned, control = self._rounds(weights, PRUNE), self._rounds(weights, CONTROL)
        if pruned is None or control is None:
            stage, least = PRUNE if pruned is None else CONTROL, self.run.agreement.cohort.min_merchants
            reason = f"none of {agreed.pruning_rounds} rounds of stage {stage!r} had {least} valid replies"
            self.run.tell(ModelPruned(reason, None, None))
            return replace(nothing, reason=reason)
        found = replace(nothing, weights=pruned, validation=self._validated(pruned), control=self._validated(control))
        self.run.tell(ModelPruned("", *(None if m is None else m.pr_auc for m in (found.validation, found.control))))
        return found

    def _rounds(self, weights: Vector, stage: Stage) -> Vector | None:
        """The weights after all rounds of a stage; None where none of them was averaged."""
        plan, agreed = self.run.agreement.training.plans[self.plan_index], self.run.agreement.compression
        state, any_aggregated = PlanState(initial_state(weights, plan)), False
        for place in range(1, agreed.pruning_rounds + 1):
            asked = Round(self.rounds_before + place, self.plan_index, plan, self.preprocessing, state, stage)
            mask = None
            if stage == PRUNE:
                sparsity = scheduled_sparsity(agreed.sparsity, place, agreed.pruning_rounds)
                mask = magnitude_mask(self.spec, state.server.weights, sparsity)
                asked = replace(asked, state=_held(state, mask), masks=pack_mask(self.spec, mask))
            state, finished = run_round(self.run, self.merchants, asked)
            any_aggregated = any_aggregated or finished.aggregated
            # Again, since the momentum of the coordinator's own step remembers from before a weight was pruned.
            state = state if mask is None else _held(state, mask)
        return state.server.weights if any_aggregated else None

    def _validated(self, weights: Vector) -> Metrics | None:
        return evaluate(self.run, self.merchants, "validation", self.preprocessing, weights).metrics


def _held(state: PlanState, mask: Vector) -> PlanState:
    return replace(state, server=replace(state.server, weights=masked(state.server.weights, mask)))
