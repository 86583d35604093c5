"""The report's tables: a run in the shape of metrics.json -> cells that are ready to be read.

A column that no row fills is left out, and so is a table without rows. Pure; markup is the template's.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from hansa_server import report_words as words
from hansa_server.report_sections import MEASURES, PARTIES, Run, merchants, rounds, worse_off
from hansa_server.report_words import number, part

Write = Callable[[Mapping[str, Any]], str]


@dataclass(frozen=True)
class Table:
    """A table whose first column names its rows. `groups` are headings over several columns, (text, span).

    A line break in a cell sets the rest of it small.
    """

    caption: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    groups: tuple[tuple[str, int], ...] = ()
    text_columns: frozenset[int] = frozenset()
    marked: frozenset[str] = field(default=frozenset())


def merchant_table(run: Run) -> Table | None:
    """Figures of every merchant, as far as they are known."""
    rows = merchants(run)
    columns = [column for column in _merchant_columns() if any(column[2](v) != words.DASH for v in rows.values())]
    if not columns:
        return None
    groups = [(group, len(list(own))) for group, own in itertools.groupby(columns, key=lambda column: column[0])]
    return Table(
        "Each merchant on its own test rows",
        ("Merchant", *(heading for _, heading, _ in columns)),
        tuple((name, *(write(values) for _, _, write in columns)) for name, values in rows.items()),
        (("", 1), *groups),
        marked=frozenset(worse_off(run)),
    )


def _merchant_columns() -> list[tuple[str, str, Write]]:
    """Group, heading and what is written of one merchant."""
    columns: list[tuple[str, str, Write]] = [
        ("Rows", "Training", lambda values: words.count(number(values, "num_train_rows"))),
        ("Rows", "Test", _test_rows),
    ]
    for measure, title in MEASURES.items():
        columns += [(title, heading, _area(party, measure)) for party, heading in PARTIES.items()]
        columns.append((title, "Gain (95 % interval)", _gain(measure)))
    columns.append(("Own", "Threshold", lambda values: words.probability(number(values, "threshold"))))
    return columns


def _area(party: str, measure: str) -> Write:
    return lambda values: words.area(number(values, party, measure))


def _gain(measure: str) -> Write:
    return lambda values: words.interval(part(values, "gain", measure)).replace(" (", "\n(")


def _test_rows(values: Mapping[str, Any]) -> str:
    positives = number(values, "num_test_positives")
    return words.count(number(values, "num_test_rows")) + (
        "" if positives is None else f"\n{words.count(positives)} positive"
    )


_OVERALL: Final[dict[str, tuple[str, Callable[[float | None], str]]]] = {
    "PR-AUC": ("pr_auc", words.area),
    "ROC-AUC": ("roc_auc", words.area),
    "Recall at 1 % false positives": ("recall_at_1_fpr", words.percent),
    "Recall at 5 % false positives": ("recall_at_5_fpr", words.percent),
    "Best F1": ("best_f1", words.area),
    "Its threshold": ("best_f1_threshold", words.probability),
    "Brier score": ("brier", words.probability),
}


def overall_table(run: Run) -> Table | None:
    """The models on all merchants' test rows at once."""
    rows = tuple(
        (PARTIES[party], *(write(number(run, party, key)) for key, write in _OVERALL.values()))
        for party in ("federated", "pooled")
        if part(run, party)
    )
    return Table("All merchants' test rows at once", ("Model", *_OVERALL), rows) if rows else None


def round_table(run: Run) -> Table | None:
    """Every round in one line."""
    entries = rounds(run)
    columns = ("Round", "Plan", "Merchants", "PR-AUC", "ROC-AUC", "Training loss", "Seconds", "Received", "Sent")
    body = tuple(
        (
            words.count(entry["round"]),
            words.count((number(entry, "plan") or 0) + 1),
            _attendance(entry),
            words.area(number(entry, "validation", "pr_auc")),
            words.area(number(entry, "validation", "roc_auc")),
            words.area(number(entry, "train_loss")),
            words.seconds(number(entry, "seconds")),
            words.megabytes(number(entry, "bytes_received")),
            words.megabytes(number(entry, "bytes_sent")),
        )
        for entry in entries
    )
    return Table("Every round; figures are those of the model that came in", columns, body) if entries else None


def _attendance(entry: Mapping[str, Any]) -> str:
    cohort, dropped = entry.get("cohort"), len(part(entry, "dropped"))
    asked = len(cohort) if isinstance(cohort, list | tuple) else None
    return words.DASH if asked is None else f"{asked - dropped} of {asked}" if dropped else str(asked)


def dropped_table(run: Run) -> Table | None:
    """Replies that did not enter an average, and why."""
    found: dict[tuple[str, str], list[int]] = {}
    for entry in rounds(run):
        for name, code in part(entry, "dropped").items():
            found.setdefault((str(name), str(code)), []).append(int(entry["round"]))
    body = tuple(
        (name, words.reason(code), words.count(len(when)), words.rounds(when))
        for (name, code), when in sorted(found.items())
    )
    columns = ("Merchant", "Reason", "Replies", "In rounds")
    return Table("Replies that were left out", columns, body, text_columns=frozenset({1, 3})) if body else None


def quality_table(run: Run) -> Table | None:
    """What each merchant's table looked like; a column for each thing that any merchant reports."""
    qualities = {name: part(values, "quality") for name, values in merchants(run).items() if part(values, "quality")}
    keys = list(dict.fromkeys(key for quality in qualities.values() for key in quality))
    text = frozenset(
        place
        for place, key in enumerate(keys, 1)
        if any(not (q.get(key) is None or words.is_number(q.get(key))) for q in qualities.values())
    )
    body = tuple((name, *(words.plain(quality.get(key)) for key in keys)) for name, quality in qualities.items())
    columns = ("Merchant", *(words.heading(str(key)) for key in keys))
    return Table("Data quality by merchant", columns, body, text_columns=text) if body else None


def settings_table(caption: str, values: Mapping[str, Any]) -> Table | None:
    """Settings one a line; a nested one is named by its path."""
    body = tuple((name, words.plain(value)) for name, value in _flat(values))
    return Table(caption, ("Setting", "Value"), body, text_columns=frozenset({1})) if body else None


def _flat(values: Mapping[str, Any], prefix: str = "") -> Iterable[tuple[str, Any]]:
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value
