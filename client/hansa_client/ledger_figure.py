"""The privacy that was spent as a picture: epsilon over the orders that were charged, and what is allowed."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_INK, _MUTED, _GRID, _GOOD, _WARN = "#1c2733", "#57626e", "#dfdad0", "#0b6a6c", "#a33422"
_DPI: Final = 150
_STYLE: Final[dict[str, Any]] = {
    "font.size": 10,
    "text.color": _INK,
    "text.parse_math": False,
    "axes.edgecolor": _GRID,
    "axes.labelcolor": _MUTED,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "grid.color": _GRID,
    "grid.linewidth": 0.7,
    "xtick.color": _MUTED,
    "ytick.color": _MUTED,
}


def spent_png(points: Sequence[tuple[int, float]], delta: float, limits: Sequence[tuple[str, float]]) -> bytes:
    """A PNG of a curve of (orders charged, epsilon at delta), with a line for each limit: (who says so, epsilon)."""
    # The object interface: pyplot would look for a screen.
    import matplotlib as mpl
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=(7.2, 4.2), layout="constrained")
        FigureCanvasAgg(figure)
        _draw(figure.subplots(), points, delta, limits)
        out = io.BytesIO()
        figure.savefig(out, format="png", dpi=_DPI, metadata={"Software": None})
    return out.getvalue()


def _draw(axes: Axes, points: Sequence[tuple[int, float]], delta: float, limits: Sequence[tuple[str, float]]) -> None:
    from matplotlib.ticker import MaxNLocator

    orders, epsilons = [number for number, _ in points], [epsilon for _, epsilon in points]
    axes.plot(orders, epsilons, color=_GOOD, linewidth=2.0)
    axes.fill_between(orders, epsilons, color=_GOOD, alpha=0.12, linewidth=0)
    axes.annotate(f"{epsilons[-1]:.4g}", (orders[-1], epsilons[-1]), (0, 6), textcoords="offset points", ha="right")
    for name, epsilon in limits:
        axes.axhline(epsilon, color=_WARN, linewidth=1.2, linestyle="--")
        axes.annotate(f"{name} allows {epsilon:g}", (0, epsilon), (4, 3), textcoords="offset points", color=_WARN)
    axes.set_xlim(left=0)
    axes.set_ylim(bottom=0)
    axes.margins(y=0.12)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_xlabel("orders charged")
    axes.set_ylabel(f"epsilon at delta {delta:g}")
    axes.set_title("Privacy spent", loc="left", fontweight="bold")
