"""Two merchants who enroll with one coordinator, through the command line."""

from __future__ import annotations

import contextlib
import io
import shutil
import socket
import ssl
import threading
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path

import pytest

from hansa_common.agreement import parse_agreement
from hansa_common.cli import installed_commands, run

AGREEMENT = """\
task = "fraud"
roster = ["alder", "birch"]
[label]
column = "fraud"
[[features]]
kind = "boolean"
name = "gift"
"""


class Consortium:
    """A folder with the requests, the kits, and each party's state."""

    text = AGREEMENT

    def __init__(self, folder: Path, hansa) -> None:
        self.folder, self.hansa = folder, hansa
        self.state, self.kit = folder / "alder", folder / "kits" / "alder"

    def enroll(self, *words: object, name: str = "alder", state: Path | None = None):
        return self.hansa("client", "enroll", name, "--state", state or self.folder / name, *words)

    def provision(self, *words: object, agreement: str = "agreement.toml", kits: str = "kits", state: str = "server"):
        places = ("--state", self.folder / state, "-o", self.folder / kits, "--requests", self.folder / "requests")
        result = self.hansa("provision", self.folder / agreement, "--host", "fl.example.com", *places, *words)
        assert result.exit_code == 0, result.stderr

    def ask(self, name: str = "alder", *words: str) -> None:
        result = self.enroll(*words, name=name)
        assert result.exit_code == 0, result.stderr
        shutil.copy(self.folder / name / f"{name}.request.json", self.folder / "requests")

    @property
    def agreed(self):
        return parse_agreement((self.kit / "agreement.toml").read_text(), "it")

    def files(self) -> dict[str, bytes]:
        return {path.name: path.read_bytes() for path in self.state.iterdir()}


def silently(*words: object) -> None:
    with contextlib.redirect_stdout(io.StringIO()):
        assert run([str(word) for word in words], installed_commands()) == 0


@pytest.fixture(scope="session")
def answered_once(tmp_path_factory) -> Path:
    """Both merchants have asked, and the kits are there."""
    folder = tmp_path_factory.mktemp("consortium")
    (folder / "requests").mkdir()
    (folder / "agreement.toml").write_text(AGREEMENT)
    for name in ("alder", "birch"):
        silently("client", "enroll", name, "--state", folder / name)
        shutil.copy(folder / name / f"{name}.request.json", folder / "requests")
    places = ("--state", folder / "server", "-o", folder / "kits", "--requests", folder / "requests")
    silently("provision", folder / "agreement.toml", "--host", "fl.example.com", *places)
    shutil.copytree(folder / "alder", folder / "installed")
    silently("client", "enroll", "alder", "--state", folder / "installed", "--kit", folder / "kits" / "alder")
    return folder


@pytest.fixture
def consortium(tmp_path, hansa):
    """Nobody has done anything yet."""
    (tmp_path / "requests").mkdir()
    (tmp_path / "agreement.toml").write_text(AGREEMENT)
    return Consortium(tmp_path, hansa)


@pytest.fixture
def answered(answered_once, tmp_path, hansa):
    """A copy, to change."""
    shutil.copytree(answered_once, tmp_path, dirs_exist_ok=True)
    return Consortium(tmp_path, hansa)


@pytest.fixture
def installed(answered):
    """Alder has installed its kit."""
    shutil.rmtree(answered.state)
    (answered.folder / "installed").rename(answered.state)
    return answered


@pytest.fixture
def refused():
    """See that a command line was refused in one line that holds these words."""

    def check(result, *words: str) -> None:
        assert result.exit_code in {1, 2}, result.stderr
        (line,) = result.stderr.strip().splitlines()
        for word in words:
            assert word in line

    return check


@pytest.fixture
def now():
    """The time, or another one."""

    def moment(**later: float) -> datetime:
        return datetime.now(UTC) + timedelta(**later)

    return moment


class Door:
    """A gateway as far as a merchant can tell before it takes part: TLS both ways, and an answer for who asks how it
    goes. Its clock can be set.
    """

    def __init__(self) -> None:
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.address = f"127.0.0.1:{self.listener.getsockname()[1]}"
        self.heard: list[bytes] = []
        self.ahead = timedelta()
        self.context: ssl.SSLContext | None = None
        threading.Thread(target=self._serve, daemon=True).start()

    def open(self, server: Path) -> None:
        """Let in those who show a certificate of the authority in the coordinator's state folder."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.verify_mode = ssl.CERT_REQUIRED
        context.load_verify_locations(server / "ca.crt")
        context.load_cert_chain(server / "server.crt", server / "server.key")
        self.context = context

    def _serve(self) -> None:
        while True:
            try:
                raw, _ = self.listener.accept()
            except OSError:
                return
            with raw, contextlib.suppress(OSError), self.context.wrap_socket(raw, server_side=True) as connection:
                self.heard.append(connection.recv(65536))
                date = format_datetime(datetime.now(UTC) + self.ahead, usegmt=True)
                connection.sendall(f"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nDate: {date}\r\n\r\n".encode())

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self.listener.shutdown(socket.SHUT_RDWR)
        self.listener.close()


@pytest.fixture
def door(installed):
    """The gateway that alder's kit names; alder has approved, and has a table."""
    door = Door()
    installed.provision("--host", door.address, agreement="kits/agreement.toml")
    door.open(installed.folder / "server")
    silently("client", "enroll", "alder", "--state", installed.state, "--kit", installed.kit)
    fingerprint = installed.agreed.fingerprint
    silently("client", "approve", installed.kit / "agreement.toml", "--state", installed.state, "--yes-to", fingerprint)
    (installed.folder / "alder.csv").write_text("gift,fraud\n" + "true,1\nfalse,0\nfalse,1\ntrue,0\n" * 10)
    yield door
    door.close()
