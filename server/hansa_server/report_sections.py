"""What the report says: a run in the shape of metrics.json -> sentences, figures and notices.

Every part that a run lacks (real processes have no baselines, and no merchant's figures unless it shares
them) leaves its sentence out; nothing is guessed. Alone and together are compared on the same rows:
the average over merchants of each one's own test rows, weighted by their number. Pure; the page is report.py's.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from hansa_common.natural_order import natural_key
from hansa_server import report_words as words
from hansa_server.report_figures import Gain, Trail
from hansa_server.report_words import number, part

Run = Mapping[str, Any]

MEASURES: Final = {"pr_auc": "PR-AUC", "roc_auc": "ROC-AUC"}
PARTIES: Final = {"local": "Alone", "federated": "Together", "pooled": "Pooled"}
_NOTICEABLE: Final = 0.0005
_TEN_THOUSAND: Final = 10_000
_COUNTABLE: Final = 10
_TASKS: Final = {
    "fraud": ("fraud", "frauds", "honest rows", "recall_at_1_fpr", 0.01),
    "purchase": ("purchase", "buyers", "non-buyers", "recall_at_5_fpr", 0.05),
}
_OTHER_TASK: Final = ("scoring", "positives", "negatives", "recall_at_5_fpr", 0.05)


@dataclass(frozen=True)
class Tile:
    """One large figure."""

    title: str
    value: str
    detail: str
    main: bool = False


@dataclass(frozen=True)
class Notice:
    """What concerns single merchants; kind is warn (to be seen before any figure), good or quiet.

    `named` holds merchants with what is to be said of each, and stands before the lines.
    """

    kind: str
    title: str
    lines: tuple[str, ...]
    named: tuple[tuple[str, str], ...] = ()


def task_words(run: Run) -> tuple[str, str, str, str, float]:
    """(model of what, positives, negatives, the recall that counts, at which false positives)."""
    return _TASKS.get(str(run.get("task")), _OTHER_TASK)


def merchants(run: Run) -> dict[str, Mapping[str, Any]]:
    """The merchants' parts of a run, in the order of their names."""
    found = {str(name): part(values) for name, values in part(run, "merchants").items()}
    return dict(sorted(found.items(), key=lambda entry: (natural_key(entry[0]), entry[0])))


def averages(run: Run, measure: str) -> dict[str, float]:
    """Mean over merchants weighted by test rows, of those who have both figures alone and together.

    A party is left out where one of these merchants has no figure of it.
    """
    rows = [
        ({party: number(values, party, measure) for party in PARTIES}, number(values, "num_test_rows") or 0.0)
        for values in merchants(run).values()
        if number(values, "local", measure) is not None and number(values, "federated", measure) is not None
    ]
    weight = sum(num_rows for _, num_rows in rows)
    means = {}
    for party in PARTIES:
        figures = [(figure, num_rows) for own, num_rows in rows if (figure := own[party]) is not None]
        if weight and len(figures) == len(rows):
            means[party] = sum(figure * num_rows for figure, num_rows in figures) / weight
    return means


def sentences(run: Run) -> tuple[str, ...]:
    """What was trained and what it was worth, for someone who reads nothing else."""
    who = words.plural(len(merchants(run)), "merchant") if merchants(run) else "Several merchants"
    trained = f"{who} trained one {task_words(run)[0]} model without showing each other a single row."
    return tuple(line for line in (trained, _in_practice(run), _worth(run), _against_pooled(run)) if line)


def _worth(run: Run) -> str:
    means = averages(run, "pr_auc")
    if not means:
        together, base = number(run, "federated", "pr_auc"), base_rate(run)
        if together is None or base is None:
            return "Its figures are withheld: too few merchants answered, or their test rows hold too few positives."
        return (
            f"On rows it had never seen it reaches a PR-AUC of {words.area(together)}, where guessing gives "
            f"{words.area(base)}. What that is worth against training alone was not measured in this run."
        )
    alone, together = means["local"], means["federated"]
    if abs(together - alone) < _NOTICEABLE:
        return f"For the average merchant it changed nothing: PR-AUC is {words.area(together)}, alone or together."
    verb = "raised" if together > alone else "lowered"
    return (
        f"For the average merchant, training together {verb} PR-AUC from {words.area(alone)} alone to "
        f"{words.area(together)} together."
    )


def _against_pooled(run: Run) -> str:
    means = averages(run, "pr_auc")
    if "pooled" not in means:
        return ""
    gap = means["federated"] - means["pooled"]
    if abs(gap) < _NOTICEABLE:
        return "That is as good as pooling all rows in one place."
    low, high = (number(run, "intervals", "federated_minus_pooled", "pr_auc", key) for key in ("low", "high"))
    if low is not None and high is not None and low <= 0.0 <= high:
        return "As far as these test rows can tell, that is as good as pooling all rows in one place."
    place = "below" if gap < 0 else "above"
    return f"That is {place} the {words.area(means['pooled'])} that pooling all rows in one place gives."


def _in_practice(run: Run) -> str:
    _, positives, negatives, key, share = task_words(run)
    recall, base = number(run, "federated", key), base_rate(run)
    if recall is None or base is None:
        return ""
    num_rows = _TEN_THOUSAND if base * _TEN_THOUSAND >= _COUNTABLE else 100 * _TEN_THOUSAND
    num_positives, mistaken = base * num_rows, (1 - base) * num_rows * share
    return (
        f"Where {words.percent(share)} of the {negatives} may be flagged by mistake, it finds "
        f"{words.percent(recall)} of the {positives}: in {words.count(num_rows)} rows like these "
        f"{words.count(recall * num_positives)} of {words.count(num_positives)}, at the price of "
        f"{words.plural(mistaken, 'false alarm')}."
    )


def features(run: Run) -> list[str]:
    """The columns that the model reads, in the agreement's order."""
    names = run.get("features")
    return [str(name) for name in names] if isinstance(names, list | tuple) else []


def base_rate(run: Run) -> float | None:
    """Share of positives among the test rows: the PR-AUC of guessing."""
    rows, positives = (number(run, "federated", key) for key in ("num_rows", "num_positives"))
    return positives / rows if rows and positives is not None else None


def tiles(run: Run) -> tuple[Tile, ...]:
    """Alone, together and pooled side by side; without baselines the shared model's own figures."""
    pr_auc, roc_auc = averages(run, "pr_auc"), averages(run, "roc_auc")
    titles = {"local": "Each one alone", "federated": "Together", "pooled": "All rows pooled"}
    if pr_auc:
        return tuple(
            Tile(
                titles[party],
                words.area(pr_auc[party]),
                f"ROC-AUC {words.area(roc_auc.get(party))}",
                party == "federated",
            )
            for party in pr_auc
        )
    _, positives, negatives, key, share = task_words(run)
    if number(run, "federated", "pr_auc") is None:
        return ()
    return (
        Tile(
            "PR-AUC",
            words.area(number(run, "federated", "pr_auc")),
            f"guessing {words.area(base_rate(run))}",
            main=True,
        ),
        Tile("ROC-AUC", words.area(number(run, "federated", "roc_auc")), "guessing 0.500"),
        Tile(
            f"{positives.capitalize()} found",
            words.percent(number(run, "federated", key)),
            f"at {words.percent(share)} of {negatives} flagged",
        ),
    )


def gains(run: Run, measure: str) -> list[Gain]:
    """Merchants whose gain is known with its interval, the largest PR-AUC gain first."""
    order = sorted(merchants(run).items(), key=lambda item: -(number(item[1], "gain", "pr_auc", "estimate") or 0.0))
    found = []
    for name, values in order:
        estimate, low, high = (number(values, "gain", measure, key) for key in ("estimate", "low", "high"))
        if estimate is not None and low is not None and high is not None:
            found.append(Gain(name, estimate, low, high))
    return found


def worse_off(run: Run) -> dict[str, str]:
    """Merchants whose whole interval lies below zero, in either measure, and by how much."""
    worse: dict[str, list[str]] = {}
    for measure, title in MEASURES.items():
        for gain in gains(run, measure):
            if gain.high < 0.0:
                figures = part(run, "merchants", gain.merchant, "gain", measure)
                worse.setdefault(gain.merchant, []).append(f"{title} {words.interval(figures)}")
    return {name: ", ".join(lines) for name, lines in worse.items()}


def notice(run: Run) -> Notice:
    """Who is worse off together than alone, by name, or that nobody is, or that nobody measured it."""
    known = gains(run, "pr_auc")
    if not known:
        only = "To compare, every merchant would have to train a model of its own as well; in this run none did."
        return Notice("quiet", "Whether each merchant gains was not measured in this run", (only,))
    lines = [_how_many_gain(known)]
    if missing := [name for name in merchants(run) if name not in {gain.merchant for gain in known}]:
        lines.append(f"Not compared, for want of figures: {words.names(missing)}.")
    worse = worse_off(run)
    if not worse:
        return Notice("good", "No merchant does worse together than alone, beyond what chance explains", tuple(lines))
    does = "does" if len(worse) == 1 else "do"
    title = f"{words.plural(len(worse), 'merchant')} {does} worse together than alone, beyond what chance explains"
    advice = (
        "The figures are together minus alone, with 95 % interval. By them a model of its own serves such a merchant "
        "better on its test rows."
    )
    return Notice("warn", title, (advice, *lines), tuple(worse.items()))


def ledgers_notice(run: Run) -> Notice | None:
    """Whose privacy ledger went back, in this run or before it; None where nobody's did."""
    known = part(run, "ledgers_went_back")
    if not known:
        return None
    told = {name: _how_it_went_back(part(known, name)) for name in sorted(known, key=natural_key)}
    ledgers = "ledger" if len(told) == 1 else "ledgers"
    title = f"The privacy {ledgers} of {words.plural(len(told), 'merchant')} went back"
    meaning = (
        "An older copy is in use: what the newer one had charged can be spent again, so the promise to each person may "
        "not hold for these merchants' rows. Ask them, and say what came of it."
    )
    return Notice("warn", title, (meaning,), tuple(told.items()))


def _how_it_went_back(told: Mapping[str, Any]) -> str:
    start, end = number(told, "from_line"), number(told, "to_line")
    lines = "" if start is None or end is None else f" from line {start:.0f} to line {end:.0f}"
    return f"noticed at {told.get('at') or words.DASH}{lines}"


def _how_many_gain(known: list[Gain]) -> str:
    ahead = sum(gain.low > 0.0 for gain in known)
    compared = words.plural(len(known), "merchant")
    if ahead == len(known):
        return f"All of the {compared} compared clearly gain PR-AUC."
    unsure = sum(gain.low <= 0.0 <= gain.high for gain in known)
    clearly = f"{ahead} of {compared} clearly {'gains' if ahead == 1 else 'gain'} PR-AUC"
    return f"{clearly}; for {unsure} the test rows cannot tell." if unsure else f"{clearly}."


def pooled_interval(run: Run) -> str:
    """How sure the distance to the pooled model is, or nothing."""
    gap = part(run, "intervals", "federated_minus_pooled")
    known = [f"{words.interval(gap.get(measure))} {title}" for measure, title in MEASURES.items() if part(gap, measure)]
    return f"Together minus pooled, with 95 % interval: {words.names(known)}." if known else ""


def rounds(run: Run) -> list[Mapping[str, Any]]:
    """The run's rounds, each a mapping with its number."""
    entries = run.get("rounds")
    return (
        [entry for entry in entries if number(entry, "round") is not None] if isinstance(entries, list | tuple) else []
    )


def replies(run: Run) -> tuple[int, int]:
    """How many replies were left out, of how many that were asked for."""
    asked = [entry.get("cohort") for entry in rounds(run)]
    num_asked = sum(len(cohort) for cohort in asked if isinstance(cohort, list | tuple))
    return sum(len(part(entry, "dropped")) for entry in rounds(run)), num_asked


def kept_round(run: Run) -> int | None:
    """How many rounds stand behind the model that was kept."""
    best = number(run, "best_round")
    return None if best is None else int(best)


def trails(run: Run, measure: str) -> list[Trail]:
    """Validation of each plan's models by the round that made them; 0 made the untrained one.

    A round validates the model that comes in to it: the one of the plan's last round that was averaged, which under
    `auto` may lie many rounds back.
    """
    by_plan: dict[int, dict[int, float]] = {}
    made_by: dict[int, int] = {}
    for entry in rounds(run):
        plan, value = int(number(entry, "plan") or 0), number(entry, "validation", measure)
        if value is not None:
            by_plan.setdefault(plan, {})[made_by.get(plan, 0)] = value
        if entry.get("aggregated") is not False:
            made_by[plan] = int(entry["round"])
    kept, kept_value = _kept_plan(run), number(run, "validation", measure)
    best_round = kept_round(run)
    if kept in by_plan and best_round is not None and kept_value is not None:
        # The last model of all is validated after the rounds, and may be the one that was kept.
        by_plan[kept].setdefault(best_round, kept_value)
    return [
        Trail(
            "together" if len(by_plan) == 1 else f"plan {plan + 1}" + ("" if plan == kept else ", tried"),
            tuple(sorted(points.items())),
            plan == kept,
        )
        for plan, points in sorted(by_plan.items())
    ]


def _kept_plan(run: Run) -> int:
    index = number(run, "plan_index")
    if index is None and rounds(run):
        index = number(rounds(run)[-1], "plan")
    return int(index or 0)
