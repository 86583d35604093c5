"""A round in which every vector is masked: one sum, one step; and a run's way back to its sums.

- The step is made of the mean update of those in the sum. With `scaffold` the variates follow from that one mean, since
  everyone takes the same local steps (algorithms.py).
- Where the sum is abandoned, or is none that the agreed bounds allow, the state stays as it is and the reason is told.
- Nothing of one merchant is asked for or known: not its update, loss, rows or histogram.

What a round without masks is, rounds.py says.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np

from hansa_common.messages import RoundOrder
from hansa_common.metrics import Metrics, check_histogram, metrics_from_histogram
from hansa_common.round_vector import RoundSum, RoundVector
from hansa_common.secure_groups import num_groups_of
from hansa_common.secure_layouts import round_layout
from hansa_common.secure_messages import MaskableOrder
from hansa_common.shared_noise import longest_mean
from hansa_common.short_round import ShortRoundVector
from hansa_server.aggregation import Doubles
from hansa_server.algorithms import NONE, control_step_from_mean, step
from hansa_server.masked_exchanges import OrderOf
from hansa_server.masked_figures import IMPLAUSIBLE
from hansa_server.masked_sums import SumAbandoned, Summed, masked_sums
from hansa_server.participants import Merchant, Run
from hansa_server.rounds import PlanState, Round
from hansa_server.run_events import ReplyReceived, RoundFinished, RoundStarted
from hansa_server.run_state import RunState

# More exchanges, and more sums of each group, than come between two states that are kept.
RESUMED_GAP: Final = 64
INTERRUPTED: Final = "interrupted"
# A mean is no longer than the longest, but for rounding.
_ROUNDING: Final = 1.001


def run_masked_round(run: Run, merchants: tuple[Merchant, ...], asked: Round) -> tuple[PlanState, RoundFinished]:
    """Run one round over these registered merchants, given in roster order."""
    began = run.exchange.clock.now()
    names = tuple(merchant.name for merchant in merchants)
    run.tell(RoundStarted(asked.number, asked.plan_index, names, asked.stage))
    layout = round_layout(run.agreement, asked.state.server.weights.size, asked.number)
    sums = masked_sums(
        run, merchants, f"round {asked.number}", masked_order(run, asked), layout.num_elements,
        on_reply=lambda name: run.tell(ReplyReceived(asked.number, name)),
    )  # fmt: skip
    learned = _learned(run, asked, layout, sums.of_roster)
    summed, found = learned.summed, learned.found
    finished = RoundFinished(
        round=asked.number,
        plan=asked.plan_index,
        seconds=run.exchange.clock.now() - began,
        cohort=names,
        dropped=summed.dropped,
        aggregated=found is not None,
        validation=learned.validation,
        train_loss=found.mean_loss if found is not None and math.isfinite(found.mean_loss) else None,
        bytes_received=sums.bytes_received,
        bytes_sent=sums.bytes_sent,
        stage=asked.stage,
        abandoned=summed.abandoned,
    )
    run.tell(finished)
    if found is None:
        return asked.state, finished
    server = step(asked.state.server, asked.plan, found.mean_update, _control_step(run, asked, found))
    return PlanState(server, {**asked.state.included, **summed.in_sum}), finished


@dataclass(frozen=True)
class _Learned:
    """All that a round tells: `found` is None where its sum is abandoned."""

    summed: Summed
    found: RoundSum | None = None
    validation: Metrics | None = None


def _learned(run: Run, asked: Round, layout: RoundVector | ShortRoundVector, summed: Summed) -> _Learned:
    if summed.total is None:
        return _Learned(summed)
    cohort = run.agreement.cohort
    try:
        found = layout.decode(summed.total, len(summed.in_sum))
        check_histogram(found.counts, cohort.max_examples * len(run.agreement.roster))
        check_mean(found, longest_mean(run.agreement, asked.plan.learning_rate, found.num_examples))
    except ValueError as error:
        run.tell(SumAbandoned(f"round {asked.number}", IMPLAUSIBLE, str(error)))
        return _Learned(replace(summed, total=None, in_sum={}, abandoned=IMPLAUSIBLE))
    return _Learned(summed, found, metrics_from_histogram(found.counts))


def masked_order(run: Run, asked: Round) -> OrderOf:
    """What each merchant of a round is asked, once its header and masks are known."""
    agreement, weights, control = run.agreement, asked.state.server.weights, asked.control
    asks_scores = run.sums.is_first_asked_to_score(weights)
    counted = tuple(place for place, name in enumerate(agreement.roster) if name in asked.state.included)

    def order(merchant: Merchant, header: dict[str, Any]) -> MaskableOrder:
        return RoundOrder(
            **header,
            round=asked.number,
            plan=asked.plan_index,
            cohort=agreement.roster,
            preprocessing=asked.preprocessing,
            weights=weights,
            control=control,
            included=asked.state.included.get(merchant.name, ""),
            stage=asked.stage,
            masks=asked.masks,
            asks_scores=asks_scores,
            counted=counted,
        )

    return order


def check_mean(found: RoundSum, max_norm: float) -> None:
    """Refuse a mean update that no merchants within the agreed bound can have.

    Raises:
        ValueError: it is longer than any of them may be, by more than what rounding it can add.
    """
    norm = float(np.sqrt(np.sum(np.square(found.mean_update))))
    if not norm <= max_norm * _ROUNDING + found.most_error:
        more = f", and {found.most_error:.2g} more by rounding" if found.most_error else ""
        raise ValueError(f"the mean update has norm {norm:.4g}, of one merchant at most {max_norm:g} is allowed{more}")


def _control_step(run: Run, asked: Round, found: RoundSum) -> Doubles:
    if asked.plan.algorithm != "scaffold":
        return NONE
    if asked.plan.local_steps is None:
        raise ValueError("under masks SCAFFOLD's variates follow from one sum only where local_steps are agreed on")
    # What merchants computed with, which is float32.
    control = asked.control.astype(np.float64)
    share = min(1.0, found.num_examples / max(1, run.sums.num_train_rows))
    return control_step_from_mean(control, found.mean_update, asked.plan.local_steps, asked.plan.learning_rate, share)


def resumed(run: Run, begun: RunState) -> RunState:
    """A state that was kept, as a run goes on from it with sums that nobody has seen: merchants take no number twice,
    and no round. So the round that may have been under way is over, without a step.
    """
    run.numbers.last += RESUMED_GAP
    run.sums.last += RESUMED_GAP * num_groups_of(run.agreement)
    for course in begun.courses:
        # Some merchants may have been asked for their scores in what was under way.
        run.sums.is_first_asked_to_score(course.state.server.weights)
    state = replace(begun, sequence=run.numbers.last, last_sum=run.sums.last)
    if len(state.training_rounds) >= run.agreement.training.rounds:
        return state
    names = tuple(merchant.name for merchant in begun.merchants)
    lost = RoundFinished(
        round=len(state.training_rounds) + 1,
        plan=begun.chosen or 0,
        seconds=0.0,
        cohort=names,
        dropped=dict.fromkeys(names, INTERRUPTED),
        aggregated=False,
        validation=None,
        train_loss=None,
        bytes_received=0,
        bytes_sent=0,
        abandoned=INTERRUPTED,
    )
    run.tell(lost)
    return state.with_round(lost)
