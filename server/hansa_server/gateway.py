"""The one door between merchants' nodes and the coordinator's SuperLink, which listens on loopback alone.

- TLS 1.3, and a certificate of this federation's CA from whoever connects; the CA's own certificate opens nothing.
- What passes is a request that a node makes (hansa_common.fleet_api), read in a narrow grammar and written anew, with
  the node key that was issued with the certificate (gateway_rules). The register of what was issued and revoked is
  asked for every request (gateway_conversation).
- Sizes, rates and connections are limited for each merchant, and apart for those who have shown no certificate yet.
- The log has a few lines of each party in a minute; no body, key or header is in it.

Run as a process, `python -m hansa_server.gateway`; it ends with its parent. What merchants say inside the messages is
sealed, and none of the gateway's business.
"""

from __future__ import annotations

import logging
import os
import resource
import socket
import ssl
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Final

import typer

from hansa_common import children
from hansa_common.addresses import Address, parse_address
from hansa_common.errors import TransportError, UsageError
from hansa_common.fleet_api import MAX_OBJECT_BYTES
from hansa_common.http_wire import Wire
from hansa_common.log_lines import Sparing, log_to_stderr
from hansa_common.own_program import run_program, serving_until_stopped
from hansa_common.readiness import running_when_ready, tell_ready
from hansa_server.gateway_conversation import PIECE_SECONDS, Conversation, Rules, Superlink
from hansa_server.gateway_limits import REQUESTS_PER_SECOND, Accounts, Limits, Places
from hansa_server.gateway_rules import Certificate, LiveRegister
from hansa_server.gateway_sightings import Sightings

NAME: Final = "the gateway"
LOG_NAME: Final = "gateway.log"
READY_SECONDS: Final = 60.0
HANDSHAKE_SECONDS: Final = 10.0
_BACKLOG: Final = 128
_AFTER_FAILURE_SECONDS: Final = 0.1
_LAST_SECONDS: Final = 0.5
_LAST_BYTES: Final = 1 << 16
_MAX_LAST_PIECES: Final = 4
_STACK_BYTES: Final = 1 << 19

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Gateway:
    """Serves connections, a thread each, while its listener is open."""

    context: ssl.SSLContext
    rules: Rules
    strangers: Places

    @classmethod
    def of(
        cls, context: ssl.SSLContext, register: LiveRegister, superlink: Superlink, limits: Limits, state: Path
    ) -> Gateway:
        """A gateway with nothing counted yet."""
        tell = _Refusals().tell
        rules = Rules(
            register,
            limits,
            Accounts(limits, time.monotonic),
            Places(limits.max_connections),
            superlink,
            tell,
            Sightings(state, time.monotonic, tell),
        )
        return cls(context, rules, Places(limits.max_strangers_at_an_address, limits.max_strangers))

    def serve(self, listener: socket.socket) -> None:
        """Accept connections until an exception, such as a signal's, ends it."""
        threading.stack_size(_STACK_BYTES)
        while True:
            try:
                connection, address = listener.accept()
            except OSError as error:
                # Of one connection that was gone at once, or of this machine's limits: others end meanwhile.
                self.rules.tell("not let in", str(error))
                time.sleep(_AFTER_FAILURE_SECONDS)
                continue
            threading.Thread(target=self._serve_one, args=(connection, str(address[0])), daemon=True).start()

    def _serve_one(self, connection: socket.socket, address: str) -> None:
        try:
            with closing(connection), self.strangers.taken(address, "connections without a certificate"):
                encrypted = self._encrypted(connection)
        except (OSError, TransportError) as error:
            self.rules.tell(f"{address}: not let in", str(error))
            return
        with closing(encrypted):
            try:
                certificate = Certificate.of_peer(encrypted)
                Conversation(self.rules, Wire(encrypted, PIECE_SECONDS), certificate, address).hold()
            except (OSError, TransportError) as error:
                self.rules.tell(f"{address}: the connection broke", str(error))

    def _encrypted(self, connection: socket.socket) -> ssl.SSLSocket:
        connection.settimeout(HANDSHAKE_SECONDS)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        encrypted = self.context.wrap_socket(connection, server_side=True, do_handshake_on_connect=False)
        try:
            encrypted.do_handshake()
        except OSError:
            _end_politely(encrypted)
            raise
        return encrypted


def _end_politely(connection: socket.socket) -> None:
    # Closed at once, what the peer has sent meanwhile would wipe out the word that says why it is not let in.
    with suppress(OSError), closing(connection):
        connection.shutdown(socket.SHUT_WR)
        connection.settimeout(_LAST_SECONDS)
        for _ in range(_MAX_LAST_PIECES):
            if not connection.recv(_LAST_BYTES):
                return


class _Refusals:
    """What was refused, from all threads into one sparing log."""

    def __init__(self) -> None:
        self._saying = threading.Lock()
        self._sparing = Sparing(_log.warning, time.monotonic)

    def tell(self, subject: str, line: str) -> None:
        with self._saying:
            self._sparing(subject, line)


def server_context(ca: Path, certificate: Path, key: Path) -> ssl.SSLContext:
    """TLS 1.3 that demands a certificate of this CA, anew for every connection.

    Raises:
        UsageError: a file is not there, or is not what it should be.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.verify_mode = ssl.CERT_REQUIRED
    context.verify_flags |= ssl.VERIFY_X509_STRICT
    # No tickets: who comes back shows its certificate again.
    context.num_tickets = 0
    _load(context, ca)
    try:
        context.load_cert_chain(certificate, key)
    except OSError as error:
        raise UsageError(f"{certificate} and {key} are no certificate and its key ({error})") from error
    return context


def superlink_context(ca: Path) -> ssl.SSLContext:
    """TLS towards SuperLink, which shows a certificate of this CA for the address it is reached at.

    Raises:
        UsageError: the file is not there, or is no certificate.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    _load(context, ca)
    return context


def _load(context: ssl.SSLContext, ca: Path) -> None:
    try:
        context.load_verify_locations(ca)
    except OSError as error:
        raise UsageError(f"{ca} is no certificate of a CA ({error})") from error


def listening(address: Address) -> socket.socket:
    """A listener for a gateway, and for the next one if that dies: merchants meet a silence, not a closed door.

    Raises:
        UsageError: the address is another's, or none of this machine's.
    """
    family = socket.AF_INET6 if ":" in address.host else socket.AF_INET
    try:
        return socket.create_server((address.host, address.port), family=family, backlog=_BACKLOG)
    except OSError as error:
        # Python repeats the address.
        reason = str(error.strerror).partition(" (while")[0]
        raise UsageError(f"{address} cannot be used ({reason}); give another --address") from error


def _listener(listen: str, descriptor: int | None) -> socket.socket:
    return listening(parse_address(listen)) if descriptor is None else socket.socket(fileno=descriptor)


def _allow_all_descriptors() -> None:
    """As many as this machine lets a process have: each merchant may hold a few dozen."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


def _on_loopback(superlink: str) -> Address:
    address = parse_address(superlink)
    if not address.is_loopback:
        raise UsageError(f"{superlink} is not on this machine's loopback, where SuperLink must listen behind a gateway")
    return address


def command(
    listen: Address | socket.socket, superlink: Address, state: Path, ready: int, superlink_ca: Path | None = None
) -> list[str]:
    """The command line of a gateway with the keys and the register in the coordinator's state folder, which listens at
    an address, or on a socket that it inherits.
    """
    where = ("--listen-fd", listen.fileno()) if isinstance(listen, socket.socket) else ("--listen", listen)
    options: dict[str, object] = dict([where, ("--superlink", superlink), ("--state", state), ("--ready", ready)])
    if superlink_ca is not None:
        options["--superlink-ca"] = superlink_ca
    return [sys.executable, "-m", __name__, *(f"{name}={value}" for name, value in options.items())]


@contextmanager
def running(
    listener: socket.socket, superlink: Address, state: Path, begun: Callable[[children.Child], object]
) -> Iterator[children.Child]:
    """A gateway on this listener while the block runs, once merchants can come; its log is in the state folder. `begun`
    is as for `running_when_ready`.

    Raises:
        TransportError: it could not begin; says why.
    """
    with running_when_ready(
        NAME,
        partial(command, listener, superlink, state),
        os.environ,
        seconds=READY_SECONDS,
        log=state / LOG_NAME,
        pass_fds=(listener.fileno(),),
        begun=begun,
    ) as (child, _):
        yield child


def main(
    superlink: Annotated[str, typer.Option(help="SuperLink, on this machine's loopback.")],
    state: Annotated[Path, typer.Option(help="The coordinator's state: certificates, keys and what was issued.")],
    listen: Annotated[str, typer.Option(help="Where merchants connect.")] = "0.0.0.0:8443",
    listen_fd: Annotated[int | None, typer.Option(help="A listening socket's descriptor, instead.")] = None,
    ready: Annotated[
        int | None, typer.Option(help="A descriptor to write the address to when merchants can come.")
    ] = None,
    superlink_ca: Annotated[
        Path | None, typer.Option(help="The CA of SuperLink's certificate, if it speaks TLS.")
    ] = None,
    max_object_mib: Annotated[int, typer.Option(min=1, help="The longest body of a request.")] = MAX_OBJECT_BYTES >> 20,
    max_connections: Annotated[int, typer.Option(min=1, help="Connections of one merchant at once.")] = 16,
    requests_per_second: Annotated[
        float, typer.Option(min=1.0, help="Requests of one merchant.")
    ] = REQUESTS_PER_SECOND,
) -> None:
    """Stand between merchants' nodes and SuperLink; `hansa server start` runs this."""
    log_to_stderr(logging.INFO)
    _allow_all_descriptors()
    limits = Limits(
        max_object_bytes=max_object_mib << 20,
        max_connections=max_connections,
        requests_per_second=requests_per_second,
        burst_requests=4 * requests_per_second,
    )
    with serving_until_stopped(), _listener(listen, listen_fd) as listener:
        gateway = Gateway.of(
            server_context(state / "ca.crt", state / "server.crt", state / "server.key"),
            LiveRegister(state),
            Superlink(_on_loopback(superlink), None if superlink_ca is None else superlink_context(superlink_ca)),
            limits,
            state,
        )
        tell_ready(ready, str(Address(*listener.getsockname()[:2])))
        gateway.serve(listener)


if __name__ == "__main__":
    run_program(main)
