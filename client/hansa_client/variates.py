"""SCAFFOLD's client variate c_i, kept so that a lost reply never separates the merchant from the coordinator.

A reply proposes a new variate; only a later order that names that reply as included commits it. So, whatever
is dropped, late or killed:

- the coordinator's c is the row-weighted mean of the committed c_i;
- with a folder, a proposal is on disk before the reply can leave, and a commit before training starts;
- there is at most one proposal for a run and plan, and an order that does not name it discards it.

An order that names neither the proposal nor the last commit contradicts what this merchant knows (its state was
lost, or the order is an old one) and is refused.

Source: Karimireddy et al., "SCAFFOLD: Stochastic Controlled Averaging for Federated Learning" (2020).
"""

from __future__ import annotations

import hashlib
import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Protocol

import numpy as np

from hansa_common import durable_files
from hansa_common.errors import MerchantError
from hansa_common.record_types import Stage
from hansa_common.vectors import Vector

# The last few, because two runs of one agreement may overlap while the coordinator restarts; each has three stages.
NUM_RUNS_KEPT: Final = 12
NONE_INCLUDED: Final = ""


def name_in_stage(run: str, stage: Stage) -> str:
    r"""The run as this store is to know it in a stage, so that each stage begins without a variate.

    >>> name_in_stage("r", "train"), name_in_stage("r", "prune")
    ('r', 'r\nprune')
    """
    # No run that a coordinator can name has a line break in its name.
    return run if stage == "train" else f"{run}\n{stage}"


@dataclass(frozen=True)
class Variate:
    """A variate and the reply that proposed it: which round, from which weights."""

    round_number: int
    weights_hash: str
    reply_hash: str
    values: Vector


def control_delta(control: Vector, update: Vector, num_steps: int, learning_rate: float) -> Vector:
    """The change of a merchant's variate by option II: c_i+ - c_i = -c + (x - y_i) / (K * learning_rate).

    control: (num_params,) the server's c; update: (num_params,) y_i - x after K = num_steps local steps.
    Source: Karimireddy et al., "SCAFFOLD: Stochastic Controlled Averaging for Federated Learning" (2020).

    >>> control_delta(np.float32([0.5]), np.float32([-0.2]), num_steps=2, learning_rate=0.1)
    array([0.5], dtype=float32)
    """
    return -control - update / np.float32(num_steps * learning_rate)


class VariateStore:
    """The variates of one merchant, by run and plan; in memory only where folder is None."""

    def __init__(self, folder: Path | None = None) -> None:
        self._shelf: _Shelf = _MemoryShelf() if folder is None else _FolderShelf(folder)

    def begin(self, run: str, plan: int, included: str) -> Vector | None:
        """Settle the last proposal and return the committed c_i, shape (num_params,); None before the first.

        included is the proposal -> it is committed | included is the last commit -> the proposal is discarded
        nothing included, nothing committed -> None | anything else -> MerchantError, and nothing changes

        Raises:
            MerchantError: included names a reply that this store does not know, or a stored file is damaged.
        """
        pending_name, committed_name = _names(run, plan)
        pending = self._read(pending_name)
        if pending is not None and pending.reply_hash == included:
            self._shelf.rename(pending_name, committed_name)
            return pending.values
        committed = self._read(committed_name)
        known = NONE_INCLUDED if committed is None else committed.reply_hash
        if included != known:
            raise MerchantError(
                f"the coordinator counts reply {included or 'none'!r} of run {run!r}, plan {plan}, this merchant's "
                f"state ends with {known or 'none'!r}; if the state folder was lost, sit this run out"
            )
        if pending is not None:
            self._shelf.remove(pending_name)
        return None if committed is None else committed.values

    def propose(self, run: str, plan: int, variate: Variate) -> None:
        """Keep a new c_i until a later order settles it; call before the reply leaves."""
        pending_name, _ = _names(run, plan)
        self._shelf.write(pending_name, _encoded(variate))
        for old_run in self._shelf.runs()[:-NUM_RUNS_KEPT]:
            self._shelf.remove_run(old_run)

    def _read(self, name: str) -> Variate | None:
        content = self._shelf.read(name)
        return None if content is None else _decoded(content, name)


def _names(run: str, plan: int) -> tuple[str, str]:
    # A run is named by the coordinator: hashed, its name cannot lead out of the folder.
    folder = hashlib.sha256(run.encode()).hexdigest()[:32]
    return f"{folder}/{plan}.pending", f"{folder}/{plan}.committed"


def _encoded(variate: Variate) -> bytes:
    values = variate.values.astype("<f4").tobytes()
    header = {
        "round_number": variate.round_number,
        "weights_hash": variate.weights_hash,
        "reply_hash": variate.reply_hash,
        "values_hash": hashlib.sha256(values).hexdigest(),
    }
    return json.dumps(header).encode() + b"\n" + values


def _decoded(content: bytes, name: str) -> Variate:
    header_line, _, values = content.partition(b"\n")
    try:
        header = json.loads(header_line)
        if header.pop("values_hash") != hashlib.sha256(values).hexdigest():
            raise ValueError("its values do not have the hash in its header")  # noqa: TRY301 - one refusal for all
        return Variate(values=np.frombuffer(values, "<f4"), **header)
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise MerchantError(
            f"the stored variate {name} is damaged ({error}); remove the state folder and sit this run out"
        ) from error


class _Shelf(Protocol):
    """Named contents, grouped by run: `<run>/<file>`."""

    def read(self, name: str) -> bytes | None: ...
    def write(self, name: str, content: bytes) -> None: ...
    def rename(self, old: str, new: str) -> None: ...
    def remove(self, name: str) -> None: ...
    def runs(self) -> list[str]:
        """All runs, the one written last at the end."""
        ...

    def remove_run(self, run: str) -> None: ...


class _MemoryShelf:
    def __init__(self) -> None:
        self._contents: dict[str, bytes] = {}

    def read(self, name: str) -> bytes | None:
        return self._contents.get(name)

    def write(self, name: str, content: bytes) -> None:
        self._contents.pop(name, None)
        self._contents[name] = content

    def rename(self, old: str, new: str) -> None:
        self.write(new, self._contents.pop(old))

    def remove(self, name: str) -> None:
        self._contents.pop(name, None)

    def runs(self) -> list[str]:
        last_first = dict.fromkeys(name.partition("/")[0] for name in reversed(self._contents))
        return list(reversed(last_first))

    def remove_run(self, run: str) -> None:
        self._contents = {name: content for name, content in self._contents.items() if name.partition("/")[0] != run}


class _FolderShelf:
    def __init__(self, folder: Path) -> None:
        durable_files.make_private_folder(folder)
        self._folder = folder

    def read(self, name: str) -> bytes | None:
        try:
            return (self._folder / name).read_bytes()
        except FileNotFoundError:
            return None

    def write(self, name: str, content: bytes) -> None:
        durable_files.make_private_folder((self._folder / name).parent)
        durable_files.write(self._folder / name, content)

    def rename(self, old: str, new: str) -> None:
        durable_files.rename(self._folder / old, self._folder / new)

    def remove(self, name: str) -> None:
        durable_files.remove(self._folder / name)

    def runs(self) -> list[str]:
        folders = [folder for folder in self._folder.iterdir() if folder.is_dir()]
        return [folder.name for folder in sorted(folders, key=lambda folder: folder.stat().st_mtime_ns)]

    def remove_run(self, run: str) -> None:
        shutil.rmtree(self._folder / run)
