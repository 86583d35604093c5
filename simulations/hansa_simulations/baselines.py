"""What merchants would have without the federation: each one alone, and all rows pooled in one place.

A baseline is a federation of one merchant: the same engine, model, preprocessing by its own statistics, row splits,
seed and number of rounds. It gets the better deal wherever there is a choice, so that a federation's gain is not made
of a baseline's neglect:

- every plan of `baseline_plans` trains to its end or its early stop, each in the full number of rounds, and the
  model with the best PR-AUC on validation rows is kept (a federation's own candidates share its rounds);
- nothing that the agreement has for the sake of others holds: no floor withholds a count, no deadline or norm drops
  an update.

Test rows have no part in the choice. What the models are compared by is comparison.py's.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Final

import numpy as np

from hansa_client.data import MerchantTable
from hansa_client.guarded_trainer import in_process
from hansa_client.programs import Programs
from hansa_client.quality import measure_quality
from hansa_client.trainer import MerchantTrainer
from hansa_client.variates import VariateStore
from hansa_common.agreement import Agreement, validate_agreement
from hansa_common.agreement_sections import Plan
from hansa_common.errors import RunFailedError
from hansa_common.features import FittedPreprocessing
from hansa_common.vectors import Vector
from hansa_server.federation import run_federation
from hansa_server.run_state import RunState
from hansa_simulations.grid import LocalGrid, server_identity

POOLED: Final = "pooled"
# Beside the agreement's own plans; with its batch size and local epochs.
_COMMON_PLANS: Final = (
    {"optimizer": "adam", "learning_rate": 1e-3},
    {"optimizer": "momentum", "learning_rate": 0.03},
    {"optimizer": "sgd", "learning_rate": 0.1},
)
_WORK: Final = ("batch_size", "local_epochs", "local_steps")
_NO_LIMIT: Final = 1e6


@dataclass(frozen=True)
class AloneModel:
    """The best model of one merchant alone, or of the pool, by validation rows."""

    plan: Plan
    best_round: int
    validation_pr_auc: float | None
    weights: Vector
    preprocessing: FittedPreprocessing

    def to_json(self) -> dict[str, Any]:
        """What was chosen, in plain values."""
        keys = ("optimizer", "learning_rate", "batch_size", "local_epochs", "local_steps")
        plan = {key: getattr(self.plan, key) for key in keys if getattr(self.plan, key) is not None}
        return {"plan": plan, "best_round": self.best_round, "validation_pr_auc": self.validation_pr_auc}


def baseline_plans(agreement: Agreement) -> tuple[Plan, ...]:
    """The plans that a baseline tries: the agreement's own, as one merchant trains them, and three common ones.

    With one merchant every federated algorithm but for FedProx and a server's optimizer is plain local training;
    those two only slow it down, so all become FedAvg.
    """
    own = [
        {"optimizer": plan.optimizer, "learning_rate": plan.learning_rate, "momentum": plan.momentum}
        | {key: getattr(plan, key) for key in _WORK}
        for plan in agreement.training.plans
    ]
    first = {key: own[0][key] for key in _WORK}
    plans = [Plan.model_validate(values) for values in (*own, *({**first, **common} for common in _COMMON_PLANS))]
    return tuple(dict.fromkeys(plans))


def pooled_table(tables: Sequence[MerchantTable], agreement: Agreement) -> MerchantTable:
    """All rows in one table: a row of a part (train, validation, test) at its merchant is in that part of the pool."""
    starts = np.cumsum([0, *(len(table.labels) for table in tables)])
    parts = {
        part: np.concatenate([getattr(table, part) + start for table, start in zip(tables, starts, strict=False)])
        for part in ("train", "validation", "test")
    }
    columns = {name: np.concatenate([table.columns[name] for table in tables]) for name in tables[0].columns}
    labels = np.concatenate([table.labels for table in tables])
    quality = measure_quality(
        columns,
        labels,
        agreement.features,
        duplicates=sum(table.quality.duplicates for table in tables),
        duplicates_removed=tables[0].quality.duplicates_removed,
    )
    return MerchantTable(columns=columns, labels=labels, quality=quality, **parts)


class Baselines:
    """Trains baselines of one agreement; each plan is compiled once for all merchants and the pool."""

    def __init__(
        self,
        agreement: Agreement,
        tables: Mapping[str, MerchantTable],
        hash_key: bytes,
        programs: Programs,
        on_trained: Callable[[str], None] = lambda _: None,
    ) -> None:
        """Take the merchants' tables, and the federation's programs, which must have room for whoever is trained.

        `on_trained` hears a name each time that one of its plans has been trained.
        """
        self.plans = baseline_plans(agreement)
        self._agreement = agreement
        self._tables = tables
        self._hash_key = hash_key
        self._on_trained = on_trained
        # What a program depends on, model and plan, is the same for whoever trains alone.
        self._programs = [programs.sharing(_alone(agreement, POOLED, plan)) for plan in self.plans]

    def local(self, merchant: str) -> AloneModel:
        """The merchant's best model on its own rows.

        Raises:
            RunFailedError: no plan led to a model.
        """
        return self._best(merchant, self._tables[merchant])

    @cached_property
    def pooled(self) -> AloneModel:
        """The best model on all rows in one place.

        Raises:
            RunFailedError: no plan led to a model.
        """
        return self._best(POOLED, pooled_table(list(self._tables.values()), self._agreement))

    def _best(self, name: str, table: MerchantTable) -> AloneModel:
        models, failures = [], []
        for index in range(len(self.plans)):
            try:
                models.append(self._trained(name, table, index))
            except RunFailedError as error:
                # A learning rate that diverges here is not this one's to be judged by.
                failures.append(str(error))
            self._on_trained(name)
        if not models:
            raise RunFailedError(f"no plan trained the baseline {name!r}: {'; '.join(dict.fromkeys(failures))}")
        return max(models, key=lambda model: model.validation_pr_auc or 0.0)

    def _trained(self, name: str, table: MerchantTable, index: int) -> AloneModel:
        agreement = _alone(self._agreement, name, self.plans[index])
        trainer = MerchantTrainer(
            agreement, name, table, hash_key=self._hash_key, state=VariateStore(), programs=self._programs[index]
        )
        with server_identity():
            grid = LocalGrid(in_process(agreement, {name: trainer}))
            trained = run_federation(grid, agreement, RunState(name), on_event=lambda _: None)
        validation = trained.model.validation
        return AloneModel(
            self.plans[index],
            trained.model.round,
            None if validation is None else validation.pr_auc,
            trained.weights,
            trained.preprocessing,
        )


def _alone(agreement: Agreement, name: str, plan: Plan) -> Agreement:
    """The agreement of a federation of one."""
    values = agreement.model_dump(mode="json")
    values["roster"] = [name]
    values["training"] |= {"algorithm": "fedavg", "candidates": [], "plan": plan.model_dump(mode="json")}
    values["cohort"] = {"min_merchants": 1, "deadline_seconds": _NO_LIMIT, "max_update_norm": _NO_LIMIT}
    values["compression"] = {"format": "none"}
    values |= {"secure_aggregation": {"protocol": "none"}, "robustness": {"rule": "mean"}}
    values["privacy"] |= {"min_count": 1, "min_positives": 1, "share_metrics": False}
    if agreement.privacy.dp is not None:
        # Alone, nobody shares it.
        values["privacy"]["dp"] |= {"noise": "own"}
    return validate_agreement(values, f"the baseline {name!r}")
