"""A federation across companies on one machine: a coordinator and three merchants, each with a folder of its own, who
use the printed commands and exchange nothing but requests and kits. The rows are of the public shop visits, if there.
"""

from __future__ import annotations

import csv
import gzip
import json
import shlex
import shutil
import socket
import subprocess
import tomllib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from hansa_command import HANSA, Command, processes_of, wait_until_gone

MERCHANTS = ("alder", "birch", "cedar")
# The three largest sources of visits stand for merchants.
SOURCES = {"2": "alder", "1": "birch", "3": "cedar"}
NUM_ROWS = 700
COLUMNS = ("PageValues", "ExitRates", "ProductRelated", "Month", "VisitorType", "Weekend", "Revenue")
AGREEMENT = f"""
name = "companies"
task = "purchase"
seed = 7
roster = {json.dumps(MERCHANTS)}

[label]
column = "Revenue"
positive = "TRUE"

[[features]]
kind = "numeric"
name = "PageValues"
low = 0.0
high = 400.0
scaling = "log"

[[features]]
kind = "numeric"
name = "ExitRates"
low = 0.0
high = 0.2

[[features]]
kind = "numeric"
name = "ProductRelated"
low = 0.0
high = 800.0
scaling = "log"

[[features]]
kind = "categorical"
name = "Month"
vocabulary = ["Feb", "Mar", "May", "June", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"]
encoding = "embedding"
embedding_dim = 3

[[features]]
kind = "categorical"
name = "VisitorType"
vocabulary = ["New_Visitor", "Returning_Visitor", "Other"]

[[features]]
kind = "boolean"
name = "Weekend"

[model]
hidden = [16, 8]
dropout = 0.1

[training]
algorithm = "scaffold"
rounds = 2
patience = 2

[training.plan]
optimizer = "sgd"
learning_rate = 0.1
batch_size = 32

[cohort]
min_merchants = 3
wait_seconds = 120.0
deadline_seconds = 120.0

[privacy]
min_count = 1
min_positives = 1

[compression]
format = "int8"
max_pr_auc_loss = 0.5
max_merchant_pr_auc_loss = 0.9
"""


def write_tables(source: Path, folder: Path) -> None:
    """A table for each merchant, and all of them in one with a column that says whose a row is."""
    rows: dict[str, list[list[str]]] = {name: [] for name in MERCHANTS}
    with gzip.open(source, "rt", newline="") as file:
        for row in csv.DictReader(file):
            name = SOURCES.get(row["TrafficType"])
            if name is not None and len(rows[name]) < NUM_ROWS:
                rows[name].append([name, *(row[column] for column in COLUMNS)])
    for name, kept in {**{name: (name,) for name in MERCHANTS}, "all": MERCHANTS}.items():
        with (folder / f"{name}.csv").open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["merchant", *COLUMNS])
            writer.writerows(row for merchant in kept for row in rows[merchant])


@dataclass(frozen=True)
class Finished:
    """What a command that ended by itself said."""

    code: int
    out: str
    err: str


@dataclass(frozen=True)
class Party:
    """A company, by the folder that it works in; its state is where the commands put it unless they are told. What it
    runs is noted.
    """

    name: str
    folder: Path
    said: list[str] = field(default_factory=list)

    @property
    def state(self) -> Path:
        return self.folder / ".hansa" / self.name

    def hansa(self, *words: object) -> Finished:
        """A command to its end."""
        self.said.append(shlex.join(map(str, words)))
        done = subprocess.run(
            [*HANSA, *map(str, words)], cwd=self.folder, capture_output=True, text=True, timeout=300, check=False
        )
        return Finished(done.returncode, done.stdout, done.stderr)

    def told(self, *words: object) -> str:
        """What a command that succeeds says."""
        done = self.hansa(*words)
        assert done.code == 0, done.out + done.err
        return done.out

    @contextmanager
    def running(self, *words: object) -> Iterator[Command]:
        """A command while the block runs."""
        self.said.append(shlex.join(map(str, words)))
        with Command(*words, cwd=self.folder) as started:
            yield started


class Companies:
    """A coordinator and its merchants, enrolled and with their agreement approved."""

    def __init__(self, folder: Path, source: Path, agreement: str = AGREEMENT) -> None:
        self.folder = folder
        self.coordinator = self._party("server")
        self.merchants = {name: self._party(name) for name in MERCHANTS}
        write_tables(source, folder)
        (self.coordinator.folder / "agreement.toml").write_text(agreement)
        self.address = f"127.0.0.1:{free_port()}"
        self._enroll()

    def _party(self, name: str) -> Party:
        (self.folder / name).mkdir()
        return Party(name, self.folder / name)

    def _enroll(self) -> None:
        requests, kits = self.coordinator.folder / "requests", self.coordinator.folder / "kits"
        requests.mkdir()
        at_once([lambda party=party: party.told("client", "enroll", party.name) for party in self.merchants.values()])
        for party in self.merchants.values():
            shutil.copy(party.state / f"{party.name}.request.json", requests)
            shutil.copy(self.folder / f"{party.name}.csv", party.folder)
        places = ("--requests", "requests", "-o", "kits")
        self.coordinator.told("provision", "agreement.toml", "--host", self.address, *places)
        told = tomllib.loads((kits / MERCHANTS[0] / "federation.toml").read_text())
        self.fingerprint = told["agreement"]
        at_once([lambda party=party: self._join(party, kits) for party in self.merchants.values()])

    def _join(self, party: Party, kits: Path) -> None:
        shutil.copytree(kits / party.name, party.folder / "kits" / party.name)
        party.told("client", "enroll", party.name, "--kit", f"kits/{party.name}")
        party.told("client", "approve", f"kits/{party.name}/agreement.toml", "--yes-to", self.fingerprint)

    @contextmanager
    def serving(self) -> Iterator[Command]:
        """The coordinator's server, once merchants can connect."""
        with self.coordinator.running("server", "start") as server:
            server.wait_for_line("gateway on")
            yield server

    @contextmanager
    def taking_part(self) -> Iterator[dict[str, Command]]:
        """All merchants, once they wait for orders."""
        with ExitStack() as stack:
            started = {
                name: stack.enter_context(party.running("client", "start", "--data", f"{name}.csv"))
                for name, party in self.merchants.items()
            }
            for command in started.values():
                command.wait_for_line("waiting for orders")
            yield started

    def processes(self) -> dict[int, str]:
        """Its living processes, at any remove: they work in its folder, or have a file of it in view."""
        return processes_of(self.folder)

    def process(self, party: Party, program: str) -> int:
        """The process of this program in a company's folder."""
        (pid,) = [pid for pid, words in processes_of(party.folder).items() if f"-m {program} " in words]
        return pid

    def wait_until_gone(self) -> None:
        """Wait, a bounded time, for the end of every process."""
        wait_until_gone(self.folder)


def at_once(actions: list[Callable[[], object]]) -> None:
    """Commands of different companies, two at a time: there are as many processors."""
    with ThreadPoolExecutor(2) as pool:
        for done in [pool.submit(action) for action in actions]:
            done.result()


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


@pytest.fixture(scope="session")
def companies(tmp_path_factory, public_data) -> Companies:
    """One federation for all tests that leave it as they found it: nothing runs in it before and after."""
    return Companies(tmp_path_factory.mktemp("companies"), public_data / "online_shoppers_intention.csv.gz")


@pytest.fixture(scope="session")
def new_companies(tmp_path_factory, public_data) -> Callable[[str], Companies]:
    """Another federation under an agreement of its own, in TOML, with the same tables."""

    def new(agreement: str) -> Companies:
        folder = tmp_path_factory.mktemp("companies")
        return Companies(folder, public_data / "online_shoppers_intention.csv.gz", agreement)

    return new
