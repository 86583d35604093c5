"""Flower's SuperLink as the coordinator's transport: how it is started, and how it is handed a run.

It runs as a program of ours (guarded_superlink.py) that starts Hansa's own bundle and no other, and whose Control API
answers only who has the token in the state folder. The one value of run config is the run's folder. Flower's
telemetry, update check and installation of dependencies are off, and its files stay in folders given here.
"""

from __future__ import annotations

import http.client
import queue
import re
import secrets
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, TYPE_CHECKING, Final

from hansa_common import children, durable_files
from hansa_common.addresses import Address
from hansa_common.children import Child
from hansa_common.errors import CoordinatorError, TransportError, UsageError
from hansa_common.flower_environment import flower_environment
from hansa_server.signing import publisher_key

if TYPE_CHECKING:
    from hansa_server.flower_private import Admits

LOG_NAME: Final = "superlink.log"
DATABASE_NAME: Final = "state.db"
TOKEN_NAME: Final = "control.token"  # noqa: S105 - the name of its file
LOOPBACK: Final = "127.0.0.1"
START_SECONDS: Final = 60.0
_TOKEN_BYTES: Final = 32
_HEALTH_SECONDS: Final = 2.0
_POLL_SECONDS: Final = 0.1
# What Flower itself writes into a run's log; the ServerApp's own lines are the rest.
_FLOWER_LINE: Final = re.compile(r"^(\x1b\[\d+m)?(DEBUG|INFO|Successfully installed) ")
# What Flower tells of a ServerApp that failed, a traceback and advice: the run's folder says why in one line.
_FLOWER_VERDICT: Final = re.compile(r"^(\x1b\[\d+m)?ERROR .*ServerApp raised an exception")


def is_superlink(address: Address) -> bool:
    """Whether a SuperLink answers at the address."""
    connection = http.client.HTTPConnection(address.host, address.port, timeout=_HEALTH_SECONDS)
    try:
        connection.request("GET", "/health")
        return connection.getresponse().status == http.HTTPStatus.OK
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()


@contextmanager
def running(address: Address, state: Path, admits: Admits = "anyone") -> Iterator[Child]:
    """A SuperLink while the block runs, once it answers; its database, token and log are in the state folder.

    Raises:
        CoordinatorError: it ended, or did not answer in time.
        UsageError: others can open the state folder, through whose database every merchant's update passes, or the
            publisher key in it.
    """
    # Drawn or refused here, where it is told; the program reads it again.
    publisher_key(state)
    durable_files.write(state / TOKEN_NAME, secrets.token_hex(_TOKEN_BYTES).encode())
    options = ["--insecure", "--host", address.host, "--port", str(address.port)]
    log, database = state / LOG_NAME, state / DATABASE_NAME
    program = [sys.executable, "-m", "hansa_server.guarded_superlink", str(state), admits]
    command = [*program, *options, "--database", str(database)]
    with children.running("SuperLink", command, flower_environment(state / "flower"), log=log) as child:
        _wait_until_it_answers(child.process, address, log)
        yield child


def _wait_until_it_answers(process: subprocess.Popen[bytes], address: Address, log: Path) -> None:
    deadline = time.monotonic() + START_SECONDS
    while not is_superlink(address):
        try:
            process.wait(_POLL_SECONDS)
        except subprocess.TimeoutExpired:
            if time.monotonic() < deadline:
                continue
            raise CoordinatorError(f"SuperLink did not answer within {START_SECONDS:.0f} seconds; see {log}") from None
        raise CoordinatorError(f"SuperLink ended with code {process.returncode}; see {log}")


@dataclass(frozen=True)
class Control:
    """The way to hand a SuperLink a run."""

    server: Address
    token: str = field(repr=False)

    @classmethod
    def of(cls, server: Address, state: Path) -> Control:
        """The way to the SuperLink that was started with this state folder.

        Raises:
            UsageError: none was, or its token cannot be read.
        """
        try:
            return cls(server, (state / TOKEN_NAME).read_text(encoding="ascii").strip())
        except OSError as error:
            raise UsageError(
                f"{state} is not the state folder of a SuperLink ({error.strerror}: {TOKEN_NAME}); "
                "give the one of `hansa server start` with --state"
            ) from error

    def start_run(self, run_folder: Path) -> int:
        """Start a run that writes into the folder, and return its id.

        Raises:
            TransportError: Flower did not start it; says why.
        """
        from hansa_server import flower_private

        with flower_private.control_api(str(self.server), self.token) as control:
            return flower_private.start_run(control, run_folder.absolute())

    def register_nodes(self, public_keys: Iterable[str]) -> int:
        """Let the nodes with these keys (PEM) in from now on, and return how many were not known yet.

        Raises:
            TransportError: SuperLink cannot be asked.
        """
        from hansa_server import flower_private

        with flower_private.control_api(str(self.server), self.token) as control:
            return flower_private.register_nodes(control, public_keys)

    def stop_run(self, run_id: int) -> None:
        """End a run before its time; it is no error if it has ended.

        Raises:
            TransportError: SuperLink cannot be asked.
        """
        from hansa_server import flower_private

        with flower_private.control_api(str(self.server), self.token) as control:
            flower_private.stop_run(control, run_id)

    def follow_run(self, run_id: int, output: IO[bytes], is_lost: Callable[[], bool] = lambda: False) -> None:
        """Pass on what the run's ServerApp prints, until the run ends, or `is_lost` says that nobody runs it any more;
        Flower's own lines are left out.

        Raises:
            TransportError: SuperLink cannot be asked any more.
        """
        heard: queue.Queue[str | TransportError | None] = queue.Queue()
        threading.Thread(target=self._listen, args=(run_id, heard), daemon=True).start()
        while True:
            try:
                line = heard.get(timeout=_POLL_SECONDS)
            except queue.Empty:
                if is_lost():
                    return
                continue
            if isinstance(line, TransportError):
                raise line
            if line is None:
                return
            output.write(line.encode())
            output.flush()

    def _listen(self, run_id: int, heard: queue.Queue[str | TransportError | None]) -> None:
        """Put the lines of a run's log into the queue, then how they ended: None, or what went wrong."""
        from hansa_server import flower_private

        try:
            with flower_private.control_api(str(self.server), self.token) as control:
                for line in own_lines(flower_private.run_log(control, run_id)):
                    heard.put(line)
        except TransportError as error:
            heard.put(error)
        finally:
            heard.put(None)


def own_lines(pieces: Iterable[str]) -> Iterator[str]:
    """Of a run's log, which comes in pieces, the lines that the run itself wrote."""
    failed = False
    for line in _lines(pieces):
        failed = failed or _FLOWER_VERDICT.match(line) is not None
        if not failed and not _FLOWER_LINE.match(line):
            yield line


def _lines(pieces: Iterable[str]) -> Iterator[str]:
    """Whole lines, with their ends, of a text that comes in pieces."""
    begun = ""
    for piece in pieces:
        *whole, begun = (begun + piece).split("\n")
        yield from (f"{line}\n" for line in whole)
    if begun:
        yield begun


def free_address() -> Address:
    """An address of this machine alone that is free now."""
    with socket.socket() as listener:
        listener.bind((LOOPBACK, 0))
        return Address(LOOPBACK, int(listener.getsockname()[1]))


def check_port_is_free(address: Address) -> None:
    """See that nothing listens at the address yet.

    Raises:
        UsageError: something does.
    """
    family = socket.AF_INET6 if ":" in address.host else socket.AF_INET
    with socket.socket(family) as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((address.host, address.port))
        except OSError as error:
            raise UsageError(f"{address} cannot be used ({error.strerror}); give another --address") from error
