"""A privacy ledger that goes back is noticed: within a run and across runs, and told for good."""

from __future__ import annotations

import json
import logging
from datetime import UTC, datetime, timedelta

import pytest

from hansa_common.errors import CoordinatorError
from hansa_common.keys import public_key_of
from hansa_common.ledger_state import LedgerState
from hansa_common.trust import Trust
from hansa_server import run_folder
from hansa_server.ledger_book import LedgerBook, read_book
from hansa_server.ledger_events import LedgerTold, LedgerWentBack
from hansa_server.run_events import NodeRefused

NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)
KEYS = {"alder": "a" * 64, "birch": "b" * 64}


def at(number: int, letter: str = "f") -> LedgerState:
    return LedgerState(number, letter * 64 if number else "0" * 64)


@pytest.fixture
def book(tmp_path):
    """The book as the next run opens it."""
    return lambda keys=KEYS, now=NOW: LedgerBook(tmp_path, keys, lambda: now)


def told(book: LedgerBook, state: LedgerState, merchant: str = "alder", asked_at: datetime = NOW) -> list:
    return list(book.note(LedgerTold(merchant, str(state), asked_at)))


def test_ledger_that_grows_is_no_news(book):
    one = book()
    for number in (0, 2, 2, 4, 400):
        assert told(one, at(number)) == []
    assert told(one, at(1), "birch") == []
    assert told(book(), at(400)) == []


def test_nothing_is_written_where_nothing_was_ever_charged(book, tmp_path):
    assert told(book(), at(0)) == []
    assert list(book().note(NodeRefused(1, "unknown-name"))) == []
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("later", [at(5), at(0), at(8, "e")])
@pytest.mark.parametrize("in_next_run", [False, True])
def test_ledger_that_went_back_or_was_replaced_is_told_once_and_noted(book, tmp_path, caplog, later, in_next_run):
    one = book()
    told(one, at(8))
    with caplog.at_level(logging.WARNING):
        (warning,) = told(book() if in_next_run else one, later)
    assert warning == LedgerWentBack("alder", at(8), later)
    assert warning.level == logging.WARNING
    assert "an older copy of it is in use" in warning.line
    assert warning.line in caplog.text
    assert told(one, later) == []
    assert read_book(tmp_path)["alder"].went_back_at == NOW
    # It stays noted when the ledger grows again.
    assert told(book(now=NOW + timedelta(days=1)), at(9, "d")) == []
    assert read_book(tmp_path)["alder"].went_back_at == NOW


def test_answer_that_was_asked_for_before_the_later_state_was_heard_is_no_alarm_and_hides_none(book, tmp_path):
    # Two runs at once: what the merchant answered first is read last.
    before, after = NOW - timedelta(seconds=30), NOW + timedelta(seconds=30)
    one_run, other_run = book(), book()
    told(one_run, at(8))
    assert told(other_run, at(6), asked_at=before) == []
    assert read_book(tmp_path)["alder"].state == at(8)
    # Its next order is asked for afterwards, and tells.
    assert told(other_run, at(6), asked_at=after) == [LedgerWentBack("alder", at(8), at(6))]


def test_alarm_is_told_at_the_end_of_every_run_that_the_merchant_is_in(book):
    told(book(), at(8))
    told(book(), at(8), "birch")
    told(book(), at(5))
    # Another run at the same time, and one of later.
    noted = {"alder": {"at": "2026-03-01T12:00:00+00:00", "from_line": 8, "to_line": 5}}
    for later in (book(), book(now=NOW + timedelta(days=9))):
        assert later.went_back(["alder", "birch", "cedar"]) == noted
        assert later.went_back(["birch"]) == {}
    assert book({**KEYS, "alder": "c" * 64}).went_back(KEYS) == {}


def test_book_of_an_earlier_version_is_read_and_its_alarm_kept(book, tmp_path):
    known = {"ledger": str(at(5)), "key": "a" * 64, "went_back": "2026-02-01T00:00:00+00:00"}
    (tmp_path / "ledgers.json").write_text(json.dumps({"alder": known}))
    unknown = {"at": "2026-02-01T00:00:00+00:00", "from_line": None, "to_line": None}
    assert book().went_back(["alder"]) == {"alder": unknown}
    assert len(told(book(), at(4))) == 1


def test_merchant_with_another_key_is_another_and_begins_anew(book):
    told(book(), at(8))
    assert told(book({**KEYS, "alder": "c" * 64}), at(0)) == []
    assert told(book({**KEYS, "alder": "c" * 64}), at(2)) == []


def test_book_is_in_the_state_folder_under_trust_and_else_in_the_runs(tmp_path, world):
    plain = world.agreement(roster=["alder", "birch"])
    keys = {name: public_key_of(bytes([number] * 32)) for number, name in enumerate(("alder", "birch"), 1)}
    trusting = plain.with_trust(Trust(coordinator=public_key_of(bytes(32)), merchants=keys))
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        run_folder.name_signing_key(tmp_path / name, tmp_path / "signing.key")
    told(LedgerBook.of_run(tmp_path / "one", trusting), at(8))
    assert read_book(tmp_path)["alder"].key == keys["alder"]
    assert len(told(LedgerBook.of_run(tmp_path / "two", trusting), at(5), asked_at=datetime.now(UTC))) == 1
    told(LedgerBook.of_run(tmp_path / "one", plain), at(8))
    assert told(LedgerBook.of_run(tmp_path / "two", plain), at(5), asked_at=datetime.now(UTC)) == []
    assert read_book(tmp_path / "one")["alder"].key == ""


@pytest.mark.parametrize(
    "content",
    ["", "[]", '{"alder": 3}', '{"alder": {"ledger": "x"}}', '{"alder": {"ledger": "1:0", "went_back": "x"}}'],
)
def test_damaged_book_is_told_with_its_file(book, tmp_path, content):
    (tmp_path / "ledgers.json").write_text(content)
    with pytest.raises(CoordinatorError, match=r"ledgers\.json cannot be read"):
        told(book(), at(1))
