"""Defence by attack: every cell one whole federation of the real apps, measured on the honest merchants' test rows.

- A cell's model is the one that the run ends with, whichever that is under its defence.
- `loss` compares with the same defence unattacked, on the same rows: those of the merchants who are honest here.
- A backdoor's success is the share, of honest test rows of the other label that do not bear the trigger and are called
  right without it, that are called what the attacker wants with it; called so from the score on that has the best F1
  on honest validation rows. Its success on the unattacked model stands beside it: what the trigger says by itself.
- A defence that the agreement refuses, and a run that comes to no model, are cells too, with their reason.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from hansa_client.data import MerchantTable
from hansa_client.programs import Programs
from hansa_common.agreement import Agreement
from hansa_common.errors import AgreementError, RunFailedError
from hansa_common.features import FittedPreprocessing
from hansa_common.metrics import Metrics, metrics_from_histogram, score_histogram, scores_of
from hansa_common.robust_agreement import Robustness
from hansa_common.vectors import Vector
from hansa_server.federation import run_federation
from hansa_server.run_events import Event
from hansa_server.run_state import RunState
from hansa_simulations.attack_scenario import AttackScenario, named, under, why_not
from hansa_simulations.attackers import attack_generator, attacked_trainers
from hansa_simulations.attacks import Attack, Backdoor
from hansa_simulations.grid import LocalGrid, server_identity
from hansa_simulations.row_scores import Part, RowScorer
from hansa_simulations.scenario import simulated_hash_key

UNATTACKED: Final = "none"


@dataclass(frozen=True)
class Model:
    """What a run ended with, and how many of its rounds came to a step."""

    weights: Vector
    preprocessing: FittedPreprocessing
    num_steps: int


@dataclass(frozen=True)
class Cell:
    """One defence under one attack. Figures are None where `reason` says why there is no model, and for one class."""

    defence: str
    attack: str
    attackers: tuple[str, ...] = ()
    reason: str = ""
    pr_auc: float | None = None
    roc_auc: float | None = None
    unattacked_pr_auc: float | None = None
    backdoor: float | None = None
    unattacked_backdoor: float | None = None
    num_steps: int = 0

    @property
    def loss(self) -> float | None:
        """PR-AUC below the same defence unattacked."""
        if self.pr_auc is None or self.unattacked_pr_auc is None:
            return None
        return self.unattacked_pr_auc - self.pr_auc

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return {**vars(self), "attackers": list(self.attackers), "loss": self.loss}


class Trial:
    """Runs the cells of one scenario over one agreement's tables."""

    def __init__(
        self,
        scenario: AttackScenario,
        agreement: Agreement,
        tables: Mapping[str, MerchantTable],
        on_event: Callable[[Event], None] = lambda _: None,
    ) -> None:
        """Check that the scenario fits.

        Raises:
            UsageError: it does not.
        """
        scenario.check(agreement)
        self._scenario = scenario
        self._agreement = agreement
        self._tables = tables
        self._on_event = on_event
        self._programs = Programs.for_tables(agreement, *tables.values())
        self._scorer = self._scorer_of(tables)

    def cells(self, on_cell: Callable[[Cell], None], before: Callable[[str, str], None]) -> list[Cell]:
        """All cells, defence by defence, each first without attack; `before` hears what is to be run, `on_cell` what
        came of it.
        """
        found: list[Cell] = []
        for defence in self._scenario.all_defences:
            for cell in self._of_defence(defence, before):
                found.append(cell)
                on_cell(cell)
        return found

    def _of_defence(self, defence: Robustness, before: Callable[[str, str], None]) -> Iterator[Cell]:
        name = named(defence)
        try:
            agreement = under(self._agreement, defence)
        except AgreementError as error:
            for attack_name in (UNATTACKED, *self._scenario.attacks_by_name):
                yield Cell(name, attack_name, reason=why_not(error))
            return
        before(name, UNATTACKED)
        unattacked = self._model(agreement, (), None)
        yield self._cell(Cell(name, UNATTACKED), unattacked, unattacked, None)
        for attack_name, attack in self._scenario.attacks_by_name.items():
            before(name, attack_name)
            attackers = self._scenario.attackers_of(attack)
            attacked = self._model(agreement, attackers, attack)
            yield self._cell(Cell(name, attack_name, attackers), attacked, unattacked, attack)

    def _model(self, agreement: Agreement, attackers: tuple[str, ...], attack: Attack | None) -> Model | str:
        """The model of one run, or why there is none."""
        attack = Attack() if attack is None else attack
        tables = dict(self._tables)
        for name in attackers:
            tables[name] = attack.rows(tables[name], attack_generator(agreement, name, "rows"))
        trainers = attacked_trainers(agreement, tables, self._programs.sharing(agreement), attackers, attack)
        try:
            with server_identity():
                grid = LocalGrid(trainers)
                run = run_federation(grid, agreement, RunState("attacked"), on_event=self._on_event)
        except RunFailedError as error:
            return f"no model: {error}"
        return Model(run.weights, run.preprocessing, sum(entry.aggregated for entry in run.rounds))

    def _cell(self, cell: Cell, model: Model | str, unattacked: Model | str, attack: Attack | None) -> Cell:
        honest = [name for name in self._agreement.roster if name not in cell.attackers]
        if isinstance(model, str):
            return replace(cell, reason=model)
        found, expected = (self._figures(m, honest) if isinstance(m, Model) else None for m in (model, unattacked))
        cell = replace(
            cell,
            num_steps=model.num_steps,
            pr_auc=None if found is None else found.pr_auc,
            roc_auc=None if found is None else found.roc_auc,
            unattacked_pr_auc=None if expected is None else expected.pr_auc,
        )
        if not isinstance(attack, Backdoor):
            return cell
        success, by_itself = (
            self._success(m, honest, attack) if isinstance(m, Model) else None for m in (model, unattacked)
        )
        return replace(cell, backdoor=success, unattacked_backdoor=by_itself)

    def _figures(self, model: Model, merchants: Sequence[str], part: Part = "test") -> Metrics | None:
        logits, labels = self._scored(self._scorer, model, merchants, part)
        return metrics_from_histogram(score_histogram(logits, labels))

    def _success(self, model: Model, merchants: Sequence[str], attack: Backdoor) -> float | None:
        validation = self._figures(model, merchants, "validation")
        if validation is None:
            return None
        threshold = validation.best_f1_threshold
        stamped = self._scorer_of({name: _all_stamped(self._tables[name], attack) for name in merchants})
        plain_logits, labels = self._scored(self._scorer, model, merchants, "test")
        stamped_logits, _ = self._scored(stamped, model, merchants, "test")
        bears = np.concatenate([attack.trigger.is_in(self._tables[n].columns)[self._tables[n].test] for n in merchants])
        plain, with_trigger = scores_of(plain_logits) >= threshold, scores_of(stamped_logits) >= threshold
        judged = (labels != attack.positive) & (plain != attack.positive) & ~bears
        return float(np.mean(with_trigger[judged] == attack.positive)) if judged.any() else None

    def _scored(
        self, scorer: RowScorer, model: Model, merchants: Sequence[str], part: Part
    ) -> tuple[NDArray[np.float32], NDArray[np.uint8]]:
        logits = [scorer.logits(name, part, model.weights, model.preprocessing) for name in merchants]
        return np.concatenate(logits), np.concatenate([scorer.labels(name, part) for name in merchants])

    def _scorer_of(self, tables: Mapping[str, MerchantTable]) -> RowScorer:
        return RowScorer(tables, self._programs, simulated_hash_key(self._agreement.seed))


def _all_stamped(table: MerchantTable, attack: Backdoor) -> MerchantTable:
    rows = np.arange(len(table.labels), dtype=np.int64)
    return replace(table, columns=attack.trigger.stamped(table.columns, rows))
