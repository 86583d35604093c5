"""The merchant's wheel needs and brings the merchant's side; what it holds is seen in tests/test_packaging.py."""

from __future__ import annotations

import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[2]


def project(folder: Path) -> dict:
    return tomllib.loads((folder / "pyproject.toml").read_text())["project"]


def test_wheel_needs_nothing_that_the_whole_project_does_not():
    whole, merchant = project(ROOT), project(ROOT / "client")
    assert set(merchant["dependencies"]) <= set(whole["dependencies"])
    for extra, dependencies in merchant["optional-dependencies"].items():
        assert dependencies == whole["optional-dependencies"][extra]
    for key in ("version", "requires-python", "license"):
        assert merchant[key] == whole[key]


def test_wheel_brings_the_merchants_commands_only():
    commands = project(ROOT / "client")["entry-points"]["hansa.commands"]
    whole = project(ROOT)["entry-points"]["hansa.commands"]
    assert commands == {name: target for name, target in whole.items() if target.startswith("hansa_client.")}
