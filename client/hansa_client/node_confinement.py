"""A node that cannot open the merchant's files, although it runs as the merchant's user: what Linux's Landlock offers.

`confine` comes before Flower is started; from then on, for this process, all its threads and all that they start:

| what is tried                                  | what stops it, from which kernel                        |
|------------------------------------------------|---------------------------------------------------------|
| a file outside the folders and files given     | Landlock's rules for files, 5.13                        |
| another process's memory, descriptors, environment | Landlock's rule for tracing, 5.13                   |
| a TCP connection to another port, or a port to listen on | Landlock's rules for ports, 6.7               |
| a signal to a process outside, an abstract socket | Landlock's scopes, 6.12                              |

Not stopped: what files are called (but not what is in them), unix sockets that file modes let it connect to, UDP, and
reading what is given. No privilege is needed, and nothing can take it back. Elsewhere it does nothing and says so.
"""

from __future__ import annotations

import ctypes
import os
import struct
import sys
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import hansa_client
import hansa_common

# linux/landlock.h; the calls have the same numbers on every machine.
_CREATE_RULESET, _ADD_RULE, _RESTRICT_SELF = 444, 445, 446
_VERSION_ASKED: Final = 1
_RULE_PATH, _RULE_PORT = 1, 2
_EXECUTE, _WRITE_FILE, _READ_FILE, _READ_DIR = 1 << 0, 1 << 1, 1 << 2, 1 << 3
_TRUNCATE, _IOCTL = 1 << 14, 1 << 15
_FOR_A_FILE: Final = _EXECUTE | _WRITE_FILE | _READ_FILE | _TRUNCATE | _IOCTL
# How many of the rights to files there are, by the version of Landlock that the kernel has.
_NUM_FILE_RIGHTS: Final = {1: 13, 2: 14, 3: 15, 4: 15}
_MOST_FILE_RIGHTS: Final = 16
_BIND_TCP, _CONNECT_TCP = 1 << 0, 1 << 1
_FIRST_WITH_PORTS, _FIRST_WITH_SCOPES = 4, 6
_ABSTRACT_SOCKETS_AND_SIGNALS: Final = 0b11
_PR_SET_NO_NEW_PRIVS: Final = 38

# What a Python program with TLS reads of a Linux system; none of it is the merchant's. Not /opt, where tables
# stand too: if Python stands there, `installation` names it.
_SYSTEM: Final = (
    "/usr", "/lib", "/lib32", "/lib64", "/bin", "/sbin", "/dev/null", "/dev/urandom", "/etc/ssl", "/etc/pki",
    "/etc/ca-certificates", "/etc/ld.so.cache", "/etc/hosts", "/etc/host.conf", "/etc/resolv.conf",
    "/etc/nsswitch.conf", "/etc/gai.conf", "/etc/localtime", "/etc/passwd", "/etc/group", "/etc/mime.types",
    "/sys/devices/system/cpu",
)  # fmt: skip
_DEVICES: Final = ("/dev/null",)


@dataclass(frozen=True)
class Allowed:
    """What a confined process may still do: open files below these paths, list what is below those that are listable,
    connect to and listen on these ports.
    """

    readable: Sequence[Path]
    listable: Sequence[Path]
    writable: Sequence[Path]
    connect_ports: Sequence[int]
    listen_ports: Sequence[int]


def installation() -> list[Path]:
    """Where this Python and everything that it can import stand, and what it reads of the system."""
    imported = [Path(entry) for entry in sys.path if entry and "site-packages" in entry]
    return [Path(sys.prefix), Path(sys.base_prefix), *imported, *_own_packages(), *map(Path, _SYSTEM)]


def own_folders() -> list[Path]:
    """Where our packages stand: to find them, Python lists these. Of an installation for work on the code, they are
    outside all that `installation` names, and may hold anything.
    """
    return [package.parent for package in _own_packages()]


def _own_packages() -> list[Path]:
    return [Path(str(package.__file__)).parent for package in (hansa_client, hansa_common)]


def landlock_version() -> int:
    """Which version of Landlock the kernel has; 0 where there is none."""
    if sys.platform != "linux":
        return 0
    return max(0, int(_call(_CREATE_RULESET, None, 0, _VERSION_ASKED)))


def confine(allowed: Allowed) -> bool:
    """Take from this process, for good, whatever is not allowed.

    Returns:
        Whether it is in force; False where the system does not offer it.
    """
    landlock = landlock_version()
    if landlock < 1:
        return False
    rights = (1 << _NUM_FILE_RIGHTS.get(landlock, _MOST_FILE_RIGHTS)) - 1
    ports = _BIND_TCP | _CONNECT_TCP if landlock >= _FIRST_WITH_PORTS else 0
    scopes = _ABSTRACT_SOCKETS_AND_SIGNALS if landlock >= _FIRST_WITH_SCOPES else 0
    # struct landlock_ruleset_attr, which older kernels know a shorter one of.
    attributes = struct.pack("=QQQ", rights, ports, scopes)[: 8 * (1 + (ports > 0) + (scopes > 0))]
    ruleset = _call(_CREATE_RULESET, attributes, len(attributes), 0)
    if ruleset < 0:
        return False
    try:
        _allow_paths(ruleset, allowed.readable, (_EXECUTE | _READ_FILE | _READ_DIR) & rights)
        _allow_paths(ruleset, allowed.listable, _READ_DIR)
        _allow_paths(ruleset, map(Path, _DEVICES), (_READ_FILE | _WRITE_FILE) & rights)
        _allow_paths(ruleset, allowed.writable, rights)
        if ports:
            _allow_ports(ruleset, allowed.connect_ports, _CONNECT_TCP)
            _allow_ports(ruleset, allowed.listen_ports, _BIND_TCP)
        # Without it the kernel takes rules from root only.
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
        return _call(_RESTRICT_SELF, ruleset, 0) == 0
    finally:
        os.close(ruleset)


def _allow_paths(ruleset: int, paths: Iterable[Path], rights: int) -> None:
    for path in paths:
        # What is not there, or not for this user, needs no leave.
        with suppress(FileNotFoundError, PermissionError):
            descriptor = os.open(path, os.O_PATH | os.O_CLOEXEC)
            try:
                granted = rights if path.is_dir() else rights & _FOR_A_FILE
                # struct landlock_path_beneath_attr, which is packed.
                _add_rule(ruleset, _RULE_PATH, struct.pack("=Qi", granted, descriptor))
            finally:
                os.close(descriptor)


def _allow_ports(ruleset: int, ports: Iterable[int], right: int) -> None:
    for port in ports:
        # struct landlock_net_port_attr
        _add_rule(ruleset, _RULE_PORT, struct.pack("=QQ", right, port))


def _add_rule(ruleset: int, kind: int, rule: bytes) -> None:
    if _call(_ADD_RULE, ruleset, kind, rule, 0) != 0:
        raise OSError(ctypes.get_errno(), "the kernel does not take a rule of Landlock")


def _call(number: int, *arguments: int | bytes | None) -> int:
    return int(ctypes.CDLL(None, use_errno=True).syscall(number, *arguments))
