"""A log line is one line, and whoever is refused a thousand times does not fill a disk."""

from __future__ import annotations

import logging
import sys

from hansa_common.log_lines import MAX_LOG_CHARS, OneLine, Sparing


def test_order_cannot_draw_on_the_terminal_forge_a_log_line_or_fill_the_disk():
    names = tuple(f"name {i}" for i in range(10_000))
    lines = []
    for said in ("ok\r\nERROR all rows were sent", "\x1b]0;title\x07\x1b[2J", f"the cohort {names} must name 'alpha'"):
        record = logging.LogRecord("hansa", logging.ERROR, "", 0, "%s refuses: %s", ("alpha", said), None)
        lines.append(OneLine("%(levelname)s %(message)s").format(record))
    assert all(line.startswith("ERROR alpha refuses: ") and line.isprintable() for line in lines)
    assert max(map(len, lines)) == MAX_LOG_CHARS


def test_traceback_after_a_line_stays_whole():
    try:
        float("diverged")
    except ValueError:
        record = logging.LogRecord("hansa", logging.ERROR, "", 0, "alpha failed", (), sys.exc_info())
    text = OneLine("%(levelname)s %(message)s").format(record)
    assert text.startswith("ERROR alpha failed\nTraceback")
    assert text.endswith("could not convert string to float: 'diverged'")


def test_flood_of_refusals_is_a_few_lines_and_a_count():
    said: list[str] = []
    time = [0.0]
    sparing = Sparing(said.append, lambda: time[0])
    for _ in range(1000):
        sparing("alpha", "refused")
    sparing("beta", "refused")
    assert said == ["alpha: refused"] * Sparing.LINES + ["beta: refused"]
    time[0] = Sparing.SECONDS
    sparing("alpha", "refused")
    assert said[6:] == [f"alpha: {1000 - Sparing.LINES} more such lines in the last minute", "alpha: refused"]


def test_flood_of_names_is_bounded_too():
    said: list[str] = []
    sparing = Sparing(said.append, lambda: 0.0)
    for number in range(10_000):
        sparing(f"10.0.0.{number}", "refused")
    assert len(said) < 1100
