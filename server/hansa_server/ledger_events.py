"""What merchants say of their privacy ledgers, and what that means, as events of a run."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from datetime import datetime

from hansa_common.ledger_state import LedgerState
from hansa_server.run_events import Event


@dataclass(frozen=True)
class LedgerTold(Event):
    """A merchant said how far its ledger is, the text of a LedgerState, in its answer to an order of this moment."""

    merchant: str
    ledger: str
    asked_at: datetime

    @property
    def level(self) -> int:
        return logging.DEBUG

    @property
    def line(self) -> str:
        return f"the privacy ledger of {self.merchant!r} is at {self.ledger[:24]}"


@dataclass(frozen=True)
class LedgerWentBack(Event):
    """A merchant's ledger is not where it was, or beyond."""

    merchant: str
    before: LedgerState
    now: LedgerState

    @property
    def level(self) -> int:
        return logging.WARNING

    @property
    def line(self) -> str:
        how = f"went back from line {self.before.number} to line {self.now.number}"
        if self.before.number == self.now.number:
            how = f"has another line {self.now.number} than before"
        return (
            f"the privacy ledger of {self.merchant!r} {how}: an older copy of it is in use, and what it does not know "
            "of can be spent again; ask that merchant"
        )
