"""Training, step by step: from a run's state, what is next under its agreement, and the state after it.

one plan        rounds until training.rounds, or until training.patience models brought nothing better; then the last
                model is validated, which no round has done
                (where validation chooses nothing, see the agreement: all rounds, and the last model)
several plans   trial_rounds of each from the same start, and its last model validated; the best by validation goes on
                from where its trial ended, as if it were the only one (trials count as rounds)
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from hansa_common.agreement import Agreement
from hansa_common.metrics import Metrics
from hansa_common.vectors import Vector
from hansa_server.algorithms import initial_state
from hansa_server.evaluation import evaluate
from hansa_server.masked_rounds import run_masked_round
from hansa_server.participants import Merchant, Run
from hansa_server.robust_masked import run_grouped_round
from hansa_server.rounds import PlanState, Round, run_round
from hansa_server.run_events import ModelValidated, PlanChosen, RoundFinished, StoppedEarly
from hansa_server.run_state import RunState
from hansa_server.selection import Course, best_course


def begin_training(state: RunState, agreement: Agreement, weights: Vector) -> RunState:
    """The state before the first round: every plan from the same weights (num_params,)."""
    plans = agreement.training.plans
    courses = tuple(Course(i, PlanState(initial_state(weights, plan))) for i, plan in enumerate(plans))
    return replace(state, courses=courses, chosen=0 if len(courses) == 1 else None)


def train_step(run: Run, state: RunState) -> RunState | None:
    """The state after the next round, validation of a trial's last model, or choice of the plan; None where training
    is over.
    """
    training = run.agreement.training
    if state.chosen is None:
        return _trial_step(run, state)
    course = state.course
    if len(state.training_rounds) < training.rounds and not _is_spent(course, training.patience):
        return _after_round(run, state, course, training.patience)
    awaits_validation = course.awaits_validation and run.agreement.chooses_by_validation
    return _after_validation(run, state, course) if awaits_validation else None


def _trial_step(run: Run, state: RunState) -> RunState:
    for course in state.courses:
        if course.num_rounds < run.agreement.training.trial_rounds:
            return _after_round(run, state, course, None)
        if course.awaits_validation:
            return _after_validation(run, state, course)
    chosen = best_course(state.courses)
    training = run.agreement.training
    run.tell(PlanChosen(chosen.plan, training.plans[chosen.plan].algorithm, chosen.best_pr_auc))
    _tell_where_spent(run, state, chosen, training.patience)
    return replace(state, chosen=chosen.plan)


def _after_round(run: Run, state: RunState, course: Course, patience: int | None) -> RunState:
    number = len(state.training_rounds) + 1
    plan = run.agreement.training.plans[course.plan]
    asked = Round(number, course.plan, plan, state.preprocessing, course.state)
    after, finished = _round_of(run.agreement)(run, state.merchants, asked)
    course = replace(course, num_rounds=course.num_rounds + 1)
    if finished.aggregated:
        course = _noted(run, course, finished.validation)
        # The model that came in was one too many: what was trained from it is not looked at.
        course = course if _is_spent(course, patience) else course.stepped(after, number)
    state = state.with_round(finished).with_course(course)
    _tell_where_spent(run, state, course, patience)
    return state


def _round_of(agreement: Agreement) -> Callable[[Run, tuple[Merchant, ...], Round], tuple[PlanState, RoundFinished]]:
    """How a round is run under an agreement."""
    if not agreement.secure_aggregation.is_on:
        return run_round
    return run_masked_round if agreement.robustness.groups is None else run_grouped_round


def _after_validation(run: Run, state: RunState, course: Course) -> RunState:
    found = evaluate(run, state.merchants, "validation", state.preprocessing, course.state.server.weights)
    return state.with_course(_noted(run, course, found.metrics))


def _noted(run: Run, course: Course, metrics: Metrics | None) -> Course:
    noted = course.with_validation(metrics if run.agreement.chooses_by_validation else None)
    if metrics is not None and noted.best is not None and not course.validated:
        run.tell(ModelValidated(course.model_round, metrics.pr_auc, noted.best.round, noted.best_pr_auc or 0.0))
    return noted


def _tell_where_spent(run: Run, state: RunState, course: Course, patience: int | None) -> None:
    if course.best is not None and _is_spent(course, patience):
        run.tell(StoppedEarly(len(state.training_rounds), course.best.round))


def _is_spent(course: Course, patience: int | None) -> bool:
    """Whether `patience` models in a row, if given, were no better than the best before."""
    return patience is not None and course.models_since_best >= patience
