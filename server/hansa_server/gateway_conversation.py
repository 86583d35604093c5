"""One merchant's connection at the gateway: its requests, each through every rule, to SuperLink and back.

Promises: nothing is sent to SuperLink before head, certificate, node key and limits have been looked at; the connection
to SuperLink is this merchant connection's own and ends with it. After a refusal the connection ends, so that nothing
unread can be taken for a request. No long body is ever held.
"""

from __future__ import annotations

import socket
import ssl
import time
from collections.abc import Callable
from dataclasses import dataclass
from email.utils import formatdate
from functools import partial
from typing import Final

from hansa_common.addresses import Address
from hansa_common.errors import MessageError, TransportError
from hansa_common.fleet_api import (
    PUSH_MESSAGES,
    REFUSAL_HEADER,
    RefusedError,
    check_request,
    is_last,
    onward_request,
    onward_response,
)
from hansa_common.http_heads import RequestHead, ResponseHead
from hansa_common.http_wire import Wire
from hansa_server.gateway_limits import Accounts, Limits, Places
from hansa_server.gateway_rules import (
    Certificate,
    LiveRegister,
    check_certificate,
    check_node_key,
    check_pushed_messages,
)
from hansa_server.gateway_sightings import Sightings

IDLE_SECONDS: Final = 120.0
PIECE_SECONDS: Final = 30.0
_CONNECT_SECONDS: Final = 5.0


@dataclass(frozen=True)
class Superlink:
    """Where SuperLink listens on this machine, and how it is spoken to (None: without TLS)."""

    address: Address
    context: ssl.SSLContext | None

    def connected(self) -> Wire:
        """A new connection.

        Raises:
            RefusedError: SuperLink does not answer.
        """
        try:
            connection = socket.create_connection((self.address.host, self.address.port), _CONNECT_SECONDS)
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            if self.context is not None:
                connection = self.context.wrap_socket(connection, server_hostname=self.address.host)
        except OSError as error:
            raise RefusedError("unreachable", f"SuperLink does not answer at {self.address} ({error})") from error
        return Wire(connection, PIECE_SECONDS)


@dataclass(frozen=True)
class Rules:
    """What every conversation is held to, and counted in."""

    register: LiveRegister
    limits: Limits
    accounts: Accounts
    connections: Places
    superlink: Superlink
    tell: Callable[[str, str], None]
    sightings: Sightings


class Conversation:
    """A merchant's connection, once its certificate's chain is verified. For one thread."""

    def __init__(self, rules: Rules, merchant: Wire, certificate: Certificate, address: str) -> None:
        self._rules = rules
        self._address = address
        self._merchant = merchant
        self._certificate = certificate
        self._superlink: Wire | None = None

    def hold(self) -> None:
        """Serve the connection until one side ends it or a request is refused."""
        try:
            holder = check_certificate(self._certificate, self._rules.register, time.time())
            with self._rules.connections.taken(holder.merchant, "connections"):
                self._serve()
        except RefusedError as refusal:
            self._refuse(refusal)
        except MessageError as error:
            self._refuse(RefusedError("malformed", str(error)))
        finally:
            self._leave_superlink()

    def _serve(self) -> None:
        while (head := self._merchant.read_request(IDLE_SECONDS)) is not None:
            check_request(head, self._rules.limits.max_object_bytes)
            holder = check_certificate(self._certificate, self._rules.register, time.time())
            check_node_key(head, holder)
            self._rules.sightings.see(holder.merchant, self._address)
            with self._rules.accounts.request(holder.merchant, head.content_length):
                self._exchange(head)
            if is_last(head):
                return

    def _exchange(self, head: RequestHead) -> None:
        onward, left = onward_request(head, str(self._rules.superlink.address)).to_bytes(), head.content_length
        if head.target == PUSH_MESSAGES:
            body = self._merchant.read_body(left)
            check_pushed_messages(body)
            onward, left = onward + body, 0
        superlink = self._superlink = self._kept_or_new()
        self._merchant.pass_on(onward, left, partial(_send, superlink))
        try:
            response = superlink.read_response()
        except (OSError, TransportError) as error:
            raise RefusedError("no-answer", f"SuperLink did not answer as it should ({error})") from error
        back = onward_response(response, {"date": formatdate(usegmt=True)}).to_bytes()
        superlink.pass_on(back, response.content_length, self._merchant.send)
        if is_last(response):
            self._leave_superlink()

    def _kept_or_new(self) -> Wire:
        if self._superlink is not None and not self._superlink.is_stale:
            return self._superlink
        self._leave_superlink()
        return self._rules.superlink.connected()

    def _refuse(self, refusal: RefusedError) -> None:
        self._rules.tell(f"{self._certificate.merchant}: refused ({refusal.reason})", str(refusal))
        body = f"{refusal.reason}\n".encode()
        headers = {
            "content-type": "text/plain",
            "connection": "close",
            "date": formatdate(usegmt=True),
            REFUSAL_HEADER: refusal.reason,
        }
        answer = ResponseHead(refusal.status, headers, len(body)).to_bytes() + body
        try:
            # No merchant's name begins so: who is refused takes no place of a merchant's.
            with self._rules.connections.taken(f"#{self._certificate.serial:x}", "refusals"):
                self._merchant.send_last(answer)
        except RefusedError:
            # Waited for, it could hold any number of connections, with a revoked certificate too.
            self._merchant.send(answer)

    def _leave_superlink(self) -> None:
        if self._superlink is not None:
            self._superlink.close()
            self._superlink = None


def _send(superlink: Wire, piece: bytes | memoryview) -> None:
    try:
        superlink.send(piece)
    except OSError as error:
        raise RefusedError("no-answer", f"SuperLink closed the connection ({error})") from error
