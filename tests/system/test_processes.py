"""A federation as it runs across companies, on one machine: SuperLink, two merchants and a run, each in processes
of its own. Its model has the same bytes as the simulation's, and nothing is left behind."""

from __future__ import annotations

import csv
import json
import os
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Self

import numpy as np
import pytest
from hansa_command import HANSA, Command, processes_of, wait_until_gone

from hansa_client.bundle_files import open_trusted
from hansa_common import __version__
from hansa_common.keys import public_key_of

pytestmark = [pytest.mark.system, pytest.mark.timeout(1200)]

MERCHANTS = ("alpha", "beta")
NUM_ROUNDS = 2
RUN_SECONDS = 900.0
AGREEMENT = f"""
name = "processes"
task = "purchase"
seed = 11
roster = {json.dumps(MERCHANTS)}

[label]
column = "buys"

[[features]]
kind = "numeric"
name = "amount"
low = 0.0
high = 100.0

[[features]]
kind = "categorical"
name = "channel"
vocabulary = ["web", "shop", "phone"]
encoding = "embedding"
embedding_dim = 3

[model]
hidden = [16, 8]
dropout = 0.2

[training]
algorithm = "scaffold"
rounds = {NUM_ROUNDS}
patience = {NUM_ROUNDS}

[training.plan]
optimizer = "sgd"
learning_rate = 0.1
batch_size = 32
local_epochs = 2

[cohort]
min_merchants = 2
wait_seconds = 120.0
deadline_seconds = 120.0

[privacy]
min_positives = 1
share_metrics = true

[compression]
format = "int8"
sparsity = 0.5
pruning_rounds = 1
max_pr_auc_loss = 0.5
max_merchant_pr_auc_loss = 0.9
"""


def write_tables(folder: Path) -> Path:
    """One table of all merchants with a silo column, and each merchant's own beside it; return the first."""
    values = np.random.default_rng(5)
    rows = []
    for merchant in MERCHANTS:
        for _ in range(400 + 150 * MERCHANTS.index(merchant)):
            amount, channel = values.uniform(0, 100), values.choice(["web", "shop", "phone", "fax"])
            buys = values.uniform() < 1 / (1 + np.exp(2.5 - amount / 25 - (channel == "shop")))
            rows.append([merchant, "" if values.uniform() < 0.05 else f"{amount:.2f}", channel, int(buys)])
    for name, kept in (("all", MERCHANTS), *((merchant, (merchant,)) for merchant in MERCHANTS)):
        with (folder / f"{name}.csv").open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["merchant", "amount", "channel", "buys"])
            writer.writerows(row for row in rows if row[0] in kept)
    return folder / "all.csv"


@contextmanager
def merchant_process(folder: Path, merchant: str, server: str) -> Iterator[Command]:
    files = ("--agreement", folder / "agreement.toml", "--data", folder / f"{merchant}.csv")
    options = ("--merchant", merchant, "--server", server, "--state", folder / "state" / merchant)
    with Command("client", "start", "--development", *files, *options) as started:
        yield started


@contextmanager
def superlink(folder: Path) -> Iterator[str]:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        server = f"127.0.0.1:{listener.getsockname()[1]}"
    with Command("server", "start", "--address", server, "--state", folder / "state" / "server") as started:
        started.wait_for_line("SuperLink on")
        yield server


class ClientAppWatch:
    """Looks, while it is open, at what libraries Flower's ClientApp processes have loaded."""

    def __init__(self) -> None:
        self.seen: set[int] = set()
        self.heavy: set[str] = set()
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._end.set()
        self._thread.join(10)

    def _watch(self) -> None:
        while not self._end.wait(0.05):
            for process in Path("/proc").iterdir():
                try:
                    if b"flwr-clientapp" in (process / "cmdline").read_bytes():
                        self.seen.add(int(process.name))
                        libraries = (process / "maps").read_text()
                        self.heavy |= {name for name in ("tensorflow", "jaxlib", "pyarrow") if name in libraries}
                except (OSError, ValueError):
                    continue


def assert_same_model(one: Path, other: Path) -> None:
    """Both runs left the same model: weights bit by bit, structure and preprocessing word by word."""
    for name in ("spec.json", "preprocessing.json"):
        assert (one / "model" / name).read_text() == (other / "model" / name).read_text()
    with np.load(one / "model" / "weights.npz") as first, np.load(other / "model" / "weights.npz") as second:
        assert sorted(first.files) == sorted(second.files)
        for name in first.files:
            assert first[name].dtype == second[name].dtype
            assert first[name].tobytes() == second[name].tobytes(), f"{name} differs"


def told(*words: object) -> str:
    """What a command that ends by itself says on standard output."""
    finished = subprocess.run(
        [*HANSA, *map(str, words)], capture_output=True, text=True, timeout=RUN_SECONDS, check=False
    )
    assert finished.returncode == 0, finished.stdout + finished.stderr
    return finished.stdout


def simulated(folder: Path, table: Path) -> Path:
    out = folder / "simulation"
    told("simulate", folder / "agreement.toml", table, "--silo", "merchant", "--out", out)
    return out


def threshold_fetched_and_used(folder: Path, merchant: str, run: Path) -> float:
    """A merchant fetches the run's very bundle, and with its own threshold scores a table of which a row is bad."""
    used = folder / "used" / merchant
    used.mkdir(parents=True)
    fetched = json.loads(
        told("client", "fetch", "--state", folder / "state" / merchant, "-o", used / "bundle", "--json")
    )
    assert files_in(used / "bundle") == files_in(run / "bundle")
    assert (used / "coordinator.pub").read_text() == (run / "coordinator.pub").read_text()
    threshold = fetched["own"]["threshold"]
    assert 0 < threshold < 1
    (used / "new.csv").write_text("channel,amount\nshop,99.5\nweb,plenty\nfax,\n")
    summary = json.loads(told("score", used / "bundle", used / "new.csv", "-o", used / "scores.csv", "--json"))
    assert (summary["num_scored"], summary["num_rejected"], summary["threshold"]) == (2, 1, threshold)
    with (used / "scores.csv").open(newline="") as file:
        scores = list(csv.DictReader(file))
    assert [int(line["row"]) for line in scores] == [2, 4]
    assert all(int(line["decision"]) == (float(line["score"]) >= threshold) for line in scores)
    assert {float(line["threshold"]) for line in scores} == {threshold}
    rejected = (used / "scores.rejected.csv").read_text().splitlines()
    assert rejected[1].startswith("3,amount,plenty,")
    return float(threshold)


def files_in(bundle: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in bundle.iterdir()}


@pytest.fixture
def folder(tmp_path) -> Path:
    (tmp_path / "agreement.toml").write_text(AGREEMENT)
    return tmp_path


def assert_known_by_name(status, out, *, connected) -> None:
    """The coordinator's status names every merchant, with what it said and how often it served."""
    rounds = [json.loads(line) for line in (out / "rounds.jsonl").read_text().splitlines()]
    num_rounds = len(rounds)
    assert list(status["merchants"]) == list(MERCHANTS)
    for entry in status["merchants"].values():
        assert entry.pop("last_seen") is not None
        said = {"version": __version__, "agreement_approved": True, "in_two_places": None, "ledger_went_back": None}
        assert entry.items() >= {"connected": connected, "rounds_served": num_rounds, **said}.items()
    in_all = {key: sum(entry[key] for entry in rounds) for key in ("bytes_received", "bytes_sent")}
    assert status["runs"] == [{"folder": str(out), "state": "finished", "rounds_done": num_rounds, **in_all}]


def test_processes_leave_the_same_bytes_as_the_simulation(folder):
    table = write_tables(folder)
    out, signing = folder / "run", ("--state", folder / "state" / "server")
    with ExitStack() as stack:
        server = stack.enter_context(superlink(folder))
        merchants = [stack.enter_context(merchant_process(folder, name, server)) for name in MERCHANTS]
        for merchant in merchants:
            merchant.wait_for_line("waiting for orders")
        began = time.monotonic()
        with (
            ClientAppWatch() as watch,
            Command("server", "train", folder / "agreement.toml", "--out", out, "--server", server, *signing) as run,
        ):
            assert run.wait_for_end(RUN_SECONDS) == 0, run.text
        seconds = time.monotonic() - began
        for merchant in merchants:
            merchant.wait_for_line("was delivered")
        thresholds = {threshold_fetched_and_used(folder, "alpha", out)}
        again = json.loads(told("server", "deliver", out, "--server", server, *signing, "--json"))
        assert again["merchants"] == dict.fromkeys(MERCHANTS, "delivered")
        assert_known_by_name(json.loads(told("server", "status", *signing, "--json")), out, connected=True)
        assert [merchant.stop() for merchant in merchants] == [0, 0]
        assert_known_by_name(json.loads(told("server", "status", *signing, "--json")), out, connected=False)
    wait_until_gone(folder / "state")

    metrics = json.loads((out / "metrics.json").read_text())
    assert len(metrics["rounds"]) == NUM_ROUNDS
    assert all(sorted(entry["cohort"]) == list(MERCHANTS) and not entry["dropped"] for entry in metrics["rounds"])
    for name in MERCHANTS:
        quality = json.loads((folder / "state" / name / "data_quality.json").read_text())
        assert quality["missing"]["amount"] > 0
        assert quality["unseen_categories"]["channel"] > 0
        own = json.loads((folder / "state" / name / "own_metrics.json").read_text())
        assert own["test"]["roc_auc"] == metrics["merchants"][name]["federated"]["roc_auc"]
    assert len(watch.seen) >= len(MERCHANTS) * NUM_ROUNDS
    assert watch.heavy == set()
    # Of trainers that were stopped; and each merchant's threshold is its own.
    thresholds.add(threshold_fetched_and_used(folder, "beta", out))
    assert len(thresholds) == len(MERCHANTS)
    simulation = simulated(folder, table)
    assert_same_model(out, simulation)
    for name in ("weights.npz", "float.tflite", "int8.tflite"):
        assert (out / "bundle" / name).read_bytes() == (simulation / "bundle" / name).read_bytes(), name
    bundle = open_trusted(out / "bundle", None)
    assert bundle.manifest.run_id == metrics["run_id"]
    assert bundle.signer == public_key_of(bytes.fromhex((folder / "state" / "server" / "signing.key").read_text()))
    rounds = [entry["seconds"] for entry in metrics["rounds"]]
    print(f"\nseconds a round: {rounds}; the whole run: {seconds:.1f}")


def test_run_without_enough_merchants_fails_and_says_so(folder):
    write_tables(folder)
    short = AGREEMENT.replace("wait_seconds = 120.0", "wait_seconds = 3.0")
    (folder / "agreement.toml").write_text(short)
    words = ("--out", folder / "run", "--state", folder / "state" / "server")
    with (
        superlink(folder) as server,
        Command("server", "train", folder / "agreement.toml", *words, "--server", server) as run,
    ):
        assert run.wait_for_end(RUN_SECONDS) == 1, run.text
    assert run.lines[-1].startswith("hansa: ")
    assert not (folder / "run" / "metrics.json").exists()
    wait_until_gone(folder / "state")


def test_bad_table_is_told_by_the_trainer_and_ends_the_command(folder):
    write_tables(folder)
    (folder / "alpha.csv").write_text("merchant,amount,channel,buys\nalpha,1.0,web,perhaps\n")
    with superlink(folder) as server, merchant_process(folder, "alpha", server) as merchant:
        assert merchant.wait_for_end() in {1, 2}
    (line,) = [line for line in merchant.lines if line.startswith("hansa: ")]
    assert "alpha.csv" in line
    wait_until_gone(folder / "state")


def test_killed_node_is_started_again_and_kill_of_the_command_leaves_no_process(folder):
    write_tables(folder)
    with superlink(folder) as server, merchant_process(folder, "alpha", server) as merchant:
        merchant.wait_for_line("waiting for orders")
        (pid,) = [
            pid for pid, words in processes_of(folder / "state").items() if "-m hansa_client.flower_node" in words
        ]
        os.kill(pid, signal.SIGKILL)
        merchant.wait_for_line("alpha: Flower's node runs again")
        assert merchant.process.poll() is None
        merchant.process.kill()
        merchant.wait_for_end()
    wait_until_gone(folder / "state")
