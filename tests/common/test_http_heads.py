"""A head is read one way or refused; what goes on is written anew, and a second reader reads it the same."""

from __future__ import annotations

import h11
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from hansa_common.errors import MessageError
from hansa_common.http_heads import MAX_HEAD_BYTES, RequestHead, ResponseHead, read_request_head, read_response_head

GOOD = b"POST /v1/fleet/get-run HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\n"


def with_header(line: bytes) -> bytes:
    return GOOD.replace(b"\r\n\r\n", b"\r\n" + line + b"\r\n\r\n")


def test_head_is_read_as_it_stands():
    head = read_request_head(with_header(b"X-Word: \t two  words \t"))
    assert head == RequestHead(
        "POST", "/v1/fleet/get-run", {"host": "a", "content-length": "3", "x-word": "two  words"}, 3
    )
    answer = read_response_head(b"HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\n\r\n")
    assert answer == ResponseHead(404, {"content-length": "0"}, 0)
    assert read_response_head(b"HTTP/1.1 204 \r\n\r\n").content_length == 0


@pytest.mark.parametrize(
    ("head", "words"),
    [
        (GOOD.replace(b"\r\n", b"\n"), "no end"),
        (GOOD.replace(b"Host: a\r\n", b"Host: a\n"), "header 1 is none"),
        (GOOD.replace(b"Host: a\r\n", b"Host: a\r"), "header 1 is none"),
        (GOOD[:-2], "no end"),
        (b"\r\n" + GOOD, "header 1 is none"),
        (GOOD.replace(b"HTTP/1.1", b"HTTP/1.0"), "first line"),
        (GOOD.replace(b"HTTP/1.1", b"HTTP/2"), "first line"),
        (GOOD.replace(b"POST /", b"POST  /"), "first line"),
        (GOOD.replace(b"POST", b"post"), "first line"),
        (GOOD.replace(b" /v1", b" http://b/v1"), "first line"),
        (GOOD.replace(b"/v1/fleet/get-run", b"*"), "first line"),
        (GOOD.replace(b"get-run", b"get\x00run"), "first line"),
        (GOOD.replace(b"get-run", b"get\trun"), "first line"),
        (GOOD.replace(b"get-run", "gét-run".encode()), "first line"),
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", "header 1 is none"),
        (GOOD.replace(b"Host: a\r\n", b""), "no Host"),
        (GOOD.replace(b"Host: a", b"Host:"), "no Host"),
        (GOOD.replace(b"Content-Length: 3\r\n", b""), "no Content-Length"),
        (with_header(b"Host: a"), "twice: host"),
        (with_header(b"host: b"), "twice: host"),
        (with_header(b"Content-Length: 3"), "twice: content-length"),
        (with_header(b"flwr-public-key: a\r\nFlwr-Public-Key: a"), "twice: flwr-public-key"),
        (with_header(b"Transfer-Encoding: chunked"), "Transfer-Encoding"),
        (with_header(b"Transfer-Encoding: identity"), "Transfer-Encoding"),
        (with_header(b"Transfer-Encoding : chunked"), "header 3 is none"),
        (with_header(b"X-One: 1\r\n 2"), "header 4 is none"),
        (with_header(b" X: leading"), "header 3 is none"),
        (with_header(b"no colon"), "header 3 is none"),
        (with_header(b": no name"), "header 3 is none"),
        (with_header(b"X: \x00"), "header 3 is none"),
        (with_header(b"X: \xff"), "header 3 is none"),
        *((GOOD.replace(b" 3", length), "Content-Length is no number") for length in
          (b" +3", b" -3", b" 0x3", b" 3, 3", b" 3 3", b" ", b" 1e3", b" " + b"9" * 16)),
        (with_header(b"\r\n".join(b"x%d: 1" % number for number in range(31))), "more than 32 headers"),
        (with_header(b"X: " + b"a" * MAX_HEAD_BYTES), f"more than {MAX_HEAD_BYTES} bytes"),
    ],
)  # fmt: skip
def test_head_that_could_be_read_otherwise_is_refused(head, words):
    with pytest.raises(MessageError, match=words):
        read_request_head(head)


@pytest.mark.parametrize(
    "head",
    [
        b"HTTP/1.1 200 OK\r\n\r\n",
        b"HTTP/1.1 100 Continue\r\ncontent-length: 0\r\n\r\n",
        b"HTTP/1.1 101 Switching Protocols\r\ncontent-length: 0\r\n\r\n",
        b"HTTP/1.0 200 OK\r\ncontent-length: 0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n",
        b"HTTP/1.1 200 OK\r\ncontent-length: 1\r\ncontent-length: 2\r\n\r\n",
    ],
)
def test_response_whose_end_is_not_told_is_refused(head):
    with pytest.raises(MessageError):
        read_response_head(head)


def test_value_with_a_line_end_is_never_written():
    for value in ("a\r\nx: 1", "a\n", "a\r"):
        with pytest.raises(MessageError):
            RequestHead("GET", "/health", {"host": value}, 0).to_bytes()
    with pytest.raises(MessageError):
        RequestHead("GET", "/health HTTP/1.1\r\nx: 1", {"host": "a"}, 0).to_bytes()


# Bytes that are nearly heads: good pieces, bad pieces, and anything between.
PIECES = st.sampled_from(
    [b"POST ", b"GET ", b"/health", b"/v1/fleet/get-run", b"//", b"/..", b"%2f", b" HTTP/1.1", b"\r\n", b"\n", b"\r",
     b"Host: a", b"host:b", b"Content-Length: 3", b"content-length: 5", b"Transfer-Encoding: chunked", b": ", b" ",
     b"\t", b"\x00", b"X-A: b", b"Upgrade: h2c", b"Connection: upgrade", b"\xff", b"\r\n\r\n"]
)  # fmt: skip
LINES = st.lists(st.one_of(PIECES, st.binary(max_size=8)), max_size=20).map(b"".join)
NEARLY = st.builds(with_header, LINES)


@settings(max_examples=1500, deadline=None)
@given(st.one_of(LINES, LINES.map(lambda head: head + b"\r\n\r\n"), NEARLY))
@example(GOOD)
def test_fuzzed_bytes_are_refused_or_read_as_a_second_reader_reads_them(content):
    try:
        head = read_request_head(content)
    except MessageError:
        return
    written = head.to_bytes()
    assert read_request_head(written) == read_request_head(content)
    second = h11.Connection(h11.SERVER, max_incomplete_event_size=2 * MAX_HEAD_BYTES)
    for received in (content, written):
        second = h11.Connection(h11.SERVER, max_incomplete_event_size=2 * MAX_HEAD_BYTES)
        second.receive_data(received)
        event = second.next_event()
        assert (event.method.decode(), event.target.decode()) == (head.method, head.target)
        assert {name.decode(): value.decode() for name, value in event.headers}.items() >= dict(head.headers).items()


@settings(max_examples=500, deadline=None)
@given(st.binary(max_size=300), st.sampled_from([b"", b"HTTP/1.1 200 \r\n", b"HTTP/1.1 200 \r\ncontent-length: "]))
def test_fuzzed_response_is_read_or_refused_and_nothing_else(content, before):
    try:
        head = read_response_head(before + content + b"\r\n\r\n")
    except MessageError:
        return
    assert read_response_head(head.to_bytes()).content_length == head.content_length
