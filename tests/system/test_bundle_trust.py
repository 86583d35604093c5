"""Which bundles are started, with real SuperLinks and nodes: a dishonest coordinator's are not, whoever signed them,
and at an honest coordinator's nobody else can start any."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
from flwr.common.constant import ErrorCode
from flwr.proto.control_pb2 import StartAutomationRequest, StartRunRequest
from flwr.supercore.constant import NOOP_FEDERATION_ID
from hansa_command import wait_until

from hansa_client import flower_node
from hansa_common import children
from hansa_common.errors import TransportError
from hansa_common.flower_bundle import APP_SPEC, bundle_hash, bundle_toml, flower_bundle
from hansa_common.keys import public_key_of
from hansa_common.publisher import signed_by, trusted_entities_yaml
from hansa_server import flower_private, superlink

pytestmark = [pytest.mark.system, pytest.mark.timeout(600)]

KEY, OTHER_KEY = bytes(range(32)), bytes(range(1, 33))
AGREEMENT = """
name = "trust"
task = "fraud"
roster = ["alder", "birch"]
label = {column = "fraud"}
features = [{kind = "numeric", name = "amount", low = 0.0, high = 1.0}]
cohort = {min_merchants = 2, wait_seconds = 100.0}
"""
# Runs in the ClientApp of a node that lets it.
HOSTILE_CLIENT = """
import os
from pathlib import Path
Path(os.environ["FLWR_HOME"], "was-here").touch()
from flwr.clientapp import ClientApp
app = ClientApp()
"""


def code_carrying_bundle(dishonest) -> bytes:
    """One that says of itself what ours says, but brings the ClientApp that it names, and its own ServerApp."""
    toml = bundle_toml().replace("hansa_server.app:app", "hostile:app")
    files = {"hansa_client/__init__.py": "", "hansa_client/app.py": HOSTILE_CLIENT, "hostile.py": dishonest.server_code}
    return dishonest.packed({"pyproject.toml": toml, **files})


class Node:
    """A node with files of its own, and what can be seen of it from outside."""

    def __init__(self, folder: Path) -> None:
        self.home = folder / "flower"
        self.log = folder / "node.log"

    @property
    def words(self) -> str:
        return self.log.read_text(errors="replace")

    @property
    def ran_hostile_code(self) -> bool:
        return (self.home / "was-here").exists()

    @property
    def unpacked(self) -> list[str]:
        return sorted(path.name for path in self.home.glob("apps/*"))

    @property
    def node_id(self) -> str:
        return self.words.partition("SuperNode ID: ")[2].split()[0]


@contextmanager
def node(dishonest, folder: Path, command: list[str]) -> Iterator[Node]:
    folder.mkdir()
    started = Node(folder)
    with children.running("a node", command, flower_node.environment(started.home), log=started.log):
        wait_until(f"the node in {folder}", lambda: "SuperNode ID: " in started.words)
        yield started


@pytest.fixture
def run_folder(tmp_path) -> Path:
    from hansa_common.agreement import parse_agreement
    from hansa_server import run_folder

    run_folder.create(tmp_path / "run", parse_agreement(AGREEMENT, "the test"))
    return tmp_path / "run"


def test_node_starts_neither_unsigned_nor_badly_signed_bundles_and_no_code_under_the_publishers_signature(
    dishonest, tmp_path, run_folder
):
    trusted = tmp_path / "trusted.yaml"
    trusted.write_text(trusted_entities_yaml(public_key_of(KEY)))
    ours, hostile = flower_bundle(), code_carrying_bundle(dishonest)
    with ExitStack() as stack:
        coordinator = stack.enter_context(dishonest.coordinator(tmp_path / "server"))
        command = flower_node.command(coordinator.address, flower_node.free_port(), tmp_path / "none.sock", trusted)
        watched = stack.enter_context(node(dishonest, tmp_path / "watched", command))
        command = flower_node.command(coordinator.address, flower_node.free_port(), tmp_path / "none.sock", trusted)
        plain = stack.enter_context(node(dishonest, tmp_path / "plain", dishonest.flowers_own(command)))

        coordinator.start(hostile, signed_by(KEY, hostile, 1), run_folder)
        wait_until("the nodes' answers", (run_folder / "errors.json").exists)
        assert json.loads((run_folder / "errors.json").read_text())[watched.node_id] == ErrorCode.INVALID_FAB
        assert f"the bundle {bundle_hash(hostile)} is not Hansa's own" in watched.words
        assert not watched.ran_hostile_code
        # The attack is one: Flower's own node, which trusts the same publisher, ran what was signed.
        assert plain.ran_hostile_code

        for verifications, refusal in (
            ({}, "App verification is not supported"),
            (signed_by(OTHER_KEY, ours, 1), "trusted entities could not verify"),
        ):
            seen = watched.words.count(refusal)
            run_id = coordinator.start(ours, verifications, run_folder)
            wait_until(refusal, lambda refusal=refusal, seen=seen: watched.words.count(refusal) > seen)
            coordinator.stop(run_id)
        assert watched.unpacked == []

        coordinator.start(ours, signed_by(KEY, ours, 1), run_folder)
        # What the ClientApp that is installed here says, where no trainer runs.
        wait_until("our own ClientApp", lambda: "no trainer has left its access file" in watched.words)
        (unpacked,) = watched.unpacked
        assert unpacked.endswith(bundle_hash(ours)[:8])


@pytest.fixture
def guarded(dishonest, tmp_path) -> Iterator[superlink.Control]:
    address, state = dishonest.free_address(), tmp_path / "state"
    with superlink.running(address, state):
        yield superlink.Control.of(address, state)


def test_coordinators_superlink_starts_no_other_bundle_and_nothing_for_who_has_no_token(
    dishonest, guarded, tmp_path, run_folder
):
    ours, hostile = flower_bundle(), code_carrying_bundle(dishonest)
    database = flower_private.open_database(tmp_path / "state" / superlink.DATABASE_NAME)
    stored = database.get_app(NOOP_FEDERATION_ID, APP_SPEC, bundle_hash(ours))
    assert stored.content == ours

    with pytest.raises(TransportError, match="another state folder"):
        superlink.Control(guarded.server, "0" * 64).start_run(run_folder)

    def ask(message) -> None:
        with flower_private.control_api(str(guarded.server), guarded.token) as control:
            control.StartRun(message) if isinstance(message, StartRunRequest) else control.StartAutomation(message)

    for attempt in (
        dishonest.request(bundle_hash(hostile), hostile, run_folder),
        # Flower would store it anew, and take the signature off.
        dishonest.request(bundle_hash(ours), ours, run_folder),
        # Flower would start it at its time, without asking for a token.
        StartAutomationRequest(start_run_request=StartRunRequest(app_spec=APP_SPEC, series_id=1)),
    ):
        with pytest.raises(TransportError, match="Hansa's own bundle and no other"):
            ask(attempt)
    assert flower_private.runs(database) == []
    assert database.get_app(NOOP_FEDERATION_ID, APP_SPEC, bundle_hash(ours)).verifications == stored.verifications

    run_id = guarded.start_run(run_folder)
    (run,) = flower_private.runs(database)
    assert (run.run_id, run.folder, run.is_over) == (run_id, run_folder, False)
    guarded.stop_run(run_id)
    (run,) = flower_private.runs(database)
    assert (run.is_over, run.outcome) == (True, "stopped")
