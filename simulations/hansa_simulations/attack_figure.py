"""Defence by attack as one picture: PR-AUC in words, what the attack costs in colour. Equal cells, equal pictures."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from hansa_simulations.attack_trials import UNATTACKED, Cell

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_INK, _MUTED, _WARN, _PAPER, _BAD = "#1c2733", "#57626e", "#a33422", "white", "#dfdad0"
_DPI: Final = 150
# Losses from here on are all as bad.
_WORST_LOSS: Final = 0.2
_DARK: Final = 0.6
_STYLE: Final[dict[str, Any]] = {
    "font.size": 9,
    "text.color": _INK,
    "axes.labelcolor": _MUTED,
    "xtick.color": _INK,
    "ytick.color": _INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.spines.left": False,
    "axes.spines.bottom": False,
}


def attacks_png(rows: Sequence[Sequence[Cell]], is_missed: Callable[[Cell], bool]) -> bytes:
    """A PNG of cells, a row for each attack and a column for each defence; those that miss a mark have a frame."""
    # The object interface: pyplot would look for a screen.
    import matplotlib as mpl
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    with mpl.rc_context(_STYLE):
        size = (2.2 + 1.15 * len(rows[0]), 1.4 + 0.48 * len(rows))
        figure = Figure(figsize=size, layout="constrained")
        FigureCanvasAgg(figure)
        _draw(figure.subplots(), rows, is_missed)
        out = io.BytesIO()
        figure.savefig(out, format="png", dpi=_DPI, metadata={"Software": None})
    return out.getvalue()


def _draw(axes: Axes, rows: Sequence[Sequence[Cell]], is_missed: Callable[[Cell], bool]) -> None:
    from matplotlib.colors import LinearSegmentedColormap

    harm = np.array([[_harm(cell) for cell in row] for row in rows])
    shades = LinearSegmentedColormap.from_list("harm", [_PAPER, "#e9b8a6", _WARN]).with_extremes(bad=_BAD)
    image = axes.imshow(np.ma.masked_invalid(harm), cmap=shades, vmin=0.0, vmax=_WORST_LOSS, aspect="auto")
    for y, row in enumerate(rows):
        for x, cell in enumerate(row):
            _write(axes, x, y, cell, is_dark=bool(harm[y, x] > _DARK * _WORST_LOSS))
            if is_missed(cell):
                frame = {"fill": False, "edgecolor": _INK, "linewidth": 1.6}
                axes.add_patch(_rectangle((x - 0.47, y - 0.45), 0.94, 0.9, **frame))
    axes.set_xticks(range(len(rows[0])), [cell.defence for cell in rows[0]])
    axes.set_yticks(range(len(rows)), [row[0].attack for row in rows])
    axes.xaxis.tick_top()
    axes.tick_params(length=0)
    axes.set_title("What an attack costs, by defence", loc="left", fontweight="bold", pad=12)
    axes.set_xlabel("PR-AUC on honest merchants' test rows; below it, a backdoor's success. Framed: misses a mark")
    axes.figure.colorbar(image, ax=axes, label="PR-AUC below the same defence unattacked", shrink=0.8)


def _rectangle(corner: tuple[float, float], width: float, height: float, **style: Any) -> Any:
    from matplotlib.patches import Rectangle

    return Rectangle(corner, width, height, **style)


def _harm(cell: Cell) -> float:
    """The loss, 0 where nobody attacks, NaN where there is none to tell."""
    if cell.attack == UNATTACKED and not cell.reason:
        return 0.0
    return float("nan") if cell.loss is None else max(0.0, cell.loss)


def _write(axes: Axes, x: int, y: int, cell: Cell, *, is_dark: bool) -> None:
    told = "none" if cell.pr_auc is None else f"{cell.pr_auc:.3f}"
    if cell.backdoor is not None:
        told += f"\n{100 * cell.backdoor:.0f} %"
    axes.text(x, y, told, ha="center", va="center", color=_PAPER if is_dark else _INK)
