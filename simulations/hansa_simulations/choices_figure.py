"""Choices of compression as one picture, size against loss. Equal choices on one machine give equal pictures."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final

from hansa_common.pictures import GOOD, MUTED, PAPER, WARN, png
from hansa_simulations.choices import Choice

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_RING: Final[dict[str, Any]] = {"marker": "o", "color": GOOD, "markerfacecolor": "none", "markeredgewidth": 2}


def choices_png(choices: Sequence[Choice], chosen: Choice | None, max_loss: float) -> bytes:
    """A PNG: each choice by its size after gzip and its loss of PR-AUC on validation rows with its 95 % interval, the
    control's loss beside it, the loss that is allowed, and which choice is the smallest within it.
    """
    return png((7.2, 5.0), lambda axes: _draw(axes, choices, chosen, max_loss))


def _draw(axes: Axes, choices: Sequence[Choice], chosen: Choice | None, max_loss: float) -> None:
    axes.axhline(0.0, color=MUTED, linewidth=0.8)
    axes.axhline(max_loss, color=WARN, linewidth=1.2, linestyle="--", label=f"allowed loss, {max_loss:g}")
    for choice in choices:
        _point(axes, choice, is_chosen=choice is chosen)
    _key(axes, choices)
    float32 = next((choice.report.float32_bytes for choice in choices if choice.report is not None), None)
    beside = "" if float32 is None else f" (all weights as float32: {float32 / 1000:,.1f} KB)"
    axes.set_xlabel(f"size of the int8 file after gzip, KB{beside}")
    axes.set_ylabel("loss of PR-AUC on validation rows")
    axes.set_title("What a smaller model costs", loc="left", fontweight="bold")
    # Room for the names above the intervals.
    axes.margins(x=0.08, y=0.2)


def _point(axes: Axes, choice: Choice, *, is_chosen: bool) -> None:
    if choice.report is None or choice.loss is None:
        return
    size, loss = choice.report.gzip_bytes / 1000, choice.loss
    colour = GOOD if choice.is_allowed else WARN
    fill = colour if choice.is_allowed else PAPER
    axes.plot([size, size], [loss.low, loss.high], color=colour, linewidth=1.6, alpha=0.6)
    axes.plot([size], [loss.estimate], "o", color=colour, markersize=7, markerfacecolor=fill)
    if is_chosen:
        axes.plot([size], [loss.estimate], **_RING, markersize=15)
    if choice.control_loss is not None:
        axes.plot([size], [choice.control_loss.estimate], "D", color=MUTED, markersize=5, markerfacecolor=PAPER)
    # Upright, since choices of nearly the same size stand close.
    axes.annotate(
        f"{100 * choice.sparsity:.3g} %" if choice.sparsity else "int8",
        (size, loss.high),
        (0, 9 if is_chosen else 4),
        textcoords="offset points",
        rotation=90,
        horizontalalignment="center",
        verticalalignment="bottom",
        color=colour,
        fontweight="bold" if is_chosen else "normal",
    )


def _key(axes: Axes, choices: Sequence[Choice]) -> None:
    """What the marks mean, below the drawing."""
    marks: list[tuple[str, dict[str, Any], bool]] = [
        (
            "released by the judges; 95 % interval, zeros",
            {"marker": "o", "color": GOOD},
            any(choice.is_allowed for choice in choices),
        ),
        (
            "the smallest of these: chosen",
            {**_RING, "markersize": 11},
            any(choice.is_allowed for choice in choices),
        ),
        (
            "refused by them",
            {"marker": "o", "color": WARN, "markerfacecolor": PAPER},
            any(not choice.is_allowed for choice in choices),
        ),
        (
            "control: the same rounds, no masks",
            {"marker": "D", "color": MUTED, "markerfacecolor": PAPER},
            any(choice.control_loss is not None for choice in choices),
        ),
    ]
    for label, style, is_shown in marks:
        if is_shown:
            axes.plot([], [], linestyle="none", label=label, **style)
    axes.figure.legend(loc="outside lower left", ncols=2, fontsize=9)
