"""Orders that a trainer refuses: what does not fit is answered with a code, and nothing is trained for it."""

from __future__ import annotations

import logging
from dataclasses import replace

import numpy as np
import pytest

from hansa_client.variates import VariateStore
from hansa_common import statistics
from hansa_common.features import FittedPreprocessing
from hansa_common.messages import (
    Refusal,
    StatisticsOrder,
    decode,
    encode,
)

FEDAVG, SCAFFOLD = 0, 1
NONE = np.zeros(0, np.float32)


def test_bytes_that_are_no_order_are_refused(trainer, header, refusal_code):
    reply = encode(Refusal(merchant="alpha", order_hash="0" * 64, code="failed"))
    for message in (b"", b"HANSA", b"\x80\x04.", reply, encode(StatisticsOrder(**header()))[:-1]):
        assert refusal_code(trainer, message) == "message-invalid"


def test_orders_of_another_agreement_or_for_another_merchant_are_refused(trainer, header, refusal_code):
    assert refusal_code(trainer, encode(StatisticsOrder(**header(fingerprint="0" * 64)))) == "agreement-mismatch"
    assert refusal_code(trainer, encode(StatisticsOrder(**header(recipient="beta")))) == "not-permitted"


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"weights": np.zeros(3000, np.float32)}, "message-invalid"),
        ({"weights": NONE}, "message-invalid"),
        ({"control": NONE}, "message-invalid"),
        ({"cohort": ("alpha",)}, "not-permitted"),
        ({"plan": 3}, "not-permitted"),
        ({"preprocessing": "{}"}, "message-invalid"),
        ({"included": "1" * 64}, "failed"),
    ],
)
def test_round_that_does_not_fit_is_refused_before_training(trainer, round_order, changes, code, refusal_code):
    assert refusal_code(trainer, round_order(**{"plan": SCAFFOLD, **changes})) == code


def test_control_variate_for_a_plan_without_one_is_refused(trainer, round_order, weights, refusal_code):
    assert refusal_code(trainer, round_order(FEDAVG, control=weights)) == "not-permitted"


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("name", ["weights", "control"])
def test_numbers_that_are_not_finite_are_refused(trainer, round_order, weights, name, value, refusal_code):
    poisoned = weights.copy()
    poisoned[1] = value
    assert refusal_code(trainer, round_order(SCAFFOLD, **{name: poisoned})) == "message-invalid"


def test_preprocessing_for_other_features_is_refused(
    trainer, round_order, agreement_with, table, columns_of, refusal_code
):
    other = agreement_with(
        features=[
            {"kind": "numeric", "name": "amount", "low": 0, "high": 50, "missing": "refuse"},
            {"kind": "boolean", "name": "member", "missing": "refuse"},
        ]
    )
    rows = table("alpha")
    measured = statistics.measure(other, columns_of(rows, rows.train), rows.labels[rows.train])
    foreign = FittedPreprocessing.fit(other, measured).to_json()
    assert refusal_code(trainer, round_order(preprocessing=foreign)) == "not-permitted"


def test_deadline_stops_work(round_order, evaluate_order, new_trainer, refusal_code):
    for order in (round_order(deadline_seconds=1e-6), evaluate_order("test", deadline_seconds=1e-6)):
        assert refusal_code(new_trainer(), order) == "deadline"


def test_stopped_training_proposes_nothing(round_order, new_trainer, answer, refusal_code):
    store = VariateStore()
    assert refusal_code(new_trainer(state=store), round_order(SCAFFOLD, deadline_seconds=1e-6)) == "deadline"
    assert decode(answer(new_trainer(state=store), round_order(SCAFFOLD))).KIND == "round-reply"


def test_text_of_a_failure_stays_in_the_merchants_log(caplog, table, new_trainer, header, answer):
    rows = table("alpha")
    broken = replace(rows, columns={"amount": rows.columns["amount"]})
    with caplog.at_level(logging.ERROR):
        message = answer(new_trainer(table=broken), encode(StatisticsOrder(**header())))
    refusal = decode(message)
    assert refusal == Refusal(merchant="alpha", order_hash=refusal.order_hash, code=refusal.code)
    assert b"member" not in message
    assert "member" in caplog.text
