"""What a merchant must not forget of a run's masked sums, on disk when `remember` returns: which sums and keys there
were, and which figures it has released.

Secrets are not in it: keys and shares are in memory alone, so a merchant that starts again is out of the sum that was
under way, and can neither open it twice nor use a key again.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Annotated, Final

from pydantic import Field, ValidationError

from hansa_common import durable_files
from hansa_common.errors import MerchantError
from hansa_common.record_types import Digest, Name
from hansa_common.schema import Section
from hansa_common.secure_keys import KeyHistory
from hansa_common.secure_messages import SumNumberOrNone

SUMS_NAME: Final = "masked_sums"
# One name a masked round or evaluation, and one for the statistics.
Released = Annotated[str, Field(pattern=r"^[a-z]+( [0-9a-f]{64})?$")]


class SumRecord(Section):
    """What is known of one run. `last_sum` is the last that this merchant shared its secrets for."""

    run_id: Name
    last_sum: SumNumberOrNone = 0
    used_keys: tuple[Digest, ...] = ()
    released: tuple[Released, ...] = ()

    @property
    def history(self) -> KeyHistory:
        """The keys of the run's sums so far."""
        used = frozenset(bytes.fromhex(digest) for digest in self.used_keys)
        return KeyHistory(self.run_id if self.last_sum else "", self.last_sum, used)

    def with_history(self, history: KeyHistory) -> SumRecord:
        """The record once a sum's keys are in use."""
        used = tuple(sorted(digest.hex() for digest in history.used))
        return self.model_copy(update={"last_sum": history.round, "used_keys": used})

    def with_release(self, name: str) -> SumRecord:
        """The record once something has been released."""
        return self if name in self.released else self.model_copy(update={"released": (*self.released, name)})


class SumMemory:
    """The records of one merchant's runs; without a folder they last as long as this object."""

    def __init__(self, folder: Path | None = None) -> None:
        """Use this folder, which the caller holds for itself."""
        self._folder = folder
        self._records: dict[str, SumRecord] = {}
        if folder is not None:
            durable_files.make_private_folder(folder)

    def recall(self, run_id: str) -> SumRecord:
        """What is known of a run, be it nothing.

        Raises:
            MerchantError: its record is damaged.
        """
        path = self._path(run_id)
        if path is None or not path.exists():
            return self._records.get(run_id, SumRecord(run_id=run_id))
        try:
            record = SumRecord.model_validate_json(path.read_bytes())
        except (OSError, ValidationError) as error:
            raise MerchantError(
                f"the record of masked sums {path} is damaged; remove it only if that run is over for good"
            ) from error
        if record.run_id != run_id:
            raise MerchantError(f"the record of masked sums {path} is of another run, {record.run_id!r}; put it back")
        return record

    def remember(self, record: SumRecord) -> None:
        """Put a record in the place of its run's last one."""
        path = self._path(record.run_id)
        if path is None:
            self._records[record.run_id] = record
        else:
            durable_files.write(path, record.model_dump_json().encode())

    def _path(self, run_id: str) -> Path | None:
        # A run is named by the coordinator: hashed, its name cannot lead out of the folder.
        name = hashlib.sha256(run_id.encode()).hexdigest()[:32]
        return None if self._folder is None else self._folder / f"{name}.json"
