"""A run that keeps checkpoints, handed to SuperLink and followed to its end, whatever dies meanwhile.

| what dies              | the command ends                                                                     |
|------------------------|--------------------------------------------------------------------------------------|
| SuperLink              | as soon as it does not answer                                                        |
| the run's process      | LAST_WORDS_SECONDS after it let go of the run's folder, for what it said last        |
| before it has begun    | START_SECONDS after it was asked for                                                 |

Each time with one line that names what goes on with the run. The run's process holds a lock in its folder, which the
operating system takes from it however it ends: that is how it is missed, long before Flower misses it.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, Final, TextIO

from hansa_common.agreement import Agreement
from hansa_common.errors import RunFailedError, TransportError
from hansa_server import checkpoint, run_folder
from hansa_server.superlink import Control

START_SECONDS: Final = 120.0
LAST_WORDS_SECONDS: Final = 10.0


def open_resumable(run: Path) -> Agreement:
    """The agreement of a run that is to go on, once everything is seen to be there for it.

    Raises:
        UsageError: it is finished, has failed, keeps no checkpoint, or is still going on.
        CoordinatorError: its checkpoint is damaged, or of another version of Hansa.
    """
    run_folder.open_interrupted(run)
    with checkpoint.held(run):
        # Again: if it was still going on, it may have come to its end.
        agreement = run_folder.open_interrupted(run)
        checkpoint.load(run, agreement)
    return agreement


def run_to_its_end(run: Path, control: Control, progress: TextIO) -> dict[str, Any]:
    """Have SuperLink run the run of this folder, and return its figures; what it says goes to `progress`.

    Raises:
        RunFailedError: it did not finish; says why, and how it goes on where it can.
        TransportError: SuperLink cannot be asked, or not any more.
    """
    flower_id = control.start_run(run)
    try:
        control.follow_run(flower_id, progress.buffer, _Watch(run).is_lost)
    except KeyboardInterrupt:
        control.stop_run(flower_id)
        raise RunFailedError(f"the run was stopped before its end; {how_to_go_on(run)}") from None
    except TransportError as error:
        if not run_folder.is_finished(run):
            raise TransportError(f"{error}; once it runs again, {how_to_go_on(run)}") from error
    if not run_folder.is_finished(run):
        # Merchants are not to work for a run that is gone.
        with suppress(TransportError):
            control.stop_run(flower_id)
    return run_folder.read_outcome(run)


def how_to_go_on(run: Path) -> str:
    """What to do with a run that can go on."""
    return f"`hansa server resume {run}` goes on with it"


class _Watch:
    """Misses a run's process."""

    def __init__(self, run: Path, now: Callable[[], float] = time.monotonic) -> None:
        self._run = run
        self._now = now
        self._last_seen = now()
        self._patience = START_SECONDS

    def is_lost(self) -> bool:
        """Whether it is gone for so long that nothing more is to be heard of it."""
        if checkpoint.is_held(self._run):
            self._last_seen, self._patience = self._now(), LAST_WORDS_SECONDS
        return self._now() - self._last_seen > self._patience
