"""A server is found while it lives, however it ends, and ended by whoever may."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from contextlib import contextmanager

import pytest

from hansa_common.addresses import Address, parse_address
from hansa_common.errors import CoordinatorError, UsageError
from hansa_server import server_process
from hansa_server.server_process import PID_NAME, ServerProcess

ADDRESS = Address("127.0.0.1", 8123)
SCRIPT = """
import signal, sys
from pathlib import Path
from hansa_common.addresses import Address
from hansa_server.server_process import registered
{before}
with registered(Path(sys.argv[1]), Address("127.0.0.1", 8123)):
    print("here", flush=True)
    while True:
        signal.pause()
"""


@contextmanager
def server(state, before=""):
    """Another process that is the server of the folder, once it is."""
    words = [sys.executable, "-c", SCRIPT.format(before=before), str(state)]
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "here\n"
        try:
            yield process
        finally:
            process.kill()


def test_running_server_is_found_with_its_address(tmp_path):
    state = tmp_path / "state"
    with server(state) as process:
        assert server_process.find(state) == ServerProcess(process.pid, ADDRESS)


@pytest.mark.parametrize("gateway", ["fl.example.com:8443", "0.0.0.0:8443", "[::]:8443"])
def test_gateway_is_found_beside_superlink(tmp_path, gateway):
    where = parse_address(gateway)
    with server_process.registered(tmp_path / "state", ADDRESS, where):
        assert server_process.find(tmp_path / "state") == ServerProcess(os.getpid(), ADDRESS, where)


def test_second_server_of_one_folder_is_refused(tmp_path):
    state = tmp_path / "state"
    with (
        server(state),
        pytest.raises(UsageError, match="hansa server stop"),
        server_process.registered(state, ADDRESS),
    ):
        pass


def test_nothing_is_found_before_a_server_and_after_it_was_killed(tmp_path):
    state = tmp_path / "state"
    assert server_process.find(state) is None
    with server(state) as process:
        process.kill()
        process.wait()
        # Its number is left behind, and may be another process's by now.
        assert (state / PID_NAME).read_text().startswith(f"{process.pid} ")
        assert server_process.find(state) is None
    with server_process.registered(state, ADDRESS):
        assert server_process.find(state) == ServerProcess(os.getpid(), ADDRESS)


def test_stop_ends_the_server_and_returns_when_it_has_ended(tmp_path):
    state = tmp_path / "state"
    with server(state) as process:
        server_process.stop(state, server_process.find(state))
        assert process.wait() == -signal.SIGTERM


def test_server_that_does_not_end_is_told(tmp_path, monkeypatch):
    monkeypatch.setattr(server_process, "STOP_SECONDS", 0.3)
    state = tmp_path / "state"
    with (
        server(state, "signal.signal(signal.SIGTERM, signal.SIG_IGN)") as process,
        pytest.raises(CoordinatorError, match=f"process {process.pid}"),
    ):
        server_process.stop(state, server_process.find(state))


def test_folder_that_others_can_open_is_refused(tmp_path):
    state = tmp_path / "state"
    state.mkdir(mode=0o755)
    with pytest.raises(UsageError, match="chmod 700"), server_process.registered(state, ADDRESS):
        pass
    assert not list(state.iterdir())
