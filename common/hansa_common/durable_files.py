"""Files that survive a crash: a write is there whole or not at all, and once it returned it is on disk.

Every function ends with its folder synchronised. Readers of a file never see half of it, because a file only
ever appears by renaming. One writer at a time is the caller's to ensure (`exclusive`); what the bytes mean is too.
A folder appears by renaming as well, but when it takes another's place there is a moment with neither.
"""

from __future__ import annotations

import fcntl
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from hansa_common.errors import UsageError

UNFINISHED_SUFFIX = ".unfinished"
LOCK_NAME = "lock"


def write(path: Path, content: bytes, mode: int = 0o600) -> None:
    """Put content at path, in place of whatever was there; unless `mode` says more, only this user may read it."""
    unfinished = path.with_name(path.name + UNFINISHED_SUFFIX)
    # A process that was killed may have left one, and who can write into the folder a link: neither is written through.
    unfinished.unlink(missing_ok=True)
    descriptor = os.open(unfinished, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(descriptor)
    except OSError:
        # A disk that is full needs the room.
        unfinished.unlink(missing_ok=True)
        raise
    rename(unfinished, path)


def write_folder(folder: Path, files: Mapping[str, bytes]) -> None:
    """Put a folder of these files, name -> content, in the place of an earlier one; open to whoever the umask says."""
    unfinished = folder.with_name(folder.name + UNFINISHED_SUFFIX)
    remove_all(unfinished)
    unfinished.mkdir()
    for name, content in files.items():
        (unfinished / name).write_bytes(content)
        synchronise(unfinished / name)
    synchronise(unfinished)
    remove_all(folder)
    rename(unfinished, folder)


def remove_all(path: Path) -> None:
    """Take away a file, a link, or a folder with all that is in it; it is no error if there is none."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def rename(old: Path, new: Path) -> None:
    """Give the file old the name new, in place of whatever had it; both stand in one folder."""
    old.replace(new)
    synchronise(new.parent)


def remove(path: Path) -> None:
    """Take the file away; it is no error if there is none."""
    path.unlink(missing_ok=True)
    synchronise(path.parent)


def make_private_folder(folder: Path) -> None:
    """Make a folder that only this user may open, and its parents.

    Raises:
        UsageError: it is there already, and is another user's, or others may open it.
    """
    if not folder.is_dir():
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        synchronise(folder.parent)
    # Also of one that has just been made: somebody else may have been faster.
    found = folder.stat()
    if found.st_uid != os.geteuid():
        raise UsageError(f"{folder} is another user's; make it yours (chown), or give another --state")
    if found.st_mode & 0o077:
        raise UsageError(f"others can open {folder}; make it yours alone (chmod 700), or give another --state")


@contextmanager
def exclusive(folder: Path) -> Iterator[None]:
    """Hold the folder for this process alone; the operating system lets go of it when the process ends.

    Raises:
        UsageError: another process holds it.
    """
    refusal = f"the state folder {folder} is in use by another process; stop that one, or give another --state"
    with alone(folder / LOCK_NAME, refusal):
        yield


@contextmanager
def alone(lock: Path, refusal: str) -> Iterator[None]:
    """Hold a lock's file for this process alone, as `exclusive` holds a folder's.

    Raises:
        UsageError: another process holds it; says what `refusal` says.
    """
    descriptor = os.open(lock, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UsageError(refusal) from None
        yield
    finally:
        os.close(descriptor)


@contextmanager
def in_turn(folder: Path) -> Iterator[None]:
    """Hold the folder for a moment, once every other that holds it in this way has let go: in this process or another.

    It has nothing to do with `exclusive`, which holds for as long as a process lives.
    """
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def synchronise(path: Path) -> None:
    """Wait until a file, or the names in a folder, are on disk: a rename is durable only once its folder is."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
