"""What tests of the ledger share: a ledger with its head file elsewhere, and orders that cost something."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime

import pytest

from hansa_client.ledger import Ledger, LedgerFiles
from hansa_client.ledger_account import Limit
from hansa_client.ledger_entries import Charge
from hansa_client.ledger_head import LedgerHead
from hansa_common.privacy import SampledGaussian

NOW = datetime(2026, 3, 1, 23, 30, tzinfo=UTC)
ROUND = SampledGaussian(1.2, 0.01, 50)


def charge_of(number: int, **changes) -> Charge:
    """What the round of this number is charged, under an agreement that allows epsilon 8."""
    values = {
        "order_hash": f"{number:064x}", "run": "run 1", "agreement": "a" * 64, "coordinator": "c" * 64, "kind": "round",
        "mechanisms": (ROUND,), "why": "50 local steps", "agreed": Limit(8.0, 1e-5, "the agreement allows 8"),
    }  # fmt: skip
    return replace(Charge(**values), **changes)


@pytest.fixture
def charge():
    return charge_of


@pytest.fixture
def files(tmp_path) -> LedgerFiles:
    return LedgerFiles(tmp_path / "state" / "ledger", LedgerHead(tmp_path / "elsewhere" / "head"))


@pytest.fixture
def opened(files):
    """Open the ledger as a new process does."""
    return lambda: Ledger(files, lambda: NOW)


@pytest.fixture
def filled(opened, charge):
    """A ledger with so many orders charged and answered."""

    def fill(num_orders: int) -> Ledger:
        ledger = opened()
        for number in range(1, num_orders + 1):
            ledger.charge(charge(number))
            ledger.answered(charge(number).order_hash)
        return ledger

    return fill
