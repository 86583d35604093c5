"""The report's tables: a run in the shape of metrics.json -> cells that are ready to be read.

A column that no row fills is left out, and so is a table without rows. Pure; markup is the template's.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from hansa_common.natural_order import natural_key
from hansa_server import report_words as words
from hansa_server.report_sections import MEASURES, PARTIES, Run, merchants, rounds, worse_off
from hansa_server.report_words import number, part

Write = Callable[[Mapping[str, Any]], str]


@dataclass(frozen=True)
class Table:
    """A table whose first column names its rows. `groups` are headings over several columns, (text, span).

    A line break in a cell begins a line of its own, a smaller one unless the column is text.
    """

    caption: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    groups: tuple[tuple[str, int], ...] = ()
    text_columns: frozenset[int] = frozenset()
    marked: frozenset[str] = field(default=frozenset())


def merchant_table(run: Run) -> Table | None:
    """Figures of every merchant, as far as they are known; the gain first, for a phone shows few columns at once."""
    rows = merchants(run)
    columns = [column for column in _merchant_columns() if any(column[2](v) != words.DASH for v in rows.values())]
    if not columns:
        return None
    groups = [(group, len(list(own))) for group, own in itertools.groupby(columns, key=lambda column: column[0])]
    measured = any(group in MEASURES.values() for group, _ in groups)
    return Table(
        "Each merchant on its own test rows" if measured else "What each merchant brought",
        ("Merchant", *(heading for _, heading, _ in columns)),
        tuple((name, *(write(values) for _, _, write in columns)) for name, values in rows.items()),
        (("", 1), *groups),
        marked=frozenset(worse_off(run)),
    )


def _merchant_columns() -> list[tuple[str, str, Write]]:
    """Group, heading and what is written of one merchant."""
    columns: list[tuple[str, str, Write]] = []
    for measure, title in MEASURES.items():
        columns.append((title, "Gain", _gain(measure)))
        columns += [(title, heading, _area(party, measure)) for party, heading in PARTIES.items()]
    columns.append(("Its own", "Threshold", lambda values: words.probability(number(values, "threshold"))))
    columns.append(("Rows", "Training", lambda values: words.count(number(values, "num_train_rows"))))
    columns.append(("Rows", "Test", lambda values: _counted_rows(values, "num_test_rows", "num_test_positives")))
    return columns


def _area(party: str, measure: str) -> Write:
    return lambda values: words.area(number(values, party, measure))


def _gain(measure: str) -> Write:
    return lambda values: words.interval(part(values, "gain", measure)).replace(" (", "\n(")


def _counted_rows(values: Mapping[str, Any], rows: str, positives: str) -> str:
    num_positives = number(values, positives)
    below = "" if num_positives is None else f"\n{words.count(num_positives)} positive"
    return words.count(number(values, rows)) + below


_OVERALL: Final[tuple[tuple[str, str, Callable[[float | None], str], str], ...]] = (
    ("PR-AUC", "pr_auc", words.area, "how many flags are right, over every degree of caution"),
    ("ROC-AUC", "roc_auc", words.area, "how often a positive row scores above a negative one"),
    ("Recall at 1 %", "recall_at_1_fpr", words.percent, "positives found while 1 % of the negatives are flagged"),
    ("Recall at 5 %", "recall_at_5_fpr", words.percent, "the same at 5 %"),
    ("Best F1", "best_f1", words.area, "balance of flags that are right and positives found"),
    ("Its threshold", "best_f1_threshold", words.probability, "flagging from this score on gives it"),
    ("Brier score", "brier", words.probability, "squared distance of score and outcome; lower is better"),
)


def overall_table(run: Run) -> Table | None:
    """The models on all merchants' test rows at once: a figure a line, for a phone is narrow."""
    parties = [party for party in ("federated", "pooled") if number(run, party, "pr_auc") is not None]
    rows = tuple(
        (f"{title}\n{meaning}", *(write(number(run, party, key)) for party in parties))
        for title, key, write, meaning in _OVERALL
    )
    columns = ("Figure", *(PARTIES[party] for party in parties))
    return Table("All merchants' test rows at once", columns, rows) if parties else None


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
    """Merchants with replies that did not enter an average, and why."""
    found: dict[str, dict[str, list[int]]] = {}
    for entry in rounds(run):
        for name, code in part(entry, "dropped").items():
            found.setdefault(str(name), {}).setdefault(str(code), []).append(int(entry["round"]))
    body = tuple(
        (
            name,
            words.count(sum(len(when) for when in reasons.values())),
            "\n".join(f"{words.reason(code)}: round {words.rounds(when)}" for code, when in sorted(reasons.items())),
        )
        for name, reasons in sorted(found.items(), key=lambda entry: natural_key(entry[0]))
    )
    columns = ("Merchant", "Left out", "Why, and in which rounds")
    return Table("Replies that were left out", columns, body, text_columns=frozenset({2})) if body else None


_NOTES: Final = {
    "missing": "Missing values",
    "clipped": "Outside the agreed range, counted as its edge",
    "unseen_categories": "Categories the agreement does not list",
    "constant": "The same in every row",
}
_COUNTED: Final = ("num_rows", "num_positives", "duplicates", "duplicates_removed")


def quality_table(run: Run) -> Table | None:
    """What each merchant's table looked like, and what in it a person should look at."""
    qualities = {name: part(values, "quality") for name, values in merchants(run).items() if part(values, "quality")}
    body = tuple(
        (name, _counted_rows(q, "num_rows", "num_positives"), _duplicates(q), _remarks(q))
        for name, q in qualities.items()
    )
    columns = ("Merchant", "Rows", "Exact duplicates", "What stands out")
    return Table("Data quality by merchant", columns, body, text_columns=frozenset({3})) if body else None


def _duplicates(quality: Mapping[str, Any]) -> str:
    found, removed = number(quality, "duplicates"), quality.get("duplicates_removed")
    fate = ("\nremoved" if removed else "\nkept") if found and isinstance(removed, bool) else ""
    return words.count(found) + fate


def _remarks(quality: Mapping[str, Any]) -> str:
    """A line for each kind of oddity; a count by column comes with its share of the rows."""
    num_rows = number(quality, "num_rows")
    lines = []
    for key, value in quality.items():
        if isinstance(value, Mapping):
            counts = [(name, n) for name, n in words.largest_first(value) if words.is_number(n) and n > 0]
            told = words.listed([f"{name}: {words.counted(n, num_rows)}" for name, n in counts])
        else:
            told = words.DASH if key in _COUNTED else words.plain(value)
        if told != words.DASH:
            lines.append(f"{_NOTES.get(key, words.heading(key))}: {told}")
    return "\n".join(lines) or "nothing"


_USERS: Final = {
    "momentum": ("momentum",),
    "proximal_mu": ("fedprox",),
    "server_momentum": ("fedavgm", "fedadam", "fedyogi"),
    "server_beta2": ("fedadam", "fedyogi"),
    "server_tau": ("fedadam", "fedyogi"),
    "focal_gamma": ("focal",),
}


def plan_table(run: Run) -> Table | None:
    """The plan that was gone on with, without the settings that its algorithm and optimizer have no use for."""
    plan = part(run, "plan")
    return settings_table("How it was trained", _in_use(plan, plan.get("algorithm"), plan.get("optimizer")))


def robustness_table(run: Run) -> Table | None:
    """The rule against dishonest merchants, and of a rule that selects, whose updates the model is made of; None for
    the plain mean.
    """
    agreed = part(run, "robustness")
    if agreed.get("rule", "mean") == "mean":
        return None
    taken: dict[str, list[int]] = {}
    for entry in rounds(run):
        for name in entry.get("selected") or ():
            taken.setdefault(str(name), []).append(int(entry["round"]))
    selected = {f"made of {name} alone": f"round {words.rounds(when)}" for name, when in taken.items()}
    return settings_table("What holds although some may lie", {**agreed, **selected})


def masking_table(run: Run) -> Table | None:
    """What masked sums were agreed on, None where the coordinator saw each merchant's own."""
    agreed = part(run, "secure_aggregation")
    if agreed.get("protocol", "none") == "none":
        return None
    return settings_table("What the coordinator saw were sums", agreed)


def network_table(run: Run) -> Table | None:
    """The network's settings, as far as its loss has a use for them."""
    model = part(run, "model")
    layers = {"hidden_layers": model["hidden"] or "none"} if "hidden" in model else {}
    used = _in_use(model, model.get("loss"))
    return settings_table("The network", {**layers, **{key: used[key] for key in used if key != "hidden"}})


def _in_use(settings: Mapping[str, Any], *choices: Any) -> dict[str, Any]:
    idle = {key for key, users in _USERS.items() if None not in choices and not any(user in choices for user in users)}
    return {key: value for key, value in settings.items() if key not in idle}


def settings_table(caption: str, values: Mapping[str, Any]) -> Table | None:
    """Settings one a line; a nested one is named by its path."""
    body = tuple((name, words.plain(value)) for name, value in _flat(values) if words.plain(value) != words.DASH)
    return Table(caption, ("Setting", "Value"), body, text_columns=frozenset({1})) if body else None


def _flat(values: Mapping[str, Any], prefix: str = "") -> Iterable[tuple[str, Any]]:
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{words.heading(key)}: ")
        else:
            yield prefix + words.heading(key), value
