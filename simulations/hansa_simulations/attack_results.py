"""What a scenario came to: its cells, what of them misses a mark, and the folder that they are left in.

file           holds
results.json   the scenario, every cell with its figures or its reason, the marks, and every miss
attacks.png    the table as a picture (attack_figure.py)

results.json comes last: where it is, the folder is whole. A folder with anything but earlier results is left alone.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from hansa_common import durable_files
from hansa_common.agreement import Agreement
from hansa_simulations.attack_figure import attacks_png
from hansa_simulations.attack_scenario import UNDEFENDED, AttackScenario, named
from hansa_simulations.attack_trials import UNATTACKED, Cell
from hansa_simulations.out_folders import OutFolder

RESULTS: Final = "results.json"
FIGURE: Final = "attacks.png"
_FOR_ALL: Final = 0o644


@dataclass(frozen=True)
class Results:
    """All cells of a scenario, in the order in which they were run."""

    scenario: AttackScenario
    agreement: Agreement
    cells: tuple[Cell, ...]
    about_data: Mapping[str, Any]

    @property
    def defences(self) -> tuple[str, ...]:
        """Their names, the plain mean's first."""
        return tuple(dict.fromkeys(cell.defence for cell in self.cells))

    @property
    def attacks(self) -> tuple[str, ...]:
        """Their names, none first."""
        return tuple(dict.fromkeys(cell.attack for cell in self.cells))

    def cell(self, defence: str, attack: str) -> Cell:
        """One of them."""
        return next(cell for cell in self.cells if (cell.defence, cell.attack) == (defence, attack))

    def is_beyond(self, cell: Cell) -> bool:
        """Whether more merchants attack than the defence is agreed on for; nothing is promised then."""
        defence = next(one for one in self.scenario.all_defences if named(one) == cell.defence)
        return len(cell.attackers) > defence.num_dishonest

    def misses(self, cell: Cell) -> tuple[str, ...]:
        """What a cell misses of the marks, in words; nothing is asked beyond what is promised, of the mean nothing."""
        if cell.reason and cell.defence != named(UNDEFENDED):
            return (cell.reason,)
        if self.is_beyond(cell):
            return ()
        undefended = self.cell(named(UNDEFENDED), cell.attack).backdoor
        return missed(cell, undefended, self.scenario)

    def met(self, defence: str) -> bool:
        """Whether a defence has a model for every attack, and misses no mark."""
        return not any(self.misses(cell) for cell in self.cells if cell.defence == defence)

    def to_json(self) -> dict[str, Any]:
        """What stands in results.json."""
        return {
            "agreement_fingerprint": self.agreement.fingerprint,
            "seed": self.agreement.seed,
            "data": dict(self.about_data),
            "scenario": self.scenario.model_dump(mode="json"),
            "defences": list(self.defences),
            "attacks": list(self.attacks),
            "cells": [
                {**cell.to_json(), "is_beyond": self.is_beyond(cell), "misses": list(self.misses(cell))}
                for cell in self.cells
            ],
            "met": [name for name in self.defences if name != named(UNDEFENDED) and self.met(name)],
        }


def missed(cell: Cell, undefended_backdoor: float | None, scenario: AttackScenario) -> tuple[str, ...]:
    """What the figures of a cell miss of a scenario's marks."""
    marks, found = scenario.marks, list[str]()
    if cell.pr_auc is None or cell.attack == UNATTACKED:
        return ()
    if marks.max_loss is not None and cell.loss is not None and cell.loss > marks.max_loss:
        found.append(f"loses {cell.loss:.4f} of PR-AUC, asked is at most {marks.max_loss:g}")
    if cell.backdoor is None:
        return tuple(found)
    if marks.max_backdoor is not None and cell.backdoor > marks.max_backdoor:
        found.append(f"the backdoor succeeds in {cell.backdoor:.1%}, asked is at most {marks.max_backdoor:.1%}")
    share = marks.max_backdoor_share
    if share is not None and undefended_backdoor is not None and cell.backdoor > share * undefended_backdoor:
        found.append(
            f"the backdoor succeeds in {cell.backdoor:.1%}, undefended in {undefended_backdoor:.1%}; asked is at most "
            f"{share:g} of that"
        )
    return tuple(found)


def out_folder(out: Path) -> OutFolder:
    """The folder that results are left in."""
    return OutFolder(out, RESULTS, "results of attacks")


def leave(results: Results, out: Path) -> None:
    """Write the folder anew.

    Raises:
        UsageError: it holds anything but earlier results, or cannot be written.
    """
    out_folder(out).make_anew()
    durable_files.write(out / FIGURE, picture(results), _FOR_ALL)
    text = json.dumps(results.to_json(), indent=2, ensure_ascii=False, allow_nan=False)
    durable_files.write(out / RESULTS, f"{text}\n".encode(), _FOR_ALL)


def picture(results: Results) -> bytes:
    """The table as a PNG."""
    rows: Sequence[Sequence[Cell]] = [
        [results.cell(defence, attack) for defence in results.defences] for attack in results.attacks
    ]
    return attacks_png(rows, lambda cell: bool(results.misses(cell)))
