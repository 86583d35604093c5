"""`hansa client start` refuses what cannot work with one line, and leaves no process behind."""

from __future__ import annotations

import hashlib
import os
import select
import signal
import socket
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from hansa_client.flower_node import command, environment
from hansa_common import children, durable_files
from hansa_common.addresses import Address

AGREEMENT = """
task = "fraud"
roster = ["alpha", "beta"]
[label]
column = "fraud"
[[features]]
kind = "numeric"
name = "amount"
low = 0
high = 1
[privacy]
"""


@pytest.fixture
def files(tmp_path) -> dict[str, str]:
    (tmp_path / "agreement.toml").write_text(AGREEMENT)
    (tmp_path / "rows.csv").write_text("amount,fraud\n0.5,1\n")
    return {
        "--agreement": str(tmp_path / "agreement.toml"),
        "--data": str(tmp_path / "rows.csv"),
        "--merchant": "alpha",
        "--state": str(tmp_path / "state"),
    }


@pytest.fixture
def started(hansa):
    """What `hansa client start` says in development with these options."""

    def start(files: dict[str, str]):
        return hansa("client", "start", "--development", *(word for option in files.items() for word in option))

    return start


@pytest.fixture
def refused(started):
    def refuse(files: dict[str, str], exit_code: int, *words: str) -> None:
        result = started(files)
        assert result.exit_code == exit_code, result.stderr
        (line,) = result.stderr.strip().splitlines()
        for word in words:
            assert word in line
        assert not Path(files["--state"]).exists()

    return refuse


def test_missing_agreement(refused, files):
    refused({**files, "--agreement": "nowhere.toml"}, 2, "nowhere.toml", "cannot be read")


def test_missing_table(refused, files):
    refused({**files, "--data": "nowhere.csv"}, 2, "nowhere.csv")


def test_merchant_outside_the_roster(refused, files):
    refused({**files, "--merchant": "mallory"}, 2, "'mallory'", "alpha, beta")


@pytest.mark.parametrize("server", ["10.0.0.5:8000", "coordinator.example:8000", "0.0.0.0:8000"])
def test_coordinator_on_another_machine_and_why(refused, files, server):
    refused({**files, "--server": server}, 2, server, "without authentication")


@pytest.mark.parametrize("server", ["127.0.0.1", "127.0.0.1:0", "127.0.0.1:99999", ":8000", "127.0.0.1:x"])
def test_address_that_is_none(refused, files, server):
    refused({**files, "--server": server}, 2, "host:port")


@pytest.mark.parametrize("mode", [0o755, 0o770, 0o701])
def test_state_folder_that_others_can_open_is_refused_before_a_process_is_started(started, files, mode):
    Path(files["--state"]).mkdir()
    Path(files["--state"]).chmod(mode)
    with socket.create_server(("127.0.0.1", 0)) as coordinator:
        result = started({**files, "--server": f"127.0.0.1:{coordinator.getsockname()[1]}"})
    assert result.exit_code == 2, result.stderr
    assert "chmod 700" in result.stderr
    assert not list(Path(files["--state"]).iterdir())


def test_coordinator_that_is_not_there(refused, files):
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    refused({**files, "--server": f"127.0.0.1:{port}"}, 1, str(port), "hansa server start")


def test_hash_key_that_is_not_the_agreed_one(refused, files, tmp_path):
    key = tmp_path / "key"
    durable_files.write(key, b"00" * 32)
    Path(files["--agreement"]).write_text(AGREEMENT + f'hash_key_id = "{"1" * 64}"\n')
    refused(files, 2, "--hash-key")
    refused({**files, "--hash-key": str(key)}, 2, "not the key")
    key.write_text("not hexadecimal")
    refused({**files, "--hash-key": str(key)}, 2, "hexadecimal digits")


def test_hash_key_that_others_can_read(refused, files, tmp_path):
    key = tmp_path / "key"
    durable_files.write(key, b"00" * 32, mode=0o640)
    agreed = hashlib.sha256(bytes(32)).hexdigest()
    Path(files["--agreement"]).write_text(AGREEMENT + f'hash_key_id = "{agreed}"\n')
    refused({**files, "--hash-key": str(key)}, 2, "others can read the hash key", "chmod 600")


def test_policy_that_does_not_hold_and_one_that_is_not_there(refused, files, tmp_path):
    policy = tmp_path / "mine.toml"
    refused({**files, "--policy": str(policy)}, 2, "no policy at", "mine.toml")
    policy.write_text("max_round = 3\n")
    refused({**files, "--policy": str(policy)}, 2, "mine.toml", "did you mean 'max_rounds'")


def test_development_is_not_for_an_agreement_that_names_keys(refused, files):
    trust = f'[trust]\ncoordinator = "{"a" * 64}"\n[trust.merchants]\nalpha = "{"b" * 64}"\nbeta = "{"c" * 64}"\n'
    Path(files["--agreement"]).write_text(AGREEMENT + trust)
    refused(files, 2, "[trust]", "without --development")


@pytest.mark.parametrize("missing", ["--agreement", "--merchant"])
def test_development_needs_a_name_and_an_agreement(refused, files, missing):
    refused({name: value for name, value in files.items() if name != missing}, 2, "--agreement FILE", "--merchant NAME")


def test_policy_that_this_agreement_will_meet_is_told(started, files):
    Path(files["--state"]).mkdir(mode=0o700)
    (Path(files["--state"]) / "merchant.toml").write_text("min_cohort = 9\n")
    told = started({**files, "--server": "127.0.0.1:9"})
    assert "alpha: the agreement asks for cohorts of 2, merchant.toml has min_cohort = 9" in told.stdout


def test_node_is_told_the_socket_and_nothing_of_the_data(tmp_path):
    words = command(Address("127.0.0.1", 8000), 9999, Path("/run/hansa/trainer.sock"))
    assert words[-2:] == ["--node-config", 'trainer="/run/hansa/trainer.sock"']
    assert environment(tmp_path)["FLWR_HOME"] == str(tmp_path)
    assert environment(tmp_path)["FLWR_TELEMETRY_ENABLED"] == "0"
    assert environment(tmp_path)["PATH"].split(os.pathsep)[0] == str(Path(sys.executable).parent)


def grandchild_program(marker: Path) -> list[str]:
    """A child that starts a grandchild deaf to SIGTERM, says who they are, and waits."""
    program = f"""
        import os, signal, subprocess, sys
        deaf = "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); signal.pause()"
        grandchild = subprocess.Popen([sys.executable, "-c", deaf])
        open({str(marker)!r}, "w").write(str(grandchild.pid))
        print("ready", flush=True)
        sys.stdin.buffer.read()
        """
    return [sys.executable, "-c", textwrap.dedent(program)]


def has_ended(process_descriptor: int, within: float) -> bool:
    return bool(select.select([process_descriptor], [], [], within)[0])


def test_stopping_a_child_stops_all_it_started(tmp_path):
    log = tmp_path / "log"
    log.touch()
    with children.running("child", grandchild_program(tmp_path / "pid"), os.environ, log=log) as child:
        with subprocess.Popen(["tail", "-f", "-n", "+1", log], stdout=subprocess.PIPE) as tail:
            assert tail.stdout.readline() == b"ready\n"
            tail.kill()
        grandchild = os.pidfd_open(int((tmp_path / "pid").read_text()))
        assert not has_ended(grandchild, within=0)
    assert child.process.returncode is not None
    assert has_ended(grandchild, within=30)
    os.close(grandchild)


def test_child_ends_when_its_parent_is_killed(tmp_path):
    """The parent gets a kill -9; its child sees its standard input end."""
    program = """
        import os, sys
        from pathlib import Path
        from hansa_common import children
        child = [sys.executable, "-c", "import sys; print('ready', flush=True); sys.stdin.buffer.read(); print('end')"]
        with children.running("child", child, os.environ):
            sys.stdin.buffer.read()
        """
    command_line = [sys.executable, "-c", textwrap.dedent(program)]
    with subprocess.Popen(command_line, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as parent:
        assert parent.stdout.readline() == b"ready\n"
        parent.send_signal(signal.SIGKILL)
        assert parent.stdout.read() == b"end\n"


def test_hashed_categories_without_an_agreed_key(refused, files):
    hashed = '[[features]]\nkind = "categorical"\nname = "device"\nhash_buckets = 16\n[privacy]\n'
    Path(files["--agreement"]).write_text(AGREEMENT.replace("[privacy]\n", hashed))
    refused(files, 2, "device", "hash_key_id", "--hash-key")
