"""The example runs as its README says, and what it counts and shows is right."""

from __future__ import annotations

import importlib.util
import json
import re
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import accuracy_score, average_precision_score

EXAMPLES = Path(__file__).parents[2] / "examples"
CUT_OFF = 1000 * 86_400.0


@pytest.fixture(scope="module")
def tables():
    spec = importlib.util.spec_from_file_location("purchases_tables", EXAMPLES / "purchases" / "tables.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def log(*entries):
    """(shop, customer, kind, days after the cut-off)"""
    rows = [(shop, customer, kind, CUT_OFF + days * 86_400.0) for shop, customer, kind, days in entries]
    return pd.DataFrame(rows, columns=["shop", "customer", "kind", "time"])


def rows_of(table):
    return [tuple(row) for row in table.itertuples(index=False)]


def test_month_ends_where_the_week_begins(tables):
    second = 1 / 86_400
    events = log(
        ("books", "ann", "view", -30 - second),
        ("books", "ann", "view", -30),
        ("books", "ann", "search", -second),
        ("books", "ann", "purchase", 0),
        ("books", "bob", "purchase", -1),
        ("books", "bob", "purchase", 7),
        ("books", "cid", "view", -80),
        ("books", "cid", "purchase", 7 - second),
        ("books", "new", "view", 0),
    )
    # Shop, customer, purchases, views, searches, buys; who was not known yet is nobody's customer.
    assert rows_of(tables.month_to_week(events, CUT_OFF)) == [
        ("books", "ann", 0, 1, 1, 1),
        ("books", "bob", 1, 0, 0, 0),
        ("books", "cid", 0, 0, 0, 1),
    ]


def test_counts_equal_a_slow_reference(tables):
    random = np.random.default_rng(0)
    shops, kinds = ["books", "garden"], ["view", "search", "purchase"]
    events = log(
        *(
            (random.choice(shops), f"c{random.integers(9)}", random.choice(kinds), random.uniform(-60, 10))
            for _ in range(400)
        )
    )
    days = (events["time"] - CUT_OFF) / 86_400.0

    def slow(shop, customer):
        own = (events["shop"] == shop) & (events["customer"] == customer)
        month = events[own & (days >= -30) & (days < 0)]["kind"].tolist()
        week = events[own & (days >= 0) & (days < 7)]["kind"].tolist()
        return (shop, customer, *(month.count(kind) for kind in ("purchase", "view", "search")), "purchase" in week)

    known = events[days < 0][["shop", "customer"]].drop_duplicates().sort_values(["shop", "customer"])
    assert rows_of(tables.month_to_week(events, CUT_OFF)) == [slow(*row) for row in known.itertuples(index=False)]


def test_fifth_of_the_customers_test_and_everyone_is_one_silo(tables):
    table = pd.DataFrame({"shop": ["a"] * 5000})
    divided = tables.with_parts(table, np.random.default_rng(0))
    assert (divided["draw"] >= 0.8).mean() == pytest.approx(0.2, abs=0.02)
    assert set(divided["everyone"]) == {"all shops"}


def png_size(path):
    content = path.read_bytes()
    assert content.startswith(b"\x89PNG\r\n\x1a\n")
    return struct.unpack(">II", content[16:24])


@pytest.mark.system
def test_example_finds_four_buyers_in_five_and_shows_it(tmp_path):
    script = EXAMPLES / "purchases" / "run.py"
    done = subprocess.run(
        [sys.executable, script, "--out", "case"], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    told = {
        name: float(share)
        for name, share in re.findall(r"^(federated|pooled|always).*?([\d.]+)%", done.stdout, re.MULTILINE)
    }
    assert told["federated"] >= 80.0
    assert told["pooled"] >= 80.0
    # Accuracy says something here: without a model it is near a half.
    assert told["always"] <= 60.0
    assert min(png_size(tmp_path / "case" / "scatter.png")) > 500
    for name, num_merchants in (("federated", 5), ("pooled", 1)):
        metrics = json.loads((tmp_path / "case" / name / "metrics.json").read_bytes())
        assert len(metrics["merchants"]) == num_merchants
        p, actual = scored_by_hand(tmp_path / "case", name)
        assert accuracy_score(actual, p >= 0.5) == pytest.approx(told[name] / 100, abs=0.0006)
        assert average_precision_score(actual, p) == pytest.approx(metrics["federated"]["pr_auc"], abs=0.001)


def scored_by_hand(folder, name):
    """Scaling and network a second time, from the table and the weights alone; the test customers' labels."""
    rows = pd.read_csv(folder / "customers.csv")
    train, test = rows[rows["draw"] < 0.7], rows[rows["draw"] >= 0.8]
    limits = {"purchases": 100, "views": 1000, "searches": 300}
    columns = []
    for column, limit in limits.items():
        scale = [np.log1p(np.minimum(part[column], limit)) for part in (train, test)]
        columns.append((scale[1] - scale[0].mean()) / scale[0].std(ddof=0))
    with np.load(folder / name / "model" / "weights.npz") as w:
        hidden = np.maximum(np.stack(columns, axis=1) @ w["hidden_0.kernel"] + w["hidden_0.bias"], 0)
        logits = (hidden @ w["output.kernel"] + w["output.bias"])[:, 0]
    return 1 / (1 + np.exp(-logits)), test["buys"].to_numpy()
