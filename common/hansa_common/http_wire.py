"""Moves HTTP messages between connections that others opened, a piece at a time: no message is ever held whole.

A head comes in few pieces and within its size, or is refused; between two pieces of anything the peer has a bounded
time. Which heads are read and what they may say is http_heads' and fleet_api's.
"""

from __future__ import annotations

import ssl
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Final, Protocol

from hansa_common.errors import MessageError, TransportError
from hansa_common.http_heads import (
    END_OF_HEAD,
    MAX_HEAD_BYTES,
    RequestHead,
    ResponseHead,
    read_request_head,
    read_response_head,
)

PIECE_BYTES: Final = 1 << 16
# An honest request's head comes in one piece or two; who sends it byte by byte is waited for so often and no longer.
_MAX_HEAD_PIECES: Final = 16
_HEAD_PIECE_SECONDS: Final = 5.0
# A body as short as this travels with its head, in one piece.
SHORT_BYTES: Final = 1 << 14
# What a peer had on the way when it was refused is read, so that it hears why: 16 MB of it, no slower than this, and
# for so long altogether.
_MAX_DISCARDED_PIECES: Final = 256
_DISCARD_SECONDS: Final = 1.0
_LAST_SECONDS: Final = 5.0


class Stream(Protocol):
    """What is used of a connected socket, with TLS or without."""

    def recv_into(self, buffer: memoryview, /) -> int: ...
    def sendall(self, data: bytes | memoryview, /) -> None: ...
    def settimeout(self, seconds: float | None, /) -> None: ...
    def close(self) -> None: ...


class Wire:
    """One connection, and the bytes that were read from it too early. For one thread.

    Every method raises OSError where the connection breaks or the peer lets `seconds` pass.
    """

    def __init__(self, stream: Stream, seconds: float) -> None:
        self._stream = stream
        self._seconds = seconds
        self._early = bytearray()
        self._piece = memoryview(bytearray(PIECE_BYTES))
        stream.settimeout(seconds)

    def read_request(self, idle_seconds: float) -> RequestHead | None:
        """The next request's head; None if the peer closes, or stays silent for `idle_seconds`, before it begins.

        Raises:
            MessageError: it is no head.
            TransportError: the peer closed in the middle of it.
        """
        self._stream.settimeout(idle_seconds)
        try:
            if not self._early and not self._receive():
                return None
        except TimeoutError:
            return None
        self._stream.settimeout(_HEAD_PIECE_SECONDS)
        head = self._read_head()
        self._stream.settimeout(self._seconds)
        return read_request_head(head)

    def read_response(self) -> ResponseHead:
        """The next response's head.

        Raises:
            MessageError: it is no head.
            TransportError: the peer closed before its end.
        """
        return read_response_head(self._read_head())

    def read_body(self, num_bytes: int) -> bytes:
        """A body that is short enough to be held.

        Raises:
            TransportError: the peer closed before its end.
        """
        while len(self._early) < num_bytes:
            self._receive_or_raise()
        body = bytes(self._early[:num_bytes])
        del self._early[:num_bytes]
        return body

    def pass_on(self, head: bytes, num_bytes: int, send: Callable[[bytes | memoryview], None]) -> None:
        """Hand on a head and the body that comes next on this wire, as it comes.

        Raises:
            TransportError: the peer closed before its end.
        """
        if num_bytes <= SHORT_BYTES:
            send(head + self.read_body(num_bytes))
            return
        send(head)
        early = self.read_body(min(num_bytes, len(self._early)))
        if early:
            send(early)
        left = num_bytes - len(early)
        while left:
            size = self._stream.recv_into(self._piece[: min(left, PIECE_BYTES)])
            if not size:
                raise TransportError("the connection closed in the middle of a message")
            send(self._piece[:size])
            left -= size

    def send(self, content: bytes | memoryview) -> None:
        """Send all of it."""
        self._stream.sendall(content)

    def send_last(self, content: bytes) -> None:
        """Send an answer after which nothing is listened to, and let the peer read it before the end."""
        self.send(content)
        self._stream.settimeout(_DISCARD_SECONDS)
        until = time.monotonic() + _LAST_SECONDS
        with suppress(OSError):
            for _ in range(_MAX_DISCARDED_PIECES):
                if not self._stream.recv_into(self._piece) or time.monotonic() > until:
                    return

    @property
    def is_stale(self) -> bool:
        """Whether an idle connection is closed, or holds something that nobody asked for."""
        if self._early:
            return True
        self._stream.settimeout(0.0)
        try:
            # Not by asking the system whether there is something: TLS may hold it already.
            self._stream.recv_into(self._piece[:1])
        except (BlockingIOError, ssl.SSLWantReadError):
            return False
        except OSError:
            return True
        finally:
            self._stream.settimeout(self._seconds)
        return True

    def close(self) -> None:
        """End the connection."""
        self._stream.close()

    def _read_head(self) -> bytes:
        for _ in range(_MAX_HEAD_PIECES):
            end = self._early.find(END_OF_HEAD, 0, MAX_HEAD_BYTES)
            if end >= 0:
                return self.read_body(end + len(END_OF_HEAD))
            if len(self._early) >= MAX_HEAD_BYTES:
                raise MessageError(f"the head has more than {MAX_HEAD_BYTES} bytes")
            self._receive_or_raise()
        raise MessageError("the head came in too many pieces")

    def _receive_or_raise(self) -> None:
        if not self._receive():
            raise TransportError("the connection closed in the middle of a message")

    def _receive(self) -> int:
        size = self._stream.recv_into(self._piece)
        self._early += self._piece[:size]
        return size
