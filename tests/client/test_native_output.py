"""A library's greeting stays away, and its last words do not."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from hansa_client.native_output import kept_back


def test_greeting_is_not_shown_and_later_words_are(capfd):
    with kept_back():
        os.write(2, b"a greeting\n")
    os.write(2, b"a warning\n")
    assert capfd.readouterr().err == "a warning\n"


def test_what_was_said_before_a_failure_is_shown(capfd):
    def load() -> None:
        with kept_back():
            os.write(2, b"no such library\n")
            raise ImportError

    with pytest.raises(ImportError):
        load()
    assert capfd.readouterr().err == "no such library\n"


@pytest.mark.system
def test_backend_loads_without_a_word():
    program = "from hansa_client.training_loop import describe_device; print(describe_device()[0])"
    finished = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert (finished.stdout, finished.stderr) == ("tensorflow\n", "")
