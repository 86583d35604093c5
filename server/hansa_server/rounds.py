"""One round: draw the cohort, send the model, collect replies until all came or the deadline, average, step.

Guarantees, whatever merchants do:

- the bytes of the new state depend on the accepted replies alone, not on when they came: they are taken in roster
  order, in float64, and averaged each at once, so that no more than a few updates are in memory; what another rule than
  the mean holds, and what it makes of them, is robust_rounds.py's;
- a reply is believed only within the bounds of replies.py; the others are left out and named;
- with fewer accepted replies than cohort.min_merchants, or than the rule needs, the state stays as it is, and what
  these few say about validation is not told, for it would be about them.

Which rounds there are, and which model is kept, is federation.py's.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from hansa_common.agreement_sections import Plan
from hansa_common.messages import RoundOrder, RoundReply
from hansa_common.metrics import HISTOGRAM_LENGTH, Histogram, metrics_from_histogram
from hansa_common.pruning import Packed
from hansa_common.randomness import generator
from hansa_common.record_types import Reply, Stage
from hansa_common.vectors import Vector, l2_norm
from hansa_server.aggregation import WeightedSum
from hansa_server.algorithms import ServerState, step
from hansa_server.participants import Heard, Merchant, Run
from hansa_server.replies import RoundBounds, check_round_reply, max_control_norm, max_split_rows
from hansa_server.robust_rounds import Gathering, gathering
from hansa_server.run_events import ReplyReceived, RoundFinished, RoundStarted


@dataclass(frozen=True)
class PlanState:
    """What one plan carries from round to round: the model, and the hash of each merchant's last reply that entered
    an average of this plan, by which a merchant knows that its SCAFFOLD variate counts.
    """

    server: ServerState
    included: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Round:
    """What one round asks: its number in the run, the plan by its index, and the state that goes in; in the stage of
    pruning the packed masks too (pruning.py).
    """

    number: int
    plan_index: int
    plan: Plan
    preprocessing: str
    state: PlanState
    stage: Stage = "train"
    masks: Packed = field(default_factory=lambda: np.zeros(0, np.uint8))

    @property
    def control(self) -> Vector:
        """SCAFFOLD's server variate as merchants get it; empty for other algorithms."""
        return self.state.server.control.astype(np.float32)


def run_round(run: Run, merchants: tuple[Merchant, ...], asked: Round) -> tuple[PlanState, RoundFinished]:
    """Run one round with a cohort of these registered merchants, given in roster order."""
    began = run.exchange.clock.now()
    cohort = draw_cohort(merchants, run.agreement.cohort.size, run.agreement.seed, asked.number)
    names = tuple(merchant.name for merchant in cohort)
    run.tell(RoundStarted(asked.number, asked.plan_index, names, asked.stage))
    tally = _collect(run, cohort, asked)
    aggregated = tally.updates.is_enough
    decided = tally.updates.decided() if aggregated else None
    finished = RoundFinished(
        round=asked.number,
        plan=asked.plan_index,
        seconds=run.exchange.clock.now() - began,
        cohort=names,
        dropped=tally.dropped,
        aggregated=aggregated,
        validation=metrics_from_histogram(tally.validation) if aggregated else None,
        # Under [privacy.dp] no loss leaves a merchant, and what stands in its place is no figure.
        train_loss=tally.train_loss if aggregated and run.agreement.privacy.dp is None else None,
        bytes_received=tally.bytes_received,
        bytes_sent=tally.bytes_sent,
        stage=asked.stage,
        selected=() if decided is None else decided.selected,
    )
    run.tell(finished)
    if decided is None:
        return asked.state, finished
    num_all_rows = sum(merchant.num_train_rows for merchant in merchants)
    server = step(asked.state.server, asked.plan, decided.step, tally.controls.divided_by(num_all_rows))
    return PlanState(server, {**asked.state.included, **tally.included}), finished


def draw_cohort(
    merchants: tuple[Merchant, ...], size: int | None, seed: int, round_number: int
) -> tuple[Merchant, ...]:
    """The merchants of one round, in the order given; all of them where size is None or not below their number."""
    if size is None or size >= len(merchants):
        return merchants
    drawn = generator(seed, "cohort", round_number).choice(len(merchants), size, replace=False)
    return tuple(merchants[place] for place in sorted(drawn.tolist()))


class _Tally:
    """What the replies of one round add up to."""

    def __init__(self, updates: Gathering, num_control_params: int) -> None:
        self.updates = updates
        self.controls = WeightedSum(num_control_params)
        self.validation: Histogram = np.zeros(HISTOGRAM_LENGTH, np.int64)
        self.included: dict[str, str] = {}
        self.dropped: dict[str, str] = {}
        self.bytes_received = 0
        self.bytes_sent = 0
        self._loss_sum, self._num_rows = 0.0, 0

    def take(self, heard: Heard[RoundReply]) -> None:
        """Add one merchant's reply, or note why there is none."""
        self.bytes_received += heard.answer.bytes_received
        self.bytes_sent += heard.answer.sent.num_bytes
        if heard.reply is None:
            self.dropped[heard.merchant.name] = heard.reason
            return
        num_rows = heard.merchant.num_train_rows
        self.updates.add(heard.merchant.name, heard.reply.update, num_rows)
        self.controls.add(heard.reply.control_delta, num_rows)
        self.validation += heard.reply.validation
        self.included[heard.merchant.name] = heard.answer.reply_hash
        self._loss_sum += num_rows * heard.reply.train_loss
        self._num_rows += num_rows

    @property
    def train_loss(self) -> float | None:
        """Mean local training loss by rows; None where merchants' claims add up to no number."""
        mean = self._loss_sum / self._num_rows
        return mean if math.isfinite(mean) else None


def _collect(run: Run, cohort: tuple[Merchant, ...], asked: Round) -> _Tally:
    control, names = asked.control, tuple(merchant.name for merchant in cohort)
    limits, weights = run.agreement.cohort, asked.state.server.weights
    longest_delta = max_control_norm(l2_norm(control), limits.max_update_norm, asked.plan.learning_rate)

    def order(merchant: Merchant) -> RoundOrder:
        return RoundOrder(
            **run.header(merchant.name),
            round=asked.number,
            plan=asked.plan_index,
            cohort=names,
            preprocessing=asked.preprocessing,
            weights=weights,
            control=control,
            included=asked.state.included.get(merchant.name, ""),
            stage=asked.stage,
            masks=asked.masks,
        )

    def check(merchant: Merchant, reply: Reply) -> RoundReply:
        rows = merchant.num_train_rows
        bounds = RoundBounds(
            round=asked.number,
            num_train_rows=rows,
            max_validation_rows=max_split_rows(run.agreement.data, "validation", rows, limits.max_examples),
            max_update_norm=limits.max_update_norm,
            num_params=weights.size,
            num_control_params=control.size,
            max_control_norm=longest_delta,
        )
        return check_round_reply(reply, bounds)

    tally = _Tally(gathering(run.agreement, names, asked.number, weights.size), control.size)
    for heard in run.ask(f"round {asked.number}", cohort, order, check):
        tally.take(heard)
        run.tell(ReplyReceived(asked.number, heard.merchant.name))
    return tally
