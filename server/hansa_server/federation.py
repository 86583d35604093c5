"""A run from its merchants' introductions to one model: statistics, rounds, choice of the plan and of the model.

introduce -> statistics -> fitted preprocessing and initial weights, the same for every plan
-> with several plans, trial_rounds of each from the same start; the best by validation goes on
-> rounds until training.rounds (trials count) or until training.patience models brought nothing better
-> the kept model's figures on the test rows, which nothing before has seen
-> where that was agreed, the kept model made small: pruned (pruning_rounds.py), quantized and judged (finishing.py).

Same agreement, same replies: same bytes, whoever answers first. A run that averaged nothing fails. What is kept
on disk is run_folder.py's, what a round is rounds.py's, which model is kept selection.py's.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Final

from flwr.serverapp import Grid

from hansa_common import __version__, statistics
from hansa_common.agreement import Agreement
from hansa_common.errors import RunFailedError
from hansa_common.features import FittedPreprocessing
from hansa_common.messages import SharedMetrics, StatisticsOrder
from hansa_common.metrics import Metrics
from hansa_common.model import ModelSpec, initial_weights
from hansa_common.vectors import Vector
from hansa_server.algorithms import initial_state
from hansa_server.evaluation import Evaluation, evaluate
from hansa_server.exchange import Clock, Exchange
from hansa_server.finishing import Finished, Finishing
from hansa_server.introduction import introduce
from hansa_server.participants import Merchant, Run
from hansa_server.pruning_rounds import Pruning
from hansa_server.replies import Split, check_statistics_reply
from hansa_server.rounds import PlanState, Round, run_round
from hansa_server.run_events import (
    Event,
    ModelValidated,
    PlanChosen,
    RoundFinished,
    RunFinished,
    RunStarted,
    StoppedEarly,
    areas,
)
from hansa_server.run_folder import SmallModel
from hansa_server.selection import Course, Model, best_course

SYSTEM_CLOCK: Final = Clock()


@dataclass(frozen=True)
class FederationResult:
    """A finished run: the kept model with what belongs to it, and what is known of it."""

    agreement: Agreement
    run_id: str
    spec: ModelSpec
    preprocessing: FittedPreprocessing
    plan_index: int
    model: Model
    rounds: tuple[RoundFinished, ...]
    test: Metrics | None
    merchants: tuple[Merchant, ...]
    shared: Mapping[str, SharedMetrics]
    finished: Finished | None = None

    @property
    def weights(self) -> Vector:
        """The kept model's weights, (num_params,) float32."""
        return self.model.weights

    @property
    def small(self) -> SmallModel | None:
        """The small model's weights and files; None where none was released."""
        if self.finished is None or self.finished.released is None:
            return None
        files = self.finished.released
        return SmallModel(self.finished.weights, files.float_file, files.int8_file)

    def to_json(self) -> dict[str, Any]:
        """The run in the shape of metrics.json."""
        return {
            "agreement_fingerprint": self.agreement.fingerprint,
            "agreement_name": self.agreement.name,
            "task": self.agreement.task,
            "label": self.agreement.label.column,
            "features": [feature.name for feature in self.agreement.features],
            "model": self.agreement.model.model_dump(mode="json"),
            "seed": self.agreement.seed,
            "hansa_version": __version__,
            "run_id": self.run_id,
            "best_round": self.model.round,
            "plan_index": self.plan_index,
            "plan": self.agreement.training.plans[self.plan_index].model_dump(mode="json"),
            "validation": areas(self.model.validation),
            "rounds": [entry.to_json() for entry in self.rounds],
            "federated": {"roc_auc": None, "pr_auc": None} if self.test is None else self.test.to_json(),
            "merchants": {merchant.name: self._merchant_json(merchant) for merchant in self.merchants},
            **({} if self.finished is None else self.finished.to_json()),
        }

    def _merchant_json(self, merchant: Merchant) -> dict[str, Any]:
        known = {"num_train_rows": merchant.num_train_rows, "backend": merchant.backend, "device": merchant.device}
        own = self.shared.get(merchant.name)
        if own is None:
            return known
        figures = {"roc_auc": own.roc_auc, "pr_auc": own.pr_auc}
        return {**known, "num_test_rows": own.num_test_rows, "federated": figures}


def run_federation(
    grid: Grid,
    agreement: Agreement,
    *,
    run_id: str,
    on_event: Callable[[Event], None],
    clock: Clock = SYSTEM_CLOCK,
) -> FederationResult:
    """Train one model over the merchants that the grid reaches.

    `run_id` must be new for every run, because merchants keep SCAFFOLD's variates under it; it changes no weight.

    Raises:
        RunFailedError: too few merchants came or sent statistics, or no round had enough valid replies.
    """
    run = Run(Exchange(grid, clock), agreement, agreement.fingerprint, run_id, on_event)
    run.tell(RunStarted(run_id, agreement.name, run.fingerprint, agreement.roster, agreement.training.rounds))
    merchants, preprocessing = _register(run, introduce(run))
    spec = ModelSpec.from_agreement(agreement)
    training = _Training(run, merchants, preprocessing.to_json())
    course = training.train(initial_weights(spec, agreement.seed))
    if course.kept is None:
        raise RunFailedError(
            f"none of {len(training.rounds)} rounds had {agreement.cohort.min_merchants} valid replies, so there is "
            f"no model; the last round left out: {_reasons(training.rounds[-1])}"
        )
    final = training.evaluated("test", course.kept.weights)
    finished = training.finished(spec, course.plan, course.kept.weights)
    run.tell(RunFinished(course.kept.round, final.metrics))
    return FederationResult(
        agreement=agreement,
        run_id=run_id,
        spec=spec,
        preprocessing=preprocessing,
        plan_index=course.plan,
        model=course.kept,
        rounds=tuple(training.rounds),
        test=final.metrics,
        merchants=merchants,
        shared=final.shared,
        finished=finished,
    )


def _register(run: Run, merchants: tuple[Merchant, ...]) -> tuple[tuple[Merchant, ...], FittedPreprocessing]:
    """Gather the merchants' statistics, and fit the preprocessing to their sum."""
    registered, vectors = [], []
    asked = run.ask(
        "statistics",
        merchants,
        lambda merchant: StatisticsOrder(**run.header(merchant.name)),
        lambda _, reply: check_statistics_reply(reply, run.agreement),
    )
    for heard in asked:
        if heard.reply is not None:
            registered.append(replace(heard.merchant, num_train_rows=heard.reply.num_train_rows))
            vectors.append(heard.reply.statistics)
    if len(registered) < run.agreement.cohort.min_merchants:
        raise RunFailedError(
            f"{len(registered)} of {len(merchants)} merchants sent valid statistics, "
            f"cohort.min_merchants is {run.agreement.cohort.min_merchants}; their own logs say why"
        )
    return tuple(registered), FittedPreprocessing.fit(run.agreement, statistics.merge(vectors))


class _Training:
    """The rounds of one run, over its registered merchants; `rounds` holds those that were run."""

    def __init__(self, run: Run, merchants: tuple[Merchant, ...], preprocessing: str) -> None:
        self.rounds: list[RoundFinished] = []
        self._run = run
        self._merchants = merchants
        self._preprocessing = preprocessing

    def train(self, weights: Vector) -> Course:
        """Train from these weights with every plan that the agreement names, and return the best plan's course."""
        training = self._run.agreement.training
        courses = [Course(i, PlanState(initial_state(weights, plan))) for i, plan in enumerate(training.plans)]
        if len(courses) == 1:
            return self._validated(self._rounds(courses[0], training.rounds, training.patience))
        tried = [self._validated(self._rounds(course, training.trial_rounds, None)) for course in courses]
        chosen = best_course(tried)
        algorithm = training.plans[chosen.plan].algorithm
        self._run.tell(PlanChosen(chosen.plan, algorithm, chosen.best_pr_auc))
        rest = training.rounds - len(self.rounds)
        return self._validated(self._rounds(chosen, rest, training.patience))

    def evaluated(self, split: Split, weights: Vector) -> Evaluation:
        """Figures of weights on one part of all registered merchants' rows."""
        return evaluate(self._run, self._merchants, split, self._preprocessing, weights)

    def finished(self, spec: ModelSpec, plan: int, weights: Vector) -> Finished | None:
        """The kept model made small, pruned before where that was agreed; None where it is shipped as trained."""
        agreed, merchants, preprocessing = self._run.agreement.compression, self._merchants, self._preprocessing
        if agreed.format == "none":
            return None
        pruning = None
        if agreed.sparsity:
            pruning = Pruning(self._run, merchants, spec, preprocessing, plan, len(self.rounds)).pruned(weights)
        return Finishing(self._run, merchants, spec, preprocessing).finished(weights, pruning)

    def _rounds(self, course: Course, num_rounds: int, patience: int | None) -> Course:
        """Run rounds; stop where `patience` models in a row, if given, were no better than the best before."""
        for _ in range(num_rounds):
            if _is_spent(course, patience):
                break
            number = len(self.rounds) + 1
            plan = self._run.agreement.training.plans[course.plan]
            asked = Round(number, course.plan, plan, self._preprocessing, course.state)
            state, finished = run_round(self._run, self._merchants, asked)
            self.rounds.append(finished)
            if finished.aggregated:
                course = self._noted(course, finished.validation)
                # The model that came in was one too many: what was trained from it is not looked at.
                course = course if _is_spent(course, patience) else course.stepped(state, number)
        if course.best is not None and _is_spent(course, patience):
            self._run.tell(StoppedEarly(len(self.rounds), course.best.round))
        return course

    def _validated(self, course: Course) -> Course:
        """The course with its last model validated, which no round has done."""
        if course.model_round == 0 or course.validated:
            return course
        return self._noted(course, self.evaluated("validation", course.state.server.weights).metrics)

    def _noted(self, course: Course, metrics: Metrics | None) -> Course:
        noted = course.with_validation(metrics)
        if metrics is not None and noted.best is not None and not course.validated:
            self._run.tell(
                ModelValidated(course.model_round, metrics.pr_auc, noted.best.round, noted.best_pr_auc or 0.0)
            )
        return noted


def _is_spent(course: Course, patience: int | None) -> bool:
    return patience is not None and course.models_since_best >= patience


def _reasons(finished: RoundFinished) -> str:
    return ", ".join(f"{name} ({reason})" for name, reason in finished.dropped.items()) or "nobody"
