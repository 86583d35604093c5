"""A process whose work hangs ends, having said its last words, and no other does."""

from __future__ import annotations

import stat
import subprocess
import sys
from pathlib import Path

import pytest

from hansa_client.watchdog import HUNG_EXIT_CODE

PROGRAM = """
import sys, threading, time
from pathlib import Path
from hansa_client import watchdog
watchdog.LAST_SECONDS = 0.5
folder = Path(sys.argv[1])
dog = watchdog.Watchdog(folder / "hung.txt", grace_seconds=0.2)

def last_words():
    (folder / "last_words").write_text("said")
"""


def run(folder: Path, *lines: str) -> subprocess.CompletedProcess[str]:
    program = PROGRAM + "\n".join(lines)
    return subprocess.run(
        [sys.executable, "-c", program, folder], capture_output=True, text=True, timeout=60, check=False
    )


def test_process_whose_work_hangs_says_its_last_words_and_ends_with_the_code_for_it(tmp_path):
    ended = run(
        tmp_path, "def stuck():", "    threading.Event().wait()", "with dog.watching(0.1, last_words):", "    stuck()"
    )
    assert ended.returncode == HUNG_EXIT_CODE
    assert (tmp_path / "last_words").read_text() == "said"
    assert "in stuck" in (tmp_path / "hung.txt").read_text()
    assert stat.S_IMODE((tmp_path / "hung.txt").stat().st_mode) == 0o600
    assert str(tmp_path / "hung.txt") in ended.stderr


def test_process_in_which_python_itself_stands_still_ends_too(tmp_path):
    ended = run(tmp_path, "with dog.watching(0.1, last_words):", "    sum(range(10**13))")
    assert ended.returncode not in {0, HUNG_EXIT_CODE}
    assert "<module>" in (tmp_path / "hung.txt").read_text()


@pytest.mark.parametrize("words", ["threading.Event().wait", "lambda: 1 / 0"])
def test_last_words_that_hang_or_fail_do_not_keep_the_process(tmp_path, words):
    ended = run(tmp_path, f"with dog.watching(0.1, {words}):", "    threading.Event().wait()")
    assert ended.returncode != 0


def test_work_that_ends_in_time_or_fails_is_none_of_its_business(tmp_path):
    ended = run(
        tmp_path,
        "for _ in range(2):",
        "    with dog.watching(0.1, last_words): pass",
        "try:",
        "    with dog.watching(0.1, last_words): 1 / 0",
        "except ZeroDivisionError: pass",
        "time.sleep(1)",
    )
    assert (ended.returncode, ended.stderr) == (0, "")
    assert not (tmp_path / "last_words").exists()


def test_work_that_ends_while_the_last_words_are_said_does_not_go_on(tmp_path):
    ended = run(
        tmp_path,
        "begun = threading.Event()",
        "def slow():",
        "    begun.set()",
        "    time.sleep(0.3)",
        "    last_words()",
        "with dog.watching(0.1, slow): begun.wait()",
        "print('went on')",
    )
    assert (ended.returncode, ended.stdout) == (HUNG_EXIT_CODE, "")
    assert (tmp_path / "last_words").exists()
