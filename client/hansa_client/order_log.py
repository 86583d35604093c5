"""Which orders this merchant has taken, so that none is obeyed twice: durable, and bounded in size.

An order is on record before it is obeyed, and its reply before it leaves; a process may be killed at any moment.

| an order                                                           | outcome                                         |
|--------------------------------------------------------------------|-------------------------------------------------|
| of the current run, with a higher number than all before           | taken; None                                     |
| byte for byte one that was answered, since the last round but one  | the stored reply                                |
| byte for byte the last, whose answer never left this process       | None: it is to be obeyed now                    |
| with a number that was there, or is lower                          | ReplayError                                     |
| of a round that was there, or is earlier in its stage or stages    | ReplayError                                     |
| of another run than that of the last introduction                  | ReplayError                                     |
| an introduction with a number not above all of its coordinator's   | ReplayError                                     |

The current run is that of the last introduction that was answered. Under `[trust]` a coordinator raises the number of
its introductions with each: an old one takes nobody back, and an order that was held back waits until its own run
introduces itself anew, as one does that is resumed. Replies of the last few runs are kept, numbers of all. What an
order costs is to be charged between `take` and the work, by its hash: one order is obeyed once, or again before it ever
left.

file, in the folder           holds
RUN.json                      a run's record: its last number and round, and the orders whose replies are kept
RUN/NUMBER.reply              a reply, after its SHA-256
"""

from __future__ import annotations

import hashlib
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Final, get_args

from pydantic import Field, ValidationError

from hansa_common import durable_files
from hansa_common.errors import MerchantError, ReplayError
from hansa_common.messages import MAX_INTRODUCTION, RoundOrder
from hansa_common.record_types import Digest, Name, Order, SequenceNumber, Stage
from hansa_common.schema import Section

ORDERS_NAME: Final = "orders"
# Several a day for years. A run that was forgotten could be played again, so beyond it none is begun.
MAX_RUNS: Final = 10_000
NUM_RUNS_WITH_REPLIES: Final = 4
NUM_ROUNDS_WITH_REPLIES: Final = 2
MAX_REPLIES: Final = 64
_STAGES: Final = get_args(Stage)
_HASH_BYTES: Final = 32


class Taken(Section):
    """One order on record."""

    sequence: SequenceNumber
    order_hash: Digest
    is_round: bool


class RunRecord(Section):
    """What is known of a run. `begun` orders runs by their last introduction, which had the number `introduction` of
    the coordinator with this public key, '' where orders are not signed; `round_place` is the last round's stage, by
    its place in Stage, and its number.
    """

    run_id: Name
    begun: Annotated[int, Field(ge=1)]
    introduction: Annotated[int, Field(ge=0, le=MAX_INTRODUCTION)] = 0
    coordinator: Annotated[str, Field(pattern=r"^([0-9a-f]{64})?$")] = ""
    sequence: Annotated[int, Field(ge=0)] = 0
    round_place: tuple[int, int] | None = None
    taken: Annotated[tuple[Taken, ...], Field(max_length=MAX_REPLIES)] = ()

    def begins_as(self, run_id: str, introduction: int, coordinator: str) -> bool:
        """Whether this is the run, and the introduction, that it began with."""
        return (self.run_id, self.introduction, self.coordinator) == (run_id, introduction, coordinator)

    def with_order(self, order: Order, order_hash: str) -> RunRecord:
        """The record once a new order is taken.

        Raises:
            ReplayError: its number, or its round, is not after all those before.
        """
        if order.sequence <= self.sequence:
            raise ReplayError(
                f"the order has number {order.sequence} in run {self.run_id!r}, and is not the one that had it; "
                f"allowed is a number above {self.sequence}"
            )
        taken = (
            *self.taken,
            Taken(sequence=order.sequence, order_hash=order_hash, is_round=isinstance(order, RoundOrder)),
        )
        changes = {"sequence": order.sequence, "round_place": self._next_place(order), "taken": _answerable(taken)}
        return self.model_copy(update=changes)

    def _next_place(self, order: Order) -> tuple[int, int] | None:
        if not isinstance(order, RoundOrder):
            return self.round_place
        place = (_STAGES.index(order.stage), order.round)
        if self.round_place is not None and place <= self.round_place:
            stage, number = self.round_place
            raise ReplayError(
                f"the order asks for round {order.round} of stage {order.stage!r}; run {self.run_id!r} has been in "
                f"round {number} of stage {_STAGES[stage]!r}, and a round never comes twice"
            )
        return place


def _answerable(taken: tuple[Taken, ...]) -> tuple[Taken, ...]:
    """The orders that a coordinator which resumes its run may send again: those since the last round but one."""
    rounds = [place for place, entry in enumerate(taken) if entry.is_round]
    first = rounds[-NUM_ROUNDS_WITH_REPLIES] if len(rounds) >= NUM_ROUNDS_WITH_REPLIES else 0
    return taken[max(first, len(taken) - MAX_REPLIES) :]


@dataclass(frozen=True)
class _Reply:
    """Where one reply is kept."""

    path: Path

    def read(self) -> bytes | None:
        try:
            content = self.path.read_bytes()
        except FileNotFoundError:
            return None
        reply = content[_HASH_BYTES:]
        if hashlib.sha256(reply).digest() != content[:_HASH_BYTES]:
            raise MerchantError(f"the stored reply {self.path} is damaged; remove that file and sit this run out")
        return reply

    def write(self, reply: bytes) -> None:
        durable_files.make_private_folder(self.path.parent)
        durable_files.write(self.path, hashlib.sha256(reply).digest() + reply)


class OrderLog:
    """The record of one merchant's orders. Without a folder it lasts as long as this object and keeps no reply: the
    last order, if it comes again, is obeyed again.
    """

    def __init__(self, folder: Path | None = None) -> None:
        """Read what there is; the caller holds the folder for itself.

        Raises:
            MerchantError: a record is damaged.
        """
        self._folder = folder
        self._records: dict[str, RunRecord] = {}
        self._current: RunRecord | None = None
        if folder is not None:
            durable_files.make_private_folder(folder)
            found = sorted(map(_read_record, folder.glob("*.json")), key=lambda record: record.begun)
            self._records = {record.run_id: record for record in found}
            self._current = found[-1] if found else None

    def begin(self, run_id: str, introduction: int = 0, coordinator: str = "") -> bool:
        """Take part in a run from now on, and no longer in another; whether that is new, as it is no error to do so
        already. The number of the introduction is this coordinator's, '' where orders are not signed.

        Raises:
            ReplayError: it is not above those that came before.
            MerchantError: there have been too many runs.
        """
        current = self._current
        if current is not None and current.begins_as(run_id, introduction, coordinator):
            return False
        self._check_introduction(introduction, coordinator)
        if run_id not in self._records and len(self._records) >= MAX_RUNS:
            raise MerchantError(
                f"this merchant has taken part in {MAX_RUNS} runs, and to forget one would let its orders be played "
                f"again; begin with an agreement of another seed and an empty --state"
            )
        begun = 1 if self._current is None else self._current.begun + 1
        known = self._records.get(run_id, RunRecord(run_id=run_id, begun=begun))
        changes = {"begun": begun, "introduction": introduction, "coordinator": coordinator}
        self._current = self._written(known.model_copy(update=changes))
        self._forget_replies_of_old_runs()
        return True

    def _check_introduction(self, number: int, coordinator: str) -> None:
        if not coordinator:
            # Who can make it up can make up any number.
            return
        known = [record.introduction for record in self._records.values() if record.coordinator == coordinator]
        if number <= max(known, default=0):
            raise ReplayError(
                f"the introduction has number {number}, this merchant has seen {max(known, default=0)} of its "
                "coordinator; allowed is a higher one"
            )

    def take(self, order: Order, order_hash: str) -> bytes | None:
        """Put an order on record, on disk when this returns; the reply if it has been answered already.

        Raises:
            ReplayError: it is not one to be obeyed now, nor one whose reply is kept.
            MerchantError: its reply is damaged.
        """
        record = self._current
        if record is None or order.run_id != record.run_id:
            raise ReplayError(
                f"the order is of run {order.run_id!r}; this merchant has last introduced itself to "
                f"{'none' if record is None else f'run {record.run_id!r}'}, and takes orders of that one"
            )
        for entry in record.taken:
            if entry.order_hash == order_hash:
                reply = self._reply(record, entry)
                if reply is not None or entry is record.taken[-1]:
                    return reply
        self._current = self._written(record.with_order(order, order_hash))
        self._forget_outdated_replies(self._current)
        return None

    def keep(self, order_hash: str, reply: bytes) -> None:
        """Store the reply to the order that was taken last, on disk when this returns; call before it leaves."""
        if self._current is None or not self._current.taken or self._current.taken[-1].order_hash != order_hash:
            raise ValueError("only the reply to the order that was taken last is kept")
        if self._folder is not None:
            self._reply_file(self._current, self._current.taken[-1]).write(reply)

    def _reply(self, record: RunRecord, entry: Taken) -> bytes | None:
        return None if self._folder is None else self._reply_file(record, entry).read()

    def _reply_file(self, record: RunRecord, entry: Taken) -> _Reply:
        return _Reply(self._replies(record) / f"{entry.sequence}.reply")

    def _replies(self, record: RunRecord) -> Path:
        if self._folder is None:
            raise ValueError("a log without a folder keeps no replies")
        return self._folder / _file_name(record.run_id)

    def _written(self, record: RunRecord) -> RunRecord:
        """The record, once it is on disk."""
        if self._folder is not None:
            path = self._folder / f"{_file_name(record.run_id)}.json"
            durable_files.write(path, record.model_dump_json().encode())
        self._records[record.run_id] = record
        return record

    def _forget_outdated_replies(self, record: RunRecord) -> None:
        if self._folder is None or not self._replies(record).is_dir():
            return
        # By what is to stay, not by what goes: so what was left by a process that was killed goes too.
        staying = {f"{entry.sequence}.reply" for entry in record.taken}
        for path in self._replies(record).iterdir():
            if path.name not in staying:
                path.unlink()

    def _forget_replies_of_old_runs(self) -> None:
        if self._folder is None:
            return
        for record in sorted(self._records.values(), key=lambda record: record.begun)[:-NUM_RUNS_WITH_REPLIES]:
            if record.taken:
                # First of all, or an order that was answered would look like one that was not.
                self._written(record.model_copy(update={"taken": ()}))
            if self._replies(record).is_dir():
                shutil.rmtree(self._replies(record))


def _file_name(run_id: str) -> str:
    # A run is named by the coordinator: hashed, its name cannot lead out of the folder.
    return hashlib.sha256(run_id.encode()).hexdigest()[:32]


def _read_record(path: Path) -> RunRecord:
    try:
        record = RunRecord.model_validate_json(path.read_bytes())
    except (OSError, ValidationError) as error:
        raise MerchantError(
            f"the record of orders {path} is damaged; remove it only if that run is over for good: its orders could be "
            "played again"
        ) from error
    if _file_name(record.run_id) != path.stem:
        raise MerchantError(f"the record of orders {path} is of another run, {record.run_id!r}; put it back")
    return record
