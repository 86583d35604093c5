"""Attacks on membership as one picture: true against false positives, both on logarithmic axes, as Carlini et al.
(2022) ask, because what matters is the left end. Equal audits on one machine give equal pictures.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from hansa_common.audit_agreement import GATE_FALSE_POSITIVE_RATE
from hansa_common.pictures import GOOD, MUTED, WARN, png
from hansa_simulations.audit import Audit
from hansa_simulations.audit_attacks import MembershipAttack

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_COLOURS: Final = {"online": GOOD, "offline": "#7a5ca8", "": "#b7791f"}
_LINES: Final = ("-", "--")
_LEAST: Final = 1e-4


def roc_png(audit: Audit) -> bytes:
    """A PNG: a curve for each attack on each model, guessing, the gate, and the bound of differential privacy."""
    return png((6.4, 6.2), lambda axes: _draw(axes, audit))


def _draw(axes: Axes, audit: Audit) -> None:
    axes.plot([_LEAST, 1], [_LEAST, 1], color=MUTED, linewidth=0.9, linestyle=":", label="guessing")
    models = list(dict.fromkeys(attack.model for attack in audit.attacks))
    for attack in audit.attacks:
        _curve(axes, attack, _LINES[models.index(attack.model)], told=len(models) > 1)
    if audit.bound is not None:
        label = f"most that epsilon {audit.bound.epsilon:.3g} leaves"
        axes.plot(*zip(*audit.bound.curve, strict=True), color=MUTED, linewidth=1.4, linestyle="-.", label=label)
    if audit.gate is not None:
        at, most = GATE_FALSE_POSITIVE_RATE, audit.gate.max_true_positive_rate
        axes.plot([at], [most], "_", color=WARN, markersize=18, markeredgewidth=2.5, label="agreed at most")
    axes.set(xscale="log", yscale="log", xlim=(_LEAST, 1), ylim=(_LEAST, 1))
    axes.set_xlabel("non-members taken for members")
    axes.set_ylabel("members found")
    axes.set_title("Who was in the training rows?", loc="left", fontweight="bold")
    axes.legend(loc="lower right", fontsize=9)


def _curve(axes: Axes, attack: MembershipAttack, line: str, *, told: bool) -> None:
    points = [(x, y) for x, y in attack.rates.curve if x > 0 and y > 0]
    name = f"{attack.name}, {attack.model}" if told else attack.name
    label = f"{name}: area {attack.rates.roc_auc.estimate:.3f}"
    axes.plot(*zip(*points, strict=True), line, color=_COLOURS[attack.variant], linewidth=1.6, label=label)
