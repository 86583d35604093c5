"""The merchant's connections to the coordinator's gateway: kept and used again, and in words where there are none.

TLS 1.3 with the merchant's certificate; the gateway must show one of the federation's authority for the name it was
reached by. A connection is shaken hands for once and serves many requests, one at a time.
"""

from __future__ import annotations

import socket
import ssl
import threading
import time
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from hansa_common.addresses import Address
from hansa_common.certificates import check_dates, parse_certificate, shown_time
from hansa_common.errors import TransportError, UsageError
from hansa_common.fleet_api import RefusedError
from hansa_common.http_wire import Wire

CERTIFICATE_NAME: Final = "tls.crt"
KEY_NAME: Final = "tls.key"
CA_NAME: Final = "ca.crt"
CONNECT_SECONDS: Final = 10.0
# As long as a node waits for an answer.
ANSWER_SECONDS: Final = 30.0
# Shorter than the gateway waits, and than most routers remember a silent connection.
IDLE_SECONDS: Final = 55.0

_NOT_YET_VALID, _EXPIRED = 9, 10
_OTHER_AUTHORITY: Final = frozenset({18, 19, 20, 21})
_OTHER_NAME: Final = frozenset({62, 64})
_ALERT_EXPIRED: Final = "SSLV3_ALERT_CERTIFICATE_EXPIRED"
_ALERTS_REFUSED: Final = frozenset(
    {
        "TLSV13_ALERT_CERTIFICATE_REQUIRED",
        "TLSV1_ALERT_UNKNOWN_CA",
        "TLSV1_ALERT_DECRYPT_ERROR",
        "SSLV3_ALERT_BAD_CERTIFICATE",
        "SSLV3_ALERT_CERTIFICATE_UNKNOWN",
        "SSLV3_ALERT_UNSUPPORTED_CERTIFICATE",
    }
)
# The first that fits: what closes in the middle of TLS is an error of TLS too.
_WORDS: Final = {
    ssl.SSLEOFError: "it closed the connection",
    ConnectionResetError: "it closed the connection",
    BrokenPipeError: "it closed the connection",
    ssl.SSLError: "it does not speak TLS 1.3; is this the gateway's port?",
    socket.gaierror: "no machine is known by this name",
    ConnectionRefusedError: "nothing listens there; has the coordinator started?",
    TimeoutError: "no answer in time; a firewall may be on the way",
}


def client_context(state: Path) -> ssl.SSLContext:
    """TLS 1.3 with the certificate, the key and the authority in the merchant's state folder.

    Raises:
        UsageError: a file is not there, or is not what it should be.
        CertificateError: the certificate has expired, or a clock is wrong.
    """
    certificate, ca = state / CERTIFICATE_NAME, state / CA_NAME
    for path in (certificate, ca):
        if not path.is_file():
            raise UsageError(f"there is no {path}; take the coordinator's kit with `hansa client enroll`")
    check_dates(parse_certificate(certificate.read_bytes(), str(certificate)), str(certificate), datetime.now(UTC))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.verify_flags |= ssl.VERIFY_X509_STRICT
    try:
        context.load_verify_locations(ca)
        context.load_cert_chain(certificate, state / KEY_NAME)
    except OSError as error:
        raise UsageError(f"{certificate}, {KEY_NAME} and {CA_NAME} do not belong together ({error})") from error
    return context


@dataclass
class GatewayLink:
    """Connections to one gateway. For many threads."""

    address: Address
    context: ssl.SSLContext
    _idle: list[tuple[float, Wire]] = field(default_factory=list)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def taken(self) -> Wire:
        """A connection for one request: an idle one, or a new one.

        Raises:
            RefusedError: there is none; says why.
        """
        while True:
            with self._lock:
                if not self._idle:
                    break
                since, wire = self._idle.pop()
            if time.monotonic() - since < IDLE_SECONDS and not wire.is_stale:
                return wire
            wire.close()
        return self._connected()

    def give_back(self, wire: Wire) -> None:
        """The request was answered whole: keep its connection for another."""
        with self._lock:
            self._idle.append((time.monotonic(), wire))

    def _connected(self) -> Wire:
        try:
            connection = socket.create_connection((self.address.host, self.address.port), CONNECT_SECONDS)
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            encrypted = self.context.wrap_socket(connection, server_hostname=self.address.host)
        except OSError as error:
            raise self.unreachable(error) from error
        return Wire(encrypted, ANSWER_SECONDS)

    def unreachable(self, error: OSError | TransportError) -> RefusedError:
        """The error of a connection as one that says what to do."""
        return RefusedError("unreachable", f"the gateway at {self.address}: {_in_words(error, self.address)}")


def _in_words(error: OSError | TransportError, address: Address) -> str:
    clock = f"this machine's clock says {shown_time(datetime.now(UTC))}"
    if isinstance(error, ssl.SSLCertVerificationError):
        return _unverified(error, address, clock)
    if isinstance(error, ssl.SSLError) and error.reason == _ALERT_EXPIRED:
        return f"it takes {CERTIFICATE_NAME} for expired, and {clock}; have it renewed, or set the clock"
    if isinstance(error, ssl.SSLError) and error.reason in _ALERTS_REFUSED:
        return (
            f"it refuses {CERTIFICATE_NAME}, and {clock}; if the clock is right, the certificate is not of the "
            "gateway's federation: ask the coordinator"
        )
    for kind, words in _WORDS.items():
        if isinstance(error, kind):
            return words
    return getattr(error, "strerror", None) or str(error)


def _unverified(error: ssl.SSLCertVerificationError, address: Address, clock: str) -> str:
    if error.verify_code == _NOT_YET_VALID:
        return f"its certificate is not valid yet, and {clock}; set the clock"
    if error.verify_code == _EXPIRED:
        return f"its certificate has expired, and {clock}; set the clock, or tell the coordinator to renew it"
    if error.verify_code in _OTHER_NAME:
        return f"its certificate is not for {address.host}; give the address that the coordinator named"
    if error.verify_code in _OTHER_AUTHORITY:
        return f"its certificate is not of the authority in {CA_NAME}, so this is not the federation's gateway"
    return f"its certificate is not good ({error.verify_message})"
