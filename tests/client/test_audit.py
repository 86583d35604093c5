"""The audit holds what was asked and answered, whole and in order, across kills; a change of any line is found."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hansa_client.audit import ASIDE_LINES_AN_HOUR, Audit, entries, verified
from hansa_client.chained_lines import MAX_LINE_BYTES, MAX_TEXT_CHARS
from hansa_common.errors import MerchantError

NOW = datetime(2026, 3, 1, 23, 30, tzinfo=UTC)
ORDER, REPLY = "a" * 64, "b" * 64


@pytest.fixture
def path(tmp_path):
    return tmp_path / "audit.jsonl"


def opened(path) -> Audit:
    return Audit(path, lambda: NOW)


def filled(path, num_orders: int = 3):
    audit = opened(path)
    audit.started("c" * 64)
    for number in range(1, num_orders + 1):
        asked = {"run": "run", "sequence": number, "order": ORDER}
        audit.asked(**asked, kind="round", round=number, num_bytes=4000)
        audit.answered("answered", **asked, kind="round-reply", reply=REPLY, num_bytes=3000)
    return audit


def test_lines_say_what_was_asked_and_answered_in_order(path):
    audit = filled(path, 1)
    audit.answered("refused", code="not-permitted", reason="asked 3, allowed 2", order=ORDER)
    started, asked, answered, refused = entries(path)
    assert [e.number for e in (started, asked, answered, refused)] == [1, 2, 3, 4]
    assert started.at == "2026-03-01T23:30:00.000+00:00"
    assert (asked.what, asked.kind, asked.round, asked.num_bytes) == ("asked", "round", 1, 4000)
    assert (answered.what, answered.decision, answered.reply) == ("answered", "answered", REPLY)
    assert (refused.decision, refused.code, refused.reason) == ("refused", "not-permitted", "asked 3, allowed 2")
    assert path.stat().st_mode & 0o777 == 0o600


def test_chain_goes_on_in_the_next_process(path):
    head = filled(path).head
    audit = opened(path)
    assert audit.head == head == verified(path).head
    audit.asked(order=ORDER)
    assert verified(path).num_lines == 8
    assert [*entries(path)][-1].previous == head


def test_every_change_of_a_line_is_found(path):
    filled(path)
    whole = path.read_bytes()
    lines = whole.splitlines(keepends=True)
    changed = [
        [*lines[:2], lines[2].replace(b"answered", b"refused_", 1), *lines[3:]],
        [*lines[:2], lines[2].replace(b'"round-reply"', b'"refusal"'), *lines[3:]],
        [*lines[:2], *lines[3:]],
        [lines[0], lines[2], lines[1], *lines[3:]],
        [*lines[:3], lines[2], *lines[3:]],
        [lines[1], *lines[2:]],
        [*lines[:2], lines[2].replace(b":", b": ", 1), *lines[3:]],
        [*lines, b"\n"],
        [*lines, b"not JSON\n"],
        [*lines[:2], b'{"x": 1}\n', *lines[2:]],
        [*lines, b"x" * (MAX_LINE_BYTES + 1)],
    ]
    for forged in changed:
        path.write_bytes(b"".join(forged))
        with pytest.raises(MerchantError, match=r"audit\.jsonl, line \d+.*keep the file elsewhere"):
            opened(path)
        assert path.read_bytes() == b"".join(forged)
    path.write_bytes(whole)
    opened(path)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=60)
@given(place=st.integers(0, 10**6), flip=st.integers(1, 255))
def test_changed_byte_anywhere_is_found(path, place, flip):
    path.unlink(missing_ok=True)
    filled(path)
    content = bytearray(path.read_bytes())
    # Not the very last: without its end the last line counts as unfinished.
    content[place % (len(content) - 1)] ^= flip
    path.write_bytes(bytes(content))
    last = content.rfind(b"\n", 0, -1) + 1
    if place % (len(content) - 1) < last:
        with pytest.raises(MerchantError):
            verified(path)


@pytest.mark.parametrize("num_bytes_left", [1, 20, -1])
def test_torn_last_line_is_taken_off_and_noted(path, num_bytes_left):
    filled(path)
    lines = path.read_bytes().splitlines(keepends=True)
    torn = lines[-1][:num_bytes_left]
    path.write_bytes(b"".join([*lines[:-1], torn]))
    assert verified(path).num_torn_bytes == len(torn)
    opened(path).started("c" * 64)
    *_, repaired, started = entries(path)
    assert (repaired.what, repaired.num_bytes, repaired.number) == ("repaired", len(torn), len(lines))
    assert started.what == "started"


def test_file_that_is_changed_or_taken_away_while_in_use_stops_what_leaves(path):
    audit = filled(path)
    content = path.read_bytes()
    path.write_bytes(content[:-10])
    with pytest.raises(MerchantError, match="was changed"):
        audit.asked(order=ORDER)
    path.unlink()
    with pytest.raises(MerchantError, match="is gone"):
        audit.asked(order=ORDER)
    assert not path.exists()
    path.write_bytes(content)
    audit.asked(order=ORDER)
    assert verified(path).num_lines == 8


def test_line_that_meets_a_full_disk_leaves_nothing(path, monkeypatch):
    audit = filled(path)
    content = path.read_bytes()
    write = os.write
    monkeypatch.setattr(os, "write", lambda descriptor, line: write(descriptor, line[:5]))
    with pytest.raises(MerchantError, match="full"):
        audit.asked(order=ORDER)
    monkeypatch.undo()
    assert path.read_bytes() == content
    audit.asked(order=ORDER)
    verified(path)


def test_line_that_cannot_be_written_at_all_says_why_and_leaves_nothing(path, full_disk):
    audit = filled(path)
    content = path.read_bytes()
    with full_disk(), pytest.raises(MerchantError, match="cannot be written"):
        audit.asked(order=ORDER)
    assert path.read_bytes() == content
    audit.asked(order=ORDER)
    verified(path)


def test_orders_that_are_not_worked_on_fill_no_disk_and_are_counted(path):
    now = [datetime(2026, 3, 1, tzinfo=UTC)]
    audit = Audit(path, lambda: now[0])
    for _ in range(3 * ASIDE_LINES_AN_HOUR):
        audit.set_aside("refused", code="not-signed", order=ORDER)
        now[0] += timedelta(seconds=1)
    assert [e.num_unnoted for e in entries(path)] == [0] * ASIDE_LINES_AN_HOUR
    audit.asked(order=ORDER)
    now[0] += timedelta(hours=1)
    audit.set_aside("stored", order=ORDER)
    *_, asked, stored = entries(path)
    assert (asked.what, asked.num_unnoted) == ("asked", 2 * ASIDE_LINES_AN_HOUR)
    assert (stored.decision, stored.num_unnoted) == ("stored", 0)


def test_line_is_one_line_of_bounded_length_whatever_an_order_says(path):
    audit = opened(path)
    audit.answered("refused", reason="\x1b[2J\nERROR " + "\U0001f600" * 10_000, run="\U0001f600" * 120)
    (entry,) = entries(path)
    assert len(entry.reason) == MAX_TEXT_CHARS
    assert entry.reason.isprintable()
    assert len(path.read_bytes()) < MAX_LINE_BYTES
    assert path.read_bytes().count(b"\n") == 1


def test_nothing_is_kept_without_a_path():
    audit = filled(None)
    assert audit.head == "0" * 64


PROGRAM = """
import sys
from pathlib import Path
from hansa_client.audit import Audit
audit = Audit(Path(sys.argv[1]))
for number in range(10**9):
    audit.asked(order="a" * 64, kind="round", num_bytes=number)
    if number == 50:
        print("under way", flush=True)
"""


@pytest.mark.system
def test_kill_leaves_a_chain_that_the_next_process_goes_on_with(path):
    for _ in range(3):
        with subprocess.Popen([sys.executable, "-c", PROGRAM, str(path)], stdout=subprocess.PIPE) as writer:
            assert writer.stdout.readline() == b"under way\n"
            writer.send_signal(signal.SIGKILL)
        Audit(path).started("c" * 64)
        assert json.loads(path.read_bytes().splitlines()[-1])["what"] == "started"
        assert verified(path).num_torn_bytes == 0
