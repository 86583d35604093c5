"""What is installed from a wheel is all of what stands in its rooms: a template or a module left out would be missed
only on somebody else's machine."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from email.parser import Parser
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
WHOLE = ("common/hansa_common", "client/hansa_client", "server/hansa_server", "simulations/hansa_simulations")
# Beside modules: what the program reads at run time.
READ_AT_RUN_TIME = {
    "hansa_simulations/demo_agreement.toml",
    "hansa_server/templates/report.html",
    "hansa_server/templates/report.css",
}


def wheel_of(project: Path, folder: Path) -> zipfile.ZipFile:
    command = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--quiet", "-w", folder, project]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (wheel,) = folder.glob("*.whl")
    return zipfile.ZipFile(wheel)


def files_of(rooms: tuple[str, ...]) -> set[str]:
    files = {path for room in rooms for path in (ROOT / room).rglob("*") if path.is_file()}
    return {"/".join(path.relative_to(ROOT).parts[1:]) for path in files if "__pycache__" not in path.parts}


@pytest.mark.system
@pytest.mark.parametrize(
    ("project", "rooms", "license_file"),
    [(".", WHOLE, ".dist-info/licenses/LICENSE"), ("client", WHOLE[:2], "hansa_client/LICENSE")],
)
def test_wheel_holds_every_file_of_its_rooms_and_the_license(tmp_path, project, rooms, license_file):
    with wheel_of(ROOT / project, tmp_path) as wheel:
        names = set(wheel.namelist())
        assert {name for name in names if ".dist-info/" not in name} - {license_file} == files_of(rooms)
        assert project != "." or names >= READ_AT_RUN_TIME
        (license_name,) = (name for name in names if name.endswith(license_file))
        assert wheel.read(license_name) == (ROOT / "LICENSE").read_bytes()
        (metadata,) = (name for name in names if name.endswith(".dist-info/METADATA"))
        told = Parser().parsestr(wheel.read(metadata).decode())
    assert told["License-Expression"] == "Apache-2.0"
    assert told["Requires-Python"] == "<3.14,>=3.11"
