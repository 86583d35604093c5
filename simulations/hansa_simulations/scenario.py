"""A frozen Scenario in, an Outcome out: the federation of several tables in one process, and what it was worth.

Promises: the ServerApp and ClientApps that run across companies, over grid.py; the same scenario leaves the same
model, byte for byte, and the same figures (only the run's id and its seconds differ); the run's folder holds what a
real run's does, and with baselines the comparison too. The federation is finished and on disk before the first
baseline begins. A simulation sees every row, so nothing in its figures is withheld.
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np

from hansa_client.data import MerchantTable
from hansa_client.guarded_trainer import in_process
from hansa_client.masked_memory import SumMemory
from hansa_client.masked_sums import MaskedSums
from hansa_client.private_rounds import seeded_noise
from hansa_client.programs import Programs
from hansa_client.trainer import MerchantTrainer
from hansa_client.variates import VariateStore
from hansa_common import durable_files
from hansa_common.agreement import Agreement
from hansa_common.bundle import INT8_NAME
from hansa_common.errors import UsageError
from hansa_common.features import FittedPreprocessing
from hansa_common.model import load_model_parts
from hansa_common.randomness import generator
from hansa_common.schema import CategoricalFeature
from hansa_common.secret_sharing import DrawBytes
from hansa_common.secure_keys import development_identity
from hansa_common.vectors import Vector
from hansa_server import run_folder
from hansa_server.app import app as server_app
from hansa_server.audit_gate import unaudited
from hansa_simulations.baselines import POOLED, AloneModel, Baselines
from hansa_simulations.comparison import Logits, ScoredRows, comparison
from hansa_simulations.grid import LocalGrid, run_server_app
from hansa_simulations.row_scores import RowScorer

Baseline = Literal["local", "pooled"]
HASH_KEY_BYTES: Final = 32
SIGNING_KEY_BYTES: Final = 32


@dataclass(frozen=True)
class Scenario:
    """What is simulated: an agreement with its roster and seed, each merchant's table, and what to compare with.

    `about_data` is what the report tells of the tables (their source, how they were divided), in plain values.
    """

    agreement: Agreement
    tables: Mapping[str, MerchantTable]
    baselines: tuple[Baseline, ...] = ()
    about_data: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_roster(self.agreement.roster, tuple(self.tables))


@dataclass(frozen=True)
class Outcome:
    """A finished simulation: metrics.json as it stands in the folder, and the model."""

    metrics: Mapping[str, Any]
    weights: Vector
    preprocessing: FittedPreprocessing


@dataclass(frozen=True)
class BaselineProgress:
    """A baseline has trained one more of its plans."""

    name: str
    num_trained: int
    num_all: int


def run_scenario(
    scenario: Scenario,
    folder: Path,
    *,
    toml: str | None = None,
    overwrite: bool = False,
    on_baseline: Callable[[BaselineProgress], None] = lambda _: None,
) -> Outcome:
    """Run the federation in this folder, then its baselines, and leave the comparison beside the model.

    Raises:
        UsageError: the folder cannot be a new run's.
        RunFailedError: the federation, or a baseline, came to no model.
    """
    agreement = scenario.agreement
    run_folder.create(folder, agreement, toml=toml, overwrite=overwrite)
    hash_key = simulated_hash_key(agreement.seed)
    programs = _programs(scenario)
    trainers = simulated_merchants(agreement, scenario.tables, programs)
    run_server_app(server_app, LocalGrid(in_process(agreement, trainers)), {"run-folder": str(folder)})
    _, weights, preprocessing = load_model_parts(folder / run_folder.MODEL)
    scorer = RowScorer(scenario.tables, programs, hash_key)
    federated = {name: scorer.logits(name, "test", weights, preprocessing) for name in agreement.roster}
    scores, chosen = _with_baselines(scenario, scorer, federated, on_baseline)
    small = folder / run_folder.SMALL / INT8_NAME
    if small.exists():
        network = small.read_bytes()
        scores = {
            name: replace(rows, compressed=scorer.small_logits(name, "test", network, preprocessing))
            for name, rows in scores.items()
        }
    found = comparison(scores, agreement.seed)
    told = run_folder.read_outcome(folder)
    merchants = {
        name: {**told["merchants"].get(name, {}), **found["merchants"][name], **_own(trainers[name])}
        for name in agreement.roster
    }
    metrics = {**told, **found, "merchants": merchants, "data": _about_data(scenario), "baselines": chosen}
    metrics |= unaudited(agreement)
    run_folder.write_metrics(folder, metrics)
    if small.exists() and not agreement.audit.is_gate:
        sign_bundle(folder, agreement)
    return Outcome(metrics, weights, preprocessing)


def check_roster(roster: tuple[str, ...], merchants: tuple[str, ...]) -> None:
    """Refuse merchants that are not exactly the roster.

    Raises:
        UsageError: naming who is in one only.
    """
    absent = [name for name in roster if name not in merchants]
    strangers = [name for name in merchants if name not in roster]
    if absent or strangers:
        raise UsageError(
            "the agreement's roster and the silos differ"
            + (f"; in the roster only: {', '.join(absent)}" if absent else "")
            + (f"; a silo only: {', '.join(strangers)}" if strangers else "")
            + "; mend the roster, or leave it empty to take every silo"
        )


def simulated_hash_key(seed: int) -> bytes:
    """The key for hashed categories that the simulated merchants share; real ones draw theirs at random."""
    return generator(seed, "simulated hash key").bytes(HASH_KEY_BYTES)


def _programs(scenario: Scenario) -> Programs:
    """Programs with room for every merchant, and for the pool where it will be trained."""
    num_rows = [len(table.labels) for table in scenario.tables.values()]
    return Programs(scenario.agreement, sum(num_rows) if POOLED in scenario.baselines else max(num_rows))


def simulated_signing_key(seed: int) -> bytes:
    """The key that a simulated coordinator signs its bundle with; a real one draws its own at random."""
    return generator(seed, "simulated signing key").bytes(SIGNING_KEY_BYTES)


def simulated_sums(agreement: Agreement, merchant: str, noise_seed: int | None = None) -> MaskedSums | None:
    """A simulated merchant's part in masked sums, whose keys and noise come from seeds, the agreement's where no other
    is given; a real one's come from its system.
    """
    if not agreement.secure_aggregation.is_on:
        return None
    draw = mask_bytes(agreement, merchant)
    draw_noise = seeded_noise(agreement.seed if noise_seed is None else noise_seed, merchant)
    return MaskedSums(agreement, merchant, development_identity(merchant), SumMemory(), draw, draw_noise)


def mask_bytes(agreement: Agreement, merchant: str) -> DrawBytes:
    """Where a simulated merchant's keys and masks come from."""
    return generator(agreement.seed, "simulated masks", merchant).bytes


def simulated_merchants(
    agreement: Agreement,
    tables: Mapping[str, MerchantTable],
    programs: Programs,
    noise_seed: int | None = None,
    sums_of: Callable[[Agreement, str], MaskedSums | None] | None = None,
) -> dict[str, MerchantTrainer]:
    """Everyone's own trainer, in the order of the roster; private noise comes of another seed, where one is given, and
    `sums_of` makes everyone's part in masked sums, if not `simulated_sums`.
    """
    hash_key = simulated_hash_key(agreement.seed)
    noise_seed = agreement.seed if noise_seed is None else noise_seed
    return {
        name: MerchantTrainer(
            agreement,
            name,
            tables[name],
            hash_key=hash_key,
            state=VariateStore(),
            programs=programs,
            sums=simulated_sums(agreement, name, noise_seed) if sums_of is None else sums_of(agreement, name),
            draw_noise=seeded_noise(noise_seed, name),
        )
        for name in agreement.roster
    }


def sign_bundle(folder: Path, agreement: Agreement) -> None:
    """Sign a folder's small model; where categories are hashed, leave the simulated key beside it, to score with."""
    hash_key = simulated_hash_key(agreement.seed)
    is_hashed = any(isinstance(f, CategoricalFeature) and f.hash_buckets for f in agreement.features)
    key_id = hashlib.sha256(hash_key).hexdigest() if is_hashed else None
    if is_hashed:
        durable_files.write(folder / run_folder.HASH_KEY, f"{hash_key.hex()}\n".encode())
    run_folder.write_bundle(folder, simulated_signing_key(agreement.seed), key_id)


def _with_baselines(
    scenario: Scenario,
    scorer: RowScorer,
    federated: Mapping[str, Logits],
    on_baseline: Callable[[BaselineProgress], None],
) -> tuple[dict[str, ScoredRows], dict[str, Any]]:
    """Everyone's test rows scored by all models, and which plans the baselines chose."""
    tables, wanted = scenario.tables, scenario.baselines
    numbers = itertools.count(1)

    def on_trained(name: str) -> None:
        on_baseline(BaselineProgress(name, next(numbers), num_all))

    baselines = Baselines(scenario.agreement, tables, scorer.hash_key, scorer.programs, on_trained)
    num_all = len(baselines.plans) * (len(tables) * ("local" in wanted) + ("pooled" in wanted))
    local = {name: baselines.local(name) for name in tables} if "local" in wanted else {}
    pooled = baselines.pooled if "pooled" in wanted else None

    def scored(name: str, model: AloneModel | None) -> Logits | None:
        return None if model is None else scorer.logits(name, "test", model.weights, model.preprocessing)

    scores = {
        name: ScoredRows(
            labels=scorer.labels(name, "test"),
            federated=federated[name],
            local=scored(name, local.get(name)),
            pooled=scored(name, pooled),
        )
        for name in scenario.agreement.roster
    }
    chosen: dict[str, Any] = {"local": {name: model.to_json() for name, model in local.items()}} if local else {}
    return scores, chosen if pooled is None else {**chosen, "pooled": pooled.to_json()}


def _own(trainer: MerchantTrainer) -> dict[str, Any]:
    """What a merchant knows of its own rows and keeps to itself outside a simulation."""
    figures = trainer.own_figures
    known = {"num_train_rows": len(trainer.table.train), "quality": trainer.table.quality.to_json()}
    return {"threshold": None if figures is None else figures.threshold, **known}


def _about_data(scenario: Scenario) -> dict[str, Any]:
    data = scenario.agreement.data
    shares = {"split": data.split, "test_share": data.test_share, "validation_share": data.validation_share}
    num_rows = int(np.sum([len(table.labels) for table in scenario.tables.values()]))
    return {**scenario.about_data, "rows": num_rows, **shares}
