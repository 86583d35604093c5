"""Messages move a piece at a time, whole or not at all, and nobody is waited for without an end."""

from __future__ import annotations

import socket
import threading
import time

import pytest

from hansa_common import http_wire
from hansa_common.errors import MessageError, TransportError
from hansa_common.http_heads import MAX_HEAD_BYTES
from hansa_common.http_wire import PIECE_BYTES, SHORT_BYTES, Wire

HEAD = b"POST /v1/fleet/get-run HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\n"


@pytest.fixture
def pair():
    here, there = socket.socketpair()
    with here, there:
        yield Wire(here, 5.0), there


def test_two_requests_in_one_piece_are_read_apart(pair):
    wire, peer = pair
    peer.sendall(HEAD + b"first" + HEAD + b"other")
    for body in (b"first", b"other"):
        head = wire.read_request(5.0)
        assert head is not None
        assert wire.read_body(head.content_length) == body


def test_head_in_a_few_pieces_is_read_and_in_many_refused(pair):
    wire, peer = pair
    peer.sendall(HEAD[:10])
    sender = threading.Thread(target=lambda: [peer.sendall(HEAD[10:40]), peer.sendall(HEAD[40:])])
    sender.start()
    assert wire.read_request(5.0) is not None
    sender.join()


class Dripping:
    """A peer that sends one byte at a time, whenever it is read from."""

    def __init__(self, content: bytes) -> None:
        self.content = content
        self.reads = 0

    def settimeout(self, seconds):
        pass

    def recv_into(self, buffer):
        piece = self.content[self.reads : self.reads + 1]
        self.reads += 1
        buffer[: len(piece)] = piece
        return len(piece)


def test_head_that_drips_is_given_up():
    dripping = Dripping(HEAD)
    with pytest.raises(MessageError, match="too many pieces"):
        Wire(dripping, 5.0).read_request(5.0)
    assert dripping.reads < 20


def test_silence_before_a_request_is_no_error_and_in_the_middle_is(pair):
    wire, peer = pair
    assert wire.read_request(0.05) is None
    peer.sendall(HEAD[:20])
    peer.shutdown(socket.SHUT_WR)
    with pytest.raises(TransportError, match="closed in the middle"):
        wire.read_request(5.0)


def test_end_before_a_request_is_no_error(pair):
    wire, peer = pair
    peer.close()
    assert wire.read_request(5.0) is None


def test_head_without_an_end_is_refused_at_its_limit(pair):
    wire, peer = pair
    peer.sendall(b"GET /" + b"a" * MAX_HEAD_BYTES)
    with pytest.raises(MessageError, match="more than"):
        wire.read_request(5.0)


@pytest.mark.parametrize("num_bytes", [0, 1, SHORT_BYTES, SHORT_BYTES + 1, 5 * PIECE_BYTES + 7])
def test_body_goes_on_byte_for_byte_and_never_whole(pair, num_bytes):
    wire, peer = pair
    body = bytes(range(256)) * (num_bytes // 256 + 1)
    body = body[:num_bytes]
    sender = threading.Thread(target=peer.sendall, args=(HEAD + body + b"next",))
    sender.start()
    wire.read_request(5.0)
    pieces: list[bytes] = []
    wire.pass_on(b"head", num_bytes, lambda piece: pieces.append(bytes(piece)))
    sender.join()
    assert b"".join(pieces) == b"head" + body
    assert max(map(len, pieces)) <= PIECE_BYTES
    assert wire.read_body(4) == b"next"


def test_body_that_breaks_off_is_an_error(pair):
    wire, peer = pair
    peer.sendall(b"abc")
    peer.close()
    with pytest.raises(TransportError, match="closed in the middle"):
        wire.pass_on(b"head", SHORT_BYTES + 1, lambda _: None)


def test_idle_connection_is_stale_once_it_is_closed_or_speaks_unasked(pair):
    wire, peer = pair
    assert not wire.is_stale
    peer.sendall(b"x")
    assert wire.is_stale
    other, its_peer = socket.socketpair()
    with other:
        its_peer.close()
        assert Wire(other, 5.0).is_stale


def test_last_words_are_heard_while_the_peer_still_sends(pair):
    wire, peer = pair
    peer.setblocking(False)
    sent = 0
    try:
        while True:
            sent += peer.send(b"a" * 65536)
    except BlockingIOError:
        assert sent > 0
    peer.setblocking(True)
    peer.shutdown(socket.SHUT_WR)
    wire.send_last(b"no")
    wire.close()
    assert peer.recv(10) == b"no"
    assert peer.recv(10) == b""


def test_peer_that_was_refused_and_goes_on_byte_by_byte_is_left_after_a_while(pair, monkeypatch):
    monkeypatch.setattr(http_wire, "_LAST_SECONDS", 0.2)
    wire, peer = pair
    ended = threading.Event()
    threading.Thread(target=lambda: (wire.send_last(b"no"), ended.set()), daemon=True).start()
    began = time.monotonic()
    while not ended.wait(0.05) and time.monotonic() - began < 10:
        peer.sendall(b"x")
    assert ended.is_set()
    assert time.monotonic() - began < 5
