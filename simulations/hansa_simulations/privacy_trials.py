"""Private federations tried on a table in this process: what a model, a plan and a noise come to at an epsilon.

- A trial is the run itself (the same apps, statistics, noise and rounds), but for its folder and its figures, which a
  simulation takes from the rows: of validation rows to choose by, of test rows to tell.
- What is tried is not accounted for: each trial sees the rows again. So the table must be a public one, or one's own,
  that stands for the merchants'.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from hansa_client.data import MerchantTable
from hansa_client.guarded_trainer import in_process
from hansa_client.programs import Programs
from hansa_common.agreement import Agreement
from hansa_common.agreement_sections import Model
from hansa_common.errors import RunFailedError
from hansa_common.metrics import Metrics, metrics_from_histogram, score_histogram
from hansa_server.federation import run_federation
from hansa_server.run_state import RunState
from hansa_simulations.grid import LocalGrid, server_identity
from hansa_simulations.row_scores import Part, RowScorer
from hansa_simulations.scenario import simulated_hash_key, simulated_merchants


@dataclass(frozen=True)
class Tried:
    """An agreement and what its model does on everyone's validation and test rows; None where it came to no model."""

    agreement: Agreement
    validation: Metrics | None
    test: Metrics | None

    @property
    def validation_pr_auc(self) -> float:
        """What is chosen by; below every figure where there is none."""
        return -1.0 if self.validation is None else self.validation.pr_auc


@dataclass(frozen=True)
class Trials:
    """Runs agreements over the same tables; what is compiled for a network and a step serves all that share them."""

    tables: Mapping[str, MerchantTable]
    _programs: dict[Model, Programs] = field(default_factory=dict)

    def tried(self, agreement: Agreement) -> Tried:
        """Run one agreement to its end."""
        programs = self._programs_of(agreement)
        grid = LocalGrid(in_process(agreement, simulated_merchants(agreement, self.tables, programs)))
        try:
            with server_identity():
                found = run_federation(grid, agreement, RunState("trial"), on_event=lambda _: None)
        except RunFailedError:
            # Nobody's training came to a finite model: a learning rate too high, most of the time.
            return Tried(agreement, None, None)
        scorer = RowScorer(self.tables, programs, simulated_hash_key(agreement.seed))

        def metrics(part: Part) -> Metrics | None:
            logits = [scorer.logits(name, part, found.weights, found.preprocessing) for name in agreement.roster]
            labels = [scorer.labels(name, part) for name in agreement.roster]
            scores = np.nan_to_num(np.concatenate(logits))
            return metrics_from_histogram(score_histogram(scores, np.concatenate(labels)))

        return Tried(agreement, metrics("validation"), metrics("test"))

    def _programs_of(self, agreement: Agreement) -> Programs:
        if agreement.model not in self._programs:
            self._programs[agreement.model] = Programs.for_tables(agreement, *self.tables.values())
        return self._programs[agreement.model].sharing(agreement)
