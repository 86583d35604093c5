"""An audit from end to end: a run's folder and its table in, all that attacks found out.

Refused: a run whose rows are not here, a table that is not the run's, and fewer rows than an attack can be measured on.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from hansa_client.programs import Programs
from hansa_client.training_loop import describe_device
from hansa_common.audit_agreement import GATE_FALSE_POSITIVE_RATE, Attack
from hansa_common.bundle import INT8_NAME
from hansa_common.errors import UsageError
from hansa_server import run_folder
from hansa_simulations.audit import MODEL, SMALL_MODEL, Audit, dp_bound, judged
from hansa_simulations.audit_attacks import federation_rates, membership_attacks
from hansa_simulations.audit_attributes import AttributeAttack, AttributeInference, values_of
from hansa_simulations.audit_inversion import Inversion, Inverter
from hansa_simulations.audit_membership import Shadows, confidences
from hansa_simulations.audit_rates import least_non_members
from hansa_simulations.audit_shadows import Pool, ShadowFederations
from hansa_simulations.audit_workers import INSTEAD, Work, trained_confidences
from hansa_simulations.run_tables import check_same_figures, check_same_statistics, tables_of_run
from hansa_simulations.scenario import simulated_hash_key


@dataclass(frozen=True)
class Settings:
    """What an audit does; None: as the agreement says. `num_processes` changes no figure."""

    attack: Attack | None = None
    num_shadows: int | None = None
    num_processes: int = 1
    inversion: bool = True
    attribute: str | None = None


class Auditor:
    """Audits one run."""

    def __init__(self, folder: Path, data: Path | None, settings: Settings) -> None:
        """Find the run and its rows.

        Raises:
            UsageError: the folder holds no simulation, the table is not its, or there are too few rows.
            RunFailedError: the run did not finish.
        """
        self.run = run_folder.open_finished(folder)
        agreed = self.run.agreement.audit
        attack = agreed.attack if settings.attack is None else settings.attack
        asked = agreed.shadows if settings.num_shadows is None else settings.num_shadows
        self.num_shadows = asked if attack == "lira" else 0
        if self.num_shadows % 2:
            raise UsageError(f"--shadows {self.num_shadows}: each row is in half of them, so give an even number")
        self._folder = folder
        self._work = Work(folder, data, self.num_shadows)
        self._settings = settings
        # At once, where there is no such column.
        self._values = None if settings.attribute is None else values_of(self.run.agreement, settings.attribute)
        self._tables = tables_of_run(self.run, folder, data, command="audit", instead=INSTEAD)
        check_same_statistics(self.run, self._tables)
        self._pool = Pool.of(self._tables)
        _check_non_members(int((~self._pool.is_member).sum()))

    def audited(self, on_trained: Callable[[], None] = lambda: None) -> Audit:
        """Run the attacks; `on_trained` hears of each shadow federation.

        Raises:
            UsageError: the rows are not the run's, or a merchant has too few to be divided.
            RunFailedError: a shadow federation came to no model.
        """
        # First, because TensorFlow greets: there it is kept from the terminal.
        describe_device()
        targets = self._targets()
        seed, shadows, federation = self.run.agreement.seed, None, None
        if self.num_shadows:
            shadows = self._shadows(on_trained)
            federation = federation_rates(shadows, seed)
        attacks = membership_attacks(targets, self._pool.is_member, shadows, seed)
        return Audit(
            self.run,
            self.num_shadows,
            attacks,
            federation,
            judged(self.run, attacks, federation, self.num_shadows),
            dp_bound(self.run.agreement, attacks, federation),
            self._inversions(),
            self._attribute(),
        )

    def _inversions(self) -> tuple[Inversion, ...]:
        if not self._settings.inversion:
            return ()
        return Inverter(self.run.agreement, self._tables, self.run.preprocessing).inverted()

    def _attribute(self) -> AttributeInference | None:
        if self._settings.attribute is None or self._values is None:
            return None
        programs = Programs.for_tables(self.run.agreement, *self._tables.values())
        model = self.run.weights, self.run.preprocessing
        attack = AttributeAttack(self._tables, programs, simulated_hash_key(self.run.agreement.seed), model)
        return attack.inferred(self._settings.attribute, self._values)

    def _shadows(self, on_trained: Callable[[], None]) -> Shadows:
        federations = ShadowFederations(self.run.agreement, self._tables, self.num_shadows)
        found = trained_confidences(self._work, federations, self._settings.num_processes, on_trained)
        return Shadows(found, federations.is_in)

    def _targets(self) -> dict[str, NDArray[np.float64]]:
        """Each model that would be released, by how sure it is of the pool's rows."""
        run, programs = self.run, Programs.for_tables(self.run.agreement, *self._tables.values())
        scorer = self._pool.scorer(self._tables, programs, simulated_hash_key(run.agreement.seed))
        logits = {MODEL: [scorer.logits(name, "test", run.weights, run.preprocessing) for name in self._pool.rows]}
        is_test = ~self._pool.is_member
        check_same_figures(run, np.concatenate(logits[MODEL])[is_test], self._pool.labels[is_test])
        small = self._folder / run_folder.SMALL / INT8_NAME
        if small.exists():
            file, prepared = small.read_bytes(), run.preprocessing
            logits[SMALL_MODEL] = [scorer.small_logits(name, "test", file, prepared) for name in self._pool.rows]
        return {model: confidences(np.concatenate(found), self._pool.labels) for model, found in logits.items()}


def _check_non_members(num_non_members: int) -> None:
    least = least_non_members(GATE_FALSE_POSITIVE_RATE)
    if num_non_members < least:
        raise UsageError(
            f"the run has {num_non_members:,} test rows in all, and an attack is measured on them as its non-members: "
            f"at {GATE_FALSE_POSITIVE_RATE:.0%} false positives that takes {least:,}; audit a run with more rows, or a "
            "larger data.test_share"
        )
