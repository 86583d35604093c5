"""Defence by attack as one picture: PR-AUC in words, what the attack costs in colour. Equal cells, equal pictures."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from hansa_common.pictures import GRID, INK, PAPER, WARN, png
from hansa_simulations.attack_trials import UNATTACKED, Cell

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Losses from here on are all as bad.
_WORST_LOSS: Final = 0.2
_DARK: Final = 0.6
_STYLE: Final[dict[str, Any]] = {
    "font.size": 9,
    "axes.grid": False,
    "axes.spines.left": False,
    "axes.spines.bottom": False,
    "xtick.color": INK,
    "ytick.color": INK,
}


def attacks_png(rows: Sequence[Sequence[Cell]], is_missed: Callable[[Cell], bool]) -> bytes:
    """A PNG of cells, a row for each attack and a column for each defence; those that miss a mark have a frame."""
    size = (2.2 + 1.15 * len(rows[0]), 1.4 + 0.48 * len(rows))
    return png(size, lambda axes: _draw(axes, rows, is_missed), _STYLE)


def _draw(axes: Axes, rows: Sequence[Sequence[Cell]], is_missed: Callable[[Cell], bool]) -> None:
    from matplotlib.colors import LinearSegmentedColormap

    harm = np.array([[_harm(cell) for cell in row] for row in rows])
    shades = LinearSegmentedColormap.from_list("harm", [PAPER, "#e9b8a6", WARN]).with_extremes(bad=GRID)
    image = axes.imshow(np.ma.masked_invalid(harm), cmap=shades, vmin=0.0, vmax=_WORST_LOSS, aspect="auto")
    for y, row in enumerate(rows):
        for x, cell in enumerate(row):
            _write(axes, x, y, cell, is_dark=bool(harm[y, x] > _DARK * _WORST_LOSS))
            if is_missed(cell):
                frame = {"fill": False, "edgecolor": INK, "linewidth": 1.6}
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
    axes.text(x, y, told, ha="center", va="center", color=PAPER if is_dark else INK)
