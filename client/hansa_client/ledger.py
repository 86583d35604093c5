"""The privacy that this merchant has spent, by order: append-only, and on disk before the work of an order begins.

- A charge is on disk before anything is computed for its order; nothing is ever refunded.
- Nothing is charged that would pass what was agreed on, or the merchant's own limit over all agreements, runs and
  coordinators whose orders stand in this ledger.
- A charge pays for one answer of one payer. An order that is obeyed again is not charged again while nothing has left
  for it, which the ledger itself says: before an answer leaves, that it leaves is on disk. After that it would be a
  second release, with noise of its own, and is charged as one, even where the record of orders was lost. So is what
  another state folder answers to the same order (ledger_payers.py).
- Killed at any moment it goes on with what it has: a line that was not whole was never acted upon.
- A ledger that is behind what its head file says, or not the one that it was, is refused; every answer tells the
  coordinator how far it is.

Several processes may share one ledger (one for each federation that the same rows take part in); they write in turn.
What mechanisms cost together is ledger_account.py's, what the lines say ledger_entries.py's, what an order is charged
privacy_costs.py's.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from hansa_client.chained_lines import EMPTY, Chain, ChainedFile
from hansa_client.ledger_account import Account, Limit, Tally, tally_of
from hansa_client.ledger_entries import Charge, Entry, answered_entry, ledger_lines
from hansa_client.ledger_head import LedgerHead
from hansa_client.ledger_payers import charging_alone
from hansa_common import durable_files
from hansa_common.errors import MerchantError, UsageError
from hansa_common.ledger_state import LedgerState

LEDGER_FOLDER: Final = "ledger"
LEDGER_NAME: Final = "ledger.jsonl"


@dataclass(frozen=True)
class LedgerFiles:
    """Where a ledger is: its folder, which only this user can open, and the file that says how far it is."""

    folder: Path
    head: LedgerHead

    @property
    def path(self) -> Path:
        """The ledger itself."""
        return self.folder / LEDGER_NAME

    @property
    def lines(self) -> ChainedFile[Entry]:
        """Its lines."""
        return ledger_lines(self.path)


class Ledger:
    """One merchant's ledger. Without files it lasts as long as this object, and tells nobody how far it is."""

    def __init__(
        self,
        files: LedgerFiles | None = None,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
        payer: str = "",
    ) -> None:
        """Read what there is. What is charged here is for answers of the state folder with the id `payer`.

        Raises:
            UsageError: the folder, or that of the head file, cannot be made, or others can open it.
            MerchantError: a line was changed, or the ledger is behind its head file.
        """
        self._files = files
        self._now = now
        self._payer = payer
        self._chain = EMPTY
        self._account = Account()
        self._unanswered: set[tuple[str, str]] = set()
        if files is not None:
            durable_files.make_private_folder(files.folder)
            files.head.prepare()
            with self._held():
                pass

    @property
    def state(self) -> LedgerState | None:
        """How far it is, for who should notice that it goes back; None where it is not kept."""
        return None if self._files is None else _state(self._chain)

    def spent_under(self, agreement: str) -> Tally:
        """What orders under the agreement of this fingerprint have cost, as far as this process has read."""
        return self._account.by_agreement.get(agreement, Tally())

    def charge(self, asked: Charge, own: Limit | None = None) -> None:
        """Charge an order, on disk when this returns; call before its work begins. What costs nothing is not charged,
        nor what was charged and has not been answered.

        Raises:
            BudgetError: it would pass what was agreed on, or the merchant's own limit.
            MerchantError: the ledger is not what it was, or cannot be written.
        """
        if not asked.mechanisms:
            return
        with self._held():
            if (self._payer, asked.order_hash) not in self._unanswered:
                self._account.check(asked.agreement, tally_of(asked.mechanisms), asked.agreed, own)
                self._append(asked.entry(self._payer, self._chain, self._now()))

    def answered(self, order_hash: str) -> None:
        """Put on record that an answer to an order leaves, on disk when this returns; nothing where it was not charged.

        Raises:
            MerchantError: as `charge` does.
        """
        if (self._payer, order_hash) in self._unanswered:
            with self._held():
                self._append(answered_entry(order_hash, self._payer, self._chain, self._now()))

    def charging_alone(self) -> AbstractContextManager[None]:
        """Be the one process that charges as this payer; to be held for as long as anything is charged.

        Raises:
            UsageError: another process does.
        """
        return nullcontext() if self._files is None else charging_alone(self._files.folder, self._payer)

    @contextmanager
    def _held(self) -> Iterator[None]:
        """The ledger for this process alone, up to date, with a head file that is up to date when this ends."""
        if self._files is None:
            yield
            return
        with durable_files.in_turn(self._files.folder):
            noted = self._files.head.read()
            self._catch_up(self._files, noted)
            yield
            if noted != _state(self._chain) and self._chain.num_lines:
                self._files.head.write(_state(self._chain))

    def _catch_up(self, files: LedgerFiles, noted: LedgerState | None) -> None:
        """Take in what another process has written, or all there is."""
        for entry, chain in _links(files, self._chain, noted):
            if entry is not None:
                self._take(entry, chain)
            elif chain.num_torn_bytes:
                files.lines.take_torn_off(chain)

    def _append(self, entry: Entry) -> None:
        chain = self._chain
        if self._files is None:
            self._take(entry, chain.with_line(entry.line()))
            return
        if not chain.num_lines:
            # First, or a kill between the two would leave a ledger whose head file is missing.
            self._files.head.write(_state(chain))
        self._take(entry, self._files.lines.append(entry, chain))

    def _take(self, entry: Entry, chain: Chain) -> None:
        if entry.what == "answered":
            self._unanswered.discard(entry.answer)
        else:
            self._unanswered.add(entry.answer)
            self._account.add(entry.agreement or "", entry.cost)
        self._chain = chain


def read(files: LedgerFiles) -> tuple[LedgerState, tuple[Entry, ...]]:
    """How far a ledger is, and its lines, verified and held against its head file; nothing is changed.

    Raises:
        MerchantError: a line was changed, or the ledger is behind its head file; says which, and what to do.
    """
    *links, (_, chain) = _links(files, EMPTY, files.head.read())
    return _state(chain), tuple(entry for entry, _ in links if entry is not None)


def write_head(files: LedgerFiles) -> LedgerState:
    """Say in the head file, where there is none, that the ledger as it stands is the newest.

    Raises:
        UsageError: there is one.
        MerchantError: a line of the ledger was changed.
    """
    durable_files.make_private_folder(files.folder)
    files.head.prepare()
    with durable_files.in_turn(files.folder):
        if files.head.read() is not None:
            raise UsageError(f"{files.head.path} is there, and stays; a ledger that is behind it is not the newest")
        ((_, chain),) = deque(files.lines.links(), maxlen=1)
        files.head.write(_state(chain))
    return _state(chain)


def _links(files: LedgerFiles, begin: Chain, noted: LedgerState | None) -> Iterator[tuple[Entry | None, Chain]]:
    """As ChainedFile.links, of a ledger that may not have begun, and whose head file says so much."""
    chain = begin
    _check_passes(files, chain, noted)
    if files.path.exists() or begin.num_lines:
        for entry, chain in files.lines.links(begin):
            if entry is not None:
                _check_passes(files, chain, noted)
                yield entry, chain
    _check_not_behind(files, chain, noted)
    yield None, chain


def _state(chain: Chain) -> LedgerState:
    return LedgerState(chain.num_lines, chain.head)


def _check_passes(files: LedgerFiles, chain: Chain, noted: LedgerState | None) -> None:
    """See that the ledger was, at its time, where its head file says."""
    if noted is not None and chain.num_lines == noted.number and chain.head != noted.head:
        raise MerchantError(
            f"{files.path} has another line {noted.number} than {files.head.path} knows: it is another ledger, or was "
            "written over; put the right one back, or name its own head file with --ledger-head"
        )


def _check_not_behind(files: LedgerFiles, chain: Chain, noted: LedgerState | None) -> None:
    if noted is None and chain.num_lines:
        raise MerchantError(
            f"{files.path} has {chain.num_lines} lines, and there is no {files.head.path} to say that these are all: "
            "put that file back; if the folder was moved, and the ledger is the newest that there is, have it written "
            "anew: hansa client ledger --write-head"
        )
    if noted is not None and chain.num_lines < noted.number:
        raise MerchantError(
            f"{files.path} has {chain.num_lines} lines, and {files.head.path} knows of {noted.number}: an older copy "
            "was put back, which does not know all that was spent; put the newest one back"
        )
