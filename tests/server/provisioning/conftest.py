"""A coordinator's folder with merchants who ask to be enrolled, each of whom has a folder of its own."""

from __future__ import annotations

import contextlib
import io
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest

from hansa_common.agreement import parse_agreement
from hansa_common.certificates import parse_certificate
from hansa_common.cli import installed_commands, run
from hansa_common.enrolment_papers import encode_request, make_request
from hansa_common.merchant_keys import make_keys

AGREEMENT = """\
# What we agreed on, with a remark that stays.
task = "fraud"
roster = ["alder", "birch >= 2.5"]

[label]
column = "fraud"

[[features]]
kind = "boolean"
name = "gift"
"""
MERCHANTS = ("alder", "birch >= 2.5")


class Coordinator:
    """A coordinator's folder, with requests that are there to be answered, and the command line."""

    text = AGREEMENT

    def __init__(self, folder: Path, hansa) -> None:
        self.folder, self._hansa = folder, hansa
        self.state, self.kits, self.requests = folder / "state", folder / "kits", folder / "requests"
        self.requests.mkdir()
        self.write_agreement(AGREEMENT)

    def write_agreement(self, text: str) -> None:
        (self.folder / "agreement.toml").write_text(text)

    def merchant(self, name: str, folder: str | None = None):
        """The keys of a merchant, in its own folder."""
        state = self.folder / "merchants" / (folder or name)
        state.mkdir(mode=0o700, parents=True, exist_ok=True)
        return make_keys(state)

    def ask(self, name: str, held=None, file: str | None = None) -> None:
        content = encode_request(make_request(name, held or self.merchant(name)))
        (self.requests / f"{file or name}.request.json").write_bytes(content)

    def provision(self, *words: object, agreement: object = None, kits: object = None):
        places = ("--state", self.state, "-o", kits or self.kits)
        return self._hansa("provision", agreement or self.folder / "agreement.toml", *places, *words)

    def answer(self, *words: object, **places):
        return self.provision("--host", "fl.example.com", "--requests", self.requests, *words, **places)

    def answered(self, *words: object, **places) -> str:
        result = self.answer(*words, **places)
        assert result.exit_code == 0, result.stderr
        return result.stdout

    def certificate(self, name: str):
        return parse_certificate((self.kits / name / "tls.crt").read_bytes(), "tls.crt")

    @property
    def agreed(self):
        return parse_agreement((self.kits / "agreement.toml").read_text(), "it")


@pytest.fixture
def coordinator(tmp_path, hansa):
    return Coordinator(tmp_path, hansa)


def silent(*words: object) -> SimpleNamespace:
    with contextlib.redirect_stdout(io.StringIO()) as told:
        return SimpleNamespace(exit_code=run([str(word) for word in words], installed_commands()), stdout=told)


@pytest.fixture(scope="session")
def enrolled_once(tmp_path_factory) -> Path:
    coordinator = Coordinator(tmp_path_factory.mktemp("coordinator"), silent)
    for name in MERCHANTS:
        coordinator.ask(name)
    coordinator.answered()
    return coordinator.folder


@pytest.fixture
def enrolled(enrolled_once, coordinator):
    """Both merchants have asked and were answered; a copy, to change."""
    shutil.copytree(enrolled_once, coordinator.folder, dirs_exist_ok=True)
    return coordinator


@pytest.fixture
def refused():
    """See that a command line was refused in one line that holds these words."""

    def check(result, *words: str, exit_code: int = 2) -> None:
        assert result.exit_code == exit_code, result.stderr
        (line,) = result.stderr.strip().splitlines()
        for word in words:
            assert word in line

    return check


@pytest.fixture
def files_of():
    """The content of every file below a folder, by path."""

    def read(folder: Path) -> dict[str, bytes]:
        return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}

    return read
