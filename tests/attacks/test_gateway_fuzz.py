"""Whatever bytes a merchant sends: what SuperLink gets are requests that a node makes, with that merchant's key.

A second reader, h11, says what SuperLink got; it is more lenient than the gateway, so it would see a smuggled request.
"""

from __future__ import annotations

import base64
import contextlib
import socket
import threading
import time
from datetime import UTC, datetime
from queue import Queue

import h11
import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from hypothesis import given, settings
from hypothesis import strategies as st

from hansa_common import keys
from hansa_common.addresses import Address
from hansa_common.errors import TransportError
from hansa_common.fleet_api import NODE_PATHS
from hansa_common.http_wire import Wire
from hansa_server.authority import open_authority
from hansa_server.gateway_conversation import Conversation, Rules, Superlink
from hansa_server.gateway_limits import Accounts, Limits, Places
from hansa_server.gateway_rules import Certificate, LiveRegister
from hansa_server.gateway_sightings import Sightings
from hansa_server.issued_register import IssuedCertificate, IssuedKeys, record

NODE_KEY = "-----BEGIN PUBLIC KEY-----\nbeta's\n-----END PUBLIC KEY-----\n"
KEY_HEADER = base64.b64encode(NODE_KEY.encode())
OK = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok"


class Recorder:
    """Stands where SuperLink does, answers every request, and keeps what it got on each connection."""

    def __init__(self) -> None:
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.address = Address(*self.listener.getsockname())
        self.connections: Queue[bytes] = Queue()
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        while True:
            try:
                connection, _ = self.listener.accept()
            except OSError:
                return
            with connection:
                self.connections.put(self._record(connection))

    @staticmethod
    def _record(connection: socket.socket) -> bytes:
        received, reader = b"", h11.Connection(h11.SERVER)
        while piece := connection.recv(65536):
            received += piece
            reader.receive_data(piece)
            while (event := reader.next_event()) not in (h11.NEED_DATA, h11.PAUSED):
                if isinstance(event, h11.EndOfMessage):
                    connection.sendall(OK)
                    reader.send(h11.Response(status_code=200, headers=[("content-length", "2")]))
                    reader.send(h11.Data(data=b"ok"))
                    reader.send(h11.EndOfMessage())
                    reader.start_next_cycle()
        return received


class Watched:
    """A certificate's connection to a gateway's rules, in this process."""

    def __init__(self, state) -> None:
        authority = open_authority(state, datetime.now(UTC))
        key = ec.generate_private_key(keys.TLS_CURVE()).public_key()
        issued = authority.issued_to_merchant("beta", key, datetime.now(UTC), 30)
        entry = IssuedKeys(
            merchant="beta",
            identity_key="0" * 64,
            node_key=NODE_KEY,
            certificates=(IssuedCertificate.of(issued),),
        )
        record(state, entry)
        self.recorder = Recorder()
        self.said: list[str] = []
        limits = Limits(requests_per_second=1e9, burst_requests=1e9)
        self.certificate = Certificate(issued.serial_number, "beta", issued.not_valid_after_utc.timestamp())

        def say(subject: str, line: str) -> None:
            self.said.append(f"{subject}: {line}")

        self.rules = Rules(
            LiveRegister(state),
            limits,
            Accounts(limits, time.monotonic),
            Places(16),
            Superlink(self.recorder.address, None),
            say,
            Sightings(state, time.monotonic, say),
        )

    def superlink_gets(self, content: bytes) -> list[bytes]:
        """What reaches SuperLink, connection by connection, when a merchant sends these bytes and closes."""
        here, there = socket.socketpair()
        reached: list[bytes] = []
        opened = self.rules.superlink

        class Counted(Superlink):
            def connected(self) -> Wire:
                reached.append(b"")
                return super().connected()

        rules = Rules(**{**vars(self.rules), "superlink": Counted(opened.address, None)})
        with here, there:
            there.sendall(content)
            there.shutdown(socket.SHUT_WR)
            # It may break off in the middle of what it sends; nothing else may happen.
            with contextlib.suppress(TransportError):
                Conversation(rules, Wire(here, 5.0), self.certificate, "127.0.0.1").hold()
        return [self.recorder.connections.get(timeout=10) for _ in reached]


@pytest.fixture(scope="module")
def watched(tmp_path_factory):
    state = tmp_path_factory.mktemp("state")
    state.chmod(0o700)
    watched = Watched(state)
    yield watched
    watched.recorder.listener.close()


def requests_in(received: bytes) -> list[h11.Request]:
    reader = h11.Connection(h11.SERVER)
    reader.receive_data(received)
    requests = []
    while True:
        event = reader.next_event()
        if event in (h11.NEED_DATA, h11.PAUSED) or isinstance(event, h11.ConnectionClosed):
            return requests
        if isinstance(event, h11.Request):
            requests.append(event)
        if isinstance(event, h11.EndOfMessage):
            reader.send(h11.Response(status_code=200, headers=[("content-length", "0")]))
            reader.send(h11.EndOfMessage())
            reader.start_next_cycle()


def good(target: str, body: bytes) -> bytes:
    head = f"POST {target} HTTP/1.1\r\nHost: gateway\r\nContent-Length: {len(body)}\r\nflwr-public-key: "
    return head.encode() + KEY_HEADER + b"\r\n\r\n" + body


# Push-messages has a rule of its own for its body, and a test of its own.
TARGETS = st.sampled_from(sorted(NODE_PATHS - {"/v1/fleet/push-messages"}))
HIDDEN = b"POST /v1/control/start-run HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n\r\n"
PIECES = st.sampled_from(
    [HIDDEN, b"\r\n", b"\n", b"\r", b"\r\n\r\n", b"Transfer-Encoding: chunked\r\n", b"Content-Length: 3\r\n",
     b"0\r\n\r\n",
     b"Host: b\r\n", b"Upgrade: h2c\r\n", b" ", b"\t", b":", b"%2e%2e/", b"../", b"//", b"\x00", b"POST ",
     b" HTTP/1.1\r\n"]
)  # fmt: skip
BODIES = st.one_of(st.just(HIDDEN), st.binary(max_size=50), PIECES)
GOOD = st.builds(good, TARGETS, BODIES)


@st.composite
def nearly_good(draw) -> bytes:
    """A good request with one or two pieces put in, or bytes taken out, anywhere."""
    content = draw(GOOD)
    for _ in range(draw(st.integers(1, 2))):
        at = draw(st.integers(0, len(content)))
        upto = at + draw(st.integers(0, 3))
        content = content[:at] + draw(st.one_of(PIECES, st.binary(max_size=4))) + content[upto:]
    return content


CONTENT = st.lists(st.one_of(GOOD, nearly_good(), PIECES, st.binary(max_size=40)), min_size=1, max_size=4).map(b"".join)


@settings(max_examples=500, deadline=None)
@given(CONTENT)
def test_fuzzed_bytes_reach_superlink_as_a_nodes_requests_or_not_at_all(watched, content):
    for received in watched.superlink_gets(content):
        for request in requests_in(received):
            named = dict(request.headers)
            assert len(named) == len(list(request.headers))
            assert request.method == b"POST"
            assert request.target.decode() in NODE_PATHS
            assert named[b"flwr-public-key"] == KEY_HEADER
            assert named[b"host"] == str(watched.recorder.address).encode()
            assert b"transfer-encoding" not in named


@settings(max_examples=100, deadline=None)
@given(st.lists(GOOD, min_size=1, max_size=4))
def test_good_requests_all_arrive(watched, contents):
    (received,) = watched.superlink_gets(b"".join(contents))
    assert len(requests_in(received)) == len(contents)


@settings(max_examples=300, deadline=None)
@given(st.one_of(st.binary(max_size=200), st.binary(max_size=60).map(lambda end: b"\x12\x10" + end)))
def test_fuzzed_lists_of_messages_are_refused(watched, body):
    assert watched.superlink_gets(good("/v1/fleet/push-messages", body)) == []
