"""A process of ours that fails unexpectedly shows where, and no value of a variable: it may be a row or a key."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
PROGRAM = """
from hansa_common.own_program import run_program
def main(table: str) -> None:
    rows = [table] * 3
    raise RuntimeError("no one expected this")
run_program(main)
"""


def test_traceback_shows_no_value():
    words = [sys.executable, "-c", PROGRAM, "card 4929"]
    finished = subprocess.run(words, capture_output=True, text=True, check=False)
    assert finished.returncode == 1
    assert "no one expected this" in finished.stderr
    assert "card 4929" not in finished.stderr + finished.stdout


def test_no_program_of_ours_begins_in_the_way_that_shows_them():
    modules = [path for room in ("common", "client", "server", "simulations") for path in ROOT.glob(f"{room}/*/*.py")]
    assert len(modules) > 100
    assert [path.name for path in modules if "typer.run(" in path.read_text()] == []
