"""`hansa` commands in processes of their own, whose lines can be waited for, and what is left of them afterwards."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final, Self

HANSA: Final = (sys.executable, "-c", "from hansa_common.cli import main; main()")
# Libraries to load and a model to compile, on a slow machine.
WAIT_SECONDS: Final = 240.0
STOP_SECONDS: Final = 60.0


class Command:
    """A command, started where `cwd` says, and its lines so far; a context manager that stops it."""

    def __init__(self, *words: object, cwd: Path | None = None) -> None:
        self.process = subprocess.Popen(
            [*HANSA, *map(str, words)], cwd=cwd, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        self.lines: list[str] = []
        self._changed = threading.Condition()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        with self.process.stdout as told:
            for line in told:
                with self._changed:
                    self.lines.append(line.rstrip())
                    self._changed.notify_all()
        with self._changed:
            self._changed.notify_all()

    @property
    def text(self) -> str:
        return "\n".join(self.lines)

    def wait_for_line(self, words: str, after: int = 0) -> str:
        """The first line with these words, of those after the first few."""

        def found() -> list[str]:
            return [line for line in self.lines[after:] if words in line]

        with self._changed:
            self._changed.wait_for(lambda: found() or not self._reader.is_alive(), WAIT_SECONDS)
        assert found(), f"{words!r} did not come:\n{self.text}"
        return found()[0]

    def wait_for_end(self, seconds: float = WAIT_SECONDS) -> int:
        """How it ended."""
        code = self.process.wait(seconds)
        self._reader.join(30)
        return code

    def stop(self) -> int:
        """End it as its user would, and say how it ended."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        return self.wait_for_end(STOP_SECONDS)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()


def wait_until(what: str, condition: Callable[[], bool]) -> None:
    """Wait, a bounded time, for a condition."""
    deadline = time.monotonic() + WAIT_SECONDS
    while not condition():
        assert time.monotonic() < deadline, f"it did not come: {what}"
        time.sleep(0.02)


def stand_still(pid: int) -> None:
    """Stop a process, until SIGCONT, and wait until none of its threads moves: what it was writing is written."""

    def threads() -> set[str]:
        stats = [(thread / "stat").read_text() for thread in Path(f"/proc/{pid}/task").iterdir()]
        return {stat.rpartition(")")[2].split()[0] for stat in stats}

    os.kill(pid, signal.SIGSTOP)
    wait_until(f"process {pid} stands still", lambda: threads() <= {"T"})


def processes_of(folder: Path) -> dict[int, str]:
    """The command lines of the living processes that work in a folder, or have a file of it in view."""
    found = {}
    for process in Path("/proc").iterdir():
        if not process.name.isdecimal() or int(process.name) == os.getpid():
            continue
        try:
            words, here = (process / "cmdline").read_bytes(), os.fsencode((process / "cwd").readlink())
            seen = b"\0".join([words, (process / "environ").read_bytes(), here + b"/"])
            is_gone = (process / "stat").read_text().rpartition(")")[2].split()[0] == "Z"
        except OSError:
            continue
        if not is_gone and os.fsencode(folder) + b"/" in seen:
            found[int(process.name)] = words.replace(b"\0", b" ").decode(errors="replace")
    return found


def wait_until_gone(folder: Path) -> None:
    """Wait, a bounded time, for the end of every process of a folder."""
    for pid in processes_of(folder):
        try:
            descriptor = os.pidfd_open(pid)
        except ProcessLookupError:
            continue
        select.select([descriptor], [], [], STOP_SECONDS)
        os.close(descriptor)
    assert processes_of(folder) == {}
