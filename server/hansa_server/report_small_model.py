"""What the report says of the finished small model: a run in the shape of metrics.json -> sentences, tables, figures.

A run that made none leaves the part out. One whose small model was refused says so first, with the reason; what was
found of it stands below, for whoever agrees anew. Pure; the page is report.py's.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from hansa_server import report_words as words
from hansa_server.report_figures import Step
from hansa_server.report_sections import MEASURES, Notice, Run, merchants
from hansa_server.report_tables import Table
from hansa_server.report_words import number, part

CONTROL: Final = "Control"
_STEPS: Final = {
    "kept": ("As trained", "the model of this report, float32"),
    "control": (CONTROL, "as many more rounds, nothing pruned"),
    "pruned": ("Pruned", "the rounds that pruned it, float32"),
    "int8": ("Small", "the int8 file made of it"),
}
# Where a step's figures stand in metrics.json, on validation rows and on test rows.
_PLACES: Final = {
    "kept": (("compression", "validation", "original"), ("federated",)),
    "control": (("compression", "pruning", "validation", "control"), ("compression", "pruning", "test", "control")),
    "pruned": (("compression", "pruning", "validation", "pruned"), ("compression", "pruning", "test", "pruned")),
    "int8": (("compression", "validation", "candidate"), ("compressed",)),
}
_EVERYONE: Final = "All rows at once"


@dataclass(frozen=True)
class Size:
    """How large the model is in one form."""

    name: str
    num_bytes: float


def is_there(run: Run) -> bool:
    """Whether a small model was to be made."""
    return bool(part(run, "compression"))


def notice(run: Run) -> Notice | None:
    """Why the small model was not released; None where it was."""
    compression = part(run, "compression")
    if not compression or compression.get("released") is not False:
        return None
    lines = (f"Why: {compression.get('reason') or 'not told'}.", "The float model remains: use it as it is.")
    return Notice("warn", "The small model was not released", lines)


def sentences(run: Run) -> tuple[str, ...]:
    """How small, how sparse and how good it is, for someone who reads nothing else of it."""
    return tuple(line for line in (_in_bytes(run), _in_zeros(run), _in_quality(run)) if line)


def _in_bytes(run: Run) -> str:
    found = {size.name: size.num_bytes for size in sizes(run)}
    if not found:
        return ""
    whole, file, packed = found.values()
    verb = "is" if part(run, "compression").get("released") else "would be"
    return (
        f"The model to score with {verb} a file of {words.kilobytes(file)}, {words.kilobytes(packed)} after gzip; its "
        f"weights as float32 take {words.kilobytes(whole)}."
    )


def _in_zeros(run: Run) -> str:
    pruning = part(run, "compression", "pruning")
    if not pruning:
        return "It was not pruned: the agreement asks for no zeros."
    if not pruning.get("pruned"):
        return f"Nothing of it was pruned: {pruning.get('reason') or 'the reason was not told'}."
    found = number(run, "compression", "found", "sparsity")
    counted = (
        "" if found is None else f"; counted in the finished file, {words.percent(found)} of all dense weights are"
    )
    return f"{words.percent(number(pruning, 'sparsity'))} of the weights of its hidden layers were to be zero{counted}."


def _in_quality(run: Run) -> str:
    kept, small = (number(run, *_PLACES[step][1], "pr_auc") for step in ("kept", "int8"))
    if kept is None or small is None:
        return ""
    return f"On test rows its PR-AUC is {words.area(small)}, that of the model as trained {words.area(kept)}."


def sizes(run: Run) -> tuple[Size, ...]:
    """The model as plain float32, as the int8 file, and that after gzip."""
    keys = {"float32_bytes": "float32", "bytes": "int8 file", "gzip_bytes": "after gzip"}
    found = [(name, number(run, "compression", "found", key)) for key, name in keys.items()]
    known = tuple(Size(name, num_bytes) for name, num_bytes in found if num_bytes is not None)
    return known if len(known) == len(keys) else ()


def steps(run: Run, measure: str) -> tuple[Step, ...]:
    """What each step changed against the model as trained, on validation and on test rows, as far as it is known."""
    kept = [number(run, *place, measure) for place in _PLACES["kept"]]
    found = []
    for step, (name, _) in list(_STEPS.items())[1:]:
        figures = [number(run, *place, measure) for place in _PLACES[step]]
        found.append(Step(name, *(_change(*pair) for pair in zip(kept, figures, strict=True))))
    return tuple(step for step in found if step.validation is not None or step.test is not None)


def step_table(run: Run) -> Table | None:
    """Every step in figures; the control says what the further rounds alone did."""
    rows = [
        (
            f"{name}\n{meaning}",
            *(words.area(number(run, *place, measure)) for measure in MEASURES for place in _PLACES[step]),
        )
        for step, (name, meaning) in _STEPS.items()
    ]
    known = tuple(row for row in rows if any(cell != words.DASH for cell in row[1:]))
    columns = ("Model", *("Validation", "Test") * len(MEASURES))
    groups = (("", 1), *((title, 2) for title in MEASURES.values()))
    return Table("From the model as trained to the small one", columns, known, groups) if len(known) > 1 else None


def merchant_table(run: Run) -> Table | None:
    """Every merchant's own test rows scored by both, and everyone's at once; None where that is not known."""
    parties = {name: values for name, values in merchants(run).items() if number(values, "compressed", "pr_auc")}
    if not parties:
        return None
    rows = tuple(
        (name, *(cell for measure in MEASURES for cell in _both(values, measure)))
        for name, values in {**parties, _EVERYONE: run}.items()
    )
    groups = (("", 1), *((title, 3) for title in MEASURES.values()))
    columns = ("Merchant", *("As trained", "Small", "Change") * len(MEASURES))
    return Table("The small model on each merchant's test rows", columns, rows, groups)


def _both(values: Run, measure: str) -> tuple[str, str, str]:
    kept, small = number(values, "federated", measure), number(values, "compressed", measure)
    return words.area(kept), words.area(small), words.signed(_change(kept, small))


def _change(before: float | None, after: float | None) -> float | None:
    return None if before is None or after is None else after - before
