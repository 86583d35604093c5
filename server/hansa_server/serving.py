"""`hansa server start`: what a coordinator's machine runs for its merchants, until it is stopped.

provisioned       SuperLink on loopback, which knows the nodes in the register of what was issued and no others, and the
                  gateway before it, where merchants connect; whoever is issued a key meanwhile is let in too
in development    SuperLink alone, on loopback; anyone on this machine may connect

A gateway that dies is started again. SuperLink's death ends it all: its run goes on from the checkpoint, once somebody
has looked.
"""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Final, NoReturn

from hansa_common.addresses import Address, loopback_address, parse_address
from hansa_common.certificates import check_dates, parse_certificate
from hansa_common.children import Child, how_it_ended
from hansa_common.errors import CoordinatorError, TransportError
from hansa_common.supervision import Begun, Part, keeping
from hansa_server import gateway, server_process, superlink
from hansa_server.authority import AUTHORITY_CERTIFICATE, SERVER_CERTIFICATE
from hansa_server.issued_register import IssuedRegister, changed_at
from hansa_server.provision_command import ADDRESS_NAME

DEVELOPMENT_ADDRESS: Final = "127.0.0.1:8000"
_LOOK_SECONDS: Final = 0.5

Tell = Callable[[str], object]


def is_provisioned(state: Path) -> bool:
    """Whether the state folder has what a gateway needs."""
    return all((state / name).exists() for name in (AUTHORITY_CERTIFICATE, SERVER_CERTIFICATE, ADDRESS_NAME))


def serve(state: Path, address: str | None, tell: Tell) -> NoReturn:
    """Serve merchants at the address, or where provisioning said; `tell` gets the lines for people.

    Raises:
        UsageError: the address cannot be used, another server has the state folder, or others can open it.
        CertificateError: the server's certificate does not hold now.
        TransportError: SuperLink ended.
    """
    if is_provisioned(state):
        _serve_provisioned(state, _listening_address(state) if address is None else parse_address(address), tell)
    _serve_in_development(state, loopback_address(address or DEVELOPMENT_ADDRESS), tell)


def _serve_in_development(state: Path, address: Address, tell: Tell) -> NoReturn:
    superlink.check_port_is_free(address)
    with server_process.registered(state, address), superlink.running(address, state) as child:
        tell(f"DEVELOPMENT: SuperLink on {address}, for this machine alone; Ctrl-C stops")
        child.process.wait()
        raise _ended(child, state)


def _serve_provisioned(state: Path, address: Address, tell: Tell) -> NoReturn:
    certificate = state / SERVER_CERTIFICATE
    check_dates(parse_certificate(certificate.read_bytes(), str(certificate)), str(certificate), datetime.now(UTC))
    own = superlink.free_address()
    with (
        gateway.listening(address) as listener,
        server_process.registered(state, own, address),
        superlink.running(own, state, "registered") as child,
        keeping(tell) as kept,
    ):
        nodes = _Nodes(state, superlink.Control.of(own, state), tell)
        nodes.keep_up()

        @contextmanager
        def started(begun: Begun) -> Iterator[Child]:
            with gateway.running(listener, own, state, begun) as running:
                yield running

        kept.keep(Part(gateway.NAME, started))
        tell(f"gateway on {address}, SuperLink on {own}; Ctrl-C stops")
        while not _has_ended(child):
            nodes.keep_up()
        raise _ended(child, state)


def _listening_address(state: Path) -> Address:
    """Where to listen so that merchants who connect to the provisioned address are heard."""
    told = parse_address((state / ADDRESS_NAME).read_text(encoding="ascii").strip())
    if told.is_loopback:
        return told
    # A name, or an address that a router has, may be none of this machine's.
    return Address("::" if ":" in told.host else "0.0.0.0", told.port)  # noqa: S104 - a gateway's certificate guards it


def _has_ended(child: Child) -> bool:
    """Whether it has, after waiting for it a little."""
    try:
        child.process.wait(_LOOK_SECONDS)
    except subprocess.TimeoutExpired:
        return False
    return True


def _ended(child: Child, state: Path) -> TransportError:
    return TransportError(
        f"{child.name} {how_it_ended(child.process.returncode)}; its log is {state / superlink.LOG_NAME}"
    )


class _Nodes:
    """SuperLink's nodes, which follow the register of what was issued."""

    def __init__(self, state: Path, control: superlink.Control, tell: Tell) -> None:
        self._state = state
        self._control = control
        self._tell = tell
        self._known_at: tuple[int, ...] | None = None
        self._trouble = ""

    def keep_up(self) -> None:
        """Register the keys that were issued since the last time; what hinders it is told once."""
        # Looked at before it is read: what changes meanwhile is read again.
        stands_at = changed_at(self._state)
        if stands_at == self._known_at:
            return
        try:
            entries = IssuedRegister.read(self._state).merchants.values()
            self._control.register_nodes(entry.node_key for entry in entries)
        except (CoordinatorError, TransportError) as error:
            if str(error) != self._trouble:
                self._trouble = str(error)
                self._tell(f"new merchants cannot be let in: {error}")
            return
        self._known_at, self._trouble = stands_at, ""
