"""Greed and malice at the gateway: too long, too many, too slow. Nobody but the greedy is slowed down."""

from __future__ import annotations

import contextlib
import re
import socket
import ssl
import time
from contextlib import ExitStack

import pytest
from flwr.proto.fleet_pb2 import PullMessagesRequest
from flwr.proto.node_pb2 import Node
from hansa_command import wait_until

from hansa_common.fleet_api import MAX_SMALL_BYTES, NODE_PATHS, PUSH_MESSAGES, PUSH_OBJECT
from hansa_common.http_heads import MAX_HEAD_BYTES
from hansa_server.gateway import HANDSHAKE_SECONDS

pytestmark = pytest.mark.system

PULL = "/v1/fleet/pull-messages"
HEALTH = b"GET /health HTTP/1.1\r\nHost: a\r\n\r\n"


def is_served(federation, party, address=None) -> bool:
    body = PullMessagesRequest(node=Node(node_id=party.node_id)).SerializeToString()
    return federation.attacker(party, address).asks(PULL, body, party.signed()).status == 200


def test_oversized_heads_are_refused(federation):
    attacker = federation.attacker(federation.beta)
    long = "a" * MAX_HEAD_BYTES
    many = "".join(f"x{number}: 1\r\n" for number in range(100))
    contents = [
        f"GET /{long} HTTP/1.1\r\nHost: a\r\n\r\n".encode(),
        f"GET /health HTTP/1.1\r\nHost: a\r\nAccept: {long}\r\n\r\n".encode(),
        f"GET /health HTTP/1.1\r\nHost: a\r\n{many}\r\n".encode(),
        long.encode() * 100,
    ]
    assert [answer.headers["hansa-refusal"] for answer in attacker.says_all(contents)] == ["malformed"] * 4


def test_oversized_messages_are_refused_before_they_are_sent(federation):
    with federation.other_gateway("--max-object-mib=1") as address:
        attacker, signed = federation.attacker(federation.beta, address), federation.beta.signed()
        lengths = {PUSH_OBJECT: (1 << 20) + 1, PULL: MAX_SMALL_BYTES + 1, "/v1/fleet/get-run": 10**14}
        contents = [attacker.request(target, b"", {**signed, "content-length": str(length)})
                    for target, length in lengths.items()]  # fmt: skip
        for answer in attacker.says_all(contents):
            assert (answer.status, answer.headers["hansa-refusal"]) == (413, "too-large")
        assert attacker.asks("/health", b"", {"content-length": "5"}, method="GET").status == 413


def test_malformed_messages_harm_nobody(federation):
    beta = federation.beta
    attacker = federation.attacker(beta)
    bodies = (b"", b"\xff" * 100, b"\x0a\xff\xff\xff\xff\x0f", b"\x0a" * 5000, b"{}")
    contents = [attacker.request(target, body, beta.signed()) for target in sorted(NODE_PATHS) for body in bodies]
    for content, answer in zip(contents, attacker.says_all(contents), strict=True):
        assert 400 <= answer.status < 500, (content, answer)
        assert answer.num_responses == 1
    assert attacker.asks(PUSH_MESSAGES, b"\xff" * 100, beta.signed()).headers["hansa-refusal"] == "malformed"
    assert is_served(federation, beta)
    assert is_served(federation, federation.alpha)


def test_flood_of_one_merchant_is_held_back_and_the_other_is_served(federation):
    with federation.other_gateway("--requests-per-second=5") as address:
        with federation.attacker(federation.beta, address).connected() as connection:
            began = time.monotonic()
            connection.sendall(HEALTH * 60)
            received = b""
            with contextlib.suppress(ssl.SSLError, ConnectionResetError):
                while piece := connection.recv(65536):
                    received += piece
            seconds, statuses = time.monotonic() - began, re.findall(rb"HTTP/1.1 (\d+)", received)
        assert statuses[-1] == b"503"
        # A burst of four seconds' worth, and what comes by while it lasts.
        assert 20 <= statuses.count(b"200") <= 21 + 5 * seconds
        assert b"hansa-refusal: too-many-requests" in received
        assert is_served(federation, federation.alpha, address)
        wait_until("a turn for beta again", lambda: is_served(federation, federation.beta, address))


def test_one_merchant_takes_no_more_connections_than_it_may(federation):
    with federation.other_gateway("--max-connections=3") as address, ExitStack() as stack:
        attacker = federation.attacker(federation.beta, address)
        for _ in range(3):
            connection = stack.enter_context(attacker.connected())
            connection.sendall(HEALTH)
            assert connection.recv(1000).startswith(b"HTTP/1.1 200")
        assert attacker.says(HEALTH).headers["hansa-refusal"] == "too-many-connections"
        assert is_served(federation, federation.alpha, address)


def test_refused_connections_are_held_no_more_than_others(federation):
    """Each has had its answer; left open while bytes come, they would use up the gateway's descriptors, and that with a
    certificate that was taken back.
    """
    with federation.other_gateway("--max-connections=2") as address, ExitStack() as stack:
        attacker = federation.attacker(federation.beta, address)
        connections = []
        for _ in range(8):
            connections.append(stack.enter_context(attacker.connected()))
            connections[-1].sendall(b"no request\r\n\r\n")
        began = time.monotonic()
        wait_until("an end of the others", lambda: sum(map(is_held, connections)) <= 2)
        # Sooner than a peer that goes on and on is left.
        assert time.monotonic() - began < 4.0
        assert is_served(federation, federation.beta, address)


def is_held(connection: ssl.SSLSocket) -> bool:
    """Whether a connection is still open, and takes more bytes, once what of its answer is here was read."""
    connection.settimeout(0.1)
    try:
        connection.sendall(b"more")
        while connection.recv(65536):
            continue
    except TimeoutError:
        return True
    except OSError:
        # Closed without a word of TLS.
        return False
    return False


def answer_here(connection: ssl.SSLSocket) -> bytes:
    """What of an answer has come by now."""
    connection.settimeout(0.1)
    with contextlib.suppress(TimeoutError):
        return connection.recv(1000)
    return b""


def test_one_merchant_has_no_more_bytes_on_the_way_than_it_may(federation):
    """SuperLink holds a body whole until it is complete, so bodies that never are would fill its memory."""
    with federation.other_gateway("--max-object-mib=1") as address, ExitStack() as stack:
        attacker, signed = federation.attacker(federation.beta, address), federation.beta.signed()
        head = "".join(f"{name}: {value}\r\n" for name, value in signed.items())
        half = f"POST {PUSH_OBJECT} HTTP/1.1\r\nHost: a\r\n{head}Content-Length: {1 << 20}\r\n\r\n".encode()
        connections = [stack.enter_context(attacker.connected()) for _ in range(3)]
        for connection in connections:
            connection.sendall(half + b"a" * 1000)
        answers = []

        def is_answered() -> bool:
            answers.extend(filter(None, map(answer_here, connections)))
            return len(answers) > 0

        wait_until("a refusal of one of them", is_answered)
        assert [b"hansa-refusal: too-many-requests" in answer for answer in answers] == [True]
        assert is_served(federation, federation.alpha, address)


def is_closed(connection: socket.socket) -> bool:
    try:
        return connection.recv(1) == b""
    except BlockingIOError:
        return False


def test_silent_strangers_keep_nobody_out(federation):
    with ExitStack() as stack:
        strangers, began = [], time.monotonic()
        for _ in range(60):
            strangers.append(stack.enter_context(socket.socket()))
            strangers[-1].bind(("127.0.0.2", 0))
            strangers[-1].connect((federation.gateway.host, federation.gateway.port))
            strangers[-1].setblocking(False)
        wait_until("an end of some of them", lambda: sum(map(is_closed, strangers)) >= 20)
        # Not for the time that each had for its first words.
        assert time.monotonic() - began < HANDSHAKE_SECONDS
        assert is_served(federation, federation.alpha)


def test_long_message_goes_through_in_pieces(federation, peak_memory):
    peak = peak_memory(federation.gateway_process.process.pid)
    size = 96 << 20
    answer = federation.attacker(federation.beta).asks(PUSH_OBJECT, b"\x00" * size, federation.beta.signed())
    # SuperLink has seen all of it, and that it is no protobuf.
    assert answer.status in range(400, 500)
    assert "hansa-refusal" not in answer.headers
    assert peak.growth_bytes < size / 4


def test_flood_of_refusals_fills_no_log(federation):
    before = len(federation.log())
    attacker = federation.attacker(federation.beta)
    attacker.says_all([b"GET /nothing HTTP/1.1\r\nHost: a\r\n\r\n"] * 48)
    assert len(federation.log()) - before < 48 * 40
