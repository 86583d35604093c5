"""A world whose model must overfit: labels are coins, and the network has room to learn each row's by heart. Whoever is
in its training rows can be told; nothing else can."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

from hansa_client.data import merchant_table
from hansa_common.agreement import validate_agreement
from hansa_simulations.audit_membership import Shadows
from hansa_simulations.audit_shadows import ShadowFederations
from hansa_simulations.scenario import Scenario, run_scenario

SHOPS = ("alder", "birch", "cedar")
NUM_FEATURES = 8


def agreement_with(**changes):
    features = [
        {"kind": "numeric", "name": f"n{i}", "low": -3, "high": 3, "missing": "refuse"} for i in range(NUM_FEATURES)
    ]
    values = {
        "name": "Coins",
        "task": "purchase",
        "label": {"column": "buys"},
        "data": {"test_share": 0.5, "validation_share": 0.1},
        "features": [
            *features,
            {"kind": "categorical", "name": "shelf", "vocabulary": ["a", "b", "c", "d"], "missing": "refuse"},
            {"kind": "boolean", "name": "member", "missing": "refuse"},
        ],
        "model": {"hidden": [128, 64], "dropout": 0.0},
        "training": {
            "algorithm": "fedavg",
            "rounds": 20,
            "plan": {"optimizer": "adam", "learning_rate": 0.01, "batch_size": 32, "local_epochs": 4},
        },
        # No validation figure leaves, so the last model is kept: the one that has learned most by heart.
        "privacy": {"min_count": 1, "min_positives": 10_000},
        "roster": list(SHOPS),
    }
    return validate_agreement({**values, **changes}, "the test")


def rows_of(num_rows=2100, seed=7):
    """Text, as a CSV file would hold it."""
    random = np.random.default_rng(seed)
    columns = {f"n{i}": random.normal(size=num_rows).clip(-3, 3).round(3) for i in range(NUM_FEATURES)}
    columns["shelf"] = random.choice(["a", "b", "c", "d"], num_rows, p=[0.4, 0.3, 0.2, 0.1])
    columns["member"], columns["buys"] = random.integers(0, 2, num_rows), random.integers(0, 2, num_rows)
    columns["shop"] = np.array(SHOPS)[np.arange(num_rows) % len(SHOPS)]
    return pd.DataFrame({name: np.asarray(values).astype(str) for name, values in columns.items()})


def tables_for(agreement, frame=None):
    frames = dict(iter((rows_of() if frame is None else frame).groupby("shop")))
    return {name: merchant_table(frames[name], agreement, name, name) for name in agreement.roster}


def run_in(folder, agreement, frame=None):
    """A finished run of these rows, and the file that it says it was made from."""
    frame = rows_of() if frame is None else frame
    frame.to_csv(folder / "rows.csv", index=False)
    about = {"source": "rows.csv", "silos": "shop", "min_silo_rows": 1}
    run_scenario(Scenario(agreement, tables_for(agreement, frame), (), about), folder / "run")
    return SimpleNamespace(folder=folder / "run", data=folder / "rows.csv", agreement=agreement)


@pytest.fixture(scope="session")
def coins():
    """The world's makers."""
    return SimpleNamespace(agreement=agreement_with, rows=rows_of, tables=tables_for, shops=SHOPS, run=run_in)


@pytest.fixture(scope="session")
def coin_run(tmp_path_factory):
    """One run for all who only read it."""
    return run_in(tmp_path_factory.mktemp("coins"), agreement_with())


@pytest.fixture(scope="session")
def other_run(tmp_path_factory):
    """A run that has seen none of these rows, but others like them."""
    return run_in(tmp_path_factory.mktemp("others"), agreement_with(), rows_of(seed=8))


@pytest.fixture(scope="session")
def eight_shadows(coin_run):
    """The run's rows, and what eight shadow federations say of them."""
    federations = ShadowFederations(coin_run.agreement, tables_for(coin_run.agreement), 8)
    found = np.stack([confidences for _, confidences in federations.each(range(8))])
    return SimpleNamespace(federations=federations, shadows=Shadows(found, federations.is_in))
