r"""Heads of HTTP/1.1 messages, in a grammar so narrow that no two readers can read one differently.

Promises: what is read is written again from its parts, never passed on as it came; a message has one length, and a
head that a second reader could take otherwise is refused whole. No byte is decoded: no percent signs, no dots.

refused                                         because of
any line end but CR LF, any fold, any byte      readers that end or join lines elsewhere
  outside printable ASCII
a header named twice, whichever it is           two lengths, two hosts, two keys
Transfer-Encoding                               two ways to say a length
Content-Length but of digits alone              "+5", "5, 5", "0x5"
a target that does not begin with "/"           another host in the target
HTTP/1.0, HTTP/2 prefaces, informational        messages whose end is told otherwise
  responses

Sockets, time and what a request may ask for are others'.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final

from hansa_common.errors import MessageError

MAX_HEAD_BYTES: Final = 8192
END_OF_HEAD: Final = b"\r\n\r\n"
_MAX_HEADERS: Final = 32
_REQUEST_LINE: Final = re.compile(rb"([A-Z]{1,16}) (/[!-~]{0,255}) HTTP/1\.1")
_STATUS_LINE: Final = re.compile(rb"HTTP/1\.1 ([2-5][0-9]{2})(?: [ -~]*)?")
_HEADER: Final = re.compile(rb"([!#$%&'*+.^_`|~0-9A-Za-z-]{1,64}):([\t -~]*)")
_LENGTH: Final = re.compile(r"[0-9]{1,15}")
_NO_BODY: Final = frozenset({204, 304})


@dataclass(frozen=True)
class RequestHead:
    """A request without its body: names of headers in lower case, values as they came."""

    method: str
    target: str
    headers: Mapping[str, str]
    content_length: int

    def to_bytes(self) -> bytes:
        """The head as it is sent; its length is always said."""
        return _written(f"{self.method} {self.target} HTTP/1.1", self.headers, self.content_length)


@dataclass(frozen=True)
class ResponseHead:
    """A response without its body."""

    status: int
    headers: Mapping[str, str]
    content_length: int

    def to_bytes(self) -> bytes:
        """The head as it is sent; the words beside the status are nobody's to choose."""
        return _written(f"HTTP/1.1 {self.status} ", self.headers, self.content_length)


def read_request_head(head: bytes) -> RequestHead:
    r"""Read a request's head, its closing empty line included.

    Raises:
        MessageError: it is not in this module's grammar; the message says where.

    >>> read_request_head(b"GET /health HTTP/1.1\r\nHost: a\r\n\r\n").target
    '/health'
    """
    first, headers = _lines(head)
    found = _REQUEST_LINE.fullmatch(first)
    if found is None:
        raise MessageError("the first line is no request of HTTP/1.1")
    method, target = found[1].decode(), found[2].decode()
    if not headers.get("host"):
        raise MessageError("there is no Host")
    if method != "GET" and "content-length" not in headers:
        raise MessageError("there is no Content-Length")
    return RequestHead(method, target, MappingProxyType(headers), _content_length(headers))


def read_response_head(head: bytes) -> ResponseHead:
    """Read a response's head, its closing empty line included.

    Raises:
        MessageError: it is not in this module's grammar; the message says where.
    """
    first, headers = _lines(head)
    found = _STATUS_LINE.fullmatch(first)
    if found is None:
        raise MessageError("the first line is no final response of HTTP/1.1")
    status = int(found[1])
    if status not in _NO_BODY and "content-length" not in headers:
        raise MessageError("there is no Content-Length")
    return ResponseHead(status, MappingProxyType(headers), _content_length(headers))


def _lines(head: bytes) -> tuple[bytes, dict[str, str]]:
    if len(head) > MAX_HEAD_BYTES:
        raise MessageError(f"the head has more than {MAX_HEAD_BYTES} bytes")
    if not head.endswith(END_OF_HEAD):
        raise MessageError("the head has no end")
    first, *lines = head.removesuffix(END_OF_HEAD).split(b"\r\n")
    if len(lines) > _MAX_HEADERS:
        raise MessageError(f"there are more than {_MAX_HEADERS} headers")
    headers: dict[str, str] = {}
    for number, line in enumerate(lines, start=1):
        found = _HEADER.fullmatch(line)
        if found is None:
            raise MessageError(f"header {number} is none")
        name = found[1].decode().lower()
        if name in headers:
            raise MessageError(f"header {number} is there twice: {name}")
        headers[name] = found[2].decode().strip(" \t")
    return first, headers


def _content_length(headers: Mapping[str, str]) -> int:
    if "transfer-encoding" in headers:
        raise MessageError("there is a Transfer-Encoding")
    length = headers.get("content-length", "0")
    if _LENGTH.fullmatch(length) is None:
        raise MessageError("Content-Length is no number")
    return int(length)


def _written(first: str, headers: Mapping[str, str], content_length: int) -> bytes:
    values = {**headers, "content-length": str(content_length)}
    lines = [first, *(f"{name}: {value}" for name, value in values.items())]
    head = "\r\n".join(lines).encode("ascii") + END_OF_HEAD
    # What is written is read first: a value with a line end in it would be another message.
    if _lines(head) != (first.encode("ascii"), values):
        raise MessageError("a header cannot be written as one line")
    return head
