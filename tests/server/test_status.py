"""Merchants are told by name, from Flower's own database, the register of what was issued and the runs' folders."""

from __future__ import annotations

import io
import json
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from flwr.supercore.constant import NOOP_FEDERATION_ID, TaskType
from flwr.supercore.fab import Fab
from rich.console import Console

from hansa_common import durable_files
from hansa_common.addresses import Address
from hansa_common.agreement import parse_agreement
from hansa_common.flower_bundle import APP_ID, RUN_FOLDER_KEY, bundle_hash, flower_bundle
from hansa_common.keys import public_pem
from hansa_server import flower_private, issued_register, run_folder, server_process, status_command, superlink
from hansa_server.attendance import Attendance
from hansa_server.issued_register import IssuedCertificate, IssuedKeys
from hansa_server.run_events import MerchantIntroduced, NodeRefused
from hansa_server.status import read_status

AGREEMENT = """
task = "fraud"
roster = ["alder", "birch", "cedar"]
label = {column = "fraud"}
features = [{kind = "numeric", name = "amount", low = 0.0, high = 1.0}]
"""
INTERVAL_SECONDS = 30


@pytest.fixture(scope="module")
def empty_database(tmp_path_factory) -> bytes:
    """A new database of Flower's; making one takes longer than all else here."""
    path = tmp_path_factory.mktemp("database") / "state.db"
    flower_private.open_database(path)._engine.dispose()
    return path.read_bytes()


@pytest.fixture
def coordinator(tmp_path, empty_database):
    """A state folder with a database of Flower's, into which nodes and runs come as a SuperLink lets them in."""
    state = tmp_path / "state"
    state.mkdir(mode=0o700)
    (state / superlink.DATABASE_NAME).write_bytes(empty_database)
    database = flower_private.open_database(state / superlink.DATABASE_NAME)
    bundle = flower_bundle()
    database.store_fab(Fab(bundle_hash(bundle), bundle, {}))

    def node(key: bytes, *, online: bool = True) -> int:
        node_id = database.create_node("<id:none>", "", key, INTERVAL_SECONDS)
        assert database.activate_node(node_id, INTERVAL_SECONDS)
        if not online:
            assert database.deactivate_node(node_id)
        return node_id

    def run(name: str, rounds=()) -> SimpleNamespace:
        folder = tmp_path / name
        if not folder.exists():
            run_folder.create(folder, parse_agreement(AGREEMENT, "the test"))
        for entry in rounds:
            run_folder.add_round(folder, entry)
        flower_id = database.create_run(
            APP_ID, "", bundle_hash(bundle), {RUN_FOLDER_KEY: str(folder)}, NOOP_FEDERATION_ID, None, "<id:none>",
            TaskType.SERVER_APP,
        )  # fmt: skip
        return SimpleNamespace(folder=folder, attendance=Attendance(folder, ()), flower_id=flower_id)

    return SimpleNamespace(state=state, database=database, node=node, run=run)


@pytest.fixture
def serving(coordinator):
    with server_process.registered(coordinator.state, Address("127.0.0.1", 8000)):
        yield coordinator


BYTES = {"bytes_received": 2_500_000, "bytes_sent": 1_000}


def round_of(*cohort: str, dropped=(), aggregated=True) -> dict:
    return {"cohort": list(cohort), "dropped": dict.fromkeys(dropped, "deadline"), "aggregated": aggregated, **BYTES}


def merchants(coordinator) -> dict:
    return {merchant.name: merchant for merchant in read_status(coordinator.state).merchants}


def test_nothing_yet_is_told_as_nothing(tmp_path):
    told = read_status(tmp_path)
    assert told.to_json() == {"server": None, "merchants": {}, "runs": [], "unknown_nodes": 0}


def test_merchant_is_known_by_what_it_introduced_itself_as(serving):
    run = serving.run("run")
    run.attendance.note(MerchantIntroduced(serving.node(b"1"), "alder", "0.1.0"))
    run.attendance.note(MerchantIntroduced(serving.node(b"2", online=False), "birch", "0.1.0"))
    told = merchants(serving)
    assert list(told) == ["alder", "birch", "cedar"]
    assert [told[name].is_connected for name in told] == [True, False, False]
    assert (told["alder"].version, told["alder"].has_approved) == ("0.1.0", True)
    assert (told["cedar"].version, told["cedar"].has_approved, told["cedar"].last_seen) == ("", None, None)
    for name in ("alder", "birch"):
        assert abs(datetime.now(UTC) - told[name].last_seen) < timedelta(seconds=30)


def test_merchant_is_known_by_the_key_that_it_was_issued_whatever_a_node_calls_itself(serving):
    pem = public_pem(ec.generate_private_key(ec.SECP384R1()).public_key())
    certificate = IssuedCertificate(serial="1", not_after="2030-01-01T00:00:00+00:00", pem="")
    keys = IssuedKeys(merchant="dogwood", identity_key="0" * 64, node_key=pem, certificates=(certificate,))
    issued_register.record(serving.state, keys)
    assert not merchants(serving)["dogwood"].is_connected
    node_id = serving.node(pem.encode())
    serving.run("run").attendance.note(MerchantIntroduced(node_id, "alder", "0.1.0"))
    told = merchants(serving)
    assert told["dogwood"].is_connected
    assert not told["alder"].is_connected


def test_node_that_has_not_told_whose_it_is_is_counted(serving):
    serving.node(b"1")
    serving.node(b"2", online=False)
    assert read_status(serving.state).num_unknown_nodes == 1


def test_nobody_is_connected_to_a_server_that_does_not_run(coordinator):
    run = coordinator.run("run")
    run.attendance.note(MerchantIntroduced(coordinator.node(b"1"), "alder", "0.1.0"))
    told = read_status(coordinator.state)
    assert (told.server, told.num_unknown_nodes) == (None, 0)
    assert not told.merchants[0].is_connected
    assert told.merchants[0].last_seen is not None


def test_refusal_of_the_last_agreement_counts_and_not_the_approval_of_an_earlier_one(serving):
    serving.run("first").attendance.note(MerchantIntroduced(1, "alder", "0.1.0"))
    serving.run("second").attendance.note(NodeRefused(1, "agreement-mismatch", "alder"))
    assert merchants(serving)["alder"].has_approved is False


def test_rounds_count_where_a_reply_was_averaged_and_once_for_a_folder(serving):
    rounds = [round_of("alder", "birch"), round_of("alder", "birch", dropped=["birch"]),
              round_of("alder", "birch", aggregated=False)]  # fmt: skip
    run = serving.run("first", rounds)
    with (run.folder / run_folder.ROUNDS).open("a") as file:
        file.write('{"cohort": ["alder"], "dro')
    # The same folder again, as after an interruption, and another run.
    serving.run("first")
    serving.run("second", [round_of("alder")])
    told = merchants(serving)
    assert [told[name].rounds_served for name in told] == [3, 1, 0]
    assert [found.rounds_done for found in read_status(serving.state).runs] == [3, 1]


def test_runs_are_told_with_what_became_of_them(serving):
    names = ("running", "finished", "failed", "interrupted")
    runs = {name: serving.run(name) for name in names}
    (runs["finished"].folder / run_folder.METRICS).write_text("{}")
    (runs["interrupted"].folder / run_folder.CHECKPOINT).mkdir()
    (runs["failed"].folder / run_folder.FAILURE).write_text("why")
    for name in names[1:]:
        assert serving.database.finish_task(
            serving.database.get_run_info(run_ids=[runs[name].flower_id])[0].primary_task_id, "stopped", ""
        )
    assert [(run.folder.name, run.state) for run in read_status(serving.state).runs] == [(n, n) for n in names]


def test_run_whose_server_is_gone_is_not_running(coordinator):
    run = coordinator.run("run")
    (run.folder / run_folder.CHECKPOINT).mkdir()
    (found,) = read_status(coordinator.state).runs
    assert found.state == "interrupted"


def test_folder_of_a_run_that_was_taken_away_is_no_error(serving):
    run = serving.run("run")
    for path in run.folder.iterdir():
        path.unlink()
    run.folder.rmdir()
    told = read_status(serving.state)
    assert told.merchants == ()
    assert told.runs[0].rounds_done == 0


def test_command_prints_json_and_a_table(serving, hansa):
    run = serving.run("run", [round_of("alder")])
    run.attendance.note(MerchantIntroduced(serving.node(b"1"), "alder", "0.1.0"))
    result = hansa("server", "status", "--state", serving.state, "--json")
    assert result.exit_code == 0, result.stderr
    told = json.loads(result.stdout)
    alder = told["merchants"]["alder"]
    assert datetime.fromisoformat(alder.pop("last_seen")) <= datetime.now(UTC)
    known = {"connected": True, "version": "0.1.0", "agreement_approved": True, "rounds_served": 1}
    assert alder == {**known, "in_two_places": None, "ledger_went_back": None, "ledger_lines": None}
    assert told["server"]["address"] == "127.0.0.1:8000"
    assert told["runs"] == [{"folder": str(run.folder), "state": "running", "rounds_done": 1, **BYTES}]

    shown = io.StringIO()
    status_command.show(read_status(serving.state), Console(file=shown, width=120), datetime.now(UTC))
    assert "running, rounds done: 1, 2.50 MB received, 0.00 MB sent" in shown.getvalue()
    (row,) = [line for line in shown.getvalue().splitlines() if "alder" in line]
    assert [cell.strip() for cell in row.strip("│ ").split("│")] == ["alder", "yes", "now", "0.1.0", "yes", "1"]


def test_command_shows_where_merchants_connect(coordinator, hansa):
    superlink, gateway = Address("127.0.0.1", 8000), Address("0.0.0.0", 8443)  # noqa: S104 - nothing listens
    with server_process.registered(coordinator.state, superlink, gateway):
        told = hansa("server", "status", "--state", coordinator.state)
        as_json = json.loads(hansa("server", "status", "--state", coordinator.state, "--json").stdout)
    assert "server: gateway on 0.0.0.0:8443, SuperLink on 127.0.0.1:8000, process" in told.stdout
    assert (as_json["server"]["gateway"], as_json["server"]["address"]) == ("0.0.0.0:8443", "127.0.0.1:8000")


def test_reading_does_not_make_a_database(hansa, tmp_path):
    result = hansa("server", "status", "--state", tmp_path)
    assert (result.exit_code, list(tmp_path.iterdir())) == (0, [])
    assert "is not running" in result.stdout


def test_certificate_in_two_places_is_told_to_whoever_asks(serving, hansa):
    serving.run("run")
    durable_files.write(serving.state / "two_places.json", b'{"alder": "2026-01-02T03:04:05+00:00"}')
    assert "WARNING: the certificate of alder" in hansa("server", "status", "--state", serving.state).stdout


@pytest.mark.parametrize("where", ["state", "run"])
def test_privacy_ledger_that_went_back_is_told_to_whoever_asks(serving, hansa, where):
    folder = {"run": serving.run("run").folder, "state": serving.state}[where]
    known = {"ledger": "4:" + "a" * 64, "key": "", "went_back": "2026-01-02T03:04:05+00:00"}
    known |= {"went_back_from": "9:" + "b" * 64, "went_back_to": "4:" + "a" * 64}
    durable_files.write(folder / "ledgers.json", json.dumps({"alder": known}).encode())
    shown = hansa("server", "status", "--state", serving.state).stdout
    assert "WARNING: the privacy ledger of alder went back from line 9 to line 4 (" in shown
    told = json.loads(hansa("server", "status", "--state", serving.state, "--json").stdout)
    assert told["merchants"]["alder"]["ledger_went_back"] == "2026-01-02T03:04:05+00:00"
    assert told["merchants"]["alder"]["ledger_lines"] == [9, 4]
