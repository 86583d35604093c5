"""What `hansa audit` shows in a terminal: the shadow federations as they are trained, and the table of attacks."""

from __future__ import annotations

import time
from collections.abc import Callable

from rich.console import Console
from rich.table import Table
from rich.text import Text

from hansa_common.bootstrap import Interval
from hansa_server.moving_line import MovingLine
from hansa_server.progress import duration
from hansa_simulations.audit import Audit
from hansa_simulations.audit_attacks import MembershipAttack
from hansa_simulations.audit_rates import FALSE_POSITIVE_RATES, least_non_members


class AuditDisplay(MovingLine):
    """A line that moves while shadow federations are trained; in a pipe or a log, one line when they are."""

    def __init__(
        self, num_shadows: int, console: Console | None = None, now: Callable[[], float] = time.monotonic
    ) -> None:
        self._now = now
        self._began = now()
        self._num_shadows = num_shadows
        self._num_trained = 0
        super().__init__("shadow federations", num_shadows, console)

    def trained(self) -> None:
        """One more shadow federation is trained."""
        self._num_trained += 1
        since, left = self._now() - self._began, self._num_shadows - self._num_trained
        told = f"shadow federations: {self._num_trained} of {self._num_shadows}"
        if left:
            told += f", about {duration(since / self._num_trained * left)} left"
        self._bar.update(self._task, completed=self._num_trained, description=told)
        if not left:
            done = Text(f"{self._num_shadows} shadow federations trained in {duration(since)}")
            self._console.print(done, soft_wrap=True)


def print_audit(audit: Audit, console: Console | None = None) -> None:
    """Print every attack in a line, what they find out of shadows, and the verdict."""
    console = Console() if console is None else console
    console.print(_membership_table(audit))
    rates = audit.strongest.rates
    told = (
        f"Found are members, of {rates.num_members:,}, where so many of {rates.num_non_members:,} non-members are "
        "taken for some; intervals are of 95 %."
    )
    few = [rate for rate in FALSE_POSITIVE_RATES if rates.num_non_members < least_non_members(rate)]
    if few:
        told += f" At {few[0]:.1%} it takes {least_non_members(few[0]):,} non-members to tell."
    console.print(Text(told), soft_wrap=True)
    if audit.inversions:
        console.print(_inversion_table(audit))
    if audit.inversions and audit.run.agreement.secure_aggregation.is_on:
        console.print("No merchant's update leaves here, but under a mask: these are what the masks hide.")
    if audit.attribute is not None:
        console.print(Text(audit.attribute.verdict), soft_wrap=True)
    console.print(Text(audit.verdict), soft_wrap=True)


def _membership_table(audit: Audit) -> Table:
    of_federation = {} if audit.federation is None else audit.federation.true_positives
    known = [
        rate
        for rate in FALSE_POSITIVE_RATES
        if rate in of_federation or any(attack.rates.at(rate) for attack in audit.attacks)
    ]
    table = Table("attack", "on", "area", *(f"found at {rate:.1%}" for rate in known))
    for attack in audit.attacks:
        style = "bold" if attack is audit.strongest else ""
        table.add_row(*map(Text, (attack.name, attack.model, *_figures(attack, known))), style=style)
    if of_federation:
        found = [_share(of_federation.get(rate)) for rate in known]
        table.add_row(*map(Text, ("LiRA, online", "each shadow", "", *found)))
    return table


def _inversion_table(audit: Audit) -> Table:
    table = Table("update of", "rows", "inverted by", "cells told", "guessed", "usual", "whole rows")
    for found in audit.inversions:
        shares = (f"{100 * share.estimate:.1f} %" for share in (found.told, found.guessed, found.most_usual))
        told = (found.size, f"{found.num_rows:,}", found.attack, *shares, f"{100 * found.whole_rows:.1f} %")
        table.add_row(*map(Text, told))
    return table


def _figures(attack: MembershipAttack, known: list[float]) -> tuple[str, ...]:
    area, rates = attack.rates.roc_auc, [attack.rates.at(rate) for rate in known]
    told = f"{area.estimate:.3f} ({area.low:.3f} to {area.high:.3f})"
    return (told, *(_share(None if rate is None else rate.true_positives) for rate in rates))


def _share(interval: Interval | None) -> str:
    """A share with its interval.

    >>> _share(Interval(0.0123, 0.008, 0.02)), _share(None)
    ('1.23 % (0.80 to 2.00)', '-')
    """
    if interval is None:
        return "-"
    return f"{100 * interval.estimate:.2f} % ({100 * interval.low:.2f} to {100 * interval.high:.2f})"
