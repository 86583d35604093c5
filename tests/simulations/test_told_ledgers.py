"""What merchants say of their ledgers changes no model, and a ledger that went back between two runs is noticed."""

from __future__ import annotations

import shutil
import time
from dataclasses import replace
from datetime import UTC, datetime
from itertools import chain, count, repeat

import pytest

from hansa_client.guarded_trainer import Boundary, GuardedTrainer
from hansa_client.ledger import Ledger, LedgerFiles
from hansa_client.ledger_account import Limit
from hansa_client.ledger_entries import Charge
from hansa_client.ledger_head import LedgerHead
from hansa_client.policy import Policy
from hansa_client.seals import Sealed as MerchantSeals
from hansa_common.keys import public_key_of
from hansa_common.ledger_state import LedgerState
from hansa_common.messages import FLOWER_FIELD, FLOWER_RECORD, decode
from hansa_common.privacy import Gaussian
from hansa_common.trust import Trust
from hansa_server import run_folder
from hansa_server.app import app as server_app
from hansa_server.federation import run_federation
from hansa_server.ledger_book import LedgerBook
from hansa_server.ledger_events import LedgerTold, LedgerWentBack
from hansa_server.run_state import RunState
from hansa_server.seals import Sealed
from hansa_simulations.grid import run_server_app, server_identity

SIGNING = bytes(range(32))


def key_of(name):
    return name.encode().ljust(32, b"-")


class Federation:
    """Merchants with ledgers on disk, and runs under one coordinator's key."""

    def __init__(self, shops, programs, folder, **changes) -> None:
        plan = {**shops.plan}
        plain = shops.scenario(training={"algorithm": "scaffold", "rounds": 2, "patience": 2, "plan": plan}, **changes)
        keys = {name: public_key_of(key_of(name)) for name in plain.agreement.roster}
        self.trust = Trust(coordinator=public_key_of(SIGNING), merchants=keys)
        self.scenario = replace(plain, agreement=plain.agreement.with_trust(self.trust))
        self._shops, self._programs = shops, programs.sharing(plain.agreement)
        self._folder, self._numbers = folder, count(1)

    def files(self, name) -> LedgerFiles:
        return LedgerFiles(self._folder / name / "ledger", LedgerHead(self._folder / "heads" / name))

    def ledger(self, name) -> Ledger:
        return Ledger(self.files(name))

    def run(self, ledger_of):
        """A run's weights, and its warnings of ledgers."""
        warnings = []
        book = LedgerBook(self._folder, self.trust.merchants)
        agreement = self.scenario.agreement
        trainers = {
            name: GuardedTrainer(
                worker,
                Boundary(
                    Policy(agreement, name),
                    seals=MerchantSeals(self.trust.coordinator, key_of(name)),
                    ledger=ledger_of(name),
                ),
            )
            for name, worker in self._shops.workers(self.scenario, self._programs).items()
        }
        grid = self._shops.recording_grid(trainers)
        seals = Sealed(self.trust, SIGNING, self._numbers.__next__)
        with server_identity():
            state = RunState(f"run {next(self._numbers)}")
            result = run_federation(
                grid, agreement, state, seals=seals, is_left_out=book.left_out(agreement),
                on_event=lambda event: warnings.extend(book.note(event)),
            )  # fmt: skip
        self.names = [merchant.name for merchant in result.merchants]
        return result.weights.tobytes(), warnings


def spend(ledger: Ledger, number: int) -> None:
    order_hash = f"{number:064x}"
    agreed = Limit(8.0, 1e-5, "")
    ledger.charge(Charge(order_hash, "run", "a" * 64, "c", "round", (Gaussian(50.0),), "a release", agreed))
    ledger.answered(order_hash)


@pytest.fixture
def federation(shops, tiny_programs, tmp_path) -> Federation:
    return Federation(shops, tiny_programs, tmp_path)


def test_run_ends_in_the_same_bytes_whatever_ledgers_say(federation):
    unstamped, _ = federation.run(lambda _: Ledger())
    for number, name in enumerate(federation.trust.merchants):
        spend(federation.ledger(name), number)
    stamped, warnings = federation.run(federation.ledger)
    # SCAFFOLD's variates count where the order names the reply: by a hash that does not hang on the ledger.
    assert stamped == unstamped
    assert warnings == []


class Rewound(Ledger):
    """A ledger that is put back to an older copy after so many answers."""

    def __init__(self, num_answers: int) -> None:
        super().__init__()
        self._numbers = chain([3] * num_answers, repeat(2))

    @property
    def state(self) -> LedgerState:
        number = next(self._numbers)
        return LedgerState(number, f"{number:064x}")


def test_ledger_that_went_back_in_a_run_is_in_its_figures_and_on_top_of_its_report(shops, tiny_programs, tmp_path):
    scenario = shops.scenario(training={"algorithm": "fedavg", "rounds": 3, "plan": shops.plan})
    agreement, (first, *others) = scenario.agreement, scenario.agreement.roster
    programs = tiny_programs.sharing(agreement)
    trainers = {
        name: GuardedTrainer(
            worker, Boundary(Policy(agreement, name), ledger=Rewound(5) if name == first else Ledger())
        )
        for name, worker in shops.workers(scenario, programs).items()
    }
    run_folder.create(tmp_path / "run", agreement)
    run_server_app(server_app, shops.recording_grid(trainers), {"run-folder": str(tmp_path / "run")})
    told = run_folder.read_outcome(tmp_path / "run")["ledgers_went_back"]
    assert list(told) == [first]
    assert others
    assert (told[first]["from_line"], told[first]["to_line"]) == (3, 2)
    report = (tmp_path / "run" / run_folder.REPORT).read_text()
    assert "The privacy ledger of 1 merchant went back" in report
    assert f"<strong>{first}</strong>: noticed at {told[first]['at']} from line 3 to line 2" in report


def test_merchant_whose_ledger_went_back_is_asked_nothing_more_where_that_was_agreed_on(shops, tiny_programs, tmp_path):
    training = {"algorithm": "fedavg", "rounds": 3, "patience": 3, "plan": shops.plan}
    scenario = shops.scenario(training=training, cohort={"min_merchants": 2, "rewound_ledger": "leave-out"})
    agreement, (first, *others) = scenario.agreement, scenario.agreement.roster
    programs = tiny_programs.sharing(agreement)

    def run(ledger_of, folder):
        trainers = {
            name: GuardedTrainer(worker, Boundary(Policy(agreement, name), ledger=ledger_of(name)))
            for name, worker in shops.workers(scenario, programs).items()
        }
        grid = shops.recording_grid(trainers)
        run_server_app(server_app, grid, {"run-folder": str(folder)})
        asked = [decode(message.content[FLOWER_RECORD][FLOWER_FIELD]) for message in grid.orders]
        return run_folder.read_outcome(folder), [order.recipient for order in asked]

    run_folder.create(tmp_path / "run", agreement)
    told, asked = run(lambda name: Rewound(3) if name == first else Ledger(), tmp_path / "run")
    # Introduced, and asked for statistics and twice for a round: its answer to the fourth order told.
    assert [entry["dropped"] for entry in told["rounds"]] == [{}, *[{first: "ledger-went-back"}] * 2]
    assert asked.count(first) == 3
    assert [asked.count(other) for other in others] == [6, 6]
    assert told["federated"]["pr_auc"] is not None


def test_machine_that_was_put_back_is_noticed_by_its_coordinator_alone(federation, tmp_path):
    (first, *_) = federation.trust.merchants
    spend(federation.ledger(first), 1)
    for kept in ("heads", first):
        shutil.copytree(tmp_path / kept, tmp_path / "backup" / kept)
    spend(federation.ledger(first), 2)
    assert federation.run(federation.ledger)[1] == []
    before = federation.ledger(first).state
    for kept in ("heads", first):
        shutil.rmtree(tmp_path / kept)
        shutil.copytree(tmp_path / "backup" / kept, tmp_path / kept)
    # The merchant's own check finds nothing.
    assert federation.ledger(first).state.number == 2
    (warning,) = federation.run(federation.ledger)[1]
    assert warning == LedgerWentBack(first, before, federation.ledger(first).state)
    assert federation.run(federation.ledger)[1] == []


def test_merchant_that_is_left_out_is_not_waited_for_in_the_next_run_until_the_coordinator_takes_it_out_of_the_book(
    shops, tiny_programs, tmp_path
):
    federation = Federation(shops, tiny_programs, tmp_path, cohort={"rewound_ledger": "leave-out"})
    first, *others = federation.trust.merchants
    for number in (5, 5, 3):
        book = LedgerBook(tmp_path, federation.trust.merchants)
        book.note(LedgerTold(first, f"{number}:{number:064x}", datetime.now(UTC)))
    began = time.monotonic()
    federation.run(lambda _: Ledger())
    assert federation.names == others
    assert time.monotonic() - began < federation.scenario.agreement.cohort.wait_seconds / 2
    (tmp_path / "ledgers.json").unlink()
    federation.run(lambda _: Ledger())
    assert federation.names == [first, *others]
