"""What a merchant remembers of its masked sums is on disk when it says so, of one run each, and whole or refused."""

from __future__ import annotations

import stat

import pytest

from hansa_client.masked_memory import SumMemory, SumRecord
from hansa_common.errors import MerchantError
from hansa_common.secure_keys import KeyHistory

USED = frozenset({b"\x01" * 32, b"\x02" * 32})
RECORD = SumRecord(run_id="run/../1").with_history(KeyHistory("run/../1", 7, USED)).with_release("statistics")


@pytest.fixture(params=["on disk", "in memory"])
def memory(request, tmp_path):
    return SumMemory(tmp_path / "sums" if request.param == "on disk" else None)


def test_record_is_recalled_as_it_was_remembered_and_of_its_run_alone(memory):
    assert memory.recall("run/../1") == SumRecord(run_id="run/../1")
    memory.remember(RECORD)
    assert memory.recall("run/../1") == RECORD
    assert memory.recall("run/../1").history == KeyHistory("run/../1", 7, USED)
    assert memory.recall("run-2") == SumRecord(run_id="run-2")
    assert memory.recall("run-2").history == KeyHistory()


def test_record_outlasts_its_process_in_a_folder_that_is_its_users_alone(tmp_path):
    SumMemory(tmp_path / "sums").remember(RECORD)
    assert SumMemory(tmp_path / "sums").recall(RECORD.run_id) == RECORD
    (file,) = (tmp_path / "sums").iterdir()
    assert stat.S_IMODE((tmp_path / "sums").stat().st_mode) == 0o700
    # A run is named by the coordinator: its name leads nowhere.
    assert file.stem.isalnum()


@pytest.mark.parametrize("content", [b"", b"{}", b"\x00", RECORD.model_dump_json().encode()[:-9]], ids=str)
def test_damaged_record_is_refused(tmp_path, content):
    memory = SumMemory(tmp_path / "sums")
    memory.remember(RECORD)
    (file,) = (tmp_path / "sums").iterdir()
    file.write_bytes(content)
    with pytest.raises(MerchantError, match="is damaged"):
        memory.recall(RECORD.run_id)


def test_record_of_another_run_is_refused(tmp_path):
    memory = SumMemory(tmp_path / "sums")
    memory.remember(RECORD)
    (file,) = (tmp_path / "sums").iterdir()
    other = SumRecord(run_id="run-2")
    file.write_bytes(other.model_dump_json().encode())
    with pytest.raises(MerchantError, match="is of another run"):
        memory.recall(RECORD.run_id)


def test_release_is_named_once():
    assert RECORD.with_release("statistics") is RECORD
    assert RECORD.with_release("test " + "0" * 64).released == ("statistics", "test " + "0" * 64)
