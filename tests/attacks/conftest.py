"""A federation to attack: a real SuperLink on loopback, the gateway before it, two merchants with their keys.

Attackers speak through sockets of their own, with whatever certificate and bytes they like.
"""

from __future__ import annotations

import base64
import contextlib
import os
import re
import select
import socket
import ssl
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec

from hansa_client import forwarder
from hansa_common import children, durable_files, keys
from hansa_common.addresses import Address, parse_address
from hansa_common.certificates import certificate_pem
from hansa_common.flower_environment import flower_environment
from hansa_common.readiness import running_when_ready
from hansa_server import gateway
from hansa_server.authority import open_authority, renew_server_certificate
from hansa_server.issued_register import IssuedCertificate, IssuedKeys, record

LOOPBACK = "127.0.0.1"
START_SECONDS = 60.0
# Fewer than the connections that a merchant may have.
AT_A_TIME = 12
PROTOBUF = {"content-type": "application/protobuf", "accept": "application/protobuf"}


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind((LOOPBACK, 0))
        return listener.getsockname()[1]


@dataclass
class Party:
    """A merchant's state folder, as enrolment leaves it."""

    name: str
    state: Path
    node_key: ec.EllipticCurvePrivateKey
    node_id: int = 0

    @property
    def identity(self) -> tuple[Path, Path]:
        return self.state / "tls.crt", self.state / "tls.key"

    @property
    def public_pem(self) -> bytes:
        return keys.public_pem(self.node_key.public_key()).encode()

    def signed(self, **changes: str) -> dict[str, str]:
        """The headers with which a node signs a request of its own."""
        timestamp = datetime.now(UTC).isoformat()
        signature = self.node_key.sign(timestamp.encode(), ec.ECDSA(hashes.SHA256()))
        return {
            "flwr-public-key": base64.b64encode(self.public_pem).decode(),
            "flwr-timestamp": timestamp,
            "flwr-signature": base64.b64encode(signature).decode(),
            **changes,
        }


@dataclass
class Coordinator:
    """The coordinator's state folder, with what it has issued."""

    state: Path
    parties: dict[str, Party] = field(default_factory=dict)

    @classmethod
    def at(cls, state: Path) -> Coordinator:
        durable_files.make_private_folder(state)
        authority = open_authority(state, datetime.now(UTC))
        renew_server_certificate(state, authority, LOOPBACK, datetime.now(UTC), 30)
        return cls(state)

    def enrol(self, name: str, folder: Path, now: datetime | None = None, days: int = 30) -> Party:
        """Make a merchant's keys and issue its certificate, as enrolment does."""
        moment = now or datetime.now(UTC)
        durable_files.make_private_folder(folder)
        node_key, tls_key = keys.make_node_key(folder / "node.key"), keys.make_tls_key(folder / "tls.key")
        certificate = open_authority(self.state, datetime.now(UTC)).issued_to_merchant(
            name, tls_key.public_key(), moment, days
        )
        durable_files.write(folder / "tls.crt", certificate_pem(certificate))
        durable_files.write(folder / "ca.crt", (self.state / "ca.crt").read_bytes())
        node_pem = keys.public_pem(node_key.public_key())
        entry = IssuedKeys(
            merchant=name,
            identity_key="0" * 64,
            node_key=node_pem,
            certificates=(IssuedCertificate.of(certificate),),
        )
        record(self.state, entry)
        self.parties[name] = Party(name, folder, node_key)
        return self.parties[name]


@dataclass(frozen=True)
class Answer:
    """What came back to raw bytes: the first response's status and headers, and every byte."""

    status: int
    headers: dict[str, str]
    body: bytes
    everything: bytes

    @property
    def num_responses(self) -> int:
        return self.everything.count(b"HTTP/1.1 ")


class Attacker:
    """Raw bytes over TLS, with the certificate of a party's folder, or with none."""

    def __init__(self, address: Address, ca: Path, identity: tuple[Path, Path] | None) -> None:
        self.address = address
        self.context = ssl.create_default_context(cafile=ca)
        if identity is not None:
            self.context.load_cert_chain(*identity)

    def connected(self, seconds: float = 20.0, *, source: str = "") -> ssl.SSLSocket:
        raw = socket.create_connection((self.address.host, self.address.port), seconds, (source, 0))
        return self.context.wrap_socket(raw, server_hostname=self.address.host)

    def says(self, content: bytes, *, source: str = "") -> Answer:
        """Send bytes, and nothing after them; read until the gateway closes. `source` is an address to come from."""
        with self.connected(source=source) as connection:
            # A gateway that refuses may close while something is still sent.
            with contextlib.suppress(BrokenPipeError, ConnectionResetError, ssl.SSLEOFError):
                connection.sendall(content)
            return read_answer(connection)

    def says_all(self, contents: list[bytes]) -> list[Answer]:
        """Each on a connection of its own, several at a time: the gateway lets a refused peer have its last word."""
        with ThreadPoolExecutor(AT_A_TIME) as pool:
            return list(pool.map(self.says, contents))

    def asks(self, *request: object, **other: object) -> Answer:
        """One request as a node writes it, and its answer."""
        return self.says(self.request(*request, **other))

    @staticmethod
    def request(target: str, body: bytes = b"", headers: dict[str, str] | None = None, method: str = "POST") -> bytes:
        """A request as an honest client writes it, on a connection that ends with it."""
        own = {"host": LOOPBACK, "connection": "close", "content-length": str(len(body))}
        values = {**own, **PROTOBUF, **(headers or {})}
        lines = [f"{method} {target} HTTP/1.1", *(f"{name}: {value}" for name, value in values.items())]
        return "\r\n".join(lines).encode("latin-1") + b"\r\n\r\n" + body


def read_answer(connection: socket.socket) -> Answer:
    received = b""
    with contextlib.suppress(ConnectionResetError, ssl.SSLEOFError):
        while piece := connection.recv(65536):
            received += piece
    if not received:
        return Answer(0, {}, b"", b"")
    head, _, body = received.partition(b"\r\n\r\n")
    first, *lines = head.decode("latin-1").split("\r\n")
    headers = dict(line.lower().split(": ", 1) for line in lines)
    return Answer(int(first.split()[1]), headers, body[: int(headers["content-length"])], received)


class Federation:
    """The processes of a coordinator, and ways to speak to them."""

    def __init__(self, folder: Path, stack: ExitStack) -> None:
        self.folder = folder
        self.stack = stack
        self.coordinator = Coordinator.at(folder / "server")
        self.alpha = self.coordinator.enrol("alpha", folder / "alpha")
        self.beta = self.coordinator.enrol("beta", folder / "beta")
        self.superlink = Address(LOOPBACK, free_port())
        self.ca = self.coordinator.state / "ca.crt"
        stack.enter_context(running_superlink(self))
        self.register_node(self.alpha)
        self.register_node(self.beta)
        self.gateway_process, self.gateway = stack.enter_context(started_gateway(self))

    def register_node(self, party: Party) -> None:
        """As the coordinator does it: through SuperLink's Control API, on loopback."""
        from flwr.proto.control_pb2 import RegisterNodeRequest

        with self.control() as control:
            party.node_id = control.RegisterNode(RegisterNodeRequest(public_key=party.public_pem)).node_id

    @contextmanager
    def control(self):
        from flwr.supercore.control import ControlHttpClient

        with ControlHttpClient.from_server_address(str(self.superlink), False, self.ca.read_bytes(), []) as client:
            yield client

    def attacker(self, party: Party | None, address: Address | None = None) -> Attacker:
        """Whoever holds this party's certificate and key; with None, the authority's certificate alone."""
        return Attacker(address or self.gateway, self.ca, None if party is None else party.identity)

    @contextmanager
    def other_gateway(self, *options: str):
        """A gateway more, with other limits."""
        with started_gateway(self, *options, log="other-gateway.log") as (_, address):
            yield address

    @staticmethod
    def free_address() -> Address:
        return Address(LOOPBACK, free_port())

    def gateway_command(self, listen: Address, ready: int) -> list[str]:
        return gateway.command(listen, self.superlink, self.coordinator.state, ready, self.ca)

    def log(self) -> str:
        return (self.folder / "gateway.log").read_text()

    def superlink_log(self) -> str:
        return (self.folder / "superlink.log").read_text()


@contextmanager
def running_superlink(federation: Federation):
    """A real SuperLink that registers no node itself, with a certificate for loopback."""
    state = federation.coordinator.state
    key = keys.make_tls_key(federation.folder / "superlink.key")
    authority = open_authority(state, datetime.now(UTC))
    certificate = authority.issued_to_server(LOOPBACK, key.public_key(), datetime.now(UTC), 30)
    (federation.folder / "superlink.crt").write_bytes(certificate_pem(certificate))
    options = {
        "--host": LOOPBACK,
        "--port": federation.superlink.port,
        "--ssl-ca-certfile": state / "ca.crt",
        "--ssl-certfile": federation.folder / "superlink.crt",
        "--ssl-keyfile": federation.folder / "superlink.key",
        "--database": federation.folder / "state.db",
    }
    words = [str(word) for pair in options.items() for word in pair]
    program = Path(sys.executable).with_name("flower-superlink")
    environment = flower_environment(federation.folder / "flower")
    log = federation.folder / "superlink.log"
    with children.running(
        "SuperLink", [str(program), "--enable-supernode-auth", *words], environment, log=log
    ) as child:
        wait_for_port(federation.superlink, child.process)
        yield


def wait_for_port(address: Address, process: subprocess.Popen) -> None:
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline and process.poll() is None:
        with contextlib.suppress(OSError), socket.create_connection((address.host, address.port), 1.0):
            return
        select.select([], [], [], 0.05)
    raise AssertionError(f"nothing came up at {address}")


@contextmanager
def started_gateway(federation: Federation, *options: str, log: str = "gateway.log", listen: Address | None = None):
    """A gateway's process, and where it listens."""
    address = listen or federation.free_address()

    def command(ready: int) -> list[str]:
        return [*federation.gateway_command(address, ready), *options]

    log_path = federation.folder / log
    with running_when_ready("the gateway", command, os.environ, seconds=START_SECONDS, log=log_path) as (child, line):
        yield child, parse_address(line)


class PeakMemory:
    """The most memory that a process has used since this was made, beyond what it used then."""

    def __init__(self, pid: int) -> None:
        self._process = Path(f"/proc/{pid}")
        # What is written here, proc(5) says, lets the peak begin anew.
        (self._process / "clear_refs").write_text("5")
        self._before = self._peak_bytes()

    def _peak_bytes(self) -> int:
        return int(re.search(r"VmHWM:\s+(\d+) kB", (self._process / "status").read_text())[1]) << 10

    @property
    def growth_bytes(self) -> int:
        return self._peak_bytes() - self._before


@pytest.fixture(scope="session")
def peak_memory():
    return PeakMemory


@pytest.fixture(scope="session")
def running_gateway():
    return started_gateway


@pytest.fixture(scope="session")
def running_forwarder():
    """A merchant's forwarder, as `hansa client start` runs it."""
    return forwarder.running


@pytest.fixture(scope="session")
def federation(tmp_path_factory):
    with ExitStack() as stack:
        yield Federation(tmp_path_factory.mktemp("federation"), stack)
