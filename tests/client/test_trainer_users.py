"""A trainer as one user of the machine, its node as another: they meet at the socket, and nobody else comes there."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from hansa_client.trainer_link import Access
from hansa_common.messages import IntroduceOrder, encode

OWNER, NODE, STRANGER, GROUP = 61_001, 61_002, 61_003, 62_001
ORDER = encode(IntroduceOrder(run_id="run", recipient="*", fingerprint="0" * 64, deadline_seconds=10))
# What the process needs is imported before it becomes another user, who may not be let into this Python.
BECOME = """
import json, os, sys
from pathlib import Path
from hansa_client.trainer_link import Access, RemoteTrainer
from hansa_client.trainer_service import TrainerServer
from hansa_common.errors import TransportError
uid, gid, groups = json.loads(sys.argv[1])
folder = Path(sys.argv[2])
os.umask(0o077)
os.setgroups(groups)
os.setgid(gid)
os.setuid(uid)
"""
SERVE = """
class Mirror:
    def answer(self, order, has_gone):
        return order

with TrainerServer(Mirror(), "alder", folder / "socket"):
    print("ready", flush=True)
    sys.stdin.read()
"""
TRY = """
def attempt(action):
    try:
        return action()
    except PermissionError:
        return "no leave"
    except TransportError as error:
        return "no way"

def ask(access):
    return RemoteTrainer(folder / "socket" / "trainer.sock", access).answer(bytes.fromhex(sys.argv[3])).hex()

print(json.dumps({
    "asks": attempt(lambda: ask(Access.read(folder / "socket"))),
    "asks with the token": attempt(lambda: ask(Access("alder", sys.argv[4]))),
    "reads the rows": attempt(lambda: (folder / "rows.csv").read_text()),
    "takes the socket away": attempt(lambda: (folder / "socket" / "trainer.sock").unlink()),
}))
"""


@pytest.fixture
def folder():
    """A folder that every user may pass through, with rows and a place for the socket, both the owner's."""
    if os.geteuid() != 0:
        pytest.skip("only root can start processes as other users")
    folder = Path(tempfile.mkdtemp(prefix="hansa-test-"))
    folder.chmod(0o755)
    (folder / "rows.csv").write_text("rows")
    (folder / "rows.csv").chmod(0o600)
    os.chown(folder / "rows.csv", OWNER, OWNER)
    (folder / "socket").mkdir()
    os.chown(folder / "socket", OWNER, GROUP)
    (folder / "socket").chmod(0o2750)
    yield folder
    shutil.rmtree(folder)


@pytest.fixture
def trainer(folder):
    """A trainer that runs as the owner; its token."""
    who = json.dumps([OWNER, OWNER, [GROUP]])
    command = [sys.executable, "-c", BECOME + SERVE, who, folder]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "ready\n"
        yield Access.read(folder / "socket").token
        process.communicate(timeout=60)
    assert process.returncode == 0


def tried_by(user: int, groups: list[int], folder: Path, token: str) -> dict[str, str]:
    words = [json.dumps([user, user, groups]), folder, ORDER.hex(), token]
    done = subprocess.run(
        [sys.executable, "-c", BECOME + TRY, *words], capture_output=True, text=True, timeout=60, check=True
    )
    return json.loads(done.stdout)


def test_node_of_the_folders_group_is_answered_and_reads_no_row(folder, trainer):
    assert tried_by(NODE, [GROUP], folder, trainer) == {
        "asks": ORDER.hex(),
        "asks with the token": ORDER.hex(),
        "reads the rows": "no leave",
        "takes the socket away": "no leave",
    }


def test_user_of_another_group_does_not_come_to_the_socket_even_with_the_token(folder, trainer):
    assert tried_by(STRANGER, [STRANGER], folder, trainer) == {
        "asks": "no way",
        "asks with the token": "no way",
        "reads the rows": "no leave",
        "takes the socket away": "no leave",
    }
