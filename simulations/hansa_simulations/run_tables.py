"""The merchants' tables that a finished simulation was made from, found again: by its folder and the file it names.

Promises: the same silos in the same parts as the run had; a table that is not the run's is refused: by its numbers of
rows here, by the statistics of its training rows where `check_same_statistics` is asked, and by the figures of its test
rows where `check_same_figures` is. What is done with the tables is the caller's.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from hansa_client.data import MerchantTable
from hansa_client.guarded_trainer import in_process
from hansa_client.programs import Programs
from hansa_client.silos import parse_silo, split_silos
from hansa_client.tables import read_frame
from hansa_common.errors import UsageError
from hansa_common.metrics import metrics_from_histogram, score_histogram
from hansa_server.exchange import Exchange
from hansa_server.federation import SYSTEM_CLOCK, UNSEALED
from hansa_server.participants import Run
from hansa_server.refinishing import register_again
from hansa_server.run_folder import FinishedRun
from hansa_simulations.cli import DEMO_SOURCE, demo_scenario, merchant_tables
from hansa_simulations.grid import LocalGrid, server_identity
from hansa_simulations.scenario import simulated_merchants

# Two machines compute a network differently by this much.
_LAST_DIGITS: Final = 1e-4


def tables_of_run(
    finished: FinishedRun, folder: Path, data: Path | None, *, command: str, instead: str
) -> Mapping[str, MerchantTable]:
    """The merchants' tables that a simulated run was made from; a demo's makes itself.

    `command` is what asks, and `instead` what a run of real processes can do where it cannot.

    Raises:
        UsageError: the run was no simulation, its table was not given, or the one given is not it.
    """
    about, agreement = finished.metrics.get("data"), finished.agreement
    if not isinstance(about, dict):
        raise UsageError(f"{folder} is not a simulation, so its rows are with its merchants; {instead}")
    if data is None and about.get("source") == DEMO_SOURCE:
        tables = demo_scenario(agreement.seed).tables
    elif data is None or "silos" not in about:
        raise UsageError(
            f"the rows of {folder} are in {about.get('source', 'a table')!r}, and a run's folder does not say where; "
            f"give the file: hansa {command} {folder} FILE"
        )
    else:
        frames = split_silos(read_frame(data), parse_silo(str(about["silos"])), int(about["min_silo_rows"]))
        tables = merchant_tables(agreement, frames, str(data))
    _check_rows(finished, tables, data or folder)
    return tables


def check_same_statistics(finished: FinishedRun, tables: Mapping[str, MerchantTable]) -> None:
    """See that merchants with these tables give the very preprocessing that the run was fitted: they are asked once
    more, under the same rules, masks and noise, all of which a simulation draws from the agreement's seed.

    Where the agreement takes nothing from rows (`statistics = "domains"`), that says nothing: `check_same_figures`.

    Raises:
        UsageError: they do not, so they are other rows.
    """
    agreement = finished.agreement
    merchants = simulated_merchants(agreement, tables, Programs.for_tables(agreement, *tables.values()))
    exchange = Exchange(LocalGrid(in_process(agreement, merchants)), SYSTEM_CLOCK, UNSEALED)
    run = Run(exchange, agreement, agreement.fingerprint, "the run's rows, once more", lambda _: None)
    with server_identity():
        register_again(run, finished.preprocessing.to_json())


def check_same_figures(finished: FinishedRun, logits: NDArray[np.float32], labels: NDArray[np.uint8]) -> None:
    """See that the kept model's logits of all test rows (rows,) give the figures that the run was told to have.

    Raises:
        UsageError: they do not, so they are other rows.
    """
    told, found = finished.metrics["federated"], metrics_from_histogram(score_histogram(logits, labels))
    for name in ("roc_auc", "pr_auc"):
        known, now = told.get(name), None if found is None else getattr(found, name)
        if (known is None) != (now is None) or (now is not None and abs(known - now) > _LAST_DIGITS):
            raise UsageError(
                f"these rows are not those of the run: the kept model has {name} {now} on their test rows, and the run "
                f"tells {known}; give the table of the run, as it was, with the same merchants"
            )


def _check_rows(finished: FinishedRun, tables: Mapping[str, MerchantTable], source: Path) -> None:
    for name, table in tables.items():
        rows, expected = len(table.train), finished.metrics["merchants"].get(name, {}).get("num_train_rows")
        if rows != expected:
            raise UsageError(
                f"{source}: {name} has {rows:,} training rows there, and had {expected} in the run; give the table "
                "of the run, as it was"
            )
