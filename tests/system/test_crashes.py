"""A federation of real processes in which the coordinator's are killed in the middle of a round: nothing hangs, no
merchant needs a hand, and the run goes on to the bytes that it would have ended in."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pytest
from hansa_command import HANSA, WAIT_SECONDS, Command, processes_of, wait_until

pytestmark = [pytest.mark.system, pytest.mark.timeout(600)]

MERCHANTS = ("alpha", "beta")
# SuperLink's end is seen at once, and a run's process missed after ten seconds; the rest is for a slow machine.
NOTICED_SECONDS = 120.0
AGREEMENT = f"""
name = "crashes"
task = "purchase"
seed = 5
roster = {json.dumps(MERCHANTS)}
label = {{column = "buys"}}
features = [{{kind = "numeric", name = "amount", low = 0.0, high = 100.0}}]
model = {{hidden = [8], dropout = 0.2}}
cohort = {{min_merchants = 2, wait_seconds = 120.0, deadline_seconds = 120.0}}
privacy = {{min_count = 1, min_positives = 1}}

[training]
algorithm = "scaffold"
rounds = 2
patience = 2

[training.plan]
optimizer = "sgd"
learning_rate = 0.1
batch_size = 32
"""


class Federation:
    """SuperLink and the merchants, in their processes, for one run after the other."""

    def __init__(self, folder: Path, stack: ExitStack) -> None:
        self.folder, self._stack = folder, stack
        self._num_noted = dict.fromkeys(MERCHANTS, 0)
        with socket.socket() as listener:
            listener.bind(("127.0.0.1", 0))
            self.address = f"127.0.0.1:{listener.getsockname()[1]}"
        self.start_server()
        agreed = ("--development", "--agreement", folder / "agreement.toml")
        files = {name: (*agreed, "--data", folder / f"{name}.csv") for name in MERCHANTS}
        options = {name: ("--merchant", name, "--state", folder / "state" / name) for name in MERCHANTS}
        self.merchants = [
            stack.enter_context(Command("client", "start", *files[name], *options[name], "--server", self.address))
            for name in MERCHANTS
        ]
        for merchant in self.merchants:
            merchant.wait_for_line("waiting for orders")

    @property
    def state(self) -> tuple[object, ...]:
        return ("--state", self.folder / "state" / "server")

    def start_server(self) -> None:
        self.server = self._stack.enter_context(Command("server", "start", "--address", self.address, *self.state))
        self.server.wait_for_line("SuperLink on")

    def command(self, *words: object) -> Command:
        return self._stack.enter_context(Command("server", *words, "--server", self.address, *self.state))

    def processes(self, program: str) -> list[int]:
        """The processes of this program that were started, at any remove, with the server's folder in view."""
        found = processes_of(self.folder / "state" / "server")
        return [pid for pid, words in found.items() if any(program in word for word in words.split(" ")[1:3])]

    def begin_run(self) -> None:
        """What merchants note from now on is another run's."""
        self._num_noted = {name: self._num_noted[name] + len(self.noted(name)) for name in MERCHANTS}

    def noted(self, merchant: str) -> list[dict[str, object]]:
        """The lines of a merchant's own audit on this run, the last of which may still be being written."""
        lines = (self.folder / "state" / merchant / "audit.jsonl").read_text().split("\n")[:-1]
        return [json.loads(line) for line in lines[self._num_noted[merchant] :]]

    def is_in_round(self, number: int) -> bool:
        return all(any(entry.get("round") == number for entry in self.noted(name)) for name in MERCHANTS)


def write_tables(folder: Path) -> None:
    values, rows = np.random.default_rng(5), {}
    for name in MERCHANTS:
        amounts = values.uniform(0, 100, 400).round(2)
        buys = values.uniform(size=400) < 1 / (1 + np.exp(2.5 - amounts / 25))
        rows[name] = [f"{name},{amount},{int(label)}" for amount, label in zip(amounts, buys, strict=True)]
    for name, kept in {**{name: [name] for name in MERCHANTS}, "all": MERCHANTS}.items():
        lines = ["merchant,amount,buys", *(line for merchant in kept for line in rows[merchant])]
        (folder / f"{name}.csv").write_text("\n".join(lines) + "\n")
    (folder / "agreement.toml").write_text(AGREEMENT)


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory) -> Path:
    """The same federation with nothing between its parties: a simulation, whose model is that of processes."""
    folder = tmp_path_factory.mktemp("unbroken")
    write_tables(folder)
    words = ["simulate", folder / "agreement.toml", folder / "all.csv", "--silo", "merchant", "--out", folder / "run"]
    subprocess.run([*HANSA, *map(str, words)], capture_output=True, check=True, timeout=300)
    return folder / "run"


@pytest.fixture(scope="module")
def federation(tmp_path_factory):
    folder = tmp_path_factory.mktemp("federation")
    write_tables(folder)
    with ExitStack() as stack:
        yield Federation(folder, stack)


def kill_in_round_2(federation: Federation, run: Path, program: str) -> None:
    federation.begin_run()
    train = federation.command("train", federation.folder / "agreement.toml", "--out", run)
    train.wait_for_line("waiting for 2 merchants")
    wait_until("round 2 at every merchant", lambda: federation.is_in_round(2))
    (pid,) = federation.processes(program)
    os.kill(pid, signal.SIGKILL)
    assert train.wait_for_end(NOTICED_SECONDS) == 1, train.lines
    # A run is not resumed while a process of it still comes to its end.
    wait_until("the end of the run's process", lambda: not federation.processes("flwr-serverapp"))
    assert f"`hansa server resume {run}` goes on with it" in train.lines[-1]
    assert not (run / "metrics.json").exists()


def resumed(federation: Federation, run: Path) -> Command:
    resume = federation.command("resume", run)
    assert resume.wait_for_end(WAIT_SECONDS) == 0, resume.lines
    return resume


def assert_as_unbroken(run: Path, unbroken: Path) -> None:
    for name in ("weights.npz", "spec.json", "preprocessing.json"):
        assert (run / "model" / name).read_bytes() == (unbroken / "model" / name).read_bytes(), name
    told, expected = (json.loads((folder / "metrics.json").read_text()) for folder in (run, unbroken))
    for entry in (*told["rounds"], *expected["rounds"]):
        entry.pop("seconds")
    assert told["rounds"] == expected["rounds"]
    assert told["federated"] == expected["federated"]
    lines = [json.loads(line) for line in (run / "rounds.jsonl").read_text().splitlines()]
    assert [entry["round"] for entry in lines] == [1, 2]
    assert not (run / "checkpoint").exists()


def test_run_whose_process_is_killed_in_a_round_goes_on_to_the_same_bytes(federation, unbroken, tmp_path):
    run = tmp_path / "run"
    kill_in_round_2(federation, run, "flwr-serverapp")
    resume = resumed(federation, run)
    assert any("goes on after round 1" in line for line in resume.lines)
    assert not any(line.startswith("round 1:") for line in resume.lines)
    assert_as_unbroken(run, unbroken)
    # What merchants had answered they answered again, and did not make twice.
    answers = [entry for name in MERCHANTS for entry in federation.noted(name) if entry.get("round") == 2]
    assert [entry["decision"] for entry in answers if entry.get("decision") == "stored"] == ["stored"] * 2
    assert [merchant.process.poll() for merchant in federation.merchants] == [None, None]


def test_run_whose_superlink_is_killed_in_a_round_goes_on_to_the_same_bytes(federation, unbroken, tmp_path):
    run = tmp_path / "run"
    kill_in_round_2(federation, run, "hansa_server.guarded_superlink")
    assert federation.server.wait_for_end(NOTICED_SECONDS) == 1
    refused = federation.command("resume", run)
    assert refused.wait_for_end(NOTICED_SECONDS) == 1
    assert "no SuperLink answers" in refused.lines[-1]
    federation.start_server()
    resumed(federation, run)
    assert_as_unbroken(run, unbroken)
    # Nobody touched the merchants meanwhile.
    assert [merchant.process.poll() for merchant in federation.merchants] == [None, None]
