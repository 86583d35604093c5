"""`hansa client ledger` shows what was spent and what is left, draws it, and shows no ledger that is not whole."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from hansa_client import ledger_summary
from hansa_client.ledger import Ledger
from hansa_client.ledger_account import Limit
from hansa_client.ledger_entries import entries
from hansa_client.ledger_summary import curve, summary
from hansa_common.privacy import Gaussian, SampledGaussian, epsilon

STATISTICS = Gaussian(20.0)
SIX = epsilon([STATISTICS, SampledGaussian(1.2, 0.01, 300)], 1e-5)


@pytest.fixture
def spend(opened, charge):
    """Two agreements' orders: statistics and six rounds of one, a round of another, to which nothing left."""

    def spend() -> Ledger:
        ledger = opened()
        ledger.charge(charge(1, mechanisms=(STATISTICS,), kind="statistics", why="statistics of columns"))
        ledger.answered(charge(1).order_hash)
        for number in range(2, 8):
            ledger.charge(charge(number))
            ledger.answered(charge(number).order_hash)
        ledger.charge(charge(8, agreement="b" * 64, agreed=Limit(3.0, 1e-6, "")))
        return ledger

    return spend


@pytest.fixture
def show(hansa, files):
    """Run the command on that ledger."""
    return lambda *words: hansa(
        "client", "ledger", "--state", files.folder.parent, "--ledger-head", files.head.path, *words
    )


def test_orders_are_shown_with_what_each_agreement_and_all_together_cost(spend, show):
    spend()
    shown = show()
    assert shown.exit_code == 0, shown.stderr
    lines = shown.stdout.splitlines()
    assert f"agreement {'a' * 12}: 7 orders, epsilon {SIX:g} of 8 at delta 1e-05" in lines
    assert any(
        line.startswith(f"agreement {'b' * 12}: 1 order, epsilon") and line.endswith("of 3 at delta 1e-06")
        for line in lines
    )
    assert any(line.startswith("all together: 8 orders, epsilon") for line in lines)
    assert lines[-1].startswith("15 lines, none changed or missing")
    rows = [[cell.strip() for cell in line.strip("│").split("│")] for line in lines if line.startswith("│")]
    assert rows[0] == ["1", "03-01 23:30", "statistics", "aaaaaaaa", "1 x 20", "yes"]
    assert rows[-1] == ["15", "03-01 23:30", "round", "bbbbbbbb", "50 x 1.2 (0.01)", "no"]


def test_everything_is_there_as_json(spend, show, files):
    ledger = spend()
    (files.folder.parent / "merchant.toml").write_text("max_epsilon = 20.0\ndelta = 1e-6\n")
    told = json.loads(show("--json", "--last", 0).stdout)
    assert (told["num_lines"], told["head"]) == (15, ledger.state.head)
    first, second = told["agreements"]["a" * 64], told["agreements"]["b" * 64]
    assert (first["orders"], first["epsilon"], first["max_epsilon"], first["delta"]) == (7, SIX, 8.0, 1e-5)
    assert first["left"] == pytest.approx(8.0 - SIX)
    assert second["max_epsilon"] == 3.0
    everything = epsilon([STATISTICS, SampledGaussian(1.2, 0.01, 350)], 1e-6)
    assert told["together"] == {
        "orders": 8, "epsilon": everything, "delta": 1e-6, "max_epsilon": 20.0, "left": pytest.approx(20 - everything),
    }  # fmt: skip
    assert [order["answered"] for order in told["orders"]] == [True] * 7 + [False]
    assert told["orders"][1]["mechanisms"] == [
        {"kind": "sampled-gaussian", "noise_multiplier": 1.2, "sampling_rate": 0.01, "num_steps": 50}
    ]
    assert len(json.loads(show("--json", "--last", 2).stdout)["orders"]) == 2


def test_picture_is_drawn_and_equal_ledgers_give_equal_pictures(spend, show, tmp_path):
    spend()
    for name in ("one.png", "two.png"):
        assert show("--png", tmp_path / name).exit_code == 0
    picture = (tmp_path / "one.png").read_bytes()
    assert picture.startswith(b"\x89PNG")
    assert picture == (tmp_path / "two.png").read_bytes()


def test_empty_ledger_is_told_and_not_drawn(show, files, tmp_path):
    files.folder.parent.mkdir(mode=0o700)
    assert "nothing was charged yet" in show().stdout
    assert json.loads(show("--json").stdout)["orders"] == []
    drawn = show("--png", tmp_path / "spent.png")
    assert (drawn.exit_code, (tmp_path / "spent.png").exists()) == (2, False)
    assert "nothing to draw" in drawn.stderr
    assert not files.folder.exists()


def test_ledger_that_is_behind_is_shown_as_that(spend, show, files):
    spend()
    files.path.write_bytes(b"".join(files.path.read_bytes().splitlines(keepends=True)[:4]))
    shown = show()
    assert (shown.exit_code, shown.stdout) == (1, "")
    assert "knows of 15" in shown.stderr


def test_head_file_is_written_where_there_is_none(spend, show, files):
    ledger = spend()
    files.head.path.unlink()
    assert "hansa client ledger --write-head" in show().stderr
    assert "at line 15" in show("--write-head").stdout
    assert files.head.read() == ledger.state
    assert show().exit_code == 0
    assert show("--write-head").exit_code == 2


def test_head_file_in_the_state_folder_is_refused(hansa, files):
    files.folder.parent.mkdir(mode=0o700)
    for path in (files.folder.parent / "head", files.folder / "head"):
        shown = hansa("client", "ledger", "--state", files.folder.parent, "--ledger-head", path)
        assert shown.exit_code == 2
        assert "name one elsewhere with --ledger-head" in shown.stderr


def test_last_line_that_is_being_written_is_no_error(spend, show, files):
    spend()
    files.path.write_bytes(files.path.read_bytes() + b'{"number":16')
    size = files.path.stat().st_size
    assert show().exit_code == 0
    assert files.path.stat().st_size == size


# Sums


def test_curve_is_what_the_first_orders_cost_together(spend, files):
    spend()
    found = summary(Ledger(files).state, entries(files.path), None)
    points = curve(found.orders, 1e-5)
    assert [number for number, _ in points] == list(range(9))
    assert points[0][1] == 0.0
    assert points[7][1] == SIX
    assert sorted(spent for _, spent in points) == [spent for _, spent in points]


def test_curve_has_few_points_however_many_orders(spend, files, monkeypatch):
    monkeypatch.setattr(ledger_summary, "MAX_POINTS", 4)
    spend()
    orders = summary(Ledger(files).state, entries(files.path), None).orders
    points = curve((*orders[1:7],) * 50, 1e-5)
    assert [number for number, _ in points] == [0, 75, 150, 225, 300]


def test_state_folder_that_is_not_there_is_told(hansa):
    assert hansa("client", "ledger", "--state", Path("nowhere")).exit_code == 2
