"""A small world to simulate: three shops of different sizes and habits, logistic regression, batches in the agreed
order. Everything in it is quick to compile and known in closed form."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

from hansa_client.data import merchant_table
from hansa_client.guarded_trainer import in_process
from hansa_client.programs import Programs
from hansa_client.trainer import MerchantTrainer
from hansa_client.variates import VariateStore
from hansa_common.agreement import validate_agreement
from hansa_simulations.grid import LocalGrid
from hansa_simulations.scenario import Scenario, simulated_hash_key

NUM_ROWS = {"alder": 120, "birch": 260, "cedar": 75}
# One of the plans that baselines try anyway: it is compiled once for all.
PLAN = {"optimizer": "sgd", "learning_rate": 0.1, "batch_size": 16, "local_epochs": 2}


def agreement_with(**changes):
    values = {
        "name": "Three shops",
        "task": "purchase",
        "label": {"column": "buys"},
        "features": [
            {"kind": "numeric", "name": "amount", "low": 0, "high": 100, "missing": "refuse"},
            {"kind": "boolean", "name": "member", "missing": "refuse"},
        ],
        "model": {"hidden": [], "dropout": 0.0, "l2": 1e-3},
        "training": {"algorithm": "fedavg", "rounds": 4, "plan": PLAN},
        "privacy": {"min_count": 1, "min_positives": 1},
        "roster": list(NUM_ROWS),
    }
    return validate_agreement({**values, **changes}, "the test")


def rows_of(merchant):
    """Text, as a CSV file would hold it."""
    random = np.random.default_rng([*merchant.encode()])
    size = NUM_ROWS[merchant]
    amount = np.clip(random.normal(20 + 15 * list(NUM_ROWS).index(merchant), 15, size), 0, 100).round(2)
    member = random.integers(0, 2, size)
    buys = random.random(size) < 1 / (1 + np.exp(2.0 - amount / 25 - member))
    columns = {"shop": [merchant] * size, "amount": amount, "member": member, "buys": buys.astype(int)}
    return pd.DataFrame({name: np.asarray(values).astype(str) for name, values in columns.items()})


def tables_for(agreement):
    return {name: merchant_table(rows_of(name), agreement, name, name) for name in agreement.roster}


def scenario_with(baselines=(), **changes):
    agreement = agreement_with(**changes)
    return Scenario(agreement, tables_for(agreement), baselines, {"source": "the test"})


def workers_for(scenario, programs=None):
    """The merchants' own trainers, with no boundary round them."""
    agreement = scenario.agreement
    programs = programs or Programs.for_tables(agreement, *scenario.tables.values())
    return {
        name: MerchantTrainer(
            agreement,
            name,
            scenario.tables[name],
            hash_key=simulated_hash_key(agreement.seed),
            state=VariateStore(),
            programs=programs,
        )
        for name in agreement.roster
    }


def trainers_for(scenario, programs=None):
    """The merchants' own trainers, as the simulation makes them."""
    return in_process(scenario.agreement, workers_for(scenario, programs))


class RecordingGrid(LocalGrid):
    """Keeps what went over it."""

    def __init__(self, nodes):
        super().__init__(nodes)
        self.orders, self.replies = [], []

    def push_messages(self, messages):
        messages = list(messages)
        self.orders += messages
        return super().push_messages(messages)

    def pull_messages(self, message_ids):
        found = super().pull_messages(message_ids)
        self.replies += found
        return found


@pytest.fixture(scope="session")
def shops():
    """The world's makers; a module's worth of functions."""
    return SimpleNamespace(
        plan=PLAN,
        num_rows=NUM_ROWS,
        agreement=agreement_with,
        rows=rows_of,
        tables=tables_for,
        scenario=scenario_with,
        workers=workers_for,
        trainers=trainers_for,
        recording_grid=RecordingGrid,
    )


@pytest.fixture(scope="session")
def tiny_programs(shops):
    """Programs of the world's plan, with room for the pool: compiled once for the modules that share them."""
    return Programs(shops.agreement(), capacity_rows=sum(NUM_ROWS.values()))
