"""Ways round the gateway's list of requests that work elsewhere: another spelling of a path, two readings of a message.

Every attack is made with a good certificate and the node key that belongs to it; what it wants is SuperLink's Control
API behind the gateway, and the log of SuperLink says whether anything of it arrived.
"""

from __future__ import annotations

import pytest
from flwr.proto.control_pb2 import ListNodesRequest
from flwr.proto.fleet_pb2 import PullMessagesRequest
from flwr.proto.node_pb2 import Node

pytestmark = pytest.mark.system

PULL = "/v1/fleet/pull-messages"
CONTROL = "/v1/control/list-nodes"
FIRST = f"POST {PULL} HTTP/1.1"
EMPTY = ("Host: a", "Content-Length: 0")
# What a smuggler hides behind a request; an answer to it would be a second answer.
HIDDEN = b"POST /v1/control/list-nodes HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 0\r\n\r\n"
CHUNKED = b"0\r\n\r\n"


@pytest.fixture
def said(federation):
    """A node's request with its true signature, whatever its first line and its lines of Host and length."""

    def say(first: str, *lines: str, body: bytes = HIDDEN) -> bytes:
        signed = [f"{name}: {value}" for name, value in federation.beta.signed().items()]
        head = "\r\n".join([first, *lines, "Content-Type: application/protobuf", *signed, "", ""])
        return head.encode("latin-1") + body

    return say


@pytest.fixture
def outcomes(federation):
    """What comes back to each of many attacks: status, reason, and how many answers."""

    def attack(contents: list[bytes]) -> list[tuple[int, str | None, int]]:
        answers = federation.attacker(federation.beta).says_all(contents)
        return [(answer.status, answer.headers.get("hansa-refusal"), answer.num_responses) for answer in answers]

    return attack


@pytest.fixture
def pull(federation) -> bytes:
    return PullMessagesRequest(node=Node(node_id=federation.beta.node_id)).SerializeToString()


@pytest.fixture(autouse=True)
def _nothing_reaches_control(federation):
    before = len(federation.superlink_log())
    yield
    assert "/v1/control" not in federation.superlink_log()[before:]


def refused(status: int, reason: str, attacks: list) -> list[tuple[int, str, int]]:
    return [(status, reason, 1)] * len(attacks)


def test_superlinks_log_would_tell(federation):
    """Else the fixture above would say nothing; asked on loopback, so not through the gateway."""
    before = federation.superlink_log().count(f"POST {CONTROL}")
    with federation.control() as control:
        control.ListNodes(ListNodesRequest())
    assert federation.superlink_log().count(f"POST {CONTROL}") == before + 1
    # Away with it again, for the fixture.
    (federation.folder / "superlink.log").write_text("")


SPELLINGS = [
    "/v1/fleet/../control/list-nodes", "/v1/fleet/pull-messages/../../control/list-nodes",
    "/v1/fleet/%2e%2e/control/list-nodes",
    "/v1/fleet/..%2fcontrol/list-nodes", "/v1/fleet%2f..%2fcontrol%2flist-nodes", "/v1/%63ontrol/list-nodes",
    "/%76%31/control/list-nodes", "/v1/fleet/%252e%252e/control/list-nodes", "/v1/fleet/.%00./control/list-nodes",
    "//v1/control/list-nodes", "/v1//control/list-nodes", "//127.0.0.1/v1/control/list-nodes",
    "/v1/fleet//pull-messages",
    "/./v1/control/list-nodes", "/v1/control/./list-nodes", "/v1/control/list-nodes/", "/V1/CONTROL/LIST-NODES",
    "/v1/fleet/pull-messages;/../../control/list-nodes", "/v1/fleet/pull-messages%00/../../control/list-nodes",
    "/v1/fleet/pull-messages?/../../control/list-nodes", "/v1/fleet/pull-messages#/../../control/list-nodes",
    "/v1/fleet/pull-messages%20HTTP/1.1%0d%0aHost:%20a%0d%0a%0d%0aPOST%20/v1/control/list-nodes",
    "/v1\\fleet\\..\\control\\list-nodes", "/health/../v1/control/list-nodes", "/health?x=/v1/control/list-nodes",
    "/openapi.json", "/docs", "/v1/runtime/get-nodes", CONTROL,
]  # fmt: skip


def test_encoded_and_double_slashes_dot_segments_and_other_spellings_of_a_path_are_refused(said, outcomes):
    contents = [said(f"POST {target} HTTP/1.1", *EMPTY) for target in SPELLINGS]
    assert outcomes(contents) == refused(403, "not-a-node-request", SPELLINGS)


FIRST_LINES = [
    f"POST https://127.0.0.1{CONTROL} HTTP/1.1", f"POST http://127.0.0.1:8000{CONTROL} HTTP/1.1",
    f"POST *{CONTROL} HTTP/1.1",
    f"POST {PULL} HTTP/1.0", f"POST {PULL}", f"POST {PULL} HTTP/1.1 HTTP/1.1", f"POST  {PULL} HTTP/1.1",
    f"POST\t{PULL} HTTP/1.1", f"POST {PULL}\tHTTP/1.1", f"post {PULL} HTTP/1.1", f"POST {PULL} HTTP/2.0",
    f"POST {PULL} HTTP/1.1\nX: y", f"POST {PULL}\x00 HTTP/1.1", f"POST {PULL}\x0b HTTP/1.1", f" POST {PULL} HTTP/1.1",
    f"\r\nPOST {PULL} HTTP/1.1", "CONNECT 127.0.0.1:8000 HTTP/1.1",
]  # fmt: skip


def test_other_first_lines_are_refused(said, outcomes):
    contents = [said(first, *EMPTY) for first in FIRST_LINES]
    assert outcomes(contents) == refused(400, "malformed", FIRST_LINES)


def test_other_methods_are_refused(said, outcomes):
    methods = ["GET", "PUT", "DELETE", "PATCH", "OPTIONS", "HEAD", "TRACE"]
    contents = [said(f"{method} {PULL} HTTP/1.1", *EMPTY) for method in methods]
    assert outcomes(contents) == refused(403, "not-a-node-request", methods)


LENGTHS_AND_HOSTS = [
    ("Host: a", "Host: a", "Content-Length: {n}"), ("Host: a", "hOST: b", "Content-Length: {n}"),
    ("Content-Length: {n}",),
    ("Host: a", "Content-Length: {n}", "Content-Length: {n}"), ("Host: a", "Content-Length: {n}", "Content-Length: 0"),
    ("Host: a", "Content-Length: 0", "Content-Length: {n}"), ("Host: a", "Content-Length: {n}, {n}"),
    ("Host: a", "Content-Length: +{n}"), ("Host: a", "Content-Length: -1"), ("Host: a", "Content-Length: 0x{n}"),
    ("Host: a", "Content-Length: {n}e0"), ("Host: a", "Content-Length : {n}"), ("Host: a", "Content-Length:\x0b{n}"),
    ("Host: a", " Content-Length: {n}"), ("Host: a", "Content-Length:", " {n}"), ("Host: a",),
]  # fmt: skip


def test_duplicate_and_doubtful_host_and_content_length_are_refused(said, outcomes, pull):
    contents = [
        said(FIRST, *(line.format(n=len(pull)) for line in lines), body=pull + HIDDEN) for lines in LENGTHS_AND_HOSTS
    ]
    assert outcomes(contents) == refused(400, "malformed", LENGTHS_AND_HOSTS)


ENCODINGS = [
    "Transfer-Encoding: chunked", "Transfer-Encoding: identity", "Transfer-Encoding: gzip, chunked",
    "Transfer-Encoding: xchunked", "transfer-encoding:chunked", "Transfer-Encoding : chunked",
    "Transfer-Encoding:\tchunked", "Transfer-Encoding: chunked\nX: y", "X: y\rTransfer-Encoding: chunked",
    "X: y\n\rTransfer-Encoding: chunked", " Transfer-Encoding: chunked", "Transfer-Encoding\x00: chunked",
    "Transfer-Encoding: ch\xfcnked", "Transfer-Encoding:\x0bchunked",
]  # fmt: skip


@pytest.mark.parametrize("length", [(), (f"Content-Length: {len(CHUNKED + HIDDEN)}",), ("Content-Length: 4",)])
def test_request_smuggled_behind_an_encoding_is_not_read(said, outcomes, length):
    """CL.TE, TE.CL and TE.TE: whichever length a second reader would take, there is no second reading."""
    contents = [said(FIRST, "Host: a", line, *length, body=CHUNKED + HIDDEN) for line in ENCODINGS]
    assert outcomes(contents) == refused(400, "malformed", ENCODINGS)


def test_request_smuggled_in_a_body_is_a_body(federation, said):
    """SuperLink gets bytes that are no protobuf and says so; they are not a second request to anyone."""
    with federation.attacker(federation.beta).connected() as connection:
        connection.sendall(said(FIRST, "Host: a", f"Content-Length: {len(HIDDEN)}"))
        first = connection.recv(65536)
        assert first.count(b"HTTP/1.1 ") == 1
        assert not first.startswith(b"HTTP/1.1 200")
        connection.sendall(b"GET /health HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
        assert connection.recv(65536).startswith(b"HTTP/1.1 200")


def test_requests_in_one_piece_are_each_held_to_every_rule(federation, said, pull):
    good = said(FIRST, "Host: a", f"Content-Length: {len(pull)}", body=pull)
    answer = federation.attacker(federation.beta).says(good + HIDDEN + good)
    statuses = [line.split()[1] for line in answer.everything.split(b"\r\n") if line.startswith(b"HTTP/1.1 ")]
    assert statuses == [b"200", b"403"]


STEERING = [
    ("Connection: Upgrade", "Upgrade: h2c", "HTTP2-Settings: AAMAAABkAAQAoAAAAAIAAAAA"), ("Upgrade: TLS/1.3",),
    ("Connection: Upgrade", "Upgrade: websocket", "Sec-WebSocket-Version: 13", "Sec-WebSocket-Key: YQ=="),
    ("Expect: 100-continue",), ("Connection: close, flwr-public-key",), ("Connection: flwr-signature",),
    ("X-HTTP-Method-Override: DELETE",), ("X-Original-URL: /v1/control/list-nodes",),
    ("X-Rewrite-URL: /v1/control/list-nodes",), ("X-Forwarded-For: 127.0.0.1",), ("Forwarded: for=127.0.0.1",),
    ("Content-Encoding: gzip",), ("TE: trailers", "Trailer: X"), ("Transfer_Encoding: chunked",),
]  # fmt: skip


def test_upgrade_and_headers_that_steer_a_server_are_refused(said, outcomes):
    contents = [said(FIRST, *EMPTY, *lines) for lines in STEERING]
    assert outcomes(contents) == refused(400, "unknown-header", STEERING)


def test_http2_is_not_spoken(federation):
    attacker = federation.attacker(federation.beta)
    attacker.context.set_alpn_protocols(["h2"])
    with attacker.connected() as connection:
        assert connection.selected_alpn_protocol() is None
    assert attacker.says(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").headers["hansa-refusal"] == "malformed"


def test_identity_named_twice_is_refused(federation, said, outcomes):
    alphas = federation.alpha.signed()
    lines = [
        f"{spelt}: {alphas[name]}"
        for name in ("flwr-public-key", "flwr-signature", "flwr-timestamp")
        for spelt in (name, name.title())
    ]
    assert outcomes([said(FIRST, *EMPTY, line) for line in lines]) == refused(400, "malformed", lines)
