"""The report: a finished run in the shape of metrics.json -> one self-contained HTML page.

Promises: equal runs give equal bytes; the page fetches nothing and runs nothing (its own content policy
forbids both); every string of the run, merchants' names above all, is escaped. What the page says is
report_sections.py's, report_small_model.py's and report_tables.py's, how it writes it report_words.py's, what it draws
report_figures.py's. Writing the page to disk is the caller's.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cache
from typing import Any, Final

from jinja2 import Environment, PackageLoader, StrictUndefined, Template

from hansa_server import report_figures as figures
from hansa_server import report_sections as sections
from hansa_server import report_small_model as small_model
from hansa_server import report_tables as tables
from hansa_server import report_words as words
from hansa_server.report_figures import Gain, Trail
from hansa_server.report_sections import MEASURES, Notice, Run
from hansa_server.report_tables import Table
from hansa_server.report_words import number, part

MAX_CHART_MERCHANTS: Final = 40
MAX_OPEN_ROWS: Final = 12
_MIN_TRAINED_POINTS: Final = 3


@dataclass(frozen=True)
class Figure:
    """A drawing with a heading, a sentence on how to read it, and what it shows in words."""

    title: str
    reading: str
    description: str
    svg: str


def render_report(run: Run) -> str:
    """One HTML page for a merchant's manager. Takes about a second, most of it for the figures.

    Pieces of metrics.json that a run has not (baselines, merchants' figures, intervals) leave their part of the
    page out, and the page says what was not measured.
    """
    fingerprint = str(run.get("agreement_fingerprint") or words.DASH)
    identity = {key: run.get(key) for key in ("run_id", "seed", "best_round", "hansa_version", "versions")}
    return _template().render(
        name=str(run.get("agreement_name") or "A federation"),
        sentences=sections.sentences(run),
        tiles=sections.tiles(run),
        like_for_like=bool(sections.averages(run, "pr_auc")),
        base_rate="" if (base_rate := sections.base_rate(run)) is None else words.area(base_rate),
        notice=sections.notice(run),
        ledgers=sections.ledgers_notice(run),
        facts=_facts(run),
        gain_figures=_gain_figures(run),
        merchant_table=tables.merchant_table(run),
        thresholds=any(number(values, "threshold") is not None for values in sections.merchants(run).values()),
        overall_table=tables.overall_table(run),
        pooled_interval=sections.pooled_interval(run),
        quality_figures=_quality_figures(run),
        round_figures=_round_figures(run),
        small=_small_model(run),
        privacy=[str(sentence) for sentence in part(run, "privacy").get("statement") or ()],
        audit=str(part(run, "audit").get("verdict") or ""),
        num_rounds=len(sections.rounds(run)),
        replies=[words.count(number_of) for number_of in sections.replies(run)],
        dropped_table=tables.dropped_table(run),
        max_open_rows=MAX_OPEN_ROWS,
        round_table=tables.round_table(run),
        data_table=tables.quality_table(run),
        data_settings=tables.settings_table("The data set", part(run, "data")),
        features=sections.features(run),
        fingerprint=fingerprint,
        settings=[
            table
            for table in (
                tables.plan_table(run),
                tables.robustness_table(run),
                tables.masking_table(run),
                tables.network_table(run),
                tables.settings_table("The run", identity),
            )
            if table
        ],
    )


@cache
def _template() -> Template:
    environment = Environment(
        loader=PackageLoader("hansa_server"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("report.html")


@dataclass(frozen=True)
class SmallModelPart:
    """The part of the page on the small model."""

    notice: Notice | None
    sentences: tuple[str, ...]
    figures: list[Figure]
    tables: tuple[Table | None, ...]


def _small_model(run: Run) -> SmallModelPart | None:
    if not small_model.is_there(run):
        return None
    return SmallModelPart(
        small_model.notice(run),
        small_model.sentences(run),
        [*_size_figures(run), *_step_figures(run)],
        (small_model.step_table(run), small_model.merchant_table(run)),
    )


def _size_figures(run: Run) -> list[Figure]:
    sizes = tuple((size.name, size.num_bytes) for size in small_model.sizes(run))
    if not sizes:
        return []
    described = "; ".join(f"{name} {words.kilobytes(num_bytes)}" for name, num_bytes in sizes)
    reading = "The weights as trained, the file that scores, and what is left of it on the way to a merchant."
    return [Figure("Size of the model", reading, f"Size: {described}.", figures.size_chart(sizes))]


def _step_figures(run: Run) -> list[Figure]:
    steps = small_model.steps(run, "pr_auc")
    if not steps:
        return []
    described = "; ".join(
        f"{step.name} {words.signed(step.validation)} on validation rows, {words.signed(step.test)} on test rows"
        for step in steps
    )
    title = MEASURES["pr_auc"]
    reading = "Right of the line: better than as trained. Validation rows decide whether the small model is released."
    if any(step.name == small_model.CONTROL for step in steps):
        reading += " What the control lost too, the further rounds did, not pruning."
    svg = figures.step_chart(steps, title)
    return [Figure(f"What each step changed in {title}", reading, f"Change of {title}: {described}.", svg)]


def _facts(run: Run) -> list[tuple[str, str]]:
    kept = sections.kept_round(run)
    facts = {
        "Task": str(run.get("task") or ""),
        "Label": str(run.get("label") or ""),
        "Merchants": words.count(len(sections.merchants(run))) if sections.merchants(run) else "",
        "Training rows": _total(run, "num_train_rows"),
        "Test rows": words.count(number(run, "federated", "num_rows")),
        "Columns read": words.count(len(sections.features(run))) if sections.features(run) else "",
        "Rounds": words.count(len(sections.rounds(run)))
        + (f", kept the model after {kept}" if kept is not None else ""),
    }
    return [(key, value) for key, value in facts.items() if value not in ("", words.DASH)]


def _total(run: Run, key: str) -> str:
    counts = [number(values, key) for values in sections.merchants(run).values()]
    return words.count(sum(c for c in counts if c is not None)) if any(c is not None for c in counts) else ""


def _gain_figures(run: Run) -> list[Figure]:
    found = []
    for measure, title in MEASURES.items():
        gains = sections.gains(run, measure)
        if not gains:
            continue
        shown, left_out = _extremes(gains)
        reading = (
            "Right of the line: better together. The bar is the 95 % interval; where it crosses the line, the dot is "
            "hollow and the test rows cannot tell. A diamond: better alone."
        )
        if left_out:
            reading += f" The {left_out} merchants in the middle are in the table only."
        described = "; ".join(
            f"{gain.merchant} {words.signed(gain.estimate)} ({words.signed(gain.low)} to {words.signed(gain.high)})"
            for gain in shown
        )
        svg = figures.gain_chart(tuple(shown), title)
        found.append(Figure(f"Gain in {title} by merchant", reading, f"Gain in {title}: {described}.", svg))
    return found


def _extremes(gains: list[Gain]) -> tuple[list[Gain], int]:
    half = MAX_CHART_MERCHANTS // 2
    return (gains, 0) if len(gains) <= 2 * half else (gains[:half] + gains[-half:], len(gains) - 2 * half)


def _round_figures(run: Run) -> list[Figure]:
    found = []
    for measure, title in MEASURES.items():
        trails = sections.trails(run, measure)
        if not trails:
            continue
        kept = next((trail for trail in trails if trail.kept), trails[0])
        start, end = kept.points[0], kept.points[-1]
        reading = "The ring marks the model that was kept." if sections.kept_round(run) is not None else ""
        if len(trails) > 1:
            reading += " Broken lines are plans that were tried and not gone on with."
        if start[0] == 0 and len(kept.points) > _MIN_TRAINED_POINTS:
            reading += f" Before the first round it was {words.area(start[1])}, which is left out here."
            trails = [_trained(trail) for trail in trails]
        described = (
            f"{title} on validation rows: {words.area(start[1])} after round {start[0]}, "
            f"{words.area(end[1])} after round {end[0]}."
        )
        svg = figures.round_chart(tuple(trails), title, sections.kept_round(run))
        found.append(Figure(f"{title} by round", reading.strip(), described, svg))
    return found


def _trained(trail: Trail) -> Trail:
    # The untrained model stands so far below the rest that nothing else could be told apart beside it.
    later = tuple(point for point in trail.points if point[0] > 0)
    return replace(trail, points=later or trail.points)


def _quality_figures(run: Run) -> list[Figure]:
    found = []
    curves = [(name, _points(run, party)) for name, party in (("together", "federated"), ("pooled", "pooled"))]
    curves = [(name, points) for name, points in curves if points]
    base_rate = sections.base_rate(run)
    if curves and base_rate is not None:
        described = ", ".join(f"{name} {words.area(_at_half(points))}" for name, points in curves)
        found.append(
            Figure(
                "Precision and recall",
                "How many flags are right, for each share of the positives found. Higher is better.",
                f"Precision where half of the positives are found: {described}; guessing {words.area(base_rate)}.",
                figures.pr_chart(tuple(curves), base_rate),
            )
        )
    groups = [(g[0], g[1], int(g[2])) for g in part(run, "federated").get("reliability") or ()]
    if groups:
        described = "; ".join(f"score {score:.2f}, observed {observed:.2f}" for score, observed, _ in groups)
        found.append(
            Figure(
                "Can a score be read as a probability?",
                "On the dotted line, rows scored 0.3 are positive three times in ten. Larger dots stand for more rows; "
                "a bar is the 95 % interval.",
                f"Mean score and observed share of positives: {described}.",
                figures.reliability_chart(tuple(groups)),
            )
        )
    return found


def _points(run: Run, party: str) -> tuple[tuple[float, float], ...]:
    curve: Any = part(run, party).get("pr_curve") or ()
    return tuple((float(recall), float(precision)) for recall, precision in curve)


def _at_half(points: tuple[tuple[float, float], ...]) -> float:
    return next((precision for recall, precision in points if recall >= 0.5), points[-1][1])  # noqa: PLR2004
