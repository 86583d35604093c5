"""Carries the requests of a merchant's Flower node to the coordinator's gateway: a SuperNode can show no certificate.

- It listens on 127.0.0.1 alone, and on Linux serves only processes of its own user, or of the node's where that is
  another.
- It passes the requests that a node makes and no others (hansa_common.fleet_api), piece by piece, over connections
  that are kept (gateway_link).
- Where the gateway cannot be reached, the node is told to try again, and the log says why, once for each reason.

It has the merchant's certificate and its key, and nothing of the data; requests are signed by the node with another
key. Run as a process, `python -m hansa_client.forwarder`; it ends with its parent.
"""

from __future__ import annotations

import logging
import os
import socket
import ssl
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from functools import partial
from pathlib import Path
from typing import Annotated, Final

import typer

from hansa_client.gateway_link import GatewayLink, client_context
from hansa_client.local_peer import user_of_peer
from hansa_common import children
from hansa_common.addresses import Address, parse_address
from hansa_common.errors import MessageError, TransportError, UsageError
from hansa_common.fleet_api import (
    HEALTH,
    REFUSAL_HEADER,
    RefusedError,
    check_request,
    is_last,
    onward_request,
    onward_response,
)
from hansa_common.http_heads import RequestHead, ResponseHead
from hansa_common.http_wire import Wire
from hansa_common.log_lines import Sparing, log_to_stderr
from hansa_common.own_program import run_program, serving_until_stopped
from hansa_common.readiness import running_when_ready, tell_ready

LOOPBACK: Final = "127.0.0.1"
NAME: Final = "the forwarder"
LOG_NAME: Final = "forwarder.log"
READY_SECONDS: Final = 60.0
IDLE_SECONDS: Final = 60.0
PIECE_SECONDS: Final = 30.0
MAX_CONNECTIONS: Final = 64
_BACKLOG: Final = 16
_OK: Final = 200
_UNAUTHORIZED: Final = 401
# Flower's own tolerance for a clock that is fast, and for one that is slow.
_FAST_SECONDS: Final = 5.0
_SLOW_SECONDS: Final = 300.0

_log = logging.getLogger(__name__)

REFUSALS: Final = {
    "certificate-unknown": "the gateway does not know this certificate; ask the coordinator for a new kit",
    "certificate-revoked": "this merchant's certificate was revoked; ask the coordinator",
    "certificate-expired": "this merchant's certificate has expired; ask the coordinator for a new kit",
    "other-node-key": "the node's key is not the one that was issued with the certificate; enrol again",
    "too-many-requests": "the gateway slows this merchant down: too many requests",
    "too-many-connections": "the gateway slows this merchant down: too many connections",
    "too-large": "the gateway refuses a message as too large; ask the coordinator what it allows",
    "unreachable": "the gateway answers, but the coordinator's SuperLink behind it does not",
    "no-answer": "the gateway answers, but the coordinator's SuperLink behind it broke off",
}


class Diary:
    """What is said of the gateway: each trouble once, and once that it is over; and of others who connect. A gateway
    that finds ever new words, or a user who connects ever again, gets a few lines a minute. For many threads.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._trouble = ""
        self._sparing = Sparing(_log.warning, time.monotonic)

    def trouble(self, line: str) -> None:
        """The gateway does not serve, and why."""
        with self._lock:
            if line != self._trouble:
                self._trouble = line
                self._sparing("not served", line)

    def served(self) -> None:
        """The gateway has served a request."""
        with self._lock:
            if self._trouble:
                self._trouble = ""
                self._sparing("served", "the gateway serves again")

    def stranger(self, user: int | None, served: int) -> None:
        """Another user of this machine has connected."""
        with self._lock:
            self._sparing("not let in", f"user {user} of this machine connected; only user {served} is served")


@dataclass(frozen=True)
class Forwarder:
    """Serves connections of one user's processes, a thread each."""

    gateway: GatewayLink
    user: int
    diary: Diary = field(default_factory=Diary)
    _places: threading.BoundedSemaphore = field(default_factory=lambda: threading.BoundedSemaphore(MAX_CONNECTIONS))

    def serve(self, listener: socket.socket) -> None:
        """Accept connections until an exception, such as a signal's, ends it."""
        while True:
            connection, _ = listener.accept()
            if self._places.acquire(blocking=False):
                threading.Thread(target=self._serve_one, args=(connection,), daemon=True).start()
            else:
                connection.close()

    def check(self) -> None:
        """See that the gateway lets this merchant in, and that SuperLink answers behind it.

        Raises:
            TransportError: not so; says why and what to do.
        """
        request, asked_at = RequestHead("GET", HEALTH, {"host": str(self.gateway.address)}, 0), datetime.now(UTC)
        with closing(self.gateway.taken()) as wire:
            response = self._answer(wire, _trouble_of(partial(_send, wire, request.to_bytes())))
        if response.status != _OK:
            raise TransportError(_refusal(response))
        # However long the answer took, it told its time in between.
        if _ahead_seconds(response, asked_at) > _FAST_SECONDS or _ahead_seconds(response) < -_SLOW_SECONDS:
            raise TransportError(f"{_clocks(response)}, who would refuse what it signs; set the clock")

    def _serve_one(self, connection: socket.socket) -> None:
        try:
            with closing(connection):
                self._check_user(connection)
                connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                self._converse(Wire(connection, PIECE_SECONDS))
        except (OSError, TransportError) as error:
            _log.info("a connection to this forwarder ended: %s", error)
        finally:
            self._places.release()

    def _check_user(self, connection: socket.socket) -> None:
        user = user_of_peer(connection)
        if user not in {None, self.user}:
            self.diary.stranger(user, self.user)
            raise ConnectionError("not the user that is served")

    def _converse(self, node: Wire) -> None:
        try:
            goes_on = True
            while goes_on and (head := node.read_request(IDLE_SECONDS)) is not None:
                check_request(head)
                goes_on = self._exchange(node, head)
        except RefusedError as refusal:
            self.diary.trouble(str(refusal))
            _refuse(node, refusal)
        except MessageError as error:
            self.diary.trouble(f"this is no request of a node: {error}")
            _refuse(node, RefusedError("malformed", str(error)))

    def _exchange(self, node: Wire, head: RequestHead) -> bool:
        """Serve one request; whether the node's connection may bring another."""
        request = onward_request(head, str(self.gateway.address)).to_bytes()
        with ExitStack() as stack:
            wire = stack.enter_context(closing(self.gateway.taken()))
            sending = partial(node.pass_on, request, head.content_length, partial(_send, wire))
            response = self._answer(wire, _trouble_of(sending))
            self._note(response)
            goes_on = not is_last(response)
            back = onward_response(response, {} if goes_on else {"connection": "close"}).to_bytes()
            wire.pass_on(back, response.content_length, node.send)
            if goes_on:
                stack.pop_all()
                self.gateway.give_back(wire)
        return goes_on and not is_last(head)

    def _answer(self, wire: Wire, trouble: OSError | None) -> ResponseHead:
        # Whatever went wrong when it was sent, a gateway that refuses says why before it closes.
        try:
            return wire.read_response()
        except ssl.SSLError as last:
            raise self.gateway.unreachable(last) from trouble
        except (OSError, TransportError) as last:
            raise self.gateway.unreachable(trouble or last) from last

    def _note(self, response: ResponseHead) -> None:
        if REFUSAL_HEADER in response.headers or response.status == _UNAUTHORIZED:
            self.diary.trouble(_refusal(response))
        else:
            self.diary.served()


class _BrokenOffError(Exception):
    """The gateway's end broke, not the node's."""

    def __init__(self, error: OSError) -> None:
        super().__init__(str(error))
        self.error = error


def _send(wire: Wire, piece: bytes | memoryview) -> None:
    try:
        wire.send(piece)
    except OSError as error:
        raise _BrokenOffError(error) from error


def _trouble_of(sending: Callable[[], None]) -> OSError | None:
    """What went wrong at the gateway when a request was sent; the node's own end raises as ever."""
    try:
        sending()
    except _BrokenOffError as broken:
        return broken.error
    return None


def _refuse(node: Wire, refusal: RefusedError) -> None:
    body = f"{refusal}\n".encode("ascii", "replace")
    headers = {"content-type": "text/plain", "connection": "close"}
    node.send_last(ResponseHead(refusal.status, headers, len(body)).to_bytes() + body)


def _refusal(response: ResponseHead) -> str:
    """Why a request was refused, as far as the answer tells."""
    reason = response.headers.get(REFUSAL_HEADER)
    if reason is not None:
        return REFUSALS.get(reason, f"the gateway refuses a request: {reason}")
    if response.status == _UNAUTHORIZED:
        return f"SuperLink refuses the node's signature: {_why_unsigned(response)}"
    return f"SuperLink answers with status {response.status}; ask the coordinator"


def _why_unsigned(response: ResponseHead) -> str:
    if abs(_ahead_seconds(response)) < _FAST_SECONDS:
        return "the coordinator has not registered its key, or has taken it out"
    return _clocks(response)


def _clocks(response: ResponseHead) -> str:
    ahead = _ahead_seconds(response)
    return f"this machine's clock is {abs(ahead):.0f} seconds {'ahead of' if ahead > 0 else 'behind'} the coordinator's"


def _ahead_seconds(response: ResponseHead, moment: datetime | None = None) -> float:
    """How far this machine's clock, now or at a moment, is ahead of the one that answered; 0 where that is silent."""
    try:
        told = parsedate_to_datetime(response.headers.get("date", ""))
        return ((moment or datetime.now(UTC)) - told).total_seconds()
    except (ValueError, TypeError):
        return 0.0


def _listener(port: int, descriptor: int | None) -> socket.socket:
    if descriptor is not None:
        return socket.socket(fileno=descriptor)
    try:
        return socket.create_server((LOOPBACK, port), backlog=_BACKLOG)
    except OSError as error:
        raise UsageError(f"{LOOPBACK}:{port} cannot be used ({error.strerror}); give another --port") from error


def command(
    gateway: Address, state: Path, ready: int, node_uid: int | None = None, listen_fd: int | None = None
) -> list[str]:
    """The command line of a forwarder with the keys in the merchant's state folder, for a node of this user's."""
    options: dict[str, object] = {"--gateway": gateway, "--state": state, "--ready": ready}
    if node_uid is not None:
        options["--node-uid"] = node_uid
    if listen_fd is not None:
        options["--listen-fd"] = listen_fd
    return [sys.executable, "-m", __name__, *(f"{name}={value}" for name, value in options.items())]


def listening() -> socket.socket:
    """A listener for a forwarder, and for the next one if that dies: the node meets a silence, not a closed door."""
    return socket.create_server((LOOPBACK, 0), backlog=_BACKLOG)


@contextmanager
def running(
    gateway: Address,
    state: Path,
    node_uid: int | None = None,
    *,
    listener: socket.socket | None = None,
    begun: Callable[[children.Child], object] = lambda _: None,
) -> Iterator[tuple[children.Child, Address]]:
    """A forwarder while the block runs, once the gateway has let it in, and where it listens, a port of its own unless
    it is given a listener; its log is in the merchant's state folder. `begun` is as for `running_when_ready`.

    Raises:
        TransportError: it could not begin; says why.
    """
    passed = () if listener is None else (listener.fileno(),)
    words = partial(command, gateway, state, node_uid=node_uid, listen_fd=passed[0] if passed else None)
    log = state / LOG_NAME
    with running_when_ready(NAME, words, os.environ, seconds=READY_SECONDS, log=log, pass_fds=passed, begun=begun) as (
        child,
        line,
    ):
        yield child, parse_address(line)


def main(
    gateway: Annotated[str, typer.Option(help="The coordinator's gateway.")],
    state: Annotated[Path, typer.Option(help="The merchant's state folder, with its certificate and keys.")],
    port: Annotated[int, typer.Option(help="Where to listen on 127.0.0.1; 0 takes a free port.")] = 0,
    listen_fd: Annotated[int | None, typer.Option(help="A listening socket's descriptor, instead.")] = None,
    node_uid: Annotated[int | None, typer.Option(help="The user that the node runs as, if it is another.")] = None,
    ready: Annotated[
        int | None, typer.Option(help="A descriptor to write the address to when the node can come.")
    ] = None,
) -> None:
    """Carry a node's requests to the gateway; `hansa client start` runs this."""
    log_to_stderr(logging.WARNING)
    with serving_until_stopped(), _listener(port, listen_fd) as listener:
        link = GatewayLink(parse_address(gateway), client_context(state))
        forwarder = Forwarder(link, os.getuid() if node_uid is None else node_uid)
        forwarder.check()
        tell_ready(ready, str(Address(*listener.getsockname())))
        forwarder.serve(listener)


if __name__ == "__main__":
    run_program(main)
