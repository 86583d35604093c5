"""`hansa client audit` shows what was asked and answered, and a chain that was broken as broken."""

from __future__ import annotations

import json
from datetime import UTC, datetime

import pytest

from hansa_client.audit import ASIDE_LINES_AN_HOUR, Audit

ORDER, REPLY = "a" * 64, "b" * 64


@pytest.fixture
def state(tmp_path):
    folder = tmp_path / "state"
    folder.mkdir(mode=0o700)
    audit = Audit(folder / "audit.jsonl", lambda: datetime(2026, 3, 1, tzinfo=UTC))
    audit.started("c" * 64)
    asked = {"run": "run", "sequence": 4, "round": 3, "order": ORDER}
    audit.asked(**asked, kind="round", num_bytes=4000)
    audit.answered("refused", **asked, code="not-permitted", reason="asked 3, allowed 2", reply=REPLY)
    return folder


def test_lines_are_shown_in_words_with_what_was_asked_and_allowed(hansa, state):
    shown = hansa("client", "audit", "--state", state)
    assert shown.exit_code == 0, shown.stderr
    started, asked, refused, summary = shown.stdout.splitlines()
    assert f"started under agreement {'c' * 64}" in started
    assert "asked    round round 3 order aaaaaaaaaaaa bytes 4000" in asked
    assert "refused: not-permitted; asked 3, allowed 2 round 3" in refused
    assert summary.startswith("3 lines, none changed or missing")


def test_orders_without_a_line_are_told_with_the_next(hansa, state):
    path = state / "audit.jsonl"
    audit = Audit(path, lambda: datetime(2026, 3, 1, tzinfo=UTC))
    for _ in range(ASIDE_LINES_AN_HOUR + 7):
        audit.set_aside("refused", code="not-signed", reason="the order is not signed", order=ORDER)
    audit.started("c" * 64)
    *_, aside, started, _ = hansa("client", "audit", "--state", state).stdout.splitlines()
    assert "refused: not-signed; the order is not signed order aaaaaaaaaaaa" in aside
    assert started.endswith("(7 more were not worked on before)")


def test_last_lines_and_all_of_them_as_json(hansa, state):
    shown = json.loads(hansa("client", "audit", "--state", state, "--json", "--last", 1).stdout)
    assert (shown["num_lines"], len(shown["lines"]), shown["unfinished_bytes"]) == (3, 1, 0)
    assert shown["lines"][0]["code"] == "not-permitted"
    assert shown["head"] == Audit(state / "audit.jsonl").head
    every = json.loads(hansa("client", "audit", "--state", state, "--json", "--last", 0).stdout)
    assert [line["number"] for line in every["lines"]] == [1, 2, 3]


def test_broken_chain_is_an_error_that_names_the_line(hansa, state):
    path = state / "audit.jsonl"
    path.write_bytes(path.read_bytes().replace(b'"num_bytes":4000', b'"num_bytes":4001'))
    shown = hansa("client", "audit", "--state", state)
    assert shown.exit_code == 1
    assert "audit.jsonl, line 3 does not follow" in shown.stderr
    assert shown.stdout == ""


def test_unfinished_line_is_told_and_left_alone(hansa, state):
    path = state / "audit.jsonl"
    path.write_bytes(path.read_bytes() + b'{"number":4')
    size = path.stat().st_size
    shown = hansa("client", "audit", "--state", state)
    assert shown.exit_code == 0
    assert "cut off by a kill" in shown.stdout
    assert path.stat().st_size == size


def test_state_folder_without_an_audit_and_no_folder_are_told(hansa, tmp_path):
    assert "no trainer has served" in hansa("client", "audit", "--state", tmp_path).stderr
    assert "there is no state folder" in hansa("client", "audit", "--state", tmp_path / "nowhere").stderr
