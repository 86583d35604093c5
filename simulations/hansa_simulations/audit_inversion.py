"""Inversion of updates: how many cells of a merchant's rows its update of one round tells the coordinator.

Attacked is the first round of the merchant with the fewest training rows, from the weights that everybody knows:

the run's round       all its training rows, under the run's plan: what really leaves
one batch             as many of its rows as a batch has, one plain step
one row               one of its rows, one plain step: here the attack works, so that it is known to be one

A cell counts as told where the category or the boolean is the row's, or the number is within TOLERANCE standard
deviations (Vero et al., 2023). Guessed rows are paired with true ones greedily, the best pair first, so that a guess
gets the row that it resembles most; so are both baselines, rows of cells drawn each for itself from the test rows'
marginals, and the row of the most usual cells. Of a round with more rows than MAX_GUESSED, so many are guessed, each
from any of the rows.

What the attacker does is audit_gradients.py's. Under secure aggregation no merchant's update leaves, and with
[privacy.dp] it leaves with noise; the round that is attacked here is the merchant's own answer, whatever that holds.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from hansa_client.data import MerchantTable
from hansa_client.halting import Halt
from hansa_client.programs import Programs
from hansa_client.training_loop import backend
from hansa_client.training_program import StepSettings
from hansa_common.agreement import Agreement, validate_agreement
from hansa_common.bootstrap import Interval
from hansa_common.errors import UsageError
from hansa_common.features import FittedPreprocessing
from hansa_common.messages import RoundOrder, RoundReply, decode, encode, message_hash
from hansa_common.model import ModelSpec, initial_weights
from hansa_common.randomness import generator
from hansa_common.vectors import Vector
from hansa_simulations.audit_gradients import Block, Floats, GradientMatch, layout, read_off
from hansa_simulations.audit_shadows import as_plain_rounds
from hansa_simulations.scenario import simulated_hash_key, simulated_merchants

TOLERANCE: Final = 0.319
MAX_GUESSED: Final = 64
ONE_ROW_TRIALS: Final = 20
ONE_BATCH_TRIALS: Final = 3
_BASELINE_DRAWS: Final = 20
_RESAMPLES: Final = 2000
READ_OFF: Final = "read off"
MATCHED: Final = "matched"


@dataclass(frozen=True)
class Inversion:
    """One attack at one size: shares of cells told, by the attack and by the baselines, means over the guessed rows of
    all trials with bootstrap intervals, and the share of rows told whole.
    """

    size: str
    attack: str
    num_rows: int
    num_trials: int
    told: Interval
    guessed: Interval
    most_usual: Interval
    whole_rows: float

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        counts = {name: getattr(self, name) for name in ("size", "attack", "num_rows", "num_trials", "whole_rows")}
        shares = {name: getattr(self, name).to_json() for name in ("told", "guessed", "most_usual")}
        return {**counts, **shares}


class Inverter:
    """Attacks the first round of one merchant of a run."""

    def __init__(
        self, agreement: Agreement, tables: Mapping[str, MerchantTable], preprocessing: FittedPreprocessing
    ) -> None:
        """Choose the merchant, and fit the baseline to everyone's test rows.

        Raises:
            UsageError: Keras' backend is another than TensorFlow.
        """
        _check_backend()
        self.merchant = min(agreement.roster, key=lambda name: len(tables[name].train))
        self._agreement = as_plain_rounds(agreement)
        self._table = tables[self.merchant]
        self._preprocessing = preprocessing
        self._blocks, _ = layout(agreement.features)
        self._spec = ModelSpec.from_agreement(agreement)
        self._weights = initial_weights(self._spec, agreement.seed)
        marginal = np.concatenate([self._shown(table, table.test) for table in tables.values()])
        self._baseline = Marginals(marginal, self._blocks)

    def inverted(self) -> tuple[Inversion, ...]:
        """All sizes, each by both attacks."""
        plan = self._agreement.training.plans[0]
        own = len(self._table.train)
        sizes = (
            ("the run's round", own, 1, self._agreement),
            ("one batch", min(plan.batch_size, own), ONE_BATCH_TRIALS, one_plain_step(self._agreement)),
            ("one row", 1, ONE_ROW_TRIALS, one_plain_step(self._agreement)),
        )
        return tuple(found for size in sizes for found in self._at(*size))

    def _at(self, size: str, num_rows: int, num_trials: int, agreement: Agreement) -> tuple[Inversion, ...]:
        rng = generator(agreement.seed, "audit", "inversion", size)
        plan = agreement.training.plans[0]
        match = GradientMatch(StepSettings(self._spec, agreement.model, plan), agreement.features)
        programs = Programs.for_tables(agreement, self._table)
        right: dict[str, list[NDArray[np.float64]]] = {READ_OFF: [], MATCHED: []}
        guessed, usual = [], []
        for _ in range(num_trials):
            rows = np.sort(rng.choice(self._table.train, num_rows, replace=False))
            update = self._update(agreement, programs, rows)
            labels = self._table.labels[rows]
            if num_rows > MAX_GUESSED:
                labels = rng.choice(labels, MAX_GUESSED, replace=False)
            true = self._shown(self._table, rows)
            guesses = {
                READ_OFF: self._padded(read_off(self._spec, update, len(labels)), rng),
                MATCHED: match.matched(self._weights, update, labels, rng),
            }
            for attack, guess in guesses.items():
                right[attack].append(self._baseline.shares_right(guess, true))
            draws = [self._baseline.drawn(len(labels), rng) for _ in range(_BASELINE_DRAWS)]
            guessed.append(np.mean([self._baseline.shares_right(draw, true) for draw in draws], axis=0))
            usual.append(self._baseline.shares_right(self._baseline.most_usual(len(labels)), true))
        return tuple(
            Inversion(
                size,
                attack,
                num_rows,
                num_trials,
                told=_mean(shares, rng),
                guessed=_mean(guessed, rng),
                most_usual=_mean(usual, rng),
                whole_rows=float(np.mean(np.concatenate(shares) == 1.0)),
            )
            for attack, shares in right.items()
        )

    def _update(self, agreement: Agreement, programs: Programs, rows: NDArray[np.int64]) -> Vector:
        """What the merchant answers in the first round, were these its training rows."""
        table = replace(self._table, train=rows)
        trainer = simulated_merchants(agreement, dict.fromkeys(agreement.roster, table), programs)[self.merchant]
        is_scaffold = agreement.training.plans[0].algorithm == "scaffold"
        order = RoundOrder(
            run_id="audit",
            sequence=1,
            recipient=self.merchant,
            fingerprint=agreement.fingerprint,
            deadline_seconds=agreement.cohort.deadline_seconds,
            round=1,
            plan=0,
            cohort=agreement.roster,
            preprocessing=self._preprocessing.to_json(),
            weights=self._weights,
            control=np.zeros_like(self._weights) if is_scaffold else np.zeros(0, np.float32),
            included="",
        )
        reply = decode(trainer.work(order, message_hash(encode(order)), Halt(math.inf)))
        if not isinstance(reply, RoundReply):
            raise TypeError(f"a round was answered with {reply.KIND}")
        return reply.update

    def _shown(self, table: MerchantTable, rows: NDArray[np.int64]) -> Floats:
        """(rows, width) true rows in the layout of a guess."""
        columns = {name: values[rows] for name, values in table.columns.items()}
        inputs = self._preprocessing.transform(columns, simulated_hash_key(self._agreement.seed))
        widths = [embedding.num_ids for embedding in self._spec.embeddings]
        ids = [inputs.ids[:, place, None] == np.arange(width) for place, width in enumerate(widths)]
        return np.concatenate([inputs.dense, *ids], axis=1).astype(np.float32)

    def _padded(self, dense: Floats, rng: np.random.Generator) -> Floats:
        """What was read off, and of embedded features what the baseline says."""
        whole = self._baseline.drawn(len(dense), rng)
        whole[:, : dense.shape[1]] = dense
        return whole


class Marginals:
    """How usual each cell is by itself, and when a cell counts as told."""

    def __init__(self, rows: Floats, blocks: tuple[Block, ...]) -> None:
        """Take rows (rows, width) in a guess' layout."""
        self._rows = rows
        self._blocks = blocks
        self._reach = TOLERANCE * rows.std(axis=0)

    def drawn(self, num_rows: int, rng: np.random.Generator) -> Floats:
        """(num_rows, width) rows of cells that know nothing of each other."""
        found = np.zeros((num_rows, self._rows.shape[1]), np.float32)
        for block in self._blocks:
            columns = slice(block.start, block.start + block.width)
            found[:, columns] = self._rows[rng.integers(len(self._rows), size=num_rows), columns]
        return found

    def most_usual(self, num_rows: int) -> Floats:
        """(num_rows, width) the same row each time: of each block the commonest category, or the median."""
        row = np.median(self._rows, axis=0)
        for block in self._blocks:
            if block.kind == "one_hot":
                columns = self._rows[:, block.start : block.start + block.width]
                row[block.start : block.start + block.width] = columns.mean(axis=0)
        return np.tile(row.astype(np.float32), (num_rows, 1))

    def shares_right(self, guess: Floats, true: Floats) -> NDArray[np.float64]:
        """(guessed,) the share of each guessed row's cells that are told, once paired with true rows (rows, width)."""
        cells = [self._right(block, guess, true) for block in self._blocks if block.kind != "flag"]
        left = np.mean(cells, axis=0)
        found = np.zeros(len(guess))
        for _ in range(min(left.shape)):
            one, other = np.unravel_index(left.argmax(), left.shape)
            found[one] = left[one, other]
            left[one, :], left[:, other] = -1.0, -1.0
        return found

    def _right(self, block: Block, guess: Floats, true: Floats) -> NDArray[np.bool_]:
        """(guessed, rows) whether a block says the same."""
        columns = slice(block.start, block.start + block.width)
        one, other = guess[:, None, columns], true[None, :, columns]
        match block.kind:
            case "one_hot":
                return np.asarray(one.argmax(axis=2) == other.argmax(axis=2))
            case "boolean":
                return np.asarray(np.sign(one[:, :, 0]) == np.sign(other[:, :, 0]))
        return np.asarray((np.abs(one - other) <= self._reach[columns]).all(axis=2))


def one_plain_step(agreement: Agreement) -> Agreement:
    """An agreement under which a merchant's round is one step of SGD over all its rows, without noise."""
    values = agreement.model_dump(mode="json")
    plan = {"optimizer": "sgd", "learning_rate": 0.1, "local_epochs": 1}
    plan["batch_size"] = agreement.training.plans[0].batch_size
    values["training"] |= {"algorithm": "fedavg", "candidates": [], "plan": plan}
    values["privacy"]["dp"] = None
    return validate_agreement(values, "one plain step")


def _mean(shares: list[NDArray[np.float64]], rng: np.random.Generator) -> Interval:
    every = np.concatenate(shares)
    means = every[rng.integers(len(every), size=(_RESAMPLES, len(every)))].mean(axis=1)
    low, high = np.quantile(means, [0.025, 0.975])
    return Interval(float(every.mean()), float(low), float(high))


def _check_backend() -> None:
    if backend() != "tensorflow":
        raise UsageError(
            f"inversion takes the gradient of a gradient with TensorFlow, and KERAS_BACKEND is {backend()!r}; say "
            "--no-inversion, or set KERAS_BACKEND=tensorflow"
        )
