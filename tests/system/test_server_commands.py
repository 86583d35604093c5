"""The coordinator's commands from another terminal: what runs is told, ended, and told as ended."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
from contextlib import contextmanager
from pathlib import Path

import pytest
from hansa_command import HANSA

from hansa_server import superlink

pytestmark = [pytest.mark.system, pytest.mark.timeout(300)]

LONGEST_SECONDS = 120.0
AGREEMENT = """
name = "commands"
task = "fraud"
roster = ["alder", "birch"]
label = {column = "fraud"}
features = [{kind = "numeric", name = "amount", low = 0.0, high = 1.0}]
cohort = {min_merchants = 2, wait_seconds = 250.0}
"""


@contextmanager
def started(*words: object):
    """A `hansa` command in its own process, whose first line has come."""
    command = subprocess.Popen(
        [*HANSA, *map(str, words)], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, bufsize=1
    )
    try:
        command.first_line = command.stdout.readline()
        yield command
    finally:
        if command.poll() is None:
            command.send_signal(signal.SIGTERM)
        command.communicate(timeout=LONGEST_SECONDS)


def hansa(*words: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*HANSA, *map(str, words)], capture_output=True, text=True, timeout=LONGEST_SECONDS, check=False
    )


def rest_of(command) -> str:
    text, _ = command.communicate(timeout=LONGEST_SECONDS)
    return text


@pytest.fixture
def place(tmp_path) -> Path:
    (tmp_path / "agreement.toml").write_text(AGREEMENT)
    return tmp_path


def test_run_is_told_while_it_waits_and_stop_ends_it_and_then_the_server(place):
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{listener.getsockname()[1]}"
    state, out = ("--state", place / "state"), place / "run"
    with started("server", "start", "--address", address, *state) as server:
        assert "SuperLink on" in server.first_line
        second = hansa("server", "start", "--address", "127.0.0.1:1", *state)
        assert second.returncode == 2
        words = ("server", "train", place / "agreement.toml", "--out", out, "--server", address, *state)
        with started(*words) as train:
            assert "waiting for 2 merchants" in train.first_line

            no_bytes = {"bytes_received": 0, "bytes_sent": 0}
            told = json.loads(hansa("server", "status", *state, "--json").stdout)
            assert told["server"] == {"pid": server.pid, "address": address, "gateway": None}
            assert told["runs"] == [{"folder": str(out), "state": "running", "rounds_done": 0, **no_bytes}]
            assert {name: entry["connected"] for name, entry in told["merchants"].items()} == {
                "alder": False,
                "birch": False,
            }

            stopped = hansa("server", "stop", *state, "--run-only")
            assert stopped.returncode == 0, stopped.stderr
            assert f"hansa server resume {out}" in stopped.stdout
            ended = rest_of(train)
            assert train.returncode == 1, ended
            assert f"hansa server resume {out}" in ended.splitlines()[-1]
        assert not (out / "metrics.json").exists()
        assert not (out / "failure.txt").exists()
        (run,) = json.loads(hansa("server", "status", *state, "--json").stdout)["runs"]
        assert run["state"] == "interrupted"
        assert "no run is going on" in hansa("server", "stop", *state, "--run-only").stdout

        assert hansa("server", "stop", *state).returncode == 0
        assert "server: stopped" in rest_of(server)
        assert server.returncode == 0
    assert not superlink.is_superlink(superlink.Address(*address.split(":")))
    told = json.loads(hansa("server", "status", *state, "--json").stdout)
    assert (told["server"], told["runs"][0]["state"]) == (None, "interrupted")
    assert "is not running" in hansa("server", "stop", *state).stdout
    assert nothing_runs_in(place / "state")


def nothing_runs_in(folder: Path) -> bool:
    """Whether no living process was started, at any remove, with this folder in view."""
    for process in Path("/proc").iterdir():
        if process.name.isdecimal() and int(process.name) != os.getpid():
            try:
                words = (process / "cmdline").read_bytes() + (process / "environ").read_bytes()
                state = (process / "stat").read_text().rpartition(")")[2].split()[0]
            except OSError:
                continue
            if os.fsencode(folder) in words and state != "Z":
                return False
    return True
