"""Where the coordinator is: `host:port`, and whether that is this machine."""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass

from hansa_common.errors import UsageError

_MAX_PORT = 65_535
_ADDRESS = re.compile(r"(?:\[(?P<ipv6>[0-9A-Fa-f.]*:[0-9A-Fa-f:.]+)\]|(?P<name>[A-Za-z0-9._-]+)):(?P<port>[0-9]{1,5})")


@dataclass(frozen=True)
class Address:
    """A host, by name or number, and a port."""

    host: str
    port: int

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{host}:{self.port}"

    @property
    def is_loopback(self) -> bool:
        """Whether nothing outside this machine is on the way; a name other than localhost may lead anywhere."""
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return self.host == "localhost"


def parse_address(text: str) -> Address:
    """Read `host:port`; an IPv6 host stands in brackets.

    Raises:
        UsageError: there is no host, or no port from 1 to 65535, or more than these, such as http://.

    >>> parse_address("127.0.0.1:8000")
    Address(host='127.0.0.1', port=8000)
    """
    found = _ADDRESS.fullmatch(text)
    if found is None or not 1 <= int(found["port"]) <= _MAX_PORT:
        raise UsageError(f"{text!r} is not an address; give host:port, for example 127.0.0.1:8000")
    return Address(found["ipv6"] or found["name"], int(found["port"]))


def loopback_address(text: str) -> Address:
    """Read `host:port` of this machine.

    Raises:
        UsageError: it is no address, or one that other machines may share.
    """
    address = parse_address(text)
    if not address.is_loopback:
        raise UsageError(
            f"{text} is not on this machine: this version speaks plain HTTP without authentication, "
            "which must not leave it; give 127.0.0.1:PORT"
        )
    return address
