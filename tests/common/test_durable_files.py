"""What is written is written where it was meant to be, and a state folder is its user's alone."""

from __future__ import annotations

import os
import stat

import pytest

from hansa_common import durable_files
from hansa_common.errors import UsageError


def test_file_is_its_users_alone_unless_said_otherwise(tmp_path):
    durable_files.write(tmp_path / "key", b"secret")
    durable_files.write(tmp_path / "card", b"told", mode=0o644)
    assert stat.S_IMODE((tmp_path / "key").stat().st_mode) == 0o600
    assert (tmp_path / "card").stat().st_mode & 0o600 == 0o600
    assert sorted(path.name for path in tmp_path.iterdir()) == ["card", "key"]


def test_link_in_the_place_of_an_unfinished_file_is_not_written_through(tmp_path):
    (tmp_path / "others").write_bytes(b"precious")
    (tmp_path / "state.unfinished").symlink_to(tmp_path / "others")
    durable_files.write(tmp_path / "state", b"new")
    assert (tmp_path / "others").read_bytes() == b"precious"
    assert (tmp_path / "state").read_bytes() == b"new"
    assert not (tmp_path / "state").is_symlink()


def test_unfinished_file_of_a_process_that_was_killed_gives_neither_content_nor_mode(tmp_path):
    (tmp_path / "state.unfinished").write_bytes(b"half of what was to be a longer file")
    (tmp_path / "state.unfinished").chmod(0o666)
    durable_files.write(tmp_path / "state", b"new")
    assert (tmp_path / "state").read_bytes() == b"new"
    assert stat.S_IMODE((tmp_path / "state").stat().st_mode) == 0o600


def test_folder_is_made_for_its_user_alone_and_taken_again(tmp_path):
    for _ in range(2):
        durable_files.make_private_folder(tmp_path / "of" / "alder")
    assert stat.S_IMODE((tmp_path / "of" / "alder").stat().st_mode) == 0o700


@pytest.mark.parametrize("mode", [0o750, 0o701, 0o722])
def test_folder_that_others_can_open_is_refused(tmp_path, mode):
    (tmp_path / "state").mkdir()
    (tmp_path / "state").chmod(mode)
    with pytest.raises(UsageError, match="others can open"):
        durable_files.make_private_folder(tmp_path / "state")


def test_folder_of_another_user_is_refused_also_by_one_who_may_open_everything(tmp_path, monkeypatch):
    (tmp_path / "state").mkdir(mode=0o700)
    own = os.geteuid()
    monkeypatch.setattr(os, "geteuid", lambda: own + 1)
    with pytest.raises(UsageError, match="another user's"):
        durable_files.make_private_folder(tmp_path / "state")
