"""The units and container files of docs/deploy: their commands are ones that there are, and systemd reads the units."""

from __future__ import annotations

import json
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import click
import pytest

from hansa_common.cli import Commands, installed_commands

ROOT = Path(__file__).parents[1]
DEPLOY = ROOT / "docs/deploy"
UNITS = sorted(DEPLOY.glob("*.service"))
CONTAINER_FILES = sorted(DEPLOY.glob("Containerfile.*"))
PROGRAM = "/opt/hansa/bin/hansa"


def commands_of(unit: Path) -> list[str]:
    lines = unit.read_text(encoding="utf-8").splitlines()
    return [line.partition("=")[2] for line in lines if line.startswith(("ExecStart=", "ExecStop="))]


def check_command(words: list[str]) -> None:
    group = Commands(installed_commands())
    command = group.get_command(click.Context(group), words[0])
    assert isinstance(command, click.Group)
    # Parses every word and runs nothing; an unknown option or a missing one raises.
    command.commands[words[1]].make_context("hansa", words[2:])


@pytest.mark.parametrize("unit", UNITS, ids=lambda path: path.name)
def test_a_unit_starts_commands_that_there_are(unit):
    commands = [shlex.split(command) for command in commands_of(unit)]
    assert commands
    for program, *words in commands:
        assert program == PROGRAM
        check_command(words)


@pytest.mark.parametrize("path", CONTAINER_FILES, ids=lambda path: path.name)
def test_a_container_starts_a_command_that_there_is_with_files_that_there_are(path):
    lines = path.read_text(encoding="utf-8").splitlines()
    starts = {line.split(maxsplit=1)[0]: json.loads(line.split(maxsplit=1)[1]) for line in lines if "[" in line[:14]}
    assert starts["ENTRYPOINT"] == ["hansa"]
    check_command(starts["CMD"])
    copied = [word for line in lines if line.startswith("COPY ") for word in line.split()[1:-1]]
    assert copied
    assert all((ROOT / word).exists() for word in copied)


@pytest.mark.parametrize("unit", UNITS, ids=lambda path: path.name)
@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="there is no systemd-analyze here")
def test_systemd_finds_nothing_wrong_with_a_unit(unit, tmp_path):
    # It looks for the program: one that there is.
    installed = tmp_path / unit.name
    installed.write_text(unit.read_text(encoding="utf-8").replace(PROGRAM, sys.executable), encoding="utf-8")
    words = ["systemd-analyze", "verify", "--man=no", str(installed)]
    found = subprocess.run(words, capture_output=True, text=True, check=False, timeout=60)
    assert (found.returncode, found.stderr) == (0, "")
