"""The merchant's wheel holds the merchant's side and nothing of the coordinator's."""

from __future__ import annotations

import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

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


@pytest.mark.system
def test_wheel_holds_client_and_common_and_no_other_room(tmp_path):
    command = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--quiet", "-w", tmp_path, ROOT / "client"]
    subprocess.run(command, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    assert {name.split("/")[0] for name in names if ".dist-info/" not in name} == {"hansa_client", "hansa_common"}
    # Whatever stands in the rooms is in the wheel: a module left out would be missed only at a merchant.
    for room in ("client/hansa_client", "common/hansa_common"):
        for path in (ROOT / room).glob("*.py"):
            assert f"{path.parent.name}/{path.name}" in names
