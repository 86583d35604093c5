"""A table with one column for each thing that a draft can say, and what is drafted from it."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from hansa_client.drafting import Draft, draft_agreement
from hansa_client.silos import parse_silo

NUM_ROWS = 600


def random() -> np.random.Generator:
    return np.random.default_rng(7)


def table() -> pd.DataFrame:
    """One column for each thing that a draft can say; labels independent of all but `refunded`."""
    draw = random()
    numbers = np.arange(NUM_ROWS)
    label = draw.permutation(numbers % 4 == 0)
    columns = {
        "bought": label.astype(int),
        "amount": np.round(draw.lognormal(3, 1.2, NUM_ROWS), 2),
        "balance": np.round(draw.normal(0, 50, NUM_ROWS), 2),
        "visits": draw.poisson(2, NUM_ROWS),
        "browser": draw.integers(1, 9, NUM_ROWS),
        "member": draw.choice(["yes", "No"], NUM_ROWS),
        "country": draw.choice(["NO", "DE", "SE"], NUM_ROWS),
        "city": [f"city {i % 40}" for i in numbers],
        "basket": [f"basket {i % 300}" for i in numbers],
        "ordered": [f"2024-03-{1 + i % 31:02d}T{i % 24:02d}:00:00" for i in numbers],
        "sent_time": 1_700_000_000 + draw.integers(0, 10**7, NUM_ROWS),
        "shop": [("north", "south", "east")[i % 3] for i in numbers],
        "session": [f"s{i:x}" for i in draw.permutation(10**6)[:NUM_ROWS]],
        "customer_id": [f"c{i % 100}" for i in numbers],
        "number": numbers + 5000,
        "currency": ["EUR"] * NUM_ROWS,
        "nothing": [None] * NUM_ROWS,
        "country_code": None,
        "amount_again": None,
        "refunded": np.where(label, draw.normal(9, 1, NUM_ROWS), draw.normal(0, 1, NUM_ROWS)),
        "coupon": np.where(numbers % 50 == 0, "x1", None),
    }
    columns["country_code"] = [{"NO": "47", "DE": "49", "SE": "46"}[country] for country in columns["country"]]
    columns["amount_again"] = [f"{amount:.4f}" for amount in columns["amount"]]
    return pd.DataFrame(columns).astype("str").where(pd.notna(pd.DataFrame(columns)), None)


def draft(frame: pd.DataFrame | None = None, **changes) -> Draft:
    options = {"label": "bought", "source": "t.csv", "silo": parse_silo("shop"), **changes}
    return draft_agreement(table() if frame is None else frame, **options)


@pytest.fixture(scope="session", name="table")
def table_of_all_things():
    return table


@pytest.fixture(scope="session", name="draft")
def draft_with_options():
    return draft


@pytest.fixture(scope="session")
def drafted() -> Draft:
    return draft()
