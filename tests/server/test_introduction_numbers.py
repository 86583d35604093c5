"""A coordinator's introductions are numbered upwards, whatever becomes of its processes, its folder and its clock."""

from __future__ import annotations

import stat

import pytest

from hansa_common.errors import CoordinatorError
from hansa_server.introduction_numbers import IntroductionNumbers


def test_number_is_the_time_or_one_more_than_the_last_also_for_another_process(tmp_path):
    path, times = tmp_path / "introductions", [1000, 1000, 400, 1500]
    drawn = [IntroductionNumbers(path, lambda now=now: now).draw() for now in times]
    assert drawn == [1000, 1001, 1002, 1500]
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_folder_that_was_put_back_from_an_older_copy_goes_on_above_what_it_gave(tmp_path):
    path, times = tmp_path / "introductions", iter([1000, 1200, 1200, 1300])
    numbers = IntroductionNumbers(path, times.__next__)
    numbers.draw()
    old = path.read_bytes()
    given = [numbers.draw() for _ in range(2)]
    path.write_bytes(old)
    assert numbers.draw() > max(given)


@pytest.mark.parametrize("content", [b"", b"-5", b"1e9", b"9" * 16, b"9" * 40, b"\xff", b"12 13"])
def test_damaged_file_is_told(tmp_path, content):
    (tmp_path / "introductions").write_bytes(content)
    with pytest.raises(CoordinatorError, match=r"introductions is damaged; remove it"):
        IntroductionNumbers(tmp_path / "introductions").draw()
