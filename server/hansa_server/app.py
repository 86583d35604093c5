"""The Flower ServerApp: a run folder in, a trained model and its figures out; once that is signed, its delivery.

The folder that run config names is the whole interface: run_folder.py says what stands in it. A folder with a signed
bundle is one to deliver, and every other a run's that is to begin, or to go on from its checkpoint. Nothing that can
change a result or a guarantee is read from anywhere else. A simulation calls the same app with its own grid.
"""

from __future__ import annotations

import logging
import sys
import uuid
from pathlib import Path
from typing import Final

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

from hansa_common import children
from hansa_common.agreement import Agreement
from hansa_server import checkpoint, run_folder
from hansa_server.attendance import Attendance
from hansa_server.delivery import Consignment, deliver
from hansa_server.federation import SYSTEM_CLOCK, run_federation
from hansa_server.ledger_book import LedgerBook
from hansa_server.progress import RunProgress
from hansa_server.run_events import Event, RoundFinished
from hansa_server.run_state import RunState
from hansa_server.seals import seals_for

# The display says what the log says; without a handler of its own, logging would print its warnings twice.
logging.getLogger("hansa_server").addHandler(logging.NullHandler())

# As Flower starts this app in a process of its own.
_PROGRAM: Final = "flwr-serverapp"

app = ServerApp()


@app.main()  # type: ignore[untyped-decorator]  # Flower is followed as untyped
def main(grid: Grid, context: Context) -> None:
    """Do what is next with the run folder: run its federation, or deliver what came of it."""
    if Path(sys.argv[0]).name == _PROGRAM:
        # Flower's own watch is not heard while replies are fetched: the run would go on to hold its folder.
        children.end_with_starter()
    folder = Path(str(context.run_config["run-folder"]))
    if run_folder.has_bundle(folder):
        with RunProgress() as progress:
            _deliver(grid, folder, progress)
    else:
        _train(grid, folder)


def _deliver(grid: Grid, folder: Path, progress: RunProgress) -> None:
    ledgers = LedgerBook.of_run(folder, Consignment.of_run(folder).agreement)

    def on_event(event: Event) -> None:
        for told in (event, *ledgers.note(event)):
            progress.show(told)

    deliver(grid, folder, run_id=uuid.uuid4().hex, on_event=on_event, clock=SYSTEM_CLOCK)


def _train(grid: Grid, folder: Path) -> None:
    agreement = run_folder.open_run(folder)
    with checkpoint.held(folder):
        begun = checkpoint.load(folder, agreement) or RunState(uuid.uuid4().hex)
        with run_folder.failure_told(folder), RunProgress() as progress:
            run_folder.write_rounds(folder, [entry.to_json() for entry in begun.rounds])
            _run(grid, folder, agreement, begun, progress)
        checkpoint.remove(folder)


def _run(grid: Grid, folder: Path, agreement: Agreement, begun: RunState, progress: RunProgress) -> None:
    attendance, ledgers = Attendance(folder, agreement.roster), LedgerBook.of_run(folder, agreement)

    def on_event(event: Event) -> None:
        for told in (event, *ledgers.note(event)):
            progress.show(told)
        attendance.note(event)
        if isinstance(event, RoundFinished):
            run_folder.add_round(folder, event.to_json())

    def keep(state: RunState) -> None:
        checkpoint.save(folder, agreement, state)

    seals = seals_for(agreement, run_folder.signing_key_file(folder))
    left_out = ledgers.left_out(agreement)
    result = run_federation(grid, agreement, begun, on_event=on_event, keep=keep, seals=seals, is_left_out=left_out)
    metrics = result.to_json() | {"ledgers_went_back": ledgers.went_back(entry.name for entry in result.merchants)}
    run_folder.finish(folder, metrics, result.spec, result.weights, result.preprocessing, result.small)
