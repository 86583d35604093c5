"""The look of the pictures that commands leave, and how one is written: equal drawings on one machine, equal bytes.

What is drawn is the caller's. The report's figures are SVG in the page's own look, and their own.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from matplotlib.axes import Axes

INK, MUTED, GRID, GOOD, WARN, PAPER = "#1c2733", "#57626e", "#dfdad0", "#0b6a6c", "#a33422", "white"
_DPI: Final = 150
_STYLE: Final[Mapping[str, Any]] = {
    "font.size": 10,
    "text.color": INK,
    # A merchant's name, or a feature's, can hold a dollar sign.
    "text.parse_math": False,
    "axes.edgecolor": GRID,
    "axes.labelcolor": MUTED,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "grid.color": GRID,
    "grid.linewidth": 0.7,
    "legend.frameon": False,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
}


def png(size: tuple[float, float], draw: Callable[[Axes], None], style: Mapping[str, Any] | None = None) -> bytes:
    """What `draw` draws on axes of this size, width and height in inches, as a PNG; `style` says what of the look is
    another (matplotlib's rcParams).
    """
    # Late, and the object interface: pyplot would look for a screen.
    import matplotlib as mpl
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    with mpl.rc_context({**_STYLE, **(style or {})}):
        figure = Figure(figsize=size, layout="constrained")
        FigureCanvasAgg(figure)
        draw(figure.subplots())
        out = io.BytesIO()
        figure.savefig(out, format="png", dpi=_DPI, metadata={"Software": None})
    return out.getvalue()
