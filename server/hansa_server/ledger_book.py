"""How far each merchant's privacy ledger was when it last said so, and which one went back.

A merchant's ledger only grows. One that is lower than before, or another at the same number, is an older copy that was
put back: what the newer one had charged can be spent again. The merchant's own check does not see it where its whole
machine was put back; here it is told as a warning, and from then on in the report and metrics.json of every run that
the merchant is in, and by `hansa server status`. Nothing is refused for it, for the merchant's word is all there is,
unless that was agreed on (cohort.rewound_ledger).

Runs overlap, and merchants answer two of them from one ledger: an answer may be read after a later one. So what is
behind counts only in an answer to an order that went out after the later state was heard; another says nothing, and the
next order's will.

The book is ledgers.json, in the coordinator's state folder where the agreement has [trust], by name and identity key:
so it holds across runs. Otherwise names are nobody's, and it is in the run's folder and holds for the run.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final, Self

from hansa_common import durable_files
from hansa_common.agreement import Agreement
from hansa_common.errors import CoordinatorError
from hansa_common.ledger_state import LedgerState
from hansa_server import run_folder
from hansa_server.ledger_events import LedgerTold, LedgerWentBack
from hansa_server.run_events import Event

NAME: Final = "ledgers.json"
_EMPTY: Final = LedgerState(0, "0" * 64)

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Known:
    """What is known of one merchant's ledger: how far it was last, of whose identity key (empty: of whoever has the
    name), since when that is known, when it last went back (ISO 8601; None: never), and how far it had been then and
    was found to be ('' where an earlier version noted it).
    """

    ledger: str
    key: str = ""
    since: str | None = None
    went_back: str | None = None
    went_back_from: str = ""
    went_back_to: str = ""

    @property
    def state(self) -> LedgerState:
        """How far it was last."""
        return LedgerState.of_text(self.ledger)

    @property
    def went_back_at(self) -> datetime | None:
        """When it last went back."""
        return None if self.went_back is None else datetime.fromisoformat(self.went_back)

    @property
    def lines_went_back(self) -> tuple[int, int] | None:
        """From which line to which it last went back; the same twice where that line was another one."""
        states = [LedgerState.of_text(text) for text in (self.went_back_from, self.went_back_to) if text]
        return None if not states else (states[0].number, states[-1].number)

    def is_later_than(self, asked_at: datetime) -> bool:
        """Whether an answer to an order of this moment can be from before it was heard how far the ledger was."""
        return self.since is not None and asked_at < datetime.fromisoformat(self.since)

    def told(self, now: LedgerState, moment: datetime) -> Known:
        """What is known once the ledger was heard to be at `now`."""
        later = replace(self, ledger=str(now), since=moment.isoformat())
        if not now.is_behind(self.state):
            return later
        noticed = moment.isoformat(timespec="seconds")
        return replace(later, went_back=noticed, went_back_from=self.ledger, went_back_to=str(now))

    def to_json(self) -> dict[str, Any]:
        """What metrics.json says of a ledger that went back."""
        lines = self.lines_went_back
        return {"at": self.went_back, "from_line": lines and lines[0], "to_line": lines and lines[1]}


class LedgerBook:
    """Notes how far ledgers are, for one run."""

    def __init__(
        self, folder: Path, keys: Mapping[str, str], now: Callable[[], datetime] = lambda: datetime.now(UTC)
    ) -> None:
        """Keep the book in this folder; `keys` are the merchants' identity keys, by name."""
        self._folder = folder
        self._keys = keys
        self._now = now

    @classmethod
    def of_run(cls, folder: Path, agreement: Agreement) -> Self:
        """The book for the run in a folder."""
        key_file = run_folder.signing_key_file(folder)
        if agreement.trust is None or key_file is None:
            return cls(folder, {})
        return cls(key_file.parent, agreement.trust.merchants)

    def note(self, event: Event) -> tuple[Event, ...]:
        """Take down what an event says of a ledger, if it says anything; what is to be told for it."""
        if not isinstance(event, LedgerTold):
            return ()
        now = LedgerState.of_text(event.ledger)
        with durable_files.in_turn(self._folder):
            book = dict(read_book(self._folder))
            known = self._known(book, event.merchant)
            is_behind = now.is_behind(known.state)
            if known.state == now or (is_behind and known.is_later_than(event.asked_at)):
                return ()
            book[event.merchant] = known.told(now, self._now())
            _write(self._folder, book)
        if not is_behind:
            return ()
        told = LedgerWentBack(event.merchant, known.state, now)
        _log.log(told.level, "%s", told.line)
        return (told,)

    def went_back(self, merchants: Iterable[str]) -> dict[str, dict[str, Any]]:
        """Of these merchants those whose ledger ever went back: when it last did, and from which line to which."""
        book = read_book(self._folder)
        known = {name: self._known(book, name) for name in merchants}
        return {name: found.to_json() for name, found in known.items() if found.went_back is not None}

    def left_out(self, agreement: Agreement) -> Callable[[str], bool]:
        """Who is to be left out under an agreement, by name, as far as is known when it is asked: nobody, or whose
        ledger ever went back.
        """
        if agreement.cohort.rewound_ledger == "tell":
            return lambda _: False
        return lambda merchant: bool(self.went_back([merchant]))

    def _known(self, book: Mapping[str, Known], merchant: str) -> Known:
        """What is known of the merchant that has this key now."""
        known, key = book.get(merchant), self._keys.get(merchant, "")
        return known if known is not None and known.key == key else Known(str(_EMPTY), key)


def read_book(folder: Path) -> Mapping[str, Known]:
    """The book in a folder, by merchant's name; empty where there is none.

    Raises:
        CoordinatorError: it is damaged.
    """
    path = folder / NAME
    try:
        content: dict[str, dict[str, Any]] = json.loads(path.read_bytes())
        book = {name: Known(**values) for name, values in content.items()}
        for known in book.values():
            # They are read later on.
            _ = known.state, known.went_back_at, known.lines_went_back, known.is_later_than(datetime.now(UTC))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise CoordinatorError(
            f"{path} cannot be read ({error}); put it back, or take it away: then no ledger is known to have gone back"
        ) from error
    return book


def _write(folder: Path, book: Mapping[str, Known]) -> None:
    content = {name: asdict(known) for name, known in sorted(book.items())}
    durable_files.write(folder / NAME, json.dumps(content, indent=2).encode())
