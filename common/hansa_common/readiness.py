"""A child tells its parent, by one line through a descriptor of its own, that it can be used, and where.

The parent waits for the line and not for a time. A child of ours that ends without one has told why in its last line.
"""

from __future__ import annotations

import os
import select
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from hansa_common import children
from hansa_common.children import Child
from hansa_common.errors import TransportError
from hansa_common.log_lines import MAX_LOG_CHARS
from hansa_common.plain_text import printable

_MAX_LINE_BYTES: Final = 256
_TOLD: Final = "hansa: "


class EndedEarlyError(TransportError):
    """A child ended before it could be used. `ended_with` is its exit code; `log` is None where it has told its
    troubles itself, on this process's standard error.
    """

    def __init__(self, message: str, code: int, log: Path | None) -> None:
        super().__init__(message)
        self.ended_with = code
        self.log = log


def tell_ready(descriptor: int | None, line: str) -> None:
    """Say, in a child, that it can be used; nobody is told where there is no descriptor."""
    if descriptor is not None:
        os.write(descriptor, f"{line}\n".encode())
        os.close(descriptor)


@contextmanager
def running_when_ready(
    name: str,
    command: Callable[[int], Sequence[str]],
    environment: Mapping[str, str],
    *,
    seconds: float,
    log: Path | None = None,
    pass_fds: tuple[int, ...] = (),
    user: tuple[int, int] | None = None,
    begun: Callable[[Child], object] = lambda _: None,
) -> Iterator[tuple[Child, str]]:
    """A child while the block runs, and the line it told; `command` is its command line for a descriptor. `begun` hears
    of the child as soon as its process runs, so that another thread can stop it meanwhile; the rest is as for
    `children.running`.

    Raises:
        EndedEarlyError: it ended first.
        TransportError: it told nothing in time.
    """
    told, ready = os.pipe()
    with open(told, "rb", buffering=0) as answer:  # noqa: PTH123 - a descriptor has no path
        try:
            passed = (ready, *pass_fds)
            started = children.running(name, command(ready), environment, log=log, pass_fds=passed, user=user)
            with started as child:
                begun(child)
                # Ours goes, so that the child's end closes the pipe.
                os.close(ready)
                ready = -1
                yield child, _line(child, answer.fileno(), seconds, log)
        finally:
            if ready >= 0:
                os.close(ready)


def _line(child: Child, descriptor: int, seconds: float, log: Path | None) -> str:
    readable, _, _ = select.select([descriptor], [], [], seconds)
    where = f"; its log is {log}" if log else ""
    if not readable:
        raise TransportError(f"{child.name} was not ready within {seconds:.0f} seconds{where}")
    line = os.read(descriptor, _MAX_LINE_BYTES)
    if not line:
        code = child.process.wait()
        told = _last_word(log) or f"{child.name} {children.how_it_ended(code)}"
        raise EndedEarlyError(f"{told}{where}", code, log)
    return line.decode("ascii").strip()


def _last_word(log: Path | None) -> str:
    """The error that a child of ours ended with, as it told it in its log."""
    if log is None:
        return ""
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
    return printable(lines[-1].removeprefix(_TOLD), MAX_LOG_CHARS) if lines and lines[-1].startswith(_TOLD) else ""
