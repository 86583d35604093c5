"""Privacy is charged between an order that is taken and its work: once for what leaves, and not beyond what is left."""

from __future__ import annotations

import logging
from dataclasses import replace

import numpy as np
import pytest

from hansa_client import guarded_trainer
from hansa_client.audit import Audit
from hansa_client.audit import entries as audited
from hansa_client.guarded_trainer import Boundary, GuardedTrainer
from hansa_client.ledger import Ledger, LedgerFiles
from hansa_client.ledger_entries import entries
from hansa_client.ledger_head import LedgerHead
from hansa_client.ledger_payers import payer_of
from hansa_client.merchant_policy import MerchantPolicy
from hansa_client.order_log import OrderLog
from hansa_client.policy import Policy
from hansa_client.seals import Sealed
from hansa_common.agreement import Agreement, validate_agreement
from hansa_common.errors import DataError
from hansa_common.keys import public_key_of
from hansa_common.ledger_state import LedgerState
from hansa_common.messages import Introduction, Refusal, RoundOrder, RoundReply, decode, encode, message_hash
from hansa_common.metrics import HISTOGRAM_LENGTH
from hansa_common.privacy import SampledGaussian, epsilon
from hansa_common.sealing import open_seal, seal
from hansa_common.stamping import answer_hash

NONE = np.zeros(0, np.float32)
STEPS = SampledGaussian(1.0, 0.1, 20)
# Room for three rounds and no fourth.
EPSILON = epsilon([replace(STEPS, num_steps=60)], 1e-5)
COORDINATOR, ALDER = bytes(range(32)), bytes(range(32, 64))


def private(agreed: Agreement, **changes) -> Agreement:
    values = agreed.model_dump(mode="json")
    plan = {**values["training"]["plan"], "local_steps": STEPS.num_steps}
    dp = {"epsilon": EPSILON, "noise_multiplier": 1.0, "sampling_rate": 0.1, **changes}
    values |= {"training": {**values["training"], "plan": plan}, "privacy": {**values["privacy"], "dp": dp}}
    return validate_agreement(values, "the test")


class PrivateClerk:
    """Answers rounds by rote, each answer another one; may fail, or do something first."""

    def __init__(self) -> None:
        self.num_worked = 0
        self.first = lambda: None

    def work(self, order, order_hash, halt):  # noqa: ARG002 - a worker's arguments
        head = {"merchant": "alder", "order_hash": order_hash}
        if not isinstance(order, RoundOrder):
            return encode(Introduction(**head, hansa_version="1", backend="paper", device="pencil"))
        self.num_worked += 1
        self.first()
        return encode(
            RoundReply(
                **head, round=order.round, num_examples=90, update=np.full(2, self.num_worked, np.float32),
                control_delta=NONE, validation=np.zeros(HISTOGRAM_LENGTH, np.int64), train_loss=0.0,
            )
        )  # fmt: skip


@pytest.fixture
def dp_agreed(agreed) -> Agreement:
    return private(agreed)


@pytest.fixture
def files(tmp_path) -> LedgerFiles:
    return LedgerFiles(tmp_path / "ledger", LedgerHead(tmp_path / "elsewhere" / "head"))


@pytest.fixture
def clerk() -> PrivateClerk:
    return PrivateClerk()


@pytest.fixture
def started(clerk, dp_agreed, files, introduction, tmp_path):
    """The clerk in a process of its own, which has taken part in the run from then on."""

    def start(**changes) -> GuardedTrainer:
        kept = {"log": OrderLog(tmp_path / "orders"), "ledger": Ledger(files)}
        trainer = GuardedTrainer(clerk, Boundary(Policy(dp_agreed, "alder"), **{**kept, **changes}))
        trainer.answer(introduction(fingerprint=dp_agreed.fingerprint))
        return trainer

    return start


@pytest.fixture
def asked(ordered, dp_agreed):
    """The order of a round."""

    def ask(number: int, **changes) -> bytes:
        return ordered(number, RoundOrder, **{"fingerprint": dp_agreed.fingerprint, **changes})

    return ask


def lines(files: LedgerFiles) -> list[tuple[str, str]]:
    return [(entry.what, entry.order) for entry in entries(files.path)] if files.path.exists() else []


def charged_and_answered(*orders: bytes) -> list[tuple[str, str]]:
    return [(what, message_hash(order)) for order in orders for what in ("charged", "answered")]


def test_order_is_charged_before_its_work_and_answered_before_its_reply_leaves(clerk, started, asked, files):
    at_work = []
    clerk.first = lambda: at_work.append(lines(files))
    reply = decode(started().answer(asked(1)))
    assert isinstance(reply, RoundReply)
    assert at_work == [[("charged", message_hash(asked(1)))]]
    assert lines(files) == charged_and_answered(asked(1))
    (charged, _) = entries(files.path)
    assert (charged.kind, charged.run, charged.coordinator) == ("round", "run", "hansa")
    assert charged.cost == {replace(STEPS, num_steps=1): 20}


def test_order_asked_again_is_charged_once(clerk, started, asked, files):
    trainer = started()
    first = trainer.answer(asked(1))
    assert trainer.answer(asked(1)) == first == started().answer(asked(1))
    assert clerk.num_worked == 1
    assert lines(files) == charged_and_answered(asked(1))


def test_order_that_is_obeyed_again_because_nothing_left_is_charged_once(clerk, started, asked, files):
    clerk.first = lambda: (_ for _ in ()).throw(DataError("broken off"))
    started(is_stopping=lambda: True).answer(asked(1))
    assert lines(files) == [("charged", message_hash(asked(1)))]
    clerk.first = lambda: None
    assert isinstance(decode(started().answer(asked(1))), RoundReply)
    assert clerk.num_worked == 2
    assert lines(files) == charged_and_answered(asked(1))


def test_answer_that_was_kept_by_a_killed_process_leaves_as_answered(clerk, started, asked, files):
    # Killed between the two: the reply is kept, and the ledger does not know yet that it leaves.
    class Killed(Ledger):
        def answered(self, order_hash):  # noqa: ARG002 - a ledger's argument
            raise OSError(9, "killed")

    started(ledger=Killed(files)).answer(asked(1))
    assert lines(files) == [("charged", message_hash(asked(1)))]
    assert isinstance(decode(started().answer(asked(1))), RoundReply)
    assert clerk.num_worked == 1
    assert lines(files) == charged_and_answered(asked(1))


def test_second_release_is_charged_where_the_record_of_orders_was_lost(clerk, started, asked, files, tmp_path):
    started().answer(asked(1))
    for path in sorted((tmp_path / "orders").rglob("*"), reverse=True):
        path.unlink() if path.is_file() else path.rmdir()
    assert isinstance(decode(started().answer(asked(1))), RoundReply)
    assert clerk.num_worked == 2
    assert lines(files) == charged_and_answered(asked(1), asked(1))


def test_two_state_folders_that_work_on_one_order_at_once_pay_for_two_answers(clerk, started, asked, files, tmp_path):
    folders = [tmp_path / "one", tmp_path / "two"]
    for folder in folders:
        folder.mkdir()
    one, two = (
        started(log=OrderLog(folder / "orders"), ledger=Ledger(files, payer=payer_of(folder))) for folder in folders
    )
    replies = []

    def meanwhile():
        clerk.first = lambda: None
        replies.append(two.answer(asked(1)))

    clerk.first = meanwhile
    replies.append(one.answer(asked(1)))
    assert all(isinstance(decode(reply), RoundReply) for reply in replies)
    assert clerk.num_worked == 2
    assert [what for what, _ in lines(files)] == ["charged", "charged", "answered", "answered"]


def test_refused_work_is_paid_for_and_stays_refused(clerk, started, asked, files):
    trainer = started()
    clerk.first = lambda: (_ for _ in ()).throw(DataError("no such row"))
    for _ in range(2):
        assert decode(trainer.answer(asked(1))).code == "data-invalid"
    assert lines(files) == charged_and_answered(asked(1))


def test_order_beyond_what_was_agreed_is_refused_and_the_log_says_why(clerk, started, asked, files, caplog, tmp_path):
    trainer = started()
    for number in (1, 2, 3):
        assert isinstance(decode(trainer.answer(asked(number))), RoundReply)
    with caplog.at_level(logging.ERROR):
        refused = decode(trainer.answer(asked(4)))
    assert isinstance(refused, Refusal)
    assert refused.code == "budget-spent"
    assert f"the agreement allows epsilon {EPSILON:g}" in caplog.text
    assert clerk.num_worked == 3
    assert lines(files) == charged_and_answered(*map(asked, (1, 2, 3)))
    # The answers that were paid for can be had again.
    assert isinstance(decode(started().answer(asked(3))), RoundReply)
    assert decode(started().answer(asked(5))).code == "budget-spent"


def test_coordinator_that_begins_run_after_run_gets_what_was_agreed_and_no_more(
    clerk, started, asked, introduction, dp_agreed
):
    trainer = started()
    for number in range(1, 8):
        run = {"run_id": f"run {number}"}
        trainer.answer(introduction(fingerprint=dp_agreed.fingerprint, **run))
        trainer.answer(asked(1, **run))
    assert clerk.num_worked == 3


def test_own_limit_is_read_for_every_order_and_an_order_refused_for_it_is_obeyed_once_more_is_allowed(
    clerk, started, asked, files
):
    limits = [MerchantPolicy(max_epsilon=EPSILON / 3, delta=1e-5)]
    trainer = started(own=lambda: limits[-1])
    for _ in range(2):
        assert decode(trainer.answer(asked(1))).code == "budget-spent"
    assert (clerk.num_worked, lines(files)) == (0, [])
    limits.append(MerchantPolicy(max_epsilon=EPSILON, delta=1e-5))
    assert isinstance(decode(trainer.answer(asked(1))), RoundReply)


def test_budget_of_a_merchant_refuses_whatever_has_no_noise(agreed, clerk, introduction, ordered):
    trainer = GuardedTrainer(
        clerk, Boundary(Policy(agreed, "alder"), own=lambda: MerchantPolicy(max_epsilon=100, delta=1e-5))
    )
    assert isinstance(decode(trainer.answer(introduction())), Introduction)
    assert decode(trainer.answer(ordered(1, RoundOrder))).code == "not-permitted"
    assert clerk.num_worked == 0


def test_nothing_is_charged_without_differential_privacy(agreed, clerk, files, introduction, ordered):
    trainer = GuardedTrainer(clerk, Boundary(Policy(agreed, "alder"), ledger=Ledger(files)))
    trainer.answer(introduction())
    assert isinstance(decode(trainer.answer(ordered(1, RoundOrder))), RoundReply)
    assert not files.path.exists()


def test_order_that_cannot_be_charged_is_not_worked_on(clerk, started, asked, files):
    trainer = started()
    trainer.answer(asked(1))
    newest = files.path.read_bytes()
    files.path.write_bytes(newest.splitlines(keepends=True)[0])
    assert decode(trainer.answer(asked(2))).code == "failed"
    assert clerk.num_worked == 1
    files.path.write_bytes(newest)
    assert isinstance(decode(trainer.answer(asked(2))), RoundReply)


def test_budget_holds_in_a_simulation_too(clerk, dp_agreed, introduction, asked):
    trainer = guarded_trainer.in_process(dp_agreed, {"alder": clerk})["alder"]
    trainer.answer(introduction(fingerprint=dp_agreed.fingerprint))
    replies = [decode(trainer.answer(asked(number))) for number in range(1, 5)]
    assert [reply.KIND for reply in replies] == ["round-reply"] * 3 + ["refusal"]
    assert {reply.ledger for reply in replies} == {""}


def test_what_was_spent_of_the_agreement_is_told_at_the_start(started, asked, files, agreed, dp_agreed):
    started().answer(asked(1))
    (line,) = Boundary(Policy(dp_agreed, "alder"), ledger=Ledger(files)).budget_lines()
    spent = epsilon([STEPS], 1e-5)
    assert line == f"epsilon {spent:g} of {EPSILON:g} is spent under this agreement, at delta 1e-05"
    assert Boundary(Policy(agreed, "alder"), ledger=Ledger(files)).budget_lines() == []


# What the coordinator is told


def told(sealed: bytes) -> LedgerState:
    return LedgerState.of_text(decode(open_seal(sealed, public_key_of(ALDER), "reply")).ledger)


def test_every_reply_says_under_its_seal_how_far_the_ledger_is_now(
    clerk, started, asked, files, dp_agreed, introduction
):
    ledger = Ledger(files)
    trainer = started(seals=Sealed(public_key_of(COORDINATOR), ALDER), ledger=ledger)

    def ask(order: bytes) -> LedgerState:
        return told(trainer.answer(seal(order, COORDINATOR, "order")))

    assert ask(introduction(fingerprint=dp_agreed.fingerprint)).number == 0
    assert ask(asked(1)) == ledger.state
    assert ask(asked(2)).number == 4
    # An answer of before says how far it is now.
    assert ask(asked(1)) == ask(asked(2)) == ledger.state
    assert told(trainer.answer(asked(9))) == ledger.state
    clerk.first = lambda: (_ for _ in ()).throw(DataError("no such row"))
    assert ask(asked(3)).number == 6


def test_what_tells_answers_apart_does_not_hang_on_the_ledger(clerk, started, asked):
    trainer = started()
    first = trainer.answer(asked(1))
    trainer.answer(asked(2))
    again = trainer.answer(asked(1))
    assert again != first
    assert answer_hash(decode(again), again) == answer_hash(decode(first), first)
    unstamped = encode(decode(first).model_copy(update={"ledger": ""}))
    assert answer_hash(decode(first), first) == message_hash(unstamped) == answer_hash(decode(unstamped), unstamped)


def test_worker_that_tells_of_a_ledger_is_not_believed(clerk, started, asked):
    work = clerk.work

    def lying(order, order_hash, halt):
        reply = decode(work(order, order_hash, halt))
        return encode(reply.model_copy(update={"ledger": "7:" + "a" * 64}))

    trainer = started()
    clerk.work = lying
    assert decode(trainer.answer(asked(1))).code == "failed"


def test_reply_that_leaves_is_the_one_that_was_noted(started, asked, tmp_path):
    trainer = started(audit=Audit(tmp_path / "audit.jsonl"))
    reply = trainer.answer(asked(1))
    assert [entry.reply for entry in audited(tmp_path / "audit.jsonl")][-1] == message_hash(reply)
