"""A decision record's claims are worth the tests that it names: each is there, under the name that it is called by."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
RECORDS = sorted((ROOT / "docs/adr").glob("[0-9]*.md"))
DOCUMENTS = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")])
TESTS = sorted((ROOT / "tests").rglob("*.py"))
# Keys of an agreement that begin as a test's name does.
KEYS = {"test_share", "test_from"}
# Heads of the tables whose rows claim something, and of the column that names what shows it.
CLAIMS = re.compile(r"^\|(?: \w[\w ]* \|)+\n(?:\|-+)+\|\n", re.MULTILINE)
SHOWN_BY = {"shown by", "test"}


def functions(path: Path) -> set[str]:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    return {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef) and node.name.startswith("test_")}


NAMES = {name for path in TESTS for name in functions(path)}
FILES = {path.name for path in TESTS}


def named_tests(text: str) -> list[str]:
    """Every test, file or folder of tests that a text names in backticks."""
    words = [word for quoted in re.findall(r"`([^`\n]+)`", text) for word in quoted.split()]
    return [word for word in words if re.match(r"(tests/|test_)", word) and word not in KEYS]


def is_there(named: str) -> bool:
    if named.startswith("tests/"):
        return (ROOT / named).exists()
    return named in (FILES if named.endswith(".py") else NAMES)


def claims(text: str) -> list[tuple[str, str]]:
    """Of each row of a record's tables of claims: the row, and the cell that says what shows it."""
    found = []
    for head in CLAIMS.finditer(text):
        columns = [cell.strip() for cell in head[0].splitlines()[0].strip("|").split("|")]
        place = next((place for place, column in enumerate(columns) if column in SHOWN_BY), None)
        if place is None:
            continue
        for line in text[head.end() :].splitlines():
            if not line.startswith("|"):
                break
            found.append((line, line.strip("|").split(" | ")[place]))
    return found


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_test_that_a_document_names_is_there(path):
    named = named_tests(path.read_text(encoding="utf-8"))
    assert [name for name in named if not is_there(name)] == []


@pytest.mark.parametrize("path", RECORDS, ids=lambda path: path.name)
def test_every_claim_of_a_record_names_a_test(path):
    for line, shown_by in claims(path.read_text(encoding="utf-8")):
        assert named_tests(shown_by), line


def test_records_of_what_is_guaranteed_are_tables_of_claims():
    counted = {path.name[:4]: len(claims(path.read_text(encoding="utf-8"))) for path in RECORDS}
    assert min(counted[number] for number in ("0015", "0016", "0017", "0019")) >= 6


def test_index_of_records_names_every_one_by_its_title():
    index = re.sub(r"\s+", " ", (ROOT / "docs/adr/README.md").read_text(encoding="utf-8"))
    for number, path in enumerate(RECORDS, 1):
        (title,) = re.findall(rf"^# {number}\. (.+)$", path.read_text(encoding="utf-8"), re.MULTILINE)
        assert f"{number}. [{title}]({path.name})" in index
