"""A merchant's trainer under [privacy.dp]: what leaves has noise or does not leave, noise that nobody can repeat, and
customers whose rows count together."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from hansa_client.data import merchant_table
from hansa_client.departures import REPLY_KINDS, check_departure
from hansa_client.guarded_trainer import Boundary, GuardedTrainer
from hansa_client.private_rounds import seeded_noise, system_noise, units_of
from hansa_client.programs import Programs
from hansa_client.trainer import MerchantTrainer
from hansa_client.variates import VariateStore
from hansa_common import statistics
from hansa_common.agreement import validate_agreement
from hansa_common.errors import AgreementError, DataError, MerchantError
from hansa_common.features import FittedPreprocessing
from hansa_common.messages import (
    EvaluateOrder,
    EvaluateReply,
    IntroduceOrder,
    RoundOrder,
    RoundReply,
    SharedMetrics,
    StatisticsOrder,
    StatisticsReply,
    decode,
    encode,
)
from hansa_common.metrics import HISTOGRAM_LENGTH
from hansa_common.model import ModelSpec
from hansa_common.noised_histograms import NUM_GROUPS
from hansa_common.vectors import num_params

DP = {"epsilon": 8, "noise_multiplier": 2.0, "sampling_rate": 0.2}
ROSTER = ["alpha", "beta"]
NOTHING = np.zeros(0, np.float32)
SEEDED = seeded_noise(1, "alpha")


def agreement_with(dp=DP, **changes):
    values = {
        "task": "purchase",
        "label": {"column": "buys"},
        "features": [
            {"kind": "numeric", "name": "amount", "low": 0, "high": 100, "missing": "refuse"},
            {"kind": "boolean", "name": "member", "missing": "refuse"},
        ],
        "model": {"hidden": []},
        "training": {"algorithm": "fedavg", "rounds": 3, "plan": {"learning_rate": 0.5, "local_steps": 4}},
        "privacy": {"dp": dp},
        "roster": ROSTER,
    }
    return validate_agreement({**values, **changes}, "the test")


def frame(num_rows: int = 240) -> pd.DataFrame:
    values = np.random.default_rng(0)
    amount = values.uniform(0, 100, num_rows)
    buys = values.uniform(size=num_rows) < 1 / (1 + np.exp(2 - amount / 30))
    columns = {"amount": amount, "member": values.integers(0, 2, num_rows), "buys": buys.astype(int)}
    return pd.DataFrame({name: column.astype(str) for name, column in columns.items()}).assign(
        card=[f"card {number % 40}" for number in range(num_rows)]
    )


class Merchant:
    """Alpha's trainer behind its boundary, and the orders that it can be asked."""

    def __init__(self, agreement, programs, draw_noise=SEEDED, rows=None) -> None:
        self.table = merchant_table(frame() if rows is None else rows, agreement, "alpha", "the test")
        self.agreement = agreement
        self.trainer = MerchantTrainer(
            agreement,
            "alpha",
            self.table,
            hash_key=None,
            state=VariateStore(),
            programs=programs.sharing(agreement),
            draw_noise=draw_noise,
        )
        self.guarded = GuardedTrainer(self.trainer, Boundary.in_process(agreement, "alpha"))
        self.guarded.answer(encode(IntroduceOrder(**{**self.header(0), "recipient": "*"})))
        columns = {name: values[self.table.train] for name, values in self.table.columns.items()}
        counted = statistics.measure(agreement, columns, self.table.labels[self.table.train])
        self.preprocessing = FittedPreprocessing.fit(agreement, counted).to_json()
        self.weights = np.full(num_params(ModelSpec.from_agreement(agreement).shapes), 0.3, np.float32)

    def header(self, sequence: int):
        fingerprint = self.agreement.fingerprint
        named = {"run_id": "run", "sequence": sequence, "recipient": "alpha", "fingerprint": fingerprint}
        return {**named, "deadline_seconds": 60.0}

    def statistics(self, sequence: int = 1):
        return StatisticsOrder(**self.header(sequence))

    def round(self, number: int = 1, sequence: int = 2):
        return RoundOrder(
            **self.header(sequence),
            round=number,
            plan=0,
            cohort=tuple(ROSTER),
            preprocessing=self.preprocessing,
            weights=self.weights,
            control=NOTHING,
            included="",
        )

    def evaluate(self, sequence: int = 9, weights=None):
        weights = self.weights if weights is None else weights
        return EvaluateOrder(**self.header(sequence), split="test", preprocessing=self.preprocessing, weights=weights)

    def reply(self, order, kind):
        reply = decode(self.guarded.answer(encode(order)))
        assert isinstance(reply, kind), reply
        return reply


@pytest.fixture(scope="module")
def programs():
    return Programs(agreement_with(), capacity_rows=512)


def test_what_leaves_for_a_round_is_the_update_and_nothing_else(programs) -> None:
    reply = Merchant(agreement_with(), programs).reply(
        round_of := Merchant(agreement_with(), programs).round(), RoundReply
    )
    assert reply.round == round_of.round
    assert reply.update.any()
    assert reply.train_loss == 0.0
    assert not reply.validation.any()


def test_real_trainers_draw_other_noise_each_time_and_simulated_ones_the_same(programs) -> None:
    agreement = agreement_with()

    def update(draw_noise, number: int = 1):
        merchant = Merchant(agreement, programs, draw_noise)
        return merchant.reply(merchant.round(number), RoundReply).update

    assert (update(SEEDED) == update(SEEDED)).all()
    assert (update(SEEDED) != update(SEEDED, number=2)).all()
    assert (update(SEEDED) != update(seeded_noise(1, "beta"))).all()
    assert (update(system_noise) != update(system_noise)).all()


def test_noise_is_the_operating_systems_unless_said_otherwise(programs) -> None:
    agreement = agreement_with()
    table = merchant_table(frame(), agreement, "alpha", "the test")
    trainer = MerchantTrainer(agreement, "alpha", table, hash_key=None, state=VariateStore(), programs=programs)
    assert trainer._draw_noise is system_noise


def test_statistics_leave_with_noise_that_is_new_each_time(programs) -> None:
    agreement = agreement_with()
    replies = [
        merchant.reply(merchant.statistics(), StatisticsReply).statistics
        for merchant in (Merchant(agreement, programs, system_noise) for _ in range(2))
    ]
    # Of a number that may not be missing: its two sums. The rows are not hidden, the positive ones are not told.
    assert [(a != b) for a, b in zip(*replies, strict=True)] == [False, False, False, True, True]
    assert replies[0][1] == 0


def test_no_histogram_leaves_unless_its_noise_was_agreed_on_and_own_figures_stay(programs) -> None:
    merchant = Merchant(agreement_with(), programs)
    reply = merchant.reply(merchant.evaluate(), EvaluateReply)
    assert not reply.histogram.any()
    assert reply.metrics is None
    assert merchant.trainer.own_figures.test is not None


def test_histogram_that_leaves_has_noise_in_every_group(programs) -> None:
    agreement = agreement_with({**DP, "evaluation_noise_multiplier": 50.0})
    merchant = Merchant(agreement, programs, system_noise)
    histogram = merchant.reply(merchant.evaluate(), EvaluateReply).histogram
    assert 2 * NUM_GROUPS - 8 <= np.count_nonzero(histogram) <= 2 * NUM_GROUPS
    assert (histogram < 0).any()


def test_weights_that_make_rows_overflow_show_nothing_of_them(programs) -> None:
    merchant = Merchant(agreement_with(), programs)
    huge = np.full_like(merchant.weights, 3e38)
    assert not merchant.reply(merchant.evaluate(weights=huge), EvaluateReply).histogram.any()


def test_trainer_does_not_start_under_a_promise_that_a_run_would_break(programs) -> None:
    with pytest.raises(AgreementError, match=r"promises epsilon 0\.1"):
        Merchant(agreement_with({**DP, "epsilon": 0.1}), programs)


def unnoised(merchant: Merchant):
    told = {"merchant": "alpha", "order_hash": "0" * 64}
    update = {"round": 1, "num_examples": 5, "update": NOTHING, "control_delta": NOTHING}
    nothing, counts = np.zeros(HISTOGRAM_LENGTH, np.int64), np.ones(HISTOGRAM_LENGTH, np.int64)
    shared = SharedMetrics(num_test_rows=9, roc_auc=0.5, pr_auc=0.5)
    return {
        "loss": (merchant.round(), RoundReply(**told, **update, validation=nothing, train_loss=0.7)),
        "validation": (merchant.round(), RoundReply(**told, **update, validation=counts, train_loss=0.0)),
        "histogram": (merchant.evaluate(), EvaluateReply(**told, histogram=counts, metrics=None)),
        "own figures": (merchant.evaluate(), EvaluateReply(**told, histogram=nothing, metrics=shared)),
        "positives": (
            merchant.statistics(),
            StatisticsReply(**told, statistics=np.array([9, 4, 0, 0, 0]), num_train_rows=9),
        ),
    }


@pytest.mark.parametrize("name", ["loss", "validation", "histogram", "own figures", "positives"])
def test_departure_of_what_has_no_noise_is_stopped(programs, name: str) -> None:
    merchant = Merchant(agreement_with(), programs)
    order, reply = unnoised(merchant)[name]
    with pytest.raises(MerchantError, match=r"\[privacy.dp\]"):
        check_departure(encode(reply), order, "0" * 64, "alpha", merchant.agreement)


def test_reply_tells_of_nothing_that_its_order_does_not_ask_for() -> None:
    for order, reply in REPLY_KINDS.items():
        assert reply.RELEASE in {order.RELEASE, "nothing"}, order.KIND


# --- customers --------------------------------------------------------------------------------------------------------

OF_CARDS = {**DP, "entity_column": "card", "max_rows_per_entity": 3}


def test_each_part_has_no_more_rows_of_a_customer_than_agreed_and_these_are_the_first() -> None:
    agreement, rows = agreement_with(OF_CARDS), frame()
    bounded = merchant_table(rows, agreement, "alpha", "the test")
    every = merchant_table(rows, agreement_with({**OF_CARDS, "max_rows_per_entity": 100}), "alpha", "the test")
    for name in ("train", "validation", "test"):
        kept, offered = getattr(bounded, name), getattr(every, name)
        cards = rows["card"].to_numpy()
        assert max(np.unique(cards[kept], return_counts=True)[1]) <= 3
        expected = [row for row in offered if np.sum(cards[offered[offered < row]] == cards[row]) < 3]
        assert kept.tolist() == expected


def test_which_rows_of_a_customer_count_depends_on_nobody_else() -> None:
    agreement, rows = agreement_with(OF_CARDS), frame()
    whole = merchant_table(rows, agreement, "alpha", "the test")
    renamed = rows.assign(card=rows["card"].where(rows["card"] == "card 7", "card 8"))
    alone = merchant_table(renamed, agreement, "alpha", "the test")
    of_seven = rows["card"].to_numpy() == "card 7"
    assert [r for r in whole.train if of_seven[r]] == [r for r in alone.train if of_seven[r]]


def test_a_customers_rows_are_one_unit(programs) -> None:
    merchant = Merchant(agreement_with(OF_CARDS), programs)
    cards = frame()["card"].to_numpy()[merchant.table.train]
    units = units_of(merchant.table)
    assert (
        len(np.unique(units))
        == len(np.unique(cards))
        == len(np.unique(np.stack([units, pd.factorize(cards)[0]]), axis=1)[0])
    )
    assert merchant.reply(merchant.round(), RoundReply).num_examples == len(cards)


def test_row_of_nobody_is_refused() -> None:
    with pytest.raises(DataError, match=r"column 'card': .* whose row is it"):
        merchant_table(
            frame().assign(card=lambda rows: rows["card"].where(rows.index != 5)), agreement_with(OF_CARDS), "a", "b"
        )


def test_table_without_the_customers_column_is_refused() -> None:
    with pytest.raises(DataError, match="no column 'card'"):
        merchant_table(frame().drop(columns="card"), agreement_with(OF_CARDS), "alpha", "the test")
