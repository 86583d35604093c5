"""Privacy budgets in a federation of real processes: a merchant whose budget is spent stops, the others go on, and
nobody spends what an agreement allowed twice."""

from __future__ import annotations

import csv
import json
import shutil
import subprocess
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pytest
from hansa_command import HANSA, Command

from hansa_client.flower_node import free_port
from hansa_common.agreement import parse_agreement
from hansa_common.privacy import epsilon
from hansa_common.privacy_costs import run_cost, run_epsilon

pytestmark = [pytest.mark.system, pytest.mark.timeout(900)]

MERCHANTS = ("alpha", "beta", "gamma")
AGREEMENT = f"""
name = "budgets"
task = "purchase"
roster = {json.dumps(MERCHANTS)}
label = {{ column = "buys" }}
features = [{{ kind = "numeric", name = "amount", low = 0.0, high = 100.0 }}]

[model]
hidden = []

[training]
algorithm = "fedavg"
rounds = 2

[training.plan]
optimizer = "sgd"
local_steps = 10

[cohort]
min_merchants = 2
wait_seconds = 120.0
deadline_seconds = 120.0

[privacy.dp]
epsilon = EPSILON
noise_multiplier = 2.0
sampling_rate = 0.1
"""


@pytest.fixture
def agreed_epsilon() -> float:
    """What a run costs and not a step more."""
    return run_epsilon(parse_agreement(AGREEMENT.replace("EPSILON", "100.0"), "the test"))


@pytest.fixture
def folder(tmp_path, agreed_epsilon) -> Path:
    agreement = parse_agreement(AGREEMENT.replace("EPSILON", f"{agreed_epsilon}"), "the test")
    (tmp_path / "agreement.toml").write_text(AGREEMENT.replace("EPSILON", f"{agreed_epsilon}"))
    values = np.random.default_rng(5)
    for merchant in MERCHANTS:
        with (tmp_path / f"{merchant}.csv").open("w", newline="") as file:
            rows = [[f"{amount:.2f}", int(amount > 50)] for amount in values.uniform(0, 100, 300)]
            csv.writer(file).writerows([["amount", "buys"], *rows])
    # For statistics and the first round.
    statistics, first, *_ = run_cost(agreement).mechanisms
    own = epsilon([statistics, first], 1e-5)
    (tmp_path / "gamma.toml").write_text(f"max_epsilon = {own}\ndelta = 1e-5\n")
    (tmp_path / "alpha.toml").write_text("")
    (tmp_path / "beta.toml").write_text("")
    return tmp_path


def started(folder: Path, merchant: str, server: str) -> Command:
    files = ("--agreement", folder / "agreement.toml", "--data", folder / f"{merchant}.csv")
    kept = ("--state", folder / "state" / merchant, "--ledger-head", folder / "heads" / merchant)
    policy = ("--policy", folder / f"{merchant}.toml")
    return Command(
        "client", "start", "--development", *files, "--merchant", merchant, "--server", server, *kept, *policy
    )


def trained(folder: Path, server: str, name: str) -> Command:
    state = ("--state", folder / "state" / "server")
    return Command("server", "train", folder / "agreement.toml", "--out", folder / name, "--server", server, *state)


def ledger_of(folder: Path, merchant: str, *words: object) -> subprocess.CompletedProcess[str]:
    kept = ("--state", folder / "state" / merchant, "--ledger-head", folder / "heads" / merchant)
    line = [*HANSA, "client", "ledger", *kept, "--policy", folder / f"{merchant}.toml", *words]
    return subprocess.run([*map(str, line)], capture_output=True, text=True, timeout=120, check=False)


def test_merchant_whose_budget_is_spent_stops_and_nobody_spends_an_agreement_twice(folder, agreed_epsilon):
    server = f"127.0.0.1:{free_port()}"
    with ExitStack() as stack:
        superlink = Command("server", "start", "--address", server, "--state", folder / "state" / "server")
        stack.enter_context(superlink).wait_for_line("SuperLink on")
        merchants = {name: stack.enter_context(started(folder, name, server)) for name in MERCHANTS}
        for merchant in merchants.values():
            merchant.wait_for_line("waiting for orders")
        with trained(folder, server, "first") as run:
            assert run.wait_for_end(480) == 0, run.text
        assert "gamma is left out, budget-spent" in run.text
        rounds = json.loads((folder / "first" / "metrics.json").read_text())["rounds"]
        assert [entry["dropped"] for entry in rounds] == [{}, {"gamma": "budget-spent"}]
        assert all(entry["aggregated"] for entry in rounds)
        merchants["gamma"].wait_for_line("merchant.toml has max_epsilon")

        told = json.loads(ledger_of(folder, "gamma", "--json", "--png", folder / "spent.png").stdout)
        assert [(order["kind"], order["answered"]) for order in told["orders"]] == [
            ("statistics", True),
            ("round", True),
        ]
        assert told["together"]["epsilon"] <= told["together"]["max_epsilon"]
        assert (folder / "spent.png").read_bytes().startswith(b"\x89PNG")
        (spent,) = json.loads(ledger_of(folder, "alpha", "--json").stdout)["agreements"].values()
        assert (spent["orders"], spent["epsilon"], spent["left"]) == (3, agreed_epsilon, 0.0)

        # The agreement is one consent, however many runs there are under it.
        with trained(folder, server, "second") as again:
            assert again.wait_for_end(480) == 1, again.text
        assert "0 of 3 merchants sent valid statistics" in again.lines[-1]
        for name, allowed in (
            ("alpha", f"the agreement allows epsilon {agreed_epsilon:g}"),
            ("gamma", "merchant.toml has"),
        ):
            merchants[name].wait_for_line(allowed)
        assert merchants["alpha"].stop() == 0

        # Put back as it was before the last round, the ledger is refused.
        ledger = folder / "state" / "alpha" / "ledger" / "ledger.jsonl"
        shutil.copy(ledger, folder / "newest")
        ledger.write_bytes(b"".join(ledger.read_bytes().splitlines(keepends=True)[:4]))
        with started(folder, "alpha", server) as refused:
            assert refused.wait_for_end() == 1, refused.text
        assert "knows of 6: an older copy was put back" in refused.text
        assert ledger_of(folder, "alpha").returncode == 1
        shutil.copy(folder / "newest", ledger)
        assert ledger_of(folder, "alpha").returncode == 0
