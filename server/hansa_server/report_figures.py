"""The report's figures as inline SVG: equal values give equal bytes, and nothing in them is fetched.

Text stays text in the page's own font, colours are the page's CSS variables (so they follow dark mode and
print), and no element keeps an id that another figure on the page could have. Each figure is narrow enough to
be read on a phone. What is drawn is report_sections.py's choice; names are drawn as they are, never parsed.
"""

from __future__ import annotations

import hashlib
import io
import math
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Stand-ins that matplotlib can draw with, and the CSS variable each becomes.
INK, MUTED, GRID, TOGETHER, POOLED, WARN, PAPER = (f"#01020{i}" for i in range(7))
_VARIABLES: Final = {
    INK: "ink", MUTED: "muted", GRID: "line", TOGETHER: "together", POOLED: "pooled", WARN: "warn", PAPER: "card"
}  # fmt: skip

# Narrow: on a phone a figure is 330 pixels wide, and its letters must not shrink below 11.
_WIDTH_INCHES: Final = 3.85
_HEIGHT_INCHES: Final = 2.9
_MAX_NAME: Final = 18
_SHORT_NAME: Final = 16
_MAX_DOTS: Final = 40
_NORMAL_95: Final = 1.959963984540054
_STYLE: Final[dict[str, Any]] = {
    "svg.fonttype": "none",
    "font.size": 9.25,
    "text.color": INK,
    "text.parse_math": False,
    "axes.edgecolor": GRID,
    "axes.labelcolor": MUTED,
    "axes.facecolor": "none",
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.spines.left": False,
    "figure.facecolor": "none",
    "grid.color": GRID,
    "grid.linewidth": 0.7,
    "legend.frameon": False,
    "legend.fontsize": 9.25,
    "lines.linewidth": 1.8,
    "xtick.color": GRID,
    "ytick.color": GRID,
    "xtick.labelcolor": MUTED,
    "ytick.labelcolor": INK,
    "ytick.major.size": 0,
    "xtick.labelsize": 9.25,
    "ytick.labelsize": 9.25,
}


# A simulation writes its report twice, before and after its baselines; most figures are the same.
_remembered = lru_cache(maxsize=32)


@dataclass(frozen=True)
class Gain:
    """What one merchant gained, with its interval; the interval is (estimate, low, high)."""

    merchant: str
    estimate: float
    low: float
    high: float


@dataclass(frozen=True)
class Trail:
    """Validation by the round that made the model, for one plan; `kept` marks the plan that the run went on with."""

    label: str
    points: tuple[tuple[int, float], ...]
    kept: bool


@dataclass(frozen=True)
class Step:
    """What one step on the way to the small model changed in a figure, None where it is not known."""

    name: str
    validation: float | None
    test: float | None


@_remembered
def gain_chart(gains: tuple[Gain, ...], measure: str) -> str:
    """A dot and an interval for each merchant, in the order given from top to bottom."""
    with _drawing(f"gain {measure}", height=0.75 + 0.27 * len(gains)) as (axes, out):
        axes.axvline(0.0, color=MUTED, linewidth=1.0)
        for place, gain in enumerate(gains):
            colour, marker, fill = _gain_mark(gain)
            axes.plot([gain.low, gain.high], [place, place], color=colour, linewidth=2.2, solid_capstyle="round")
            axes.plot([gain.estimate], [place], marker=marker, color=colour, markerfacecolor=fill, markersize=6.5)
        axes.set_yticks(range(len(gains)), [_short(gain.merchant) for gain in gains])
        axes.set_ylim(len(gains) - 0.4, -0.6)
        axes.grid(visible=False, axis="y")
        # Long names leave less room for the scale.
        axes.xaxis.set_major_locator(_ticks(5 if max(len(gain.merchant) for gain in gains) <= _SHORT_NAME else 4))
        axes.xaxis.set_major_formatter(_signed)
        axes.set_xlabel(f"{measure}, together minus alone")
    return out[0]


def _gain_mark(gain: Gain) -> tuple[str, str, str]:
    if gain.high < 0.0:
        return WARN, "D", WARN
    return (TOGETHER, "o", TOGETHER) if gain.low > 0.0 else (MUTED, "o", PAPER)


@_remembered
def round_chart(trails: tuple[Trail, ...], measure: str, best_round: int | None) -> str:
    """Validation by round, the kept model's figure beside its ring; plans not kept are thin and broken."""
    with _drawing(f"rounds {measure}") as (axes, out):
        for trail in sorted(trails, key=lambda trail: not trail.kept):
            rounds, values = zip(*trail.points, strict=True)
            style: dict[str, Any] = (
                {"color": TOGETHER} if trail.kept else {"color": MUTED, "linestyle": "--", "lw": 1.2}
            )
            axes.plot(
                rounds, values, marker="o", markersize=3.2 if len(rounds) < _MAX_DOTS else 0, label=trail.label, **style
            )
            if trail.kept and best_round is not None and best_round in rounds:
                _ring(axes, best_round, values[rounds.index(best_round)], on_the_right=best_round < 0.6 * rounds[-1])
        axes.set_xlabel("after round")
        axes.set_ylabel(f"{measure} on validation rows")
        axes.xaxis.set_major_locator(_ticks(6, integer=True))
        axes.yaxis.set_major_locator(_ticks(5))
        axes.margins(y=0.15)
        if len(trails) > 1:
            axes.legend(loc="lower right")
    return out[0]


def _ring(axes: Axes, best_round: int, value: float, *, on_the_right: bool) -> None:
    axes.plot([best_round], [value], "o", ms=9, color=TOGETHER, markerfacecolor=PAPER, mew=2.2)
    axes.annotate(
        f"kept: {value:.3f}",
        (best_round, value),
        (0, 10),
        textcoords="offset points",
        horizontalalignment="left" if on_the_right else "right",
        color=TOGETHER,
        fontweight="bold",
    )


@_remembered
def pr_chart(curves: tuple[tuple[str, tuple[tuple[float, float], ...]], ...], base_rate: float) -> str:
    """Precision by recall as steps, one line for each model; the base rate is what guessing gives."""
    with _drawing("precision recall") as (axes, out):
        for (label, points), (colour, line) in zip(curves, ((TOGETHER, "-"), (POOLED, "--")), strict=False):
            recall, precision = [0.0, *(p[0] for p in points)], [points[0][1], *(p[1] for p in points)]
            axes.step(recall, precision, where="pre", color=colour, linestyle=line, label=label)
        axes.axhline(base_rate, color=MUTED, linewidth=1.0, linestyle=":", label="guessing")
        _unit_square(axes)
        axes.set_xlabel("recall: share of positives found")
        axes.set_ylabel("precision: share of flags right")
        axes.legend(loc="best")
    return out[0]


@_remembered
def reliability_chart(groups: tuple[tuple[float, float, int], ...]) -> str:
    """Observed rate by mean score with its interval; a dot's area grows with the rows it stands for."""
    with _drawing("reliability") as (axes, out):
        score, observed, rows = zip(*groups, strict=True)
        axes.plot([0, 1], [0, 1], color=MUTED, linewidth=1.0, linestyle=":", label="perfect")
        low, high = zip(*(wilson_interval(share, count) for _, share, count in groups), strict=True)
        axes.vlines(score, low, high, color=TOGETHER, linewidth=1.4, alpha=0.55)
        sizes = [16.0 + 120.0 * count / max(rows) for count in rows]
        axes.scatter(
            score, observed, s=sizes, color=TOGETHER, edgecolor=PAPER, linewidth=0.8, label="together", zorder=3
        )
        _unit_square(axes)
        axes.set_xlabel("score the model gave")
        axes.set_ylabel("share that was positive")
        axes.legend(loc="upper left")
    return out[0]


@_remembered
def size_chart(sizes: tuple[tuple[str, float], ...]) -> str:
    """A bar for each form of the model, its size in KB at the end; sizes in bytes."""
    with _drawing("sizes", height=0.95 + 0.34 * len(sizes)) as (axes, out):
        kilobytes = [size / 1e3 for _, size in sizes]
        axes.barh(range(len(sizes)), kilobytes, height=0.55, color=[MUTED, *[TOGETHER] * (len(sizes) - 1)])
        for place, size in enumerate(kilobytes):
            axes.annotate(f"{size:,.1f}", (size, place), (5, 0), textcoords="offset points", va="center", color=INK)
        axes.set_yticks(range(len(sizes)), [name for name, _ in sizes])
        axes.invert_yaxis()
        axes.set_xlim(0, 1.2 * max(kilobytes))
        axes.xaxis.set_major_locator(_ticks(5))
        axes.grid(visible=False, axis="y")
        axes.set_xlabel("KB")
    return out[0]


@_remembered
def step_chart(steps: tuple[Step, ...], measure: str) -> str:
    """A line for each step from top to bottom, what it changed on validation rows (ring) and on test rows (dot)."""
    with _drawing(f"steps {measure}", height=1.35 + 0.3 * len(steps)) as (axes, out):
        places = range(len(steps))
        axes.axvline(0.0, color=MUTED, linewidth=1.0)
        axes.plot(
            [_or_nan(step.validation) for step in steps], places, "o",
            color=POOLED, markerfacecolor=PAPER, markersize=6.5, label="validation rows",
        )  # fmt: skip
        axes.plot(
            [_or_nan(step.test) for step in steps], places, "o", color=TOGETHER, markersize=6.5, label="test rows"
        )
        axes.set_yticks(places, [step.name for step in steps])
        axes.set_ylim(len(steps) - 0.5, -0.5)
        axes.margins(x=0.15)
        axes.xaxis.set_major_locator(_ticks(4))
        axes.xaxis.set_major_formatter(_signed)
        axes.set_xlabel(f"{measure}, minus that of the model as trained")
        axes.legend(loc="lower center", bbox_to_anchor=(0.4, 1.0), ncols=2, columnspacing=1.2, handletextpad=0.2)
    return out[0]


def _or_nan(value: float | None) -> float:
    return math.nan if value is None else value


def wilson_interval(share: float, count: int) -> tuple[float, float]:
    """95 % interval of a share seen in `count` rows: Wilson, "Probable Inference, the Law of Succession, and
    Statistical Inference" (1927). No rows tell nothing: (0, 1).
    """
    if count <= 0:
        return 0.0, 1.0
    spread = _NORMAL_95**2 / count
    centre = (share + spread / 2) / (1 + spread)
    half = math.sqrt(share * (1 - share) * spread + spread**2 / 4) / (1 + spread)
    return max(centre - half, 0.0), min(centre + half, 1.0)


def _unit_square(axes: Axes) -> None:
    axes.set_xlim(-0.02, 1.02)
    axes.set_ylim(-0.02, 1.04)


def _ticks(number: int, *, integer: bool = False) -> Any:
    from matplotlib.ticker import MaxNLocator

    return MaxNLocator(number, integer=integer)


def _signed(value: float, _position: float) -> str:
    return "0" if round(value, 9) == 0.0 else f"{value:+.3g}".replace("-", "\N{MINUS SIGN}")


def _short(name: str) -> str:
    name = "".join(letter if letter.isprintable() else " " for letter in name)
    return name if len(name) <= _MAX_NAME else name[: _MAX_NAME - 1] + "\N{HORIZONTAL ELLIPSIS}"


@contextmanager
def _drawing(salt: str, height: float = _HEIGHT_INCHES) -> Iterator[tuple[Axes, list[str]]]:
    """Axes to draw on; after the block the list holds the SVG."""
    # Half a second, which only a report costs. The object interface: pyplot would look for a screen.
    import matplotlib as mpl
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    out: list[str] = []
    with mpl.rc_context({**_STYLE, "svg.hashsalt": salt}), warnings.catch_warnings():
        # The reader's browser has the glyphs; matplotlib's font only measures them.
        warnings.filterwarnings("ignore", message="Glyph .* missing from font", category=UserWarning)
        figure = Figure(figsize=(_WIDTH_INCHES, height), layout="constrained")
        FigureCanvasSVG(figure)
        yield figure.subplots(), out
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", metadata=dict.fromkeys(("Creator", "Date", "Format", "Type")))
        out.append(_inline(buffer.getvalue(), hashlib.sha256(salt.encode()).hexdigest()[:8]))


def _inline(svg: str, prefix: str) -> str:
    """The bare <svg> element: no prolog or namespaces (HTML needs none), no sizes, its ids its own."""
    svg = svg[svg.index("<svg") :]
    head, body = svg.split(">", 1)
    view_box = re.search(r'viewBox="[^"]*"', head)
    referenced = set(re.findall(r'(?:href="|url\()#([\w-]+)', body))

    def own(match: re.Match[str]) -> str:
        return f' id="{prefix}-{match[1]}"' if match[1] in referenced else ""

    body = re.sub(r"<defs>\s*<style.*?</style>\s*</defs>", "", body, count=1, flags=re.DOTALL)
    body = re.sub(r"font-family: [^;\"<>]*; ?", "", body)
    body = re.sub(r' id="([^"<>]*)"', own, body)
    body = re.sub(r'(href="|url\()#', rf"\1#{prefix}-", body)
    for colour, variable in _VARIABLES.items():
        body = body.replace(colour, f"var(--{variable})")
    return f'<svg {view_box[0] if view_box else ""} aria-hidden="true" focusable="false">{body.strip()}'
