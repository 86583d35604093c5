"""A run's last state on disk, in its folder's `checkpoint`: a crash of anything loses at most the exchange in flight.

file           holds
state.json     the state as JSON (state_codec.py), the agreement's fingerprint, and the hash of both
<SHA-256>      the raw little-endian bytes of one array that the state names
lock           nothing: held by the process that runs the run, so that there is never a second

- A state's arrays are on disk before its state.json takes the place of the one before, and arrays that no state names
  go last: whenever a writer dies, the old checkpoint or the new one is there, whole.
- A checkpoint is read whole or refused: damaged, of another agreement, or of another version.

A run keeps checkpoints where the folder has been prepared. A simulation's has not: its merchants end with its process.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import shutil
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from hansa_common import durable_files
from hansa_common.agreement import Agreement
from hansa_common.errors import CoordinatorError, RunInterruptedError, UsageError
from hansa_server.run_folder import CHECKPOINT
from hansa_server.state_codec import from_plain, to_plain

if TYPE_CHECKING:
    # Late elsewhere: Flower's server side takes a second to import, and commands ask here who holds a run.
    from hansa_server.run_state import RunState

STATE: Final = "state.json"
FORMAT: Final = "hansa-checkpoint"
VERSION: Final = 1
# How long a process that ran the run may take to end after its SuperLink, before a second one is refused.
RELEASE_SECONDS: Final = 30.0
_POLL_SECONDS: Final = 0.2


def prepare(run: Path) -> None:
    """Let the run of this folder keep checkpoints."""
    (run / CHECKPOINT).mkdir(mode=0o700)
    durable_files.synchronise(run)


def is_kept(run: Path) -> bool:
    """Whether the run of this folder keeps checkpoints."""
    return (run / CHECKPOINT).is_dir()


@contextmanager
def held(run: Path) -> Iterator[None]:
    """Be the one process that runs the run of this folder; wait RELEASE_SECONDS for another to end.

    Raises:
        UsageError: another runs it.
    """
    with ExitStack() as stack:
        if is_kept(run):
            _hold(stack, run)
        yield


def _hold(stack: ExitStack, run: Path) -> None:
    until = time.monotonic() + RELEASE_SECONDS
    while True:
        try:
            stack.enter_context(durable_files.exclusive(run / CHECKPOINT))
        except FileNotFoundError:
            # The other has come to the run's end meanwhile: there is nothing to hold any more.
            return
        except UsageError:
            if time.monotonic() >= until:
                raise UsageError(f"the run in {run} is still going on in another process; let it end") from None
            time.sleep(_POLL_SECONDS)
        else:
            return


def is_held(run: Path) -> bool:
    """Whether a process runs the run of this folder now."""
    try:
        with (run / CHECKPOINT / durable_files.LOCK_NAME).open("rb") as lock:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except FileNotFoundError:
        return False
    return False


def save(run: Path, agreement: Agreement, state: RunState) -> None:
    """Put a state in the place of the last one, if the run keeps checkpoints.

    Raises:
        RunInterruptedError: the disk did not take it; the last one is still there.
    """
    from hansa_server.run_state import RunState

    if not is_kept(run):
        return
    folder, arrays = run / CHECKPOINT, dict[str, bytes]()
    content = _written(agreement, to_plain(RunState, state, arrays))
    try:
        for name, raw in arrays.items():
            if not (folder / name).exists():
                durable_files.write(folder / name, raw)
        durable_files.write(folder / STATE, content)
        for path in folder.iterdir():
            if path.name not in {STATE, durable_files.LOCK_NAME, *arrays}:
                path.unlink()
    except OSError as error:
        raise RunInterruptedError(
            f"the checkpoint in {folder} cannot be written: {error.strerror}; mend that, then "
            f"`hansa server resume {run}`"
        ) from error


def load(run: Path, agreement: Agreement) -> RunState | None:
    """The last state of the run of this folder; None where it keeps no checkpoints, or has not begun.

    Raises:
        CoordinatorError: the checkpoint is damaged, or not one of this agreement and this version of Hansa.
    """
    from hansa_server.run_state import RunState

    folder = run / CHECKPOINT
    try:
        content = (folder / STATE).read_bytes()
        plain = _read(content, agreement)
        return from_plain(RunState, plain, lambda name: (folder / name).read_bytes())
    except FileNotFoundError as error:
        if error.filename == str(folder / STATE):
            return None
        raise _refused(folder, f"it names an array that is not there, {Path(error.filename).name[:12]}") from error
    except (OSError, ValueError) as error:
        raise _refused(folder, str(error)) from error


def remove(run: Path) -> None:
    """Take the checkpoint of a finished run away."""
    if is_kept(run):
        shutil.rmtree(run / CHECKPOINT)
        durable_files.synchronise(run)


def _refused(folder: Path, why: str) -> CoordinatorError:
    return CoordinatorError(
        f"the checkpoint in {folder} cannot be used: {why}; restore it, or train into another folder"
    )


def _written(agreement: Agreement, state: Any) -> bytes:
    return _sealed({"format": FORMAT, "version": VERSION, "fingerprint": agreement.fingerprint, "state": state})


def _read(text: bytes, agreement: Agreement) -> Any:
    try:
        told = json.loads(text)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    content = told.get("content") if isinstance(told, dict) else None
    if not isinstance(content, dict) or _sealed(content) != text:
        raise ValueError(f"{STATE} is damaged: it is not what was written")
    if content.get("format") != FORMAT or content.get("version") != VERSION:
        raise ValueError(f"{STATE} is not a {FORMAT} of version {VERSION}, which this Hansa reads")
    if content.get("fingerprint") != agreement.fingerprint:
        raise ValueError("it is of another agreement")
    return content["state"]


def _sealed(content: Any) -> bytes:
    return _canonical({"content": content, "sha256": hashlib.sha256(_canonical(content)).hexdigest()})


def _canonical(values: Any) -> bytes:
    return json.dumps(values, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode()
