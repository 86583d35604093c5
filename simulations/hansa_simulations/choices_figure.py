"""Choices of compression as one picture, size against loss. Equal choices on one machine give equal pictures."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final

from hansa_simulations.choices import Choice, named

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_INK, _MUTED, _GRID, _GOOD, _WARN = "#1c2733", "#57626e", "#dfdad0", "#0b6a6c", "#a33422"
_DPI: Final = 150
_STYLE: Final[dict[str, Any]] = {
    "font.size": 10,
    "text.color": _INK,
    "axes.edgecolor": _GRID,
    "axes.labelcolor": _MUTED,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "grid.color": _GRID,
    "grid.linewidth": 0.7,
    "legend.frameon": False,
    "xtick.color": _MUTED,
    "ytick.color": _MUTED,
}


def choices_png(choices: Sequence[Choice], chosen: Choice | None, max_loss: float) -> bytes:
    """A PNG: each choice by its size after gzip and its loss of PR-AUC on validation rows with its 95 % interval, the
    control's loss beside it, the loss that is allowed, and which choice is the smallest within it.
    """
    # The object interface: pyplot would look for a screen.
    import matplotlib as mpl
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=(7.2, 4.6), layout="constrained")
        FigureCanvasAgg(figure)
        _draw(figure.subplots(), choices, chosen, max_loss)
        out = io.BytesIO()
        figure.savefig(out, format="png", dpi=_DPI, metadata={"Software": None})
    return out.getvalue()


def _draw(axes: Axes, choices: Sequence[Choice], chosen: Choice | None, max_loss: float) -> None:
    axes.axhline(0.0, color=_MUTED, linewidth=0.8)
    axes.axhline(max_loss, color=_WARN, linewidth=1.2, linestyle="--", label=f"allowed loss, {max_loss:g}")
    largest = max((choice.report.gzip_bytes for choice in choices if choice.report is not None), default=0)
    for choice in choices:
        _point(axes, choice, largest, is_chosen=choice is chosen)
    _key(axes, choices)
    float32 = next((choice.report.float32_bytes for choice in choices if choice.report is not None), None)
    beside = "" if float32 is None else f" (all weights as float32: {float32 / 1000:,.1f} KB)"
    axes.set_xlabel(f"size of the int8 file after gzip, KB{beside}")
    axes.set_ylabel("loss of PR-AUC on validation rows")
    axes.set_title("What a smaller model costs", loc="left", fontweight="bold")
    axes.margins(x=0.12, y=0.12)


def _point(axes: Axes, choice: Choice, largest: int, *, is_chosen: bool) -> None:
    if choice.report is None or choice.loss is None:
        return
    size, loss = choice.report.gzip_bytes / 1000, choice.loss
    colour = _GOOD if choice.is_allowed else _WARN
    axes.plot([size, size], [loss.low, loss.high], color=colour, linewidth=1.6, alpha=0.6)
    axes.plot(
        [size],
        [loss.estimate],
        "o",
        color=colour,
        markersize=7,
        markerfacecolor=colour if choice.is_allowed else "white",
    )
    if is_chosen:
        axes.plot([size], [loss.estimate], "o", color=_GOOD, markersize=15, markerfacecolor="none", markeredgewidth=2)
    if choice.control_loss is not None:
        axes.plot([size], [choice.control_loss.estimate], "D", color=_MUTED, markersize=5, markerfacecolor="white")
    # The largest stands at the right edge.
    is_rightmost = choice.report.gzip_bytes == largest
    axes.annotate(
        named(choice.sparsity) + (", chosen" if is_chosen else ""),
        (size, loss.estimate),
        (-11 if is_rightmost else 11, 6),
        textcoords="offset points",
        horizontalalignment="right" if is_rightmost else "left",
        color=colour,
        fontweight="bold" if is_chosen else "normal",
    )


def _key(axes: Axes, choices: Sequence[Choice]) -> None:
    """What the marks mean, drawn where no choice is."""
    marks: list[tuple[str, dict[str, Any]]] = [
        ("within it, with 95 % interval", {"marker": "o", "color": _GOOD}),
        ("not within it", {"marker": "o", "color": _WARN, "markerfacecolor": "white"}),
        ("control: the same rounds, no masks", {"marker": "D", "color": _MUTED, "markerfacecolor": "white"}),
    ]
    shown = (
        any(choice.is_allowed for choice in choices),
        any(not choice.is_allowed for choice in choices),
        any(choice.control_loss is not None for choice in choices),
    )
    for (label, style), is_shown in zip(marks, shown, strict=True):
        if is_shown:
            axes.plot([], [], linestyle="none", label=label, **style)
    axes.legend(loc="best", fontsize=9)
