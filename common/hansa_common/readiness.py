"""A child tells its parent, by one line through a descriptor of its own, that it can be used, and where.

The parent waits for the line and not for a time; a child that ends without one has told its troubles elsewhere.
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

_MAX_LINE_BYTES: Final = 256


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
) -> Iterator[tuple[Child, str]]:
    """A child while the block runs, and the line it told; `command` is its command line for a descriptor.

    Raises:
        TransportError: it ended, or told nothing in time.
    """
    told, ready = os.pipe()
    with open(told, "rb", buffering=0) as answer:  # noqa: PTH123 - a descriptor has no path
        try:
            started = children.running(name, command(ready), environment, log=log, pass_fds=(ready,))
            with started as child:
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
        raise TransportError(f"{child.name} ended with code {child.process.wait()}{where}")
    return line.decode("ascii").strip()
