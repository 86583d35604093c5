"""The privacy that was spent as a picture: epsilon over the orders that were charged, and what is allowed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from hansa_common.pictures import GOOD, WARN, png

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def spent_png(points: Sequence[tuple[int, float]], delta: float, limits: Sequence[tuple[str, float]]) -> bytes:
    """A PNG of a curve of (orders charged, epsilon at delta), with a line for each limit: (who says so, epsilon)."""
    return png((7.2, 4.2), lambda axes: _draw(axes, points, delta, limits))


def _draw(axes: Axes, points: Sequence[tuple[int, float]], delta: float, limits: Sequence[tuple[str, float]]) -> None:
    from matplotlib.ticker import MaxNLocator

    orders, epsilons = [number for number, _ in points], [epsilon for _, epsilon in points]
    axes.plot(orders, epsilons, color=GOOD, linewidth=2.0)
    axes.fill_between(orders, epsilons, color=GOOD, alpha=0.12, linewidth=0)
    axes.annotate(f"{epsilons[-1]:.4g}", (orders[-1], epsilons[-1]), (0, 6), textcoords="offset points", ha="right")
    for name, epsilon in limits:
        axes.axhline(epsilon, color=WARN, linewidth=1.2, linestyle="--")
        axes.annotate(f"{name} allows {epsilon:g}", (0, epsilon), (4, 3), textcoords="offset points", color=WARN)
    axes.set_xlim(left=0)
    axes.set_ylim(bottom=0)
    axes.margins(y=0.12)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_xlabel("orders charged")
    axes.set_ylabel(f"epsilon at delta {delta:g}")
    axes.set_title("Privacy spent", loc="left", fontweight="bold")
