"""What is known of a coordinator's merchants and runs now, by name: from Flower's database, the register of what was
issued, and the folders of the runs. Nothing is changed, and no merchant is asked.

| of a merchant  | comes from                                                                                     |
|----------------|------------------------------------------------------------------------------------------------|
| its name       | the register, the roster of a run's agreement, or its own introduction                         |
| its nodes      | the node key that was issued to it; without one, the nodes that introduced themselves as it    |
| version, approved | the last run that it spoke in                                                               |
| rounds served  | all runs: rounds in which it was asked and its reply was averaged                              |
| ledger         | the book of ledgers: when the merchant's last went back                                        |
| in two places  | the gateway, which noted that its certificate was in use in two places at once                 |
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hansa_server import run_folder, server_process, superlink
from hansa_server.attendance import read_attendance
from hansa_server.gateway_sightings import read_two_places
from hansa_server.issued_register import IssuedRegister
from hansa_server.ledger_book import read_book
from hansa_server.server_process import ServerProcess

if TYPE_CHECKING:
    from hansa_server.flower_private import KnownRun, Node


@dataclass(frozen=True)
class RunStatus:
    """A run that this server was given, by the folder that it writes into; `rounds_done` counts its rounds so far, and
    the bytes are those of their exchanges.
    """

    flower_id: int
    folder: Path
    state: str
    rounds_done: int
    bytes_received: int
    bytes_sent: int

    def to_json(self) -> dict[str, Any]:
        """The same as plain values."""
        return {
            "folder": str(self.folder),
            "state": self.state,
            "rounds_done": self.rounds_done,
            "bytes_received": self.bytes_received,
            "bytes_sent": self.bytes_sent,
        }


@dataclass(frozen=True)
class MerchantStatus:
    """A merchant now. `has_approved` is of the last agreement that it was asked about, None where it was not asked;
    `in_two_places`, when its certificate was last in use in two places, and `ledger_went_back`, when its privacy ledger
    last was behind what it had been: None where that never was. `ledger_lines` says from which line to which it went.
    """

    name: str
    is_connected: bool
    last_seen: datetime | None
    version: str
    has_approved: bool | None
    rounds_served: int
    in_two_places: datetime | None = None
    ledger_went_back: datetime | None = None
    ledger_lines: tuple[int, int] | None = None


@dataclass(frozen=True)
class Status:
    """All of it. `num_unknown_nodes` are connected and have not told, or shown, whose they are."""

    server: ServerProcess | None
    merchants: tuple[MerchantStatus, ...]
    runs: tuple[RunStatus, ...]
    num_unknown_nodes: int

    def to_json(self) -> dict[str, Any]:
        """The same as plain values; times in ISO 8601, UTC."""
        return {
            "server": None if self.server is None else _server_json(self.server),
            "merchants": {merchant.name: _merchant_json(merchant) for merchant in self.merchants},
            "runs": [run.to_json() for run in self.runs],
            "unknown_nodes": self.num_unknown_nodes,
        }


def read_status(state: Path) -> Status:
    """The status of the coordinator with this state folder, whether its server runs or not.

    Raises:
        CoordinatorError: the register, or what a run noted, is damaged.
    """
    return _Known(state).status()


class _Known:
    """What the state folder and the runs' folders hold, read once."""

    def __init__(self, state: Path) -> None:
        self._server = server_process.find(state)
        self._in_two_places = read_two_places(state)
        self._keys = {entry.node_key.encode(): name for name, entry in IssuedRegister.read(state).merchants.items()}
        self._nodes, known_runs = _read_database(state / superlink.DATABASE_NAME)
        self._runs = _last_runs(known_runs)
        self._heard = [read_attendance(run.folder) for run in self._runs]
        self._served = Counter(name for run in self._runs for name in _served(run.folder))
        self._owners = self._whose_nodes()
        folders = [*(run.folder for run in self._runs), state]
        self._ledgers = {name: known for folder in folders for name, known in read_book(folder).items()}

    def status(self) -> Status:
        """All of it."""
        rosters = (name for run in self._runs for name in _roster(run.folder))
        names = dict.fromkeys([*self._keys.values(), *rosters, *(name for told in self._heard for name in told)])
        return Status(
            server=self._server,
            merchants=tuple(self._merchant(name) for name in names),
            runs=tuple(self._run(run) for run in self._runs),
            num_unknown_nodes=sum(self._is_online(node) and node.node_id not in self._owners for node in self._nodes),
        )

    def _run(self, run: KnownRun) -> RunStatus:
        rounds = _rounds(run.folder)
        received, sent = (sum(entry[key] for entry in rounds) for key in ("bytes_received", "bytes_sent"))
        return RunStatus(run.run_id, run.folder, self._state(run), len(rounds), received, sent)

    def _merchant(self, name: str) -> MerchantStatus:
        ledger = self._ledgers.get(name)
        nodes = [node for node in self._nodes if self._owners.get(node.node_id) == name]
        last_heard = next((told[name] for told in reversed(self._heard) if name in told), None)
        return MerchantStatus(
            name=name,
            is_connected=any(map(self._is_online, nodes)),
            last_seen=max((node.last_seen for node in nodes if node.last_seen is not None), default=None),
            version="" if last_heard is None else last_heard.version,
            has_approved=None if last_heard is None else last_heard.has_approved,
            rounds_served=self._served[name],
            in_two_places=self._in_two_places.get(name),
            ledger_went_back=None if ledger is None else ledger.went_back_at,
            ledger_lines=None if ledger is None else ledger.lines_went_back,
        )

    def _whose_nodes(self) -> dict[int, str]:
        """Whose each node is: by the key that was issued, else by what it said itself when it was last heard."""
        owners = {attendee.node_id: name for told in self._heard for name, attendee in told.items()}
        by_key = {node.node_id: self._keys[node.public_key] for node in self._nodes if node.public_key in self._keys}
        return {**owners, **by_key}

    def _is_online(self, node: Node) -> bool:
        # A database that nobody keeps says of every node what it said last.
        return node.is_online and self._server is not None

    def _state(self, run: KnownRun) -> str:
        if (run.folder / run_folder.METRICS).exists():
            return "finished"
        if not run.is_over and self._server is not None:
            return "running"
        if (run.folder / run_folder.FAILURE).exists():
            return "failed"
        if (run.folder / run_folder.CHECKPOINT).is_dir():
            return "interrupted"
        return "stopped" if run.outcome == "stopped" else "failed"


def _read_database(path: Path) -> tuple[list[Node], list[KnownRun]]:
    # Late: all of Flower's SuperLink is imported with it.
    from hansa_server import flower_private

    if not path.exists():
        return [], []
    database = flower_private.open_database(path)
    return flower_private.nodes(database), flower_private.runs(database)


def _last_runs(known: Sequence[KnownRun]) -> list[KnownRun]:
    """Of every folder the last of Flower's runs, which may have been several: interrupted, resumed, and a delivery."""
    by_folder = {run.folder: run for run in known if run.folder.is_absolute()}
    return sorted(by_folder.values(), key=lambda run: run.started)


def _roster(folder: Path) -> list[str]:
    # Not validated: a run of another version is none that could begin here, but its merchants are known.
    try:
        return [str(name) for name in json.loads((folder / run_folder.AGREEMENT).read_bytes())["roster"]]
    except (OSError, ValueError, KeyError, TypeError):
        return []


def _rounds(folder: Path) -> list[dict[str, Any]]:
    """The rounds that a run has ended; a line that a kill cut short counts as none."""
    try:
        lines = (folder / run_folder.ROUNDS).read_bytes().splitlines()
        return [json.loads(line) for line in lines if line.endswith(b"}")]
    except (OSError, ValueError):
        return []


def _served(folder: Path) -> list[str]:
    rounds = (entry for entry in _rounds(folder) if entry["aggregated"])
    return [name for entry in rounds for name in entry["cohort"] if name not in entry["dropped"]]


def _server_json(server: ServerProcess) -> dict[str, Any]:
    gateway = None if server.gateway is None else str(server.gateway)
    return {"pid": server.pid, "address": str(server.address), "gateway": gateway}


def _merchant_json(merchant: MerchantStatus) -> dict[str, Any]:
    return {
        "connected": merchant.is_connected,
        "last_seen": _time_json(merchant.last_seen),
        "version": merchant.version or None,
        "agreement_approved": merchant.has_approved,
        "rounds_served": merchant.rounds_served,
        "in_two_places": _time_json(merchant.in_two_places),
        "ledger_went_back": _time_json(merchant.ledger_went_back),
        "ledger_lines": merchant.ledger_lines,
    }


def _time_json(moment: datetime | None) -> str | None:
    return None if moment is None else moment.isoformat(timespec="seconds")
