"""Shadow federations: the run repeated over random halves of its rows, to know what is usual for a row, in or out.

- A shadow federation is the run's own: the same agreement, seed (it is in the agreement, so an attacker starts from the
  run's own weights too), apps, grid, statistics, rounds, patience and choice of the kept model. Only the training rows
  and the noise of private training are others, and no small model is made.
- The rows in question are the run's training rows and its test rows, at each merchant. Each of them trains in one half
  of the shadows, drawn from the seed. Validation rows stay what they are: they choose the model in the run and in every
  shadow.
- The same run and rows give the same bytes, in whatever order, and in however many processes, shadows are trained.

What is concluded is audit_membership.py's; dividing the work among processes is audit_workers.py's.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final

import numpy as np
from numpy.typing import NDArray

from hansa_client.data import MerchantTable
from hansa_client.guarded_trainer import in_process
from hansa_client.programs import Programs
from hansa_client.splits import Rows
from hansa_common.agreement import Agreement, validate_agreement
from hansa_common.errors import UsageError
from hansa_common.features import FittedPreprocessing
from hansa_common.randomness import derived_seed, generator
from hansa_common.vectors import Vector
from hansa_server.federation import run_federation
from hansa_server.run_state import RunState
from hansa_simulations.audit_membership import confidences, memberships
from hansa_simulations.grid import LocalGrid, server_identity
from hansa_simulations.row_scores import RowScorer
from hansa_simulations.scenario import simulated_hash_key, simulated_merchants

# Fewer, and a half of a merchant's could be none.
LEAST_MERCHANT_ROWS: Final = 16


@dataclass(frozen=True)
class Pool:
    """The rows in question, merchant by merchant in the order of the roster: their row numbers, labels (rows,) and
    whether the run was trained on them (rows,).
    """

    rows: Mapping[str, Rows]
    labels: NDArray[np.uint8]
    is_member: NDArray[np.bool_]

    @classmethod
    def of(cls, tables: Mapping[str, MerchantTable]) -> Pool:
        """Training rows, then test rows, of every merchant."""
        rows = {name: np.concatenate([table.train, table.test]) for name, table in tables.items()}
        labels = [tables[name].labels[chosen] for name, chosen in rows.items()]
        members = [np.arange(len(chosen)) < len(tables[name].train) for name, chosen in rows.items()]
        return cls(rows, np.concatenate(labels), np.concatenate(members))

    def scorer(self, tables: Mapping[str, MerchantTable], programs: Programs, hash_key: bytes) -> RowScorer:
        """What scores these rows, as the part `test`."""
        asked = {name: replace(table, test=self.rows[name]) for name, table in tables.items()}
        return RowScorer(asked, programs, hash_key)

    def divided(self, chosen: NDArray[np.bool_]) -> dict[str, Rows]:
        """A choice of all rows (rows,) as row numbers of each merchant, ascending."""
        ends = np.cumsum([len(rows) for rows in self.rows.values()])[:-1]
        return {
            name: np.sort(rows[part])
            for (name, rows), part in zip(self.rows.items(), np.split(chosen, ends), strict=True)
        }


class ShadowFederations:
    """Trains the shadow federations of a run over its merchants' tables; everything is compiled once."""

    def __init__(self, agreement: Agreement, tables: Mapping[str, MerchantTable], num_shadows: int) -> None:
        """Draw which rows are in which shadow.

        Raises:
            UsageError: a merchant has too few rows to be divided.
        """
        check_divisible(tables)
        self.pool = Pool.of(tables)
        rng = generator(agreement.seed, "audit", "memberships", num_shadows)
        self.is_in = memberships(num_shadows, len(self.pool.labels), rng)
        self._agreement = as_plain_rounds(agreement)
        self._tables = tables
        self._programs = Programs.for_tables(self._agreement, *tables.values())
        self._scorer = self.pool.scorer(tables, self._programs, simulated_hash_key(agreement.seed))

    def confidences(self, weights: Vector, preprocessing: FittedPreprocessing) -> NDArray[np.float64]:
        """(rows,) how sure a model (num_params,) is of the pool's rows."""
        logits = [self._scorer.logits(name, "test", weights, preprocessing) for name in self.pool.rows]
        return confidences(np.concatenate(logits), self.pool.labels)

    def trained(self, shadow: int) -> NDArray[np.float64]:
        """(rows,) how sure the model of one shadow federation is of the pool's rows.

        Raises:
            RunFailedError: the federation came to no model.
        """
        chosen = self.pool.divided(self.is_in[shadow])
        tables = {name: replace(table, train=chosen[name]) for name, table in self._tables.items()}
        # Where noise protects the run's rows, it is no attacker's to know.
        noise_seed = derived_seed(self._agreement.seed, "audit", "noise", shadow)
        merchants = simulated_merchants(self._agreement, tables, self._programs, noise_seed)
        grid = LocalGrid(in_process(self._agreement, merchants))
        with server_identity():
            found = run_federation(grid, self._agreement, RunState(f"shadow {shadow}"), on_event=lambda _: None)
        return self.confidences(found.weights, found.preprocessing)

    def each(self, shadows: Sequence[int]) -> Iterator[tuple[int, NDArray[np.float64]]]:
        """Train these shadows, one after the other."""
        for shadow in shadows:
            yield shadow, self.trained(shadow)


def as_plain_rounds(agreement: Agreement) -> Agreement:
    """The agreement as far as it says how the model is trained: what is made of the finished model has no part in it,
    and masks change no sum. (A rule over groups needs masks, and keeps them.)
    """
    values = agreement.model_dump(mode="json")
    values |= {"compression": {"format": "none"}, "audit": {}}
    # The rows are divided already. These shares only bound what a reply may count, and a half of the training rows
    # stands beside all validation rows.
    values["data"] |= {"split": "stratified", "test_share": 0.45, "validation_share": 0.45}
    values["data"] |= {"time_column": None, "test_from": None, "validation_from": None}
    if not (values.get("robustness") or {}).get("groups"):
        values.pop("secure_aggregation", None)
    return validate_agreement(values, "a shadow federation")


def check_divisible(tables: Mapping[str, MerchantTable]) -> None:
    """See that every merchant has rows for both halves.

    Raises:
        UsageError: one has not.
    """
    for name, table in tables.items():
        num_rows = len(table.train) + len(table.test)
        if num_rows < LEAST_MERCHANT_ROWS:
            raise UsageError(
                f"{name} has {num_rows} training and test rows, and a shadow federation is trained on half of them; "
                f"each merchant needs {LEAST_MERCHANT_ROWS}. Use `--attack loss`, or merge it (--min-silo-rows)"
            )
