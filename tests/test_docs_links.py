"""Links of the documents lead somewhere, every document is found, and none names somebody's machine."""

from __future__ import annotations

import re
import subprocess
import tomllib
from pathlib import Path

import pytest

from hansa_common import __version__

ROOT = Path(__file__).parents[1]
DOCUMENTS = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("examples/**/*.md")])


def anchors(path: Path) -> set[str]:
    headings = re.findall(r"^#+ (.+)$", path.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_link_inside_the_project_leads_somewhere(document):
    text = re.sub(r"^```.*?^```$", "", document.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if target.startswith(("https://", "mailto:")):
            continue
        name, _, anchor = target.partition("#")
        path = document if not name else document.parent / name
        assert path.exists(), target
        assert path.resolve().is_relative_to(ROOT), target
        assert not anchor or anchor in anchors(path), target


def test_every_document_can_be_reached_from_the_readme():
    reached, ahead = set(), [ROOT / "README.md"]
    while ahead:
        document = ahead.pop().resolve()
        if document in reached or document.suffix != ".md":
            continue
        reached.add(document)
        targets = re.findall(r"\]\(([^)\s#]+)", document.read_text(encoding="utf-8"))
        ahead += [document.parent / target for target in targets if not target.startswith("https://")]
    assert {path.resolve() for path in DOCUMENTS if path.is_relative_to(ROOT / "docs")} <= reached


def test_no_file_names_a_folder_of_somebodys_machine():
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=False)
    if listed.returncode != 0:
        pytest.skip("this is no git checkout, so nobody says which files are the project's")
    # In pieces, so that this file does not hold one itself. Tests may make up a home to see that none leaks.
    made_up = "/(?:work|root)/"
    somebodys = "/(?:work|root|home|Users|mnt)/"
    for name in filter(None, listed.stdout.split("\0")):
        path = ROOT / name
        if path.suffix == ".png" or not path.is_file():
            continue
        homes = re.compile((made_up if name.startswith("tests/") else somebodys) + r"[A-Za-z0-9._-]+")
        assert not homes.findall(path.read_text(encoding="utf-8")), name


def test_changelog_tells_users_what_is_new_first():
    versions = re.findall(r"^## (.+)$", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert versions[0] == "Unreleased"
    version = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["version"]
    assert version in {__version__, *versions[1:]}
