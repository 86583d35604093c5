"""The merchants' tables that a finished simulation was made from, found again: by its folder and the file it names.

Promises: the same silos in the same parts as the run had; a table that is not the run's is refused, by its numbers of
rows here, and by its statistics where `check_same_statistics` is asked. What is done with the tables is the caller's.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from hansa_client.data import MerchantTable
from hansa_client.silos import parse_silo, split_silos
from hansa_client.tables import read_frame
from hansa_common import statistics
from hansa_common.errors import UsageError
from hansa_common.features import FittedPreprocessing
from hansa_server.run_folder import FinishedRun
from hansa_simulations.cli import DEMO_SOURCE, demo_scenario, merchant_tables


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
    """See that the tables' training rows give the very preprocessing that the run was fitted, where that has no noise.

    Raises:
        UsageError: they do not, so they are other rows.
    """
    if finished.agreement.privacy.dp is not None:
        return
    vectors = []
    for table in tables.values():
        columns = {name: values[table.train] for name, values in table.columns.items()}
        vectors.append(statistics.measure(finished.agreement, columns, table.labels[table.train]))
    if FittedPreprocessing.fit(finished.agreement, statistics.merge(vectors)) != finished.preprocessing:
        raise UsageError(
            "these rows are not those that the model was trained on: their statistics give another preprocessing; give "
            "the table of the run, as it was, with the same merchants"
        )


def _check_rows(finished: FinishedRun, tables: Mapping[str, MerchantTable], source: Path) -> None:
    for name, table in tables.items():
        rows, expected = len(table.train), finished.metrics["merchants"].get(name, {}).get("num_train_rows")
        if rows != expected:
            raise UsageError(
                f"{source}: {name} has {rows:,} training rows there, and had {expected} in the run; give the table "
                "of the run, as it was"
            )
