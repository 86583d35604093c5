"""`[audit]`: what attacks on a finished model may find before it is released. No key is set, and nothing is asked.

The gate holds where all rows are in one place, in a simulation: `hansa audit` runs the attacks there. What an attack
is, and how sure its figures are, is the simulation's.
"""

from __future__ import annotations

from typing import Annotated, Final, Literal

from pydantic import Field

from hansa_common.agreement_sections import Data
from hansa_common.schema import Section
from hansa_common.trust import Trust

Attack = Literal["lira", "loss"]
# The share of non-members that an attack may take for members, when it is asked how many members it finds.
GATE_FALSE_POSITIVE_RATE: Final = 0.01


class Audit(Section):
    """The gate: which attack on membership has to be run, with how many shadow federations at least, and how many of
    the training rows it may find at GATE_FALSE_POSITIVE_RATE, at the upper end of its 95 % interval. Guessing finds as
    many as it mistakes, so nothing below that could be met.
    """

    attack: Attack = "lira"
    shadows: Annotated[int, Field(ge=4, le=1024, multiple_of=2)] = 32
    max_true_positive_rate: Annotated[float, Field(gt=GATE_FALSE_POSITIVE_RATE, le=1)] | None = None

    @property
    def is_gate(self) -> bool:
        """Whether a release waits for an audit."""
        return self.max_true_positive_rate is not None


def check_audit_fits(audit: Audit, data: Data, trust: Trust | None) -> None:
    """Refuse a gate that nobody could open, or by an attack that says nothing of membership.

    Raises:
        ValueError: the agreement is for a run whose rows are with their merchants, or its test rows are later ones and
            the attack is on the loss.
    """
    if audit.is_gate and audit.attack == "loss" and data.split == "time":
        raise ValueError(
            'audit.attack "loss" is asked for, and test rows are later ones (data.split "time"): a model is less sure '
            "of another time, so the loss tells rows by when they are from, and nothing of membership; ask for "
            'attack = "lira", whose shadow federations chance divides, or split by chance'
        )
    if audit.is_gate and trust is not None:
        raise ValueError(
            "audit.max_true_positive_rate waits for an audit, which needs every merchant's rows in one place, and "
            "[trust] is for a run where nobody has them; set it for a simulation, and leave it out here"
        )
