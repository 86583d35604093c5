"""A confined process reaches what it was given and nothing else of its own user's: tried by a child that attacks."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import pytest

from hansa_client import flower_node, node_confinement
from hansa_client.node_confinement import landlock_version
from hansa_common.addresses import Address

FILES_SINCE, PORTS_SINCE, SCOPES_SINCE = 1, 4, 6
SECRET = "rows of the merchant"  # noqa: S105 - not one
# Each attack prints True where it got through; a child of the child is as confined.
ATTACKS = """
import ctypes, errno, json, os, signal, socket, subprocess, sys
from pathlib import Path
from hansa_client.node_confinement import Allowed, confine, installation, own_folders
words = json.loads(sys.argv[1])
outside, home, given, victim = (words[name] for name in ("outside", "home", "given", "victim"))
assert confine(Allowed([*installation(), Path(given)], own_folders(), [Path(home)], [words["open"]], [words["free"]]))

def connects(port):
    socket.create_connection(("127.0.0.1", port), 5).close()

def listens(port):
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", port))

def by_unix_socket():
    with socket.socket(socket.AF_UNIX) as peer:
        peer.connect(given + "/trainer.sock")

def memory():
    # struct iovec twice: a byte of ours, and a byte of theirs.
    here = ctypes.create_string_buffer(1)
    class Part(ctypes.Structure):
        _fields_ = [("at", ctypes.c_void_p), ("size", ctypes.c_size_t)]
    local, remote = Part(ctypes.addressof(here), 1), Part(id(0), 1)
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.process_vm_readv(victim, ctypes.byref(local), 1, ctypes.byref(remote), 1, 0) < 0:
        if ctypes.get_errno() == 1:
            raise PermissionError(errno.EPERM, "no leave")
    # Any other answer is about the address, not about leave.

attacks = {
    "read the table": lambda: Path(outside, "table.csv").read_text(),
    "read it through a link of its own": lambda: (
        Path(home, "link").symlink_to(Path(outside, "table.csv")), Path(home, "link").read_text()),
    "give it a name of its own": lambda: os.link(Path(outside, "table.csv"), Path(home, "hard")),
    "write over it": lambda: Path(outside, "table.csv").write_text("x"),
    "empty it": lambda: os.truncate(Path(outside, "table.csv"), 0),
    "take it away": lambda: Path(outside, "table.csv").unlink(),
    "list its folder": lambda: os.listdir(outside),
    "read it in a child": lambda: subprocess.run(["cat", outside + "/table.csv"], check=True, capture_output=True),
    "read the environment of another process": lambda: Path(f"/proc/{victim}/environ").read_bytes(),
    "read the memory of another process": memory,
    "connect to another port": lambda: connects(words["closed"]),
    "listen on another port": lambda: listens(0),
    "signal another process": lambda: os.kill(victim, 0),
    "read what is given": lambda: Path(given, "access.json").read_text(),
    "write in its home": lambda: Path(home, "file").write_text("x"),
    "connect to the given socket": by_unix_socket,
    "connect to the given port": lambda: connects(words["open"]),
    "listen on the given port": lambda: listens(words["free"]),
    "import Flower in a child": lambda: subprocess.run(
        [sys.executable, "-c", "import flwr.clientapp, hansa_client.app"], check=True),
}
told = {}
for name, attack in attacks.items():
    try:
        attack()
        told[name] = True
    except subprocess.CalledProcessError:
        told[name] = False
    except OSError as error:
        # A second name in another folder is refused as if that were another disk.
        if error.errno not in (errno.EPERM, errno.EACCES, errno.EXDEV):
            raise
        told[name] = False
print(json.dumps(told))
"""
# Attack -> from which Landlock it fails; the others must get through.
STOPPED = {
    "read the table": FILES_SINCE,
    "read it through a link of its own": FILES_SINCE,
    "give it a name of its own": FILES_SINCE,
    "write over it": FILES_SINCE,
    "empty it": 3,
    "take it away": FILES_SINCE,
    "list its folder": FILES_SINCE,
    "read it in a child": FILES_SINCE,
    "read the environment of another process": FILES_SINCE,
    "read the memory of another process": FILES_SINCE,
    "connect to another port": PORTS_SINCE,
    "listen on another port": PORTS_SINCE,
    "signal another process": SCOPES_SINCE,
}
ALLOWED = (
    "read what is given", "write in its home", "connect to the given socket", "connect to the given port",
    "listen on the given port", "import Flower in a child",
)  # fmt: skip


@contextmanager
def listening(*addresses):
    listeners = []
    for family, address in addresses:
        listener = socket.socket(family)
        listener.bind(address)
        listener.listen()
        listeners.append(listener)
    try:
        yield [listener.getsockname()[-1] for listener in listeners]
    finally:
        for listener in listeners:
            listener.close()


@pytest.fixture(scope="module")
def told(tmp_path_factory) -> dict[str, bool]:
    """Which attacks of a confined child got through."""
    if landlock_version() < 1:
        pytest.skip("this kernel has no Landlock: nothing confines a node here")
    place = tmp_path_factory.mktemp("place")
    for name in ("outside", "home", "given"):
        (place / name).mkdir()
    (place / "outside" / "table.csv").write_text(SECRET)
    (place / "outside" / "table.csv").chmod(0o600)
    (place / "given" / "access.json").write_text("{}")
    loopback = (socket.AF_INET, ("127.0.0.1", 0))
    unix = (socket.AF_UNIX, str(place / "given" / "trainer.sock"))
    with listening(loopback, loopback, unix) as (open_port, closed_port, _), sleeper() as victim:
        words = {name: str(place / name) for name in ("outside", "home", "given")}
        words |= {"open": open_port, "closed": closed_port, "free": flower_node.free_port(), "victim": victim}
        done = subprocess.run(
            [sys.executable, "-c", ATTACKS, json.dumps(words)], capture_output=True, text=True, check=False, timeout=120
        )
    assert done.returncode == 0, done.stderr
    assert (place / "outside" / "table.csv").exists()
    return json.loads(done.stdout)


@contextmanager
def sleeper():
    """A process of the same user that is not confined: what a trainer is to its node."""
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process:
        try:
            yield process.pid
        finally:
            process.kill()


@pytest.mark.parametrize("attack", STOPPED)
def test_confined_process_cannot(told, attack):
    if landlock_version() < STOPPED[attack]:
        pytest.skip(f"this kernel's Landlock is of version {landlock_version()}, and {STOPPED[attack]} is the first")
    assert told[attack] is False


@pytest.mark.parametrize("need", ALLOWED)
def test_confined_process_still_can(told, need):
    assert told[need] is True


def test_every_attack_is_judged(told):
    assert set(told) == {*STOPPED, *ALLOWED}


def test_node_is_given_what_its_command_line_names_and_nothing_else_of_the_merchants(tmp_path):
    trainer, trusted = tmp_path / "socket" / "trainer.sock", tmp_path / "trusted.yaml"
    command = flower_node.command(Address("127.0.0.1", 8000), 9100, trainer, trusted)
    allowed = flower_node.allowed(command[command.index("--insecure") :], tmp_path / "flower")
    given = [path for path in allowed.readable if path.is_relative_to(tmp_path)]
    assert given == [tmp_path / "socket", trusted]
    assert (allowed.writable, allowed.connect_ports, allowed.listen_ports) == (
        [tmp_path / "flower"],
        [8000, 9100],
        [9100],
    )


def test_where_there_is_no_landlock_nothing_is_confined_and_it_says_so(monkeypatch):
    monkeypatch.setattr(node_confinement, "landlock_version", lambda: 0)
    assert node_confinement.confine(node_confinement.Allowed([], [], [], [], [])) is False
    assert list(Path("/").iterdir())


def test_no_folder_in_which_people_keep_tables_is_taken_for_the_systems():
    kept = [Path(name) for name in ("/", "/opt/shop", "/srv/shop", "/var/lib/shop", "/home/shop", "/root", "/mnt")]
    system = [Path(name) for name in node_confinement._SYSTEM]
    assert not [folder for folder in kept for path in system if folder.is_relative_to(path)]
