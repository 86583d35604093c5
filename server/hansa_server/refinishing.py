"""A finished run's model made small anew, under an agreement with another compression; nothing before is trained again.

Promises: what comes of it is what the run would have ended with, had that been its agreement: the same rounds by
number, cohort, shuffle and dropout, from the same weights, over the same merchants. So the small model of one choice
of compression is that of a whole run, byte for byte, and choices can be compared at the cost of their own rounds.

That the merchants are those of the run, with the rows that they had, is seen from their statistics, which must fit the
very preprocessing that was fitted then. Trying choices is the simulation's; a run folder's files are run_folder.py's.
"""

from __future__ import annotations

from collections.abc import Callable

from flwr.serverapp import Grid

from hansa_common.agreement import Agreement
from hansa_common.errors import UsageError
from hansa_common.model import ModelSpec
from hansa_server.exchange import Clock, Exchange
from hansa_server.federation import SYSTEM_CLOCK, UNSEALED, register
from hansa_server.finishing import Finished, Trained, finish
from hansa_server.introduction import introduce
from hansa_server.participants import Merchant, Run
from hansa_server.run_events import Event


def finish_again(
    grid: Grid,
    agreement: Agreement,
    trained: Trained,
    *,
    run_id: str,
    on_event: Callable[[Event], None],
    clock: Clock = SYSTEM_CLOCK,
) -> Finished:
    """Make a trained model small over the merchants that the grid reaches, as this agreement's compression says.

    `run_id` must be new for every call, because merchants keep SCAFFOLD's variates under it; it changes no weight.

    Raises:
        RunFailedError: too few merchants came or sent statistics.
        UsageError: their rows are not those that the model was trained on.
    """
    run = Run(Exchange(grid, clock, UNSEALED), agreement, agreement.fingerprint, run_id, on_event)
    return finish(run, register_again(run, trained.preprocessing), ModelSpec.from_agreement(agreement), trained)


def register_again(run: Run, preprocessing: str) -> tuple[Merchant, ...]:
    """The merchants of a run that is over, who are asked for their statistics as they were then.

    Raises:
        RunFailedError: too few merchants came or sent statistics.
        UsageError: what is fitted to these is not the run's `preprocessing`, so they have other rows.
    """
    merchants, fitted = register(run, introduce(run))
    if fitted.to_json() != preprocessing:
        raise UsageError(
            "these rows are not those that the model was trained on: their statistics give another preprocessing; give "
            "the table of the run, as it was, with the same merchants"
        )
    return merchants
