"""A folder that a command fills anew each time: in the place of what it left there before, and of nothing else."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from hansa_common import durable_files
from hansa_common.errors import UsageError


@dataclass(frozen=True)
class OutFolder:
    """Where a command leaves `what`, in words; the file `mark` in a folder says that it is its own."""

    path: Path
    mark: str
    what: str

    def check_free(self) -> None:
        """See that the folder may be written over.

        Raises:
            UsageError: it holds anything but what the command left there.
        """
        path = self.path
        if path.exists() and (not path.is_dir() or any(path.iterdir())) and not (path / self.mark).is_file():
            raise UsageError(f"{path} holds other things than {self.what}; give a folder that does not exist yet")

    def make_anew(self) -> None:
        """Leave an empty folder in the place of what was there.

        Raises:
            UsageError: it may not be written over, or cannot be written.
        """
        self.check_free()
        try:
            durable_files.remove_all(self.path)
            self.path.mkdir(parents=True)
        except OSError as error:
            raise UsageError(f"{self.path} cannot be written: {error.strerror}") from error
