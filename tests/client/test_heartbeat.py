"""A trainer that gives no sign of life is ended, told of, and no other is."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from hansa_client import heartbeat
from hansa_client.heartbeat import gives_sign_of_life, watched
from hansa_client.trainer_link import SOCKET_NAME, Access, RemoteTrainer
from hansa_common.errors import TransportError
from hansa_common.messages import IntroduceOrder, encode
from hansa_common.readiness import running_when_ready

# Works on an order for as long as it lives.
TRAINER = """
import os, sys, threading
from pathlib import Path
from hansa_client.trainer_service import TrainerServer

class Working:
    def answer(self, order, has_gone):
        threading.Event().wait()

with TrainerServer(Working(), "alpha", Path(sys.argv[1])):
    os.write(int(sys.argv[2]), b"ready\\n")
    threading.Event().wait()
"""
ORDER = encode(IntroduceOrder(run_id="run", recipient="*", fingerprint="0" * 64, deadline_seconds=60))


@pytest.fixture
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("s")
    folder.chmod(0o700)
    return folder


@pytest.fixture
def trainer(folder):
    command = [sys.executable, "-c", TRAINER, str(folder)]
    with running_when_ready("the trainer", lambda ready: [*command, str(ready)], os.environ, seconds=60.0) as (
        child,
        _,
    ):
        yield child


@pytest.fixture(autouse=True)
def _quickly(monkeypatch):
    monkeypatch.setattr(heartbeat, "ASK_SECONDS", 0.2)
    monkeypatch.setattr(heartbeat, "SILENT_SECONDS", 1.0)


def test_trainer_that_stands_still_is_told_of_and_ended(trainer, folder):
    told = []
    assert gives_sign_of_life(folder / SOCKET_NAME, 30)
    with watched(trainer, folder / SOCKET_NAME, told.append):
        trainer.process.send_signal(signal.SIGSTOP)
        assert trainer.process.wait(30) == -signal.SIGKILL
    assert told == ["the trainer has given no sign of life for 1 seconds"]


def test_trainer_whose_socket_is_gone_is_ended(trainer, folder):
    with watched(trainer, folder / SOCKET_NAME, lambda _: None):
        (folder / SOCKET_NAME).unlink()
        assert trainer.process.wait(30) == -signal.SIGKILL


def test_trainer_that_works_on_an_order_is_let_be(trainer, folder):
    told = []
    caller = RemoteTrainer(folder / SOCKET_NAME, Access.read(folder))

    def ask() -> None:
        with pytest.raises(TransportError):
            caller.answer(ORDER)

    asking = threading.Thread(target=ask)
    asking.start()
    with watched(trainer, folder / SOCKET_NAME, told.append), pytest.raises(subprocess.TimeoutExpired):
        trainer.process.wait(3)
    caller.close()
    asking.join(30)
    assert told == []


def test_trainer_that_ended_by_itself_is_not_told_of(trainer, folder):
    told = []
    trainer.process.kill()
    trainer.process.wait()
    with watched(trainer, folder / SOCKET_NAME, told.append):
        threading.Event().wait(2)
    assert told == []


FORKING = """
import os, signal, subprocess, sys
from pathlib import Path
from hansa_client import merchant_processes
from hansa_client.heartbeat import watched
from hansa_common.children import Child
merchant_processes.heartbeat.ASK_SECONDS = 0.02
trainer = subprocess.Popen(["sleep", "60"])
with watched(Child("the trainer", trainer), Path(sys.argv[1]), print):
    for _ in range(100):
        # Of another user: only these are forked in the old way.
        subprocess.run(["true"], user=os.getuid(), timeout=30, check=True)
trainer.kill()
"""


def test_children_are_started_while_the_trainer_is_asked(trainer, folder):
    """gRPC's handling of forks ended some of them."""
    command = [sys.executable, "-c", FORKING, folder / SOCKET_NAME]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert (done.returncode, done.stderr) == (0, "")
