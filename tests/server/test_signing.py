"""The signing key is drawn once, for this user alone, and never replaced by mistake."""

from __future__ import annotations

import pytest

from hansa_common.errors import UsageError
from hansa_common.keys import KEY_BYTES
from hansa_server.signing import KEY_NAME, signing_key


def test_key_is_drawn_once_and_is_another_in_another_folder(tmp_path):
    first = signing_key(tmp_path / "one")
    assert len(first) == KEY_BYTES
    assert signing_key(tmp_path / "one") == first
    assert signing_key(tmp_path / "two") != first


def test_key_and_its_folder_are_for_this_user_alone(tmp_path):
    signing_key(tmp_path / "state")
    assert (tmp_path / "state").stat().st_mode & 0o077 == 0
    assert (tmp_path / "state" / KEY_NAME).stat().st_mode & 0o077 == 0


def test_key_that_others_can_read_is_refused(tmp_path):
    signing_key(tmp_path)
    (tmp_path / KEY_NAME).chmod(0o644)
    with pytest.raises(UsageError, match="chmod 600"):
        signing_key(tmp_path)


@pytest.mark.parametrize("content", ["", "zz" * 32, "00" * 31])
def test_damaged_key_is_refused_and_left_as_it_is(tmp_path, content):
    signing_key(tmp_path)
    (tmp_path / KEY_NAME).write_text(content)
    with pytest.raises(UsageError, match="no signing key") as refused:
        signing_key(tmp_path)
    assert (tmp_path / KEY_NAME).read_text() == content
    assert not content or content not in str(refused.value)
