"""The page that says where what stands names every module of every room, once, and none that is not there."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
# Generated, and the rule of a room, which its __init__ holds.
NOT_TOLD = {"__init__.py", "trainer_pb2.py"}


@pytest.mark.parametrize("room", ["common", "client", "server", "simulations"])
def test_every_module_of_a_room_is_in_its_list_once(room):
    page = (ROOT / "docs/architecture.md").read_text(encoding="utf-8")
    listed = page.split(f"\n### {room}, ")[1].split("\n###")[0]
    told = Counter(re.findall(r"`(\w+\.py)`", listed))
    there = {path.name for path in (ROOT / room / f"hansa_{room}").glob("*.py")}
    assert told == Counter(there - NOT_TOLD)
