"""A child is used from the line on that it tells, and one that ends without a line is told of."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from hansa_common.errors import TransportError
from hansa_common.readiness import running_when_ready, tell_ready

TELLS = (
    "import sys, time; from hansa_common.readiness import tell_ready; tell_ready(int(sys.argv[1]), 'here'); "
    "sys.stdin.read()"
)


def child(program: str):
    return lambda ready: [sys.executable, "-c", program, str(ready)]


def test_child_is_running_when_it_has_told_its_line():
    with running_when_ready("the child", child(TELLS), os.environ, seconds=60.0) as (process, line):
        assert line == "here"
        assert process.process.poll() is None
    assert process.process.poll() is not None


def test_child_that_ends_without_a_line_is_an_error_that_names_its_log(tmp_path):
    log = tmp_path / "log"
    with (
        pytest.raises(TransportError, match=f"the child ended with code 3; its log is {log}"),
        running_when_ready("the child", child("import sys; sys.exit(3)"), os.environ, seconds=60.0, log=log),
    ):
        pass


def test_last_word_of_a_child_is_why_it_ended(tmp_path):
    program = "import sys; sys.stderr.write('WARNING x\\nhansa: no such key; make one\\n'); sys.exit(2)"
    with (
        pytest.raises(TransportError, match=r"^no such key; make one; its log is "),
        running_when_ready("the child", child(program), os.environ, seconds=60.0, log=tmp_path / "log"),
    ):
        pass


def test_child_that_says_nothing_is_not_waited_for_without_end():
    silent = child("import sys; sys.stdin.read()")
    with (
        pytest.raises(TransportError, match="not ready within 0 seconds"),
        running_when_ready("the child", silent, os.environ, seconds=0.2),
    ):
        pass


def test_no_descriptor_is_leaked():
    before = len(list(Path("/proc/self/fd").iterdir()))
    for _ in range(3):
        with running_when_ready("the child", child(TELLS), os.environ, seconds=60.0):
            pass
    assert len(list(Path("/proc/self/fd").iterdir())) == before


def test_nobody_is_told_where_there_is_no_descriptor():
    tell_ready(None, "here")
