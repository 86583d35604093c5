"""Choices of compression for a finished run: each one made, judged by its merchants and measured, and which is best.

- A choice is the run's agreement with another sparsity. It is made by the coordinator's and the merchants' own code,
  from the kept model on (refinishing.py), so that it is what a run under that agreement would have ended with.
- int8 without pruning always comes first, as the choice that costs nothing but its rounding.
- A choice is allowed where the run's own gate releases it: the federation's loss on validation rows is at most the
  asked one, and no merchant's own is too large. Validation rows choose; figures on test rows stand beside.
- Where the highest sparsity that was asked for is not allowed, the highest one that is, in steps of 5 %, is looked for
  between the last that was and the first that was not. So the outcome says what the data can carry.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from hansa_client.data import MerchantTable
from hansa_client.guarded_trainer import in_process
from hansa_client.programs import Programs
from hansa_common.agreement import Agreement, validate_agreement
from hansa_common.bootstrap import Interval, paired_bootstrap
from hansa_common.metrics import score_bins
from hansa_common.randomness import generator
from hansa_common.vectors import Vector
from hansa_server.compression import CompressionReport
from hansa_server.finishing import Finished, Trained
from hansa_server.refinishing import finish_again
from hansa_server.run_events import Event
from hansa_server.run_folder import FinishedRun
from hansa_simulations.comparison import Logits, ScoredRows, comparison
from hansa_simulations.grid import LocalGrid, server_identity
from hansa_simulations.row_scores import Part, RowScorer
from hansa_simulations.scenario import simulated_hash_key, simulated_merchants

SEARCH_STEPS: Final = 20
INT8_ONLY: Final = 0.0


@dataclass(frozen=True)
class Limits:
    """What every choice is made under: the loss of validation PR-AUC that is allowed, and rounds until the sparsity."""

    max_loss: float
    pruning_rounds: int


@dataclass(frozen=True)
class Choice:
    """One choice: what came of it under its agreement, and what it costs in PR-AUC on validation rows, with intervals.

    `loss` is the kept model minus the small one, None where none was made; `control_loss` the kept model minus the
    control, which had the same rounds and no masks. `found` holds what comparison.py finds of it on test rows, and
    `stages` the areas there of the pruned model, not quantized, and of the control. `asked` is False for a choice that
    was tried on the way to what the data can carry.
    """

    sparsity: float
    asked: bool
    agreement: Agreement
    finished: Finished
    loss: Interval | None
    control_loss: Interval | None
    found: Mapping[str, Any]
    stages: Mapping[str, Any]

    @property
    def is_allowed(self) -> bool:
        """Whether the merchants let it go."""
        return self.finished.released is not None

    @property
    def report(self) -> CompressionReport | None:
        """What was found in its files, None where there are none."""
        return None if self.finished.compressed is None else self.finished.compressed.report

    def to_json(self) -> dict[str, Any]:
        """Plain values, in the words of metrics.json where it has them."""
        report = self.report
        sizes = ("bytes", "gzip_bytes", "float32_bytes", "sparsity")
        return {
            "sparsity": self.sparsity,
            "asked": self.asked,
            "agreement_fingerprint": self.agreement.fingerprint,
            "allowed": self.is_allowed,
            "reason": self.finished.refusal,
            "validation": {"loss": _plain(self.loss), "control_loss": _plain(self.control_loss)},
            "test": {"compressed": self.found.get("compressed"), **self.stages},
            "bundle": None if report is None else {name: getattr(report, name) for name in sizes},
            "compression": self.finished.to_json()["compression"],
        }


def smallest_allowed(choices: Iterable[Choice]) -> Choice | None:
    """The allowed choice with the fewest bytes after gzip; of equal ones the one that loses least."""
    allowed = [choice for choice in choices if choice.is_allowed]
    return min(allowed, key=lambda choice: (_size(choice), _estimate(choice)), default=None)


def least_lossy(choices: Iterable[Choice]) -> Choice | None:
    """The choice that loses least, allowed or not; None where no small model was made at all."""
    return min((choice for choice in choices if choice.loss is not None), key=_estimate, default=None)


def with_search(try_one: Callable[[float, bool], Choice], asked: Sequence[float]) -> tuple[Choice, ...]:
    """Try int8 alone, what was asked, and then what the module's last promise says; by rising sparsity.

    `try_one` gets a sparsity and whether it was asked for.
    """
    choices = {sparsity: try_one(sparsity, True) for sparsity in sorted({INT8_ONLY, *asked})}
    while (between := next_to_try({sparsity: choice.is_allowed for sparsity, choice in choices.items()})) is not None:
        choices[between] = try_one(between, False)
    return tuple(choices[sparsity] for sparsity in sorted(choices))


def next_to_try(allowed: Mapping[float, bool]) -> float | None:
    """The sparsity that halves what is not known yet; None where the highest is allowed, none is, or no step is left.

    >>> next_to_try({0.0: True, 0.5: True, 0.8: False}), next_to_try({0.0: True, 0.75: True, 0.8: False})
    (0.65, None)
    """
    highest = max((sparsity for sparsity, is_allowed in allowed.items() if is_allowed), default=None)
    if highest is None:
        return None
    refused = [sparsity for sparsity in allowed if sparsity > highest]
    steps = [step / SEARCH_STEPS for step in range(SEARCH_STEPS)]
    between = [step for step in steps if refused and highest < step < min(refused)]
    return between[len(between) // 2] if between else None


class Trial:
    """Makes choices of one finished run over its merchants' tables."""

    def __init__(
        self,
        run: FinishedRun,
        tables: Mapping[str, MerchantTable],
        limits: Limits,
        on_event: Callable[[Event], None] = lambda _: None,
    ) -> None:
        """Take the tables that the run was made from, by merchant; each choice checks that they are."""
        self._run = run
        self._tables = tables
        self._limits = limits
        self._on_event = on_event
        self._programs = Programs.for_tables(run.agreement, *tables.values())
        self._scorer = RowScorer(tables, self._programs, simulated_hash_key(run.agreement.seed))

    def made(self, sparsity: float, asked: bool) -> Choice:
        """Make the small model of one sparsity, have it judged, and measure it.

        Raises:
            AgreementError: the network has no hidden layer to prune.
            UsageError: the tables are not those of the run.
            RunFailedError: the merchants' statistics do not do.
        """
        agreement = with_compression(self._run.agreement, sparsity, self._limits)
        trained = Trained(
            self._run.weights,
            self._run.preprocessing.to_json(),
            int(self._run.metrics["plan_index"]),
            len(self._run.metrics["rounds"]),
        )
        merchants = simulated_merchants(agreement, self._tables, self._programs.sharing(agreement))
        name = f"{self._run.metrics['run_id']} at {sparsity:g}"
        grid = LocalGrid(in_process(agreement, merchants))
        with server_identity():
            finished = finish_again(grid, agreement, trained, run_id=name, on_event=self._on_event)
        return self._measured(Choice(sparsity, asked, agreement, finished, None, None, {}, {}))

    def _measured(self, choice: Choice) -> Choice:
        pruning, stages = choice.finished.pruning, {}
        if pruning is not None and pruning.model is not None and pruning.control is not None:
            stages = pruning.to_json()["test"]
            choice = replace(choice, control_loss=self._loss(self._float("validation", pruning.control.weights)))
        if choice.finished.compressed is None:
            return replace(choice, stages=stages)
        network = choice.finished.compressed.int8_file
        return replace(
            choice,
            loss=self._loss(self._small("validation", network)),
            found=self._found(self._small("test", network)),
            stages=stages,
        )

    def _loss(self, other: Mapping[str, Logits]) -> Interval | None:
        """By how much a model's PR-AUC on everyone's validation rows is below the kept one's."""
        labels = np.concatenate([self._scorer.labels(name, "validation") for name in other])
        if labels.all() or not labels.any():
            return None
        kept = _binned(self._float("validation", self._run.weights))
        rng = generator(self._run.agreement.seed, "bootstrap", "choices")
        return paired_bootstrap(kept, _binned(other), labels, rng=rng)["pr_auc"]

    def _found(self, small: Mapping[str, Logits]) -> dict[str, Any]:
        kept = self._float("test", self._run.weights)
        rows = {
            name: ScoredRows(self._scorer.labels(name, "test"), kept[name], compressed=small[name]) for name in small
        }
        return comparison(rows, self._run.agreement.seed)

    def _float(self, part: Part, weights: Vector) -> dict[str, Logits]:
        prepared = self._run.preprocessing
        return {name: self._scorer.logits(name, part, weights, prepared) for name in self._run.agreement.roster}

    def _small(self, part: Part, network: bytes) -> dict[str, Logits]:
        prepared = self._run.preprocessing
        return {name: self._scorer.small_logits(name, part, network, prepared) for name in self._run.agreement.roster}


def with_compression(agreement: Agreement, sparsity: float, limits: Limits) -> Agreement:
    """The agreement of a choice: the same, and int8 with this sparsity under these limits; validated again."""
    values = agreement.model_dump(mode="json")
    values["compression"] |= {
        "format": "int8",
        "sparsity": sparsity,
        "pruning_rounds": limits.pruning_rounds,
        "max_pr_auc_loss": limits.max_loss,
    }
    return validate_agreement(values, f"the choice of {named(sparsity)}")


def named(sparsity: float) -> str:
    """A choice in a word or two.

    >>> named(0.8), named(0.0)
    ('80 % zeros', 'int8 alone')
    """
    return f"{100 * sparsity:.3g} % zeros" if sparsity else "int8 alone"


def _binned(logits: Mapping[str, Logits]) -> NDArray[np.int64]:
    """(rows,) everyone's rows as their histograms know them, so that a loss is exactly the gate's."""
    return score_bins(np.concatenate(list(logits.values())).astype(np.float64))


def _plain(interval: Interval | None) -> dict[str, float] | None:
    return None if interval is None else interval.to_json()


def _size(choice: Choice) -> int:
    return 0 if choice.report is None else choice.report.gzip_bytes


def _estimate(choice: Choice) -> float:
    return 0.0 if choice.loss is None else choice.loss.estimate
