"""A ledger that was changed, shortened, put back or taken away is refused, and says where and what to do."""

from __future__ import annotations

import inspect
import shutil
from types import SimpleNamespace

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hansa_client import merchant_processes, trainer_service
from hansa_client.ledger import Ledger, LedgerFiles, write_head
from hansa_client.ledger_entries import entries
from hansa_client.ledger_head import LedgerHead, default_path
from hansa_client.merchant_files import MerchantFiles
from hansa_common.agreement import validate_agreement
from hansa_common.errors import MerchantError, UsageError


def test_every_change_of_a_line_is_found(files, filled, opened):
    filled(3)
    lines = files.path.read_bytes().splitlines(keepends=True)
    changed = [
        [lines[0].replace(b'"num_steps":50', b'"num_steps":5'), *lines[1:]],
        [*lines[:2], lines[2].replace(b"1.2", b"9.2", 1), *lines[3:]],
        [*lines[:2], *lines[3:]],
        [lines[0], lines[2], lines[1], *lines[3:]],
        [*lines[:3], lines[2], *lines[3:]],
        [*lines, b"not JSON\n"],
        [*lines[:4], lines[4].replace(b":", b": ", 1), lines[5]],
    ]
    for forged in changed:
        files.path.write_bytes(b"".join(forged))
        with pytest.raises(MerchantError, match=r"ledger\.jsonl, line \d.*put the ledger back as it was"):
            opened()
        assert files.path.read_bytes() == b"".join(forged)
    # The last line follows from all before it, and nothing from it: the head file knows it.
    files.path.write_bytes(b"".join([*lines[:5], lines[5].replace(b"0003", b"0004", 1)]))
    with pytest.raises(MerchantError, match=r"another line 6 than .*head knows"):
        opened()


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=60)
@given(place=st.integers(0, 10**6), flip=st.integers(1, 255))
def test_changed_byte_anywhere_is_found(files, filled, opened, place, flip):
    shutil.rmtree(files.folder, ignore_errors=True)
    files.head.path.unlink(missing_ok=True)
    filled(2)
    content = bytearray(files.path.read_bytes())
    content[place % len(content)] ^= flip
    files.path.write_bytes(bytes(content))
    with pytest.raises(MerchantError):
        opened()


@pytest.mark.parametrize("num_bytes", [1, 20, -1])
def test_line_that_a_kill_cut_short_is_taken_off_and_nothing_else(files, filled, opened, charge, num_bytes):
    whole = filled(2)
    before, head = files.path.read_bytes(), files.head.path.read_bytes()
    whole.charge(charge(3))
    # As it is when the process dies in the middle of the write.
    files.path.write_bytes(before + files.path.read_bytes()[len(before) :][:num_bytes])
    files.head.path.write_bytes(head)
    reopened = opened()
    assert files.path.read_bytes() == before
    reopened.charge(charge(3))
    assert [entry.number for entry in entries(files.path)] == [1, 2, 3, 4, 5]


# Put back


def test_older_copy_that_is_put_back_is_refused_at_the_next_start(files, filled, opened, charge):
    ledger = filled(2)
    older = files.path.read_bytes()
    ledger.charge(charge(3))
    newest = files.path.read_bytes()
    for copy in (older, b"", newest[:-1]):
        files.path.write_bytes(copy)
        with pytest.raises(MerchantError, match=r"has \d lines, and .*head knows of 5.*put the newest one back"):
            opened()
        assert files.path.read_bytes() == copy
    files.path.unlink()
    with pytest.raises(MerchantError, match="has 0 lines"):
        opened()
    files.path.write_bytes(newest)
    assert opened().state.number == 5


def test_older_copy_that_is_put_back_while_it_is_in_use_stops_the_next_order(files, filled, charge):
    ledger = filled(2)
    newest = files.path.read_bytes()
    files.path.write_bytes(newest.splitlines(keepends=True)[0])
    with pytest.raises(MerchantError, match="was changed while it is in use"):
        ledger.charge(charge(3))
    files.path.unlink()
    with pytest.raises(MerchantError, match="cannot be read"):
        ledger.charge(charge(3))
    files.path.write_bytes(newest)
    ledger.charge(charge(3))


def test_other_ledger_of_the_same_length_or_longer_is_refused(files, filled, opened, charge, tmp_path):
    filled(2)
    other = LedgerFiles(tmp_path / "other", LedgerHead(tmp_path / "other head"))
    for _ in range(2):
        longer = Ledger(other)
        for number in range(20, 23):
            longer.charge(charge(number))
            longer.answered(charge(number).order_hash)
        files.path.write_bytes(other.path.read_bytes())
        with pytest.raises(MerchantError, match="another line 4 than"):
            opened()


def test_ledger_that_is_ahead_of_its_head_file_is_taken_and_noted(files, filled, opened, charge):
    # A kill between the two writes.
    ledger = filled(1)
    head = files.head.path.read_bytes()
    ledger.charge(charge(2))
    files.head.path.write_bytes(head)
    assert opened().state == ledger.state == files.head.read()


# The head file


def test_ledger_without_its_head_file_is_refused_until_somebody_says_that_it_is_the_newest(files, filled, opened):
    state = filled(2).state
    files.head.path.unlink()
    with pytest.raises(MerchantError, match=r"there is no .*head.*hansa client ledger --write-head"):
        opened()
    assert write_head(files) == state
    assert opened().state == state
    with pytest.raises(UsageError, match="is there, and stays"):
        write_head(files)


def test_head_file_of_a_changed_ledger_is_not_written(files, filled):
    filled(2)
    files.head.path.unlink()
    files.path.write_bytes(files.path.read_bytes().replace(b'"num_steps":50', b'"num_steps":5', 1))
    with pytest.raises(MerchantError, match="line 2 does not follow"):
        write_head(files)
    assert not files.head.path.exists()


@pytest.mark.parametrize("content", [b"", b"4", b"-1:" + b"0" * 64, b"4:" + b"g" * 64, b"\xff" * 300])
def test_damaged_head_file_is_refused(files, filled, opened, content):
    filled(2)
    files.head.path.write_bytes(content)
    with pytest.raises(MerchantError, match=r"elsewhere/head is damaged"):
        opened()


def test_head_file_is_among_the_users_state_and_for_one_ledger(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "states"))
    alder, birch = tmp_path / "one" / "ledger", tmp_path / "two" / "ledger"
    assert default_path(alder).parent == tmp_path / "states" / "hansa"
    assert default_path(alder).name.startswith("one-")
    assert default_path(alder) != default_path(birch)
    monkeypatch.delenv("XDG_STATE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert default_path(alder).parent == tmp_path / ".local" / "state" / "hansa"


def test_head_file_that_has_no_place_is_told_at_the_start(tmp_path):
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(UsageError, match="--ledger-head"):
        Ledger(LedgerFiles(tmp_path / "ledger", LedgerHead(tmp_path / "file" / "head")))


# Where a merchant's is


def test_ledger_is_in_the_state_folder_unless_another_is_named_and_kept_where_something_is_or_was_charged(tmp_path):
    plain = validate_agreement(
        {"task": "fraud", "label": {"column": "y"}, "features": [{"kind": "boolean", "name": "x"}]}, "the test"
    )
    own = MerchantFiles(tmp_path, tmp_path, tmp_path / "state")
    assert own.ledger_files().folder == tmp_path / "state" / "ledger"
    assert own.ledger_files().head.path == default_path(tmp_path / "state" / "ledger")
    assert not own.keeps_ledger(plain)
    shared = [MerchantFiles(tmp_path, tmp_path, tmp_path / name, ledger=tmp_path / "shared") for name in "ab"]
    assert shared[0].ledger_files() == shared[1].ledger_files()
    # An agreement under which nothing is charged tells of it all the same.
    (tmp_path / "shared").mkdir()
    assert shared[0].keeps_ledger(plain)


def test_trainers_process_is_given_the_ledger_that_was_named(tmp_path):
    named = {"ledger": tmp_path / "shared", "ledger_head": tmp_path / "head"}
    files = MerchantFiles(tmp_path / "agreement", tmp_path / "data", tmp_path / "state", **named)
    taking_part = SimpleNamespace(files=files, merchant="alder")
    words = merchant_processes._Trainer(taking_part, tmp_path, print)._command(5)
    assert {f"--ledger={tmp_path}/shared", f"--ledger-head={tmp_path}/head"} <= set(words)
    options = {f"--{name.replace('_', '-')}" for name in inspect.signature(trainer_service.main).parameters}
    assert {word.partition("=")[0] for word in words if word.startswith("--")} <= options
