"""The boundary round a trainer: what comes in is permitted, obeyed once and noted, and what leaves was asked for."""

from __future__ import annotations

import logging
from datetime import datetime

import pytest

from hansa_client import guarded_trainer
from hansa_client.approvals import Approvals
from hansa_client.audit import entries
from hansa_client.merchant_policy import MerchantPolicy
from hansa_client.order_log import OrderLog
from hansa_client.seals import Sealed
from hansa_common.errors import DataError, UsageError
from hansa_common.keys import public_key_of
from hansa_common.messages import (
    Introduction,
    RoundOrder,
    RoundReply,
    StatisticsReply,
    decode,
    message_hash,
)
from hansa_common.sealing import open_seal, seal, unopened_hash

COORDINATOR, ALDER = bytes(range(32)), bytes(range(32, 64))
SAID = "Ada Lovelace, row 12"


# Obeyed once


def test_permitted_order_is_obeyed_and_its_reply_leaves(ordered, guarded):
    trainer = guarded()
    assert isinstance(decode(trainer.answer(ordered())), StatisticsReply)
    assert isinstance(decode(trainer.answer(ordered(2, RoundOrder))), RoundReply)


def test_order_asked_again_is_computed_once_and_answered_alike(clerk, tmp_path, ordered, guarded):
    first = guarded().answer(ordered(1, RoundOrder))
    restarted = guarded(introduced=False, log=OrderLog(tmp_path / "orders"))
    assert restarted.answer(ordered(1, RoundOrder)) == first
    assert len(clerk.orders) == 1


def test_refusal_is_the_answer_also_when_it_is_asked_again(clerk, ordered, guarded, code_of):
    trainer = guarded()
    clerk.error = DataError(SAID)
    assert code_of(trainer, ordered()) == "data-invalid"
    clerk.error = None
    assert code_of(trainer, ordered()) == "data-invalid"
    assert len(clerk.orders) == 1


def test_what_is_refused_because_this_process_ends_is_obeyed_by_the_next(clerk, tmp_path, ordered, guarded, code_of):
    trainer = guarded(is_stopping=lambda: True)
    clerk.error = DataError(SAID)
    code_of(trainer, ordered())
    clerk.error = None
    restarted = guarded(introduced=False, log=OrderLog(tmp_path / "orders"))
    assert isinstance(decode(restarted.answer(ordered())), StatisticsReply)


def test_order_that_is_not_permitted_takes_no_number(ordered, guarded, code_of):
    trainer = guarded()
    assert code_of(trainer, ordered(recipient="birch")) == "not-permitted"
    assert code_of(trainer, ordered(5, RoundOrder, cohort=("alder",))) == "not-permitted"
    assert isinstance(decode(trainer.answer(ordered(1))), StatisticsReply)


def test_simulated_merchant_obeys_the_same_rules(clerk, agreed, introduction, ordered, code_of):
    trainer = guarded_trainer.in_process(agreed, {"alder": clerk})["alder"]
    assert code_of(trainer, ordered()) == "replayed"
    trainer.answer(introduction())
    trainer.answer(ordered(2))
    assert code_of(trainer, ordered(1)) == "replayed"


# Permitted


def test_own_policy_is_asked_for_every_order_and_its_refusal_takes_no_number(clerk, ordered, guarded, code_of):
    policies = [MerchantPolicy()]
    noon = datetime(2026, 3, 1, 12, 0)  # noqa: DTZ001 - the time of day where the merchant is
    trainer = guarded(own=lambda: policies[-1], clock=lambda: noon)
    for policy, code in (
        (MerchantPolicy(paused=True), "not-now"),
        (MerchantPolicy(allowed_hours="22:00-06:00"), "not-now"),
        (MerchantPolicy(min_cohort=3), "not-permitted"),
        (MerchantPolicy(secure_aggregation_required=True), "not-permitted"),
    ):
        policies.append(policy)
        assert code_of(trainer, ordered(1, RoundOrder)) == code
    assert clerk.orders == []
    policies.append(MerchantPolicy(min_cohort=2))
    assert isinstance(decode(trainer.answer(ordered(1, RoundOrder))), RoundReply)


def test_update_longer_than_permitted_does_not_leave(ordered, guarded, code_of):
    trainer = guarded(own=lambda: MerchantPolicy(max_update_norm=1.0))
    assert code_of(trainer, ordered(1, RoundOrder)) == "not-permitted"
    assert code_of(trainer, ordered(1, RoundOrder)) == "not-permitted"


def test_policy_that_cannot_be_read_permits_nothing(introduction, guarded, code_of):
    def unreadable():
        raise UsageError("merchant.toml does not hold")

    trainer = guarded(introduced=False, own=unreadable)
    assert code_of(trainer, introduction()) == "not-permitted"


def test_approval_that_was_taken_back_stops_the_next_order(clerk, tmp_path, agreed, ordered, guarded, code_of):
    approvals = Approvals(tmp_path)
    approvals.approve(agreed)
    trainer = guarded(approvals=approvals)
    (tmp_path / "approved" / f"{agreed.fingerprint}.json").unlink()
    assert code_of(trainer, ordered()) == "agreement-mismatch"
    assert clerk.orders == []


# What leaves


def test_what_was_asked_and_answered_is_noted_in_order(tmp_path, ordered, guarded, code_of):
    trainer = guarded()
    reply = trainer.answer(ordered(1, RoundOrder))
    trainer.answer(ordered(1, RoundOrder))
    code_of(trainer, ordered(2, RoundOrder, cohort=("alder",)))
    code_of(trainer, b"nonsense")
    noted = list(entries(tmp_path / "audit.jsonl"))[2:]
    assert [(e.what, e.kind, e.decision, e.code) for e in noted] == [
        ("asked", "round", None, ""), ("answered", "round", "answered", ""),
        ("answered", "round", "stored", ""),
        ("answered", "round", "refused", "not-permitted"),
        ("answered", "", "refused", "message-invalid"),
    ]  # fmt: skip
    assert {e.order for e in noted[:3]} == {message_hash(ordered(1, RoundOrder))}
    assert [e.reply for e in noted[:3]] == [None, message_hash(reply), message_hash(reply)]
    assert all((e.run, e.sequence, e.round) == ("run", 1, 1) for e in noted[:3])
    assert "the agreement asks for at least 2" in noted[3].reason


@pytest.mark.parametrize("error", [DataError(SAID), ZeroDivisionError(SAID), OSError(13, SAID)])
def test_text_of_a_failure_is_in_the_log_alone(clerk, tmp_path, caplog, error, ordered, guarded):
    trainer = guarded()
    clerk.error = error
    with caplog.at_level(logging.ERROR):
        left = trainer.answer(ordered())
    assert SAID in caplog.text
    assert b"Lovelace" not in left
    assert "Lovelace" not in (tmp_path / "audit.jsonl").read_text()


def test_nothing_but_a_refusal_leaves_that_cannot_be_noted(clerk, tmp_path, caplog, ordered, guarded, code_of):
    trainer = guarded()
    whole = (tmp_path / "audit.jsonl").read_bytes()
    (tmp_path / "audit.jsonl").write_bytes(whole[:-5])
    assert code_of(trainer, ordered()) == "failed"
    assert clerk.orders == []
    (tmp_path / "audit.jsonl").write_bytes(whole)
    assert isinstance(decode(trainer.answer(ordered())), StatisticsReply)


def test_reply_in_another_name_or_of_another_kind_does_not_leave(clerk, ordered, guarded, code_of):
    trainer = guarded()
    clerk.name = "birch"
    assert code_of(trainer, ordered()) == "failed"


# Signed


def test_under_trust_only_signed_orders_are_opened_and_every_reply_is_signed(introduction, ordered, guarded):
    trainer = guarded(False, seals=Sealed(public_key_of(COORDINATOR), ALDER))
    public = public_key_of(ALDER)
    for order, kind in ((introduction(), Introduction), (ordered(), StatisticsReply)):
        refused = decode(open_seal(trainer.answer(order), public, "reply"))
        assert (refused.code, refused.order_hash) == ("not-signed", unopened_hash(order))
        reply = decode(open_seal(trainer.answer(seal(order, COORDINATOR, "order")), public, "reply"))
        assert isinstance(reply, kind)
        assert reply.order_hash == message_hash(order)


def test_stored_reply_leaves_under_the_same_seal(introduction, ordered, guarded):
    trainer = guarded(False, seals=Sealed(public_key_of(COORDINATOR), ALDER))
    trainer.answer(seal(introduction(), COORDINATOR, "order"))
    order = seal(ordered(1, RoundOrder), COORDINATOR, "order")
    assert trainer.answer(order) == trainer.answer(order)
