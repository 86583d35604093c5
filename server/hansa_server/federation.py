"""A run from its merchants' introductions to one model, as steps from one state to the next (run_state.py).

introduce -> statistics -> fitted preprocessing and initial weights, the same for every plan
-> training (training.py): rounds, under several plans first where these are agreed
-> where that was agreed, the kept model pruned (pruning_rounds.py)
-> its figures on the test rows, which nothing before has seen
-> where that was agreed, the model made small: quantized and judged (finishing.py).

Same agreement, same replies: same bytes, whoever answers first, and wherever the run was broken off: from a state that
was kept it asks what it would have asked, in the same orders. A run that averaged nothing fails. What is kept on disk
is run_folder.py's and checkpoint.py's, what a round is rounds.py's, which model is kept selection.py's.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Final

from flwr.serverapp import Grid

from hansa_common import __version__
from hansa_common.agreement import Agreement
from hansa_common.errors import RunFailedError
from hansa_common.features import FittedPreprocessing
from hansa_common.messages import SharedMetrics, StatisticsOrder
from hansa_common.metrics import Metrics
from hansa_common.model import ModelSpec, initial_weights
from hansa_common.privacy_statement import privacy_json
from hansa_common.robust_agreement import least_replies
from hansa_common.secure_agreement import secure_json
from hansa_common.vectors import Vector
from hansa_server.evaluation import Evaluation, evaluate
from hansa_server.exchange import Clock, Exchange
from hansa_server.finishing import Finished, Trained, finish
from hansa_server.introduction import introduce, reintroduce
from hansa_server.masked_figures import masked_statistics
from hansa_server.masked_rounds import resumed
from hansa_server.masked_state import MaskedState
from hansa_server.participants import ExchangeNumbers, Merchant, Run
from hansa_server.pruning_rounds import prune_step
from hansa_server.replies import check_statistics_reply
from hansa_server.robust_masked import grouped_statistics
from hansa_server.robust_preprocessing import fitted_preprocessing
from hansa_server.run_events import Event, RoundFinished, RunFinished, RunStarted, areas
from hansa_server.run_folder import SmallModel
from hansa_server.run_state import RunState
from hansa_server.seals import Seals, Unsealed
from hansa_server.selection import Model
from hansa_server.training import begin_training, train_step

SYSTEM_CLOCK: Final = Clock()
UNSEALED: Final = Unsealed()


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
            "robustness": self.agreement.robustness.model_dump(mode="json"),
            "privacy": privacy_json(self.agreement),
            "secure_aggregation": secure_json(self.agreement),
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
        known: dict[str, Any] = {"backend": merchant.backend, "device": merchant.device}
        if merchant.num_train_rows:
            known["num_train_rows"] = merchant.num_train_rows
        own = self.shared.get(merchant.name)
        if own is None:
            return known
        figures = {"roc_auc": own.roc_auc, "pr_auc": own.pr_auc}
        return {**known, "num_test_rows": own.num_test_rows, "federated": figures}


def run_federation(
    grid: Grid,
    agreement: Agreement,
    begun: RunState,
    *,
    on_event: Callable[[Event], None],
    keep: Callable[[RunState], None] = lambda _: None,
    clock: Clock = SYSTEM_CLOCK,
    seals: Seals = UNSEALED,
    is_left_out: Callable[[str], bool] = lambda _: False,
) -> FederationResult:
    """Train one model over the merchants that the grid reaches, from a new state or from one that was kept.

    `keep` gets each state before what comes after it is asked of anyone; `seals` are those that the agreement asks for;
    merchants who are left out, by name, take no part, or none any more.
    A new state's `run_id` must be new for every run, because merchants keep SCAFFOLD's variates under it; it changes no
    weight.

    Raises:
        RunFailedError: too few merchants came or sent statistics, or no round had enough valid replies.
        RunInterruptedError: too few merchants of a run that had begun are back.
    """
    exchange, numbers = Exchange(grid, clock, seals), ExchangeNumbers(begun.sequence)
    sums = MaskedState(begun.last_sum, begun.num_train_rows)
    run = Run(exchange, agreement, agreement.fingerprint, begun.run_id, on_event, numbers, sums, is_left_out)
    _tell_start(run, begun)
    begun = resumed(run, begun) if begun.merchants and agreement.secure_aggregation.is_on else begun
    keep(begun)
    state = _with_merchants(run, begun)
    keep(state)
    state = _stepped(run, state, train_step, keep)
    kept = state.course.kept
    if kept is None:
        least = least_replies(agreement.robustness, agreement.cohort)
        raise RunFailedError(
            f"none of {len(state.rounds)} rounds had {least} valid replies, so there is "
            f"no model; the last round left out: {_reasons(state.rounds[-1])}"
        )
    state = _stepped(run, state, prune_step, keep)
    return _finished(run, state, kept, keep)


def _tell_start(run: Run, begun: RunState) -> None:
    agreement, names = run.agreement, tuple(merchant.name for merchant in begun.merchants)
    done = len(begun.training_rounds) if names else None
    waited_for = names or agreement.roster
    run.tell(RunStarted(run.run_id, agreement.name, run.fingerprint, waited_for, agreement.training.rounds, done))


def _stepped(
    run: Run, state: RunState, step: Callable[[Run, RunState], RunState | None], keep: Callable[[RunState], None]
) -> RunState:
    """The state once there is no step any more."""
    while (after := step(run, state)) is not None:
        state = _counted(run, after)
        keep(state)
    return state


def _counted(run: Run, state: RunState) -> RunState:
    """The state with the numbers that its exchanges and masked sums have used."""
    return replace(state, sequence=run.numbers.last, last_sum=run.sums.last, num_train_rows=run.sums.num_train_rows)


def _finished(run: Run, state: RunState, kept: Model, keep: Callable[[RunState], None]) -> FederationResult:
    """What the kept model does on test rows, and what is made of it.

    No state comes of these exchanges: a run that is resumed asks the same again, and merchants answer the same. But
    masked merchants tell of test rows once, so what they told is kept.
    """
    spec = ModelSpec.from_agreement(run.agreement)
    if state.test is None:
        final = evaluate(run, state.merchants, "test", state.preprocessing, kept.weights)
    else:
        final = Evaluation(state.test, {})
    if run.agreement.secure_aggregation.is_on:
        keep(_counted(run, replace(state, test=final.metrics)))
    finished = None
    if run.agreement.compression.format != "none":
        trained = Trained(kept.weights, state.preprocessing, state.course.plan, len(state.training_rounds))
        finished = finish(run, state.merchants, spec, trained, state.stages)
    run.tell(RunFinished(kept.round, final.metrics))
    return FederationResult(
        agreement=run.agreement,
        run_id=run.run_id,
        spec=spec,
        preprocessing=FittedPreprocessing.from_json(state.preprocessing),
        plan_index=state.course.plan,
        model=kept,
        rounds=state.training_rounds,
        test=final.metrics,
        merchants=state.merchants,
        shared=final.shared,
        finished=finished,
    )


def _with_merchants(run: Run, begun: RunState) -> RunState:
    """The state once its merchants are there: registered, or back."""
    if begun.merchants:
        return replace(begun, merchants=reintroduce(run, begun.merchants))
    merchants, preprocessing = register(run, introduce(run))
    state = _counted(run, replace(begun, merchants=merchants, preprocessing=preprocessing.to_json()))
    weights = initial_weights(ModelSpec.from_agreement(run.agreement), run.agreement.seed)
    return begin_training(state, run.agreement, weights)


def register(run: Run, merchants: tuple[Merchant, ...]) -> tuple[tuple[Merchant, ...], FittedPreprocessing]:
    """Gather the statistics of merchants that were introduced, and fit the preprocessing to their sum.

    Raises:
        RunFailedError: too few sent valid ones.
    """
    if run.agreement.secure_aggregation.is_on:
        return _registered_by_sum(run, merchants)
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
    least = least_replies(run.agreement.robustness, run.agreement.cohort)
    if len(registered) < least:
        raise RunFailedError(
            f"{len(registered)} of {len(merchants)} merchants sent valid statistics, "
            f"cohort.min_merchants and robustness.rule ask for {least}; their own logs say why"
        )
    return tuple(registered), fitted_preprocessing(run.agreement, vectors)


def _registered_by_sum(run: Run, merchants: tuple[Merchant, ...]) -> tuple[tuple[Merchant, ...], FittedPreprocessing]:
    if run.agreement.robustness.groups is not None:
        if vectors := grouped_statistics(run, merchants):
            # Whose group had no sum takes part all the same: a liar's company is not to blame.
            return merchants, fitted_preprocessing(run.agreement, vectors)
    elif (found := masked_statistics(run, merchants)) is not None:
        run.sums.num_train_rows = found.num_train_rows
        return found.merchants, fitted_preprocessing(run.agreement, [found.statistics])
    raise RunFailedError(
        f"the statistics of {len(merchants)} merchants gave no sum, and are told once a run; their own logs say why, "
        "and another run asks anew"
    )


def _reasons(finished: RoundFinished) -> str:
    return ", ".join(f"{name} ({reason})" for name, reason in finished.dropped.items()) or "nobody"
