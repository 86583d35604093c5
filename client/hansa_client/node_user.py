"""Flower's node as a user of the machine other than the trainer's: it reaches the trainer's socket and nothing else.

The kernel keeps users apart on every system, with or without what node_confinement.py needs. What the node may have is
lent: the socket's folder is opened to its group, and each file that it is told of is copied into a home of its own.
Only root can start processes for others, so this is for a container, or a service that is started by root.
"""

from __future__ import annotations

import os
import pwd
import stat
from dataclasses import dataclass
from pathlib import Path

from hansa_common.errors import UsageError

# Open to its owner and its group; what is made in it is the group's.
SHARED_MODE = 0o2750


@dataclass(frozen=True)
class NodeUser:
    """The user that the node runs as."""

    name: str
    uid: int
    gid: int

    @classmethod
    def named(cls, name: str) -> NodeUser:
        """The machine's user of this name.

        Raises:
            UsageError: there is none, it is root or who asks, or this process may not start others'.
        """
        try:
            entry = pwd.getpwnam(name)
        except KeyError:
            raise UsageError(f"this machine has no user {name!r} to run Flower's node as") from None
        if entry.pw_uid in {0, os.geteuid()}:
            raise UsageError(f"{name!r} can read what the trainer can; give Flower's node a user of its own")
        if os.geteuid() != 0:
            raise UsageError("only root can start Flower's node as another user; leave --node-user out, or run as root")
        return cls(name, entry.pw_uid, entry.pw_gid)

    def share(self, folder: Path) -> None:
        """Open a folder to the node, which may look into it and not write there."""
        os.chown(folder, -1, self.gid)
        folder.chmod(SHARED_MODE)

    def give(self, folder: Path) -> None:
        """Make a folder the node's own."""
        os.chown(folder, self.uid, self.gid)

    def lend(self, file: Path, home: Path) -> Path:
        """A copy of a file that the node alone may read, in its home, which is not given to it yet: root would follow a
        link that the node has put there, and give it what the link is to.

        Raises:
            FileExistsError: something of this name is there.
        """
        copy = home / file.name
        descriptor = os.open(copy, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o400)
        with os.fdopen(descriptor, "wb") as lent:
            lent.write(file.read_bytes())
            os.fchown(descriptor, self.uid, self.gid)
        return copy


def is_shared(folder: Path) -> bool:
    """Whether a folder is open to a group that it was given to on purpose."""
    mode = folder.stat().st_mode
    return bool(mode & stat.S_ISGID) and bool(mode & stat.S_IXGRP)
