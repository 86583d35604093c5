"""The coordinator's transport: nothing listens beyond this machine, a run needs its token, errors are one line."""

from __future__ import annotations

import socket

import pytest

from hansa_common.addresses import Address
from hansa_common.errors import UsageError
from hansa_common.flower_environment import flower_environment
from hansa_server import superlink
from hansa_server.signing import PUBLISHER_KEY_NAME, publisher_key

AGREEMENT = """
task = "fraud"
[label]
column = "fraud"
[[features]]
kind = "numeric"
name = "amount"
low = 0
high = 1
"""


@pytest.fixture
def taken_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        yield listener.getsockname()[1]


@pytest.fixture
def free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


@pytest.fixture
def agreement(tmp_path):
    path = tmp_path / "agreement.toml"
    path.write_text(AGREEMENT)
    return str(path)


def lines(result) -> list[str]:
    return result.stderr.strip().splitlines()


def test_of_a_runs_log_its_own_lines_are_shown_and_no_traceback():
    pieces = [
        "\x1b[92mINFO \x1b[0m:      Starting\nDEBUG :      x\nshops: waiting for",
        " 2 merchants\nround 1: ERROR is a word\n",
        "\x1b[91mERROR \x1b[0m:     ServerApp raised an exception\nTraceback (most recent call last):\n  File\n",
        "hansa_common.errors.RunFailedError: 0 merchants came\n\x1b[91mERROR \x1b[0m:     Exit Code: 201\n",
    ]
    assert list(superlink.own_lines(pieces)) == ["shops: waiting for 2 merchants\n", "round 1: ERROR is a word\n"]


def test_flower_talks_to_nobody_and_keeps_its_files_here(tmp_path):
    environment = flower_environment(tmp_path)
    assert environment["FLWR_TELEMETRY_ENABLED"] == "0"
    assert environment["FLWR_DISABLE_UPDATE_CHECK"] == "1"
    assert environment["FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION"] == "1"
    assert environment["FLWR_HOME"] == str(tmp_path)


@pytest.mark.parametrize("address", ["0.0.0.0:8000", "10.0.0.5:8000", "example.com:8000", "[2001:db8::1]:8000"])
def test_coordinator_does_not_listen_beyond_this_machine(hansa, address, tmp_path):
    result = hansa("server", "start", "--address", address, "--state", str(tmp_path / "s"))
    assert result.exit_code == UsageError.exit_code
    assert "not on this machine" in lines(result)[0]
    assert not (tmp_path / "s").exists()


def test_port_in_use_is_one_clear_line(hansa, taken_port, tmp_path):
    result = hansa("server", "start", "--address", f"127.0.0.1:{taken_port}", "--state", str(tmp_path))
    assert result.exit_code == 2
    (line,) = lines(result)
    assert f"127.0.0.1:{taken_port}" in line
    assert "in use" in line


def test_state_that_others_can_open_is_refused_before_a_database_of_updates_is_in_it(hansa, free_port, tmp_path):
    state = tmp_path / "state"
    state.mkdir()
    state.chmod(0o755)
    result = hansa("server", "start", "--address", f"127.0.0.1:{free_port}", "--state", str(state))
    assert result.exit_code == 2, result.stderr
    assert "chmod 700" in result.stderr
    assert not list(state.iterdir())


def test_training_without_a_superlink_is_one_clear_line_and_leaves_no_folder(hansa, free_port, agreement, tmp_path):
    out = tmp_path / "run"
    result = hansa("server", "train", agreement, "--out", str(out), "--server", f"127.0.0.1:{free_port}")
    assert result.exit_code == 1
    (line,) = lines(result)
    assert "hansa server start" in line
    assert not out.exists()


def test_something_else_on_the_port_is_not_taken_for_a_superlink(taken_port):
    assert not superlink.is_superlink(Address("127.0.0.1", taken_port))


def test_lines_come_whole_from_a_log_in_pieces():
    pieces = ["ro", "und 1\nround", "", " 2\n\n", "the end"]
    assert list(superlink._lines(pieces)) == ["round 1\n", "round 2\n", "\n", "the end"]


def test_folder_of_no_superlink_is_one_clear_line(tmp_path):
    with pytest.raises(UsageError, match="--state") as refused:
        superlink.Control.of(Address("127.0.0.1", 8000), tmp_path)
    assert str(tmp_path) in str(refused.value)


def test_token_is_in_no_text_of_the_control(tmp_path):
    (tmp_path / superlink.TOKEN_NAME).write_text("secret" * 5)
    assert "secret" not in repr(superlink.Control.of(Address("127.0.0.1", 8000), tmp_path))


def test_publisher_key_that_others_can_read_is_refused_before_anything_starts(tmp_path):
    state = tmp_path / "state"
    publisher_key(state)
    (state / PUBLISHER_KEY_NAME).chmod(0o644)
    with pytest.raises(UsageError, match="chmod 600"), superlink.running(Address("127.0.0.1", 1), state):
        pass
    assert [path.name for path in state.iterdir()] == [PUBLISHER_KEY_NAME]


def test_missing_agreement_is_one_clear_line(hansa, tmp_path):
    result = hansa("server", "train", str(tmp_path / "none.toml"), "--out", str(tmp_path / "run"))
    assert result.exit_code == 2
    (line,) = lines(result)
    assert "none.toml" in line
