"""What `hansa attack` shows in a terminal: the cells as they are run, and the table of them."""

from __future__ import annotations

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from hansa_server.moving_line import MovingLine
from hansa_server.run_events import Event, RoundFinished
from hansa_simulations.attack_results import Results
from hansa_simulations.attack_scenario import UNDEFENDED, AttackScenario, named
from hansa_simulations.attack_trials import UNATTACKED, Cell


class AttackDisplay(MovingLine):
    """A line that moves while cells are run; in a pipe or a log, one line for each that is done."""

    def __init__(self, scenario: AttackScenario, num_rounds: int, console: Console | None = None) -> None:
        self._num_rounds = num_rounds
        self._num_cells = len(scenario.all_defences) * (1 + len(scenario.attacks))
        self._num_done = 0
        super().__init__("attacks", float(self._num_cells), console)

    def begin(self, defence: str, attack: str) -> None:
        """A cell is to be run."""
        what = "no attack" if attack == UNATTACKED else attack
        self._bar.update(self._task, description=f"{defence}, {what} ({self._num_done + 1} of {self._num_cells})")

    def show(self, event: Event) -> None:
        """Take in what happens in its run; a merchant that is left out there is part of the trial."""
        if isinstance(event, RoundFinished):
            part = min(1.0, event.round / self._num_rounds)
            self._bar.update(self._task, completed=self._num_done + part)

    def end(self, cell: Cell) -> None:
        """It is done."""
        self._num_done += 1
        self._bar.update(self._task, completed=float(self._num_done))
        told = cell.reason or f"PR-AUC {_area(cell.pr_auc)}{_of_backdoor(cell)}"
        self._console.print(Text(f"{cell.defence}, {cell.attack}: {told}"), soft_wrap=True)


def print_results(results: Results, console: Console | None = None) -> None:
    """Print every cell, an attack a line, and every miss in words."""
    console = Console() if console is None else console
    table = Table(box=SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    table.add_column("PR-AUC, lost", no_wrap=True)
    for defence in results.defences:
        table.add_column(defence, overflow="fold")
    for attack in results.attacks:
        cells = [results.cell(defence, attack) for defence in results.defences]
        table.add_row(Text(attack), *(_written(results, cell) for cell in cells))
    console.print(table)
    console.print(
        "On honest merchants' test rows; below it what is lost against the same defence unattacked, then how often a "
        "backdoor's trigger turns a row. ! misses a mark; ~ more attack than the rule is agreed on for.",
        soft_wrap=True,
    )
    for cell in results.cells:
        for miss in results.misses(cell):
            console.print(Text(f"! {cell.defence}, {cell.attack}: {miss}", style="yellow"), soft_wrap=True)
    met = [name for name in results.defences if name != named(UNDEFENDED) and results.met(name)]
    console.print(Text(f"All marks are met by: {', '.join(met) or 'no defence'}"), soft_wrap=True)


def _written(results: Results, cell: Cell) -> Text:
    if cell.reason:
        return Text("! none", style="yellow")
    mark, style = ("! ", "yellow") if results.misses(cell) else ("~ " if _is_too_many(results, cell) else "", "")
    lines = [f"{mark}{_area(cell.pr_auc)}"]
    if cell.attack != UNATTACKED and cell.loss is not None:
        lines.append(f"{cell.loss:+.3f}")
    if cell.backdoor is not None:
        lines.append(f"{cell.backdoor:.1%}")
    return Text("\n".join(lines), style=style)


def _is_too_many(results: Results, cell: Cell) -> bool:
    return cell.defence != named(UNDEFENDED) and results.is_beyond(cell)


def _of_backdoor(cell: Cell) -> str:
    return "" if cell.backdoor is None else f", backdoor {cell.backdoor:.0%}"


def _area(figure: float | None) -> str:
    return "-" if figure is None else f"{figure:.3f}"
