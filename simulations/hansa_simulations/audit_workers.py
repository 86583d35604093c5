"""Shadow federations divided among processes, each with a core of its own; the outcome is that of one process.

A child (`python -m hansa_simulations.audit_workers`) finds the run's tables again by itself, trains every k-th shadow,
leaves each one's confidences in a file, and says its number on standard output. A child that fails ends all of them,
and what it said last is the reason. None outlives its parent.
"""

from __future__ import annotations

import contextlib
import os
import queue
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from hansa_common.children import end_with_parent
from hansa_common.errors import HansaError, RunFailedError
from hansa_server.run_folder import open_finished
from hansa_simulations.audit_shadows import ShadowFederations
from hansa_simulations.cli import quieten_tensorflow
from hansa_simulations.run_tables import tables_of_run

# Of real processes, where nobody here has the rows.
INSTEAD: Final = "an audit needs every merchant's rows, so it is for a simulation of the same agreement"
_ERRORS: Final = "errors.txt"
_MAX_SHOWN_CHARS: Final = 600


@dataclass(frozen=True)
class Work:
    """A run and its table, to be repeated as `num_shadows` federations."""

    run: Path
    data: Path | None
    num_shadows: int


def trained_confidences(
    work: Work, shadows: ShadowFederations, num_processes: int, on_trained: Callable[[], None]
) -> NDArray[np.float64]:
    """(shadows, rows) confidences of all shadow federations; `on_trained` hears of each one that is done.

    With one process they are trained in this one, by `shadows`.

    Raises:
        RunFailedError: one came to no model, or its process ended.
    """
    found = np.full((work.num_shadows, len(shadows.pool.labels)), np.nan)
    numbers = range(work.num_shadows)
    done = shadows.each(numbers) if num_processes == 1 else _by_children(work, min(num_processes, work.num_shadows))
    for shadow, confidences in done:
        found[shadow] = confidences
        on_trained()
    return found


def _by_children(work: Work, num_processes: int) -> Iterator[tuple[int, NDArray[np.float64]]]:
    told: queue.Queue[int | None] = queue.Queue()
    with tempfile.TemporaryDirectory(prefix="hansa-audit-") as name, contextlib.ExitStack() as stack:
        folders = [Path(name) / str(place) for place in range(num_processes)]
        children = [stack.enter_context(_child(work, place, folders)) for place in range(num_processes)]
        for child in children:
            threading.Thread(target=_listen, args=(child, told), daemon=True).start()
        open_ends = num_processes
        while open_ends:
            shadow = told.get()
            if shadow is None:
                open_ends -= 1
                _check_ended(children, folders)
                continue
            yield shadow, np.load(folders[shadow % num_processes] / _file(shadow), allow_pickle=False)


@contextlib.contextmanager
def _child(work: Work, place: int, folders: list[Path]) -> Iterator[subprocess.Popen[bytes]]:
    folders[place].mkdir()
    words = [work.run, work.data or "", work.num_shadows, place, len(folders), folders[place]]
    command = [sys.executable, "-m", "hansa_simulations.audit_workers", *map(str, words)]
    with (folders[place] / _ERRORS).open("wb") as errors:
        child = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors)
    with child:
        try:
            yield child
        finally:
            child.terminate()


def _listen(child: subprocess.Popen[bytes], told: queue.Queue[int | None]) -> None:
    for line in child.stdout or ():
        told.put(int(line))
    child.wait()
    told.put(None)


def _check_ended(children: list[subprocess.Popen[bytes]], folders: list[Path]) -> None:
    for child, folder in zip(children, folders, strict=True):
        if child.poll():
            lines = (folder / _ERRORS).read_text(encoding="utf-8", errors="replace").strip().splitlines()
            reason = lines[-1][:_MAX_SHOWN_CHARS] if lines else f"it ended with status {child.returncode}"
            raise RunFailedError(f"a process that trains shadow federations failed: {reason}")


def _file(shadow: int) -> str:
    return f"{shadow}.npy"


def main() -> None:
    """Train this child's share of the shadows."""
    end_with_parent()
    run, data, num_shadows, place, num_processes, out = sys.argv[1:]
    # What libraries print must not pass for numbers.
    numbers = os.fdopen(os.dup(sys.stdout.fileno()), "w")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    quieten_tensorflow()
    try:
        finished = open_finished(Path(run))
        tables = tables_of_run(finished, Path(run), Path(data) if data else None, command="audit", instead=INSTEAD)
        shadows = ShadowFederations(finished.agreement, tables, int(num_shadows))
        for shadow, confidences in shadows.each(range(int(place), int(num_shadows), int(num_processes))):
            np.save(Path(out) / _file(shadow), confidences, allow_pickle=False)
            numbers.write(f"{shadow}\n")
            numbers.flush()
    except HansaError as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
