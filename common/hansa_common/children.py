"""Child processes that end with a block of code, or with their parent: each leads a process group, and none is left.

A child's standard input is a pipe that closes when this process ends, however it ends: a child of our own watches it
(`wait_for_end_of_parent`, `end_with_parent`); one that does not outlives a parent that is killed. What others start
for us, with an input of theirs, asks who its parent is (`end_with_starter`).
"""

from __future__ import annotations

import os
import signal
import subprocess
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

STOP_SECONDS: Final = 15.0
STDIN: Final = 0
_STDIN_BYTES: Final = 4096
_LOOK_SECONDS: Final = 0.5


class Child:
    """A running child process with the name under which people know it."""

    def __init__(self, name: str, process: subprocess.Popen[bytes]) -> None:
        self.name = name
        self.process = process

    def stop(self) -> None:
        """Ask its whole group to end, wait, and end it by force if it does not."""
        _signal_group(self.process, signal.SIGTERM)
        with suppress(subprocess.TimeoutExpired):
            self.process.wait(STOP_SECONDS)
        # Also where the child itself has ended: what it started may not have.
        _signal_group(self.process, signal.SIGKILL)
        self.process.wait()


@contextmanager
def running(
    name: str,
    command: Sequence[str],
    environment: Mapping[str, str],
    *,
    log: Path | None = None,
    pass_fds: tuple[int, ...] = (),
    user: tuple[int, int] | None = None,
) -> Iterator[Child]:
    """A child while the block runs; its output goes to the log file, or where this process's goes. `user` is the
    number of another user and of its one group, for root to say.
    """
    with open(log or os.devnull, "ab") as output:  # noqa: PTH123 - the same for a path and the null device
        process = subprocess.Popen(
            command,
            env=dict(environment),
            stdin=subprocess.PIPE,
            stdout=output if log else None,
            stderr=subprocess.STDOUT if log else None,
            start_new_session=True,
            pass_fds=pass_fds,
            user=None if user is None else user[0],
            group=None if user is None else user[1],
            extra_groups=None if user is None else [],
        )
    child = Child(name, process)
    try:
        yield child
    finally:
        child.stop()
        if process.stdin is not None:
            process.stdin.close()


def how_it_ended(code: int) -> str:
    """A child's exit code in words.

    >>> how_it_ended(2), how_it_ended(-9)
    ('ended with code 2', 'was ended by SIGKILL')
    """
    return f"ended with code {code}" if code >= 0 else f"was ended by {signal.Signals(-code).name}"


def wait_for_end_of_parent() -> None:
    """Wait, in a child, until the parent has ended or has closed this process's standard input."""
    # Not through sys.stdin: a thread that waits in it holds a lock that a closing interpreter needs, which then aborts.
    while os.read(STDIN, _STDIN_BYTES):
        pass


def end_with_parent() -> None:
    """From now on, end this process as SIGTERM does once its parent has ended."""

    def watch() -> None:
        wait_for_end_of_parent()
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=watch, daemon=True).start()


def end_with_starter() -> None:
    """From now on, end this process as SIGTERM does once the process that started it, whoever that is, has ended."""
    starter = os.getppid()

    def watch() -> None:
        while os.getppid() == starter:
            time.sleep(_LOOK_SECONDS)
        # To the process: a main thread that waits for another does not hear what that raises.
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=watch, daemon=True).start()


def _signal_group(process: subprocess.Popen[bytes], number: signal.Signals) -> None:
    with suppress(ProcessLookupError):
        os.killpg(process.pid, number)
