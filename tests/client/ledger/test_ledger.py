"""What was spent is on record before an order is worked on, once, and nothing that passes a limit is."""

from __future__ import annotations

import os
import re
from dataclasses import replace
from pathlib import Path

import pytest

from hansa_client.ledger import Ledger
from hansa_client.ledger_account import Limit, tally_of
from hansa_client.ledger_entries import entries
from hansa_common.errors import BudgetError, MerchantError, UsageError
from hansa_common.privacy import Gaussian, SampledGaussian, epsilon

STATISTICS = Gaussian(20.0)


def charged_until_refused(charge) -> tuple[int, str]:
    """How many orders were charged, numbered from 1, and why no more."""
    for number in range(1, 100_000):
        try:
            charge(number)
        except BudgetError as error:
            return number - 1, str(error)
    raise AssertionError("none was refused")


def test_line_says_what_was_charged_for_whom(files, opened, charge):
    ledger = opened()
    ledger.charge(charge(1, mechanisms=(STATISTICS, SampledGaussian(1.2, 0.01, 50))))
    ledger.answered(charge(1).order_hash)
    charged, answered = entries(files.path)
    assert (charged.what, charged.number, charged.at) == ("charged", 1, "2026-03-01T23:30:00.000+00:00")
    assert (charged.order, charged.run, charged.agreement) == (charge(1).order_hash, "run 1", "a" * 64)
    assert (charged.coordinator, charged.kind, charged.why) == ("c" * 64, "round", "50 local steps")
    assert (charged.epsilon, charged.delta) == (8.0, 1e-5)
    assert charged.cost == tally_of([STATISTICS, SampledGaussian(1.2, 0.01, 50)])
    assert (answered.what, answered.order) == ("answered", charge(1).order_hash)
    assert files.path.stat().st_mode & 0o777 == 0o600


def test_charge_is_on_disk_and_noted_elsewhere_before_it_returns(files, opened, charge):
    ledger = opened()
    ledger.charge(charge(1))
    assert [entry.order for entry in entries(files.path)] == [charge(1).order_hash]
    assert files.head.read() == ledger.state
    assert ledger.state.number == 1


def test_each_write_waits_for_the_disk(files, filled, charge, monkeypatch):
    ledger, synchronised, fsync = filled(1), [], os.fsync

    def waited(descriptor):
        synchronised.append(Path(f"/proc/self/fd/{descriptor}").readlink().name)
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", waited)
    ledger.charge(charge(2))
    # The line, then the head file under the name that it has before it is whole, and the name that it gets.
    in_order = ["ledger.jsonl", "head.unfinished", "elsewhere"]
    assert synchronised == in_order
    ledger.answered(charge(2).order_hash)
    assert synchronised == in_order * 2


def test_what_costs_nothing_leaves_no_line_and_no_file(files, opened, charge):
    ledger = opened()
    ledger.charge(charge(1, mechanisms=()))
    ledger.answered(charge(1).order_hash)
    assert not files.path.exists()
    assert not files.head.path.exists()
    assert str(ledger.state) == "0:" + "0" * 64


# One order, one charge, one answer


def test_order_that_comes_again_before_anything_left_is_charged_once(files, opened, charge):
    opened().charge(charge(1))
    again = opened()
    again.charge(charge(1))
    again.charge(charge(1))
    assert [entry.what for entry in entries(files.path)] == ["charged"]


def test_order_that_is_obeyed_again_after_its_answer_left_is_charged_again(files, opened, charge):
    # As where the record of orders was lost: its answer would have noise of its own.
    first = opened()
    for ledger in (first, first, opened()):
        ledger.charge(charge(1))
        ledger.answered(charge(1).order_hash)
        ledger.answered(charge(1).order_hash)
    assert [entry.what for entry in entries(files.path)] == ["charged", "answered"] * 3


def test_answer_to_what_was_not_charged_leaves_no_line(files, filled, charge):
    filled(1).answered(charge(2).order_hash)
    assert len([*entries(files.path)]) == 2


# Limits


def test_order_that_would_pass_what_was_agreed_is_refused_and_not_charged(files, opened, charge):
    agreed = Limit(2.0, 1e-5, "the agreement allows epsilon 2")
    ledger = opened()
    taken, refusal = charged_until_refused(lambda number: ledger.charge(charge(number, agreed=agreed)))
    assert re.search(r"from epsilon 1\.\d+ to epsilon 2\.\d+ at delta 1e-05; the agreement allows epsilon 2$", refusal)
    steps = SampledGaussian(1.2, 0.01, 50 * taken)
    assert epsilon([steps], 1e-5) <= 2.0 < epsilon([steps, SampledGaussian(1.2, 0.01, 50)], 1e-5)
    assert len([*entries(files.path)]) == taken
    for _ in range(2):
        with pytest.raises(BudgetError):
            ledger.charge(charge(10_000, agreed=agreed))
    # What costs less still fits.
    ledger.charge(charge(10_001, agreed=agreed, mechanisms=(SampledGaussian(50.0, 0.01, 1),)))


def test_own_limit_holds_across_runs_agreements_and_coordinators(opened, charge):
    own, ledger = Limit(2.0, 1e-6, "merchant.toml has max_epsilon = 2"), opened()

    def another(number):
        other = {"run": f"run {number}", "agreement": f"{number:064x}", "coordinator": f"{number % 3:064x}"}
        ledger.charge(charge(number, **other), own)

    taken, refusal = charged_until_refused(another)
    assert refusal.endswith("at delta 1e-06; merchant.toml has max_epsilon = 2")
    steps = SampledGaussian(1.2, 0.01, 50)
    assert epsilon([replace(steps, num_steps=50 * taken)], 1e-6) <= 2.0
    assert epsilon([replace(steps, num_steps=50 * taken + 50)], 1e-6) > 2.0
    with pytest.raises(BudgetError):
        opened().charge(charge(1000, agreement="f" * 64), own)
    # The agreement alone would have allowed it.
    opened().charge(charge(1000, agreement="f" * 64))


def test_different_mechanisms_add_up(opened, charge):
    mechanisms = (STATISTICS, SampledGaussian(1.0, 0.05, 20), SampledGaussian(3.0, 0.2, 40))
    together = epsilon(mechanisms, 1e-5)
    opened().charge(charge(1, mechanisms=mechanisms, agreed=Limit(together, 1e-5, "just enough")))
    with pytest.raises(BudgetError):
        opened().charge(charge(2, mechanisms=(STATISTICS,), agreed=Limit(together, 1e-5, "just enough")))


def test_what_has_no_noise_fits_no_limit(opened, charge):
    with pytest.raises(BudgetError, match="to epsilon inf"):
        opened().charge(charge(1, mechanisms=(Gaussian(0.0),), agreed=Limit(1e4, 1e-5, "much")))


def test_limits_hold_without_files_too(charge):
    ledger, agreed = Ledger(), Limit(1.0, 1e-5, "the agreement allows 1")
    assert ledger.state is None

    def worked(number):
        ledger.charge(charge(number, agreed=agreed))
        ledger.answered(charge(number).order_hash)

    taken, _ = charged_until_refused(worked)
    assert taken > 2


# Several processes


def test_two_that_share_a_ledger_see_what_the_other_spent(files, opened, charge):
    one, two = opened(), opened()
    agreed = Limit(2.0, 1e-5, "the agreement allows 2")
    taken, _ = charged_until_refused(lambda number: (one, two)[number % 2].charge(charge(number, agreed=agreed)))
    for ledger in (one, two):
        with pytest.raises(BudgetError):
            ledger.charge(charge(taken + 1, agreed=agreed))
    assert epsilon([SampledGaussian(1.2, 0.01, 50 * taken)], 1e-5) <= 2.0
    assert len([*entries(files.path)]) == taken
    two.answered(charge(1).order_hash)
    one.charge(charge(2, agreed=agreed))
    assert [entry.what for entry in entries(files.path)][-1] == "answered"


def test_others_may_not_open_its_folder(files, opened):
    files.folder.mkdir(parents=True)
    files.folder.chmod(0o755)
    with pytest.raises(UsageError, match="others can open"):
        opened()


# A disk that is full


def test_order_that_cannot_be_charged_is_not_to_be_worked_on_and_leaves_nothing(files, filled, charge, full_disk):
    ledger = filled(2)
    before = files.path.read_bytes()
    with full_disk(), pytest.raises(MerchantError, match="cannot be written"):
        ledger.charge(charge(3))
    assert files.path.read_bytes() == before
    ledger.charge(charge(3))
    assert len([*entries(files.path)]) == 5


def test_charge_whose_head_file_cannot_be_written_is_not_to_be_worked_on(files, filled, opened, charge):
    ledger = filled(1)
    in_its_way = files.head.path.with_name("head.unfinished")
    in_its_way.mkdir()
    for _ in range(2):
        with pytest.raises(OSError, match="directory"):
            ledger.charge(charge(2))
    in_its_way.rmdir()
    ledger.charge(charge(2))
    assert files.head.read() == ledger.state == opened().state
    assert [entry.what for entry in entries(files.path)] == ["charged", "answered", "charged"]
