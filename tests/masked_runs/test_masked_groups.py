"""Masked sums of groups, and a rule across them: the coordinator sees no sum smaller than a group's, and few liars,
whatever they mask, do not move the model. What a rule makes of groups in the clear is in test_robust_rounds.py."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from flwr.app import Error, Message

from hansa_client.data import merchant_table
from hansa_client.guarded_trainer import in_process
from hansa_client.masked_memory import SumMemory
from hansa_client.masked_sums import MaskedSums
from hansa_client.programs import Programs
from hansa_client.trainer import MerchantTrainer
from hansa_client.variates import VariateStore
from hansa_common.agreement import validate_agreement
from hansa_common.errors import AgreementError, PolicyError, RunFailedError
from hansa_common.messages import RoundOrder, RoundReply, decode
from hansa_common.secure_agreement import secure_words
from hansa_common.secure_groups import session_of
from hansa_common.secure_keys import development_identity
from hansa_common.secure_messages import KeysOrder, UnmaskOrder
from hansa_server.federation import run_federation
from hansa_server.masked_sums import SumAbandoned
from hansa_server.run_state import RunState
from hansa_simulations.grid import LocalGrid, server_identity
from hansa_simulations.scenario import simulated_merchants

SHOPS = tuple(f"shop {i:02}" for i in range(25))
PLAN = {"optimizer": "sgd", "learning_rate": 0.3, "batch_size": 16, "local_steps": 12}
LIARS = SHOPS[3:5]
MEDIAN = {"rule": "median", "num_dishonest": 2, "groups": 5}


def agreement_with(num_shops=25, **changes):
    values = {
        "task": "purchase",
        "label": {"column": "buys"},
        # Of truths nothing is told before the first round: so preprocessing is the same, however sums are made.
        "features": [{"kind": "boolean", "name": name, "missing": "refuse"} for name in ("member", "gift", "late")],
        "model": {"hidden": [], "dropout": 0.0},
        "training": {"algorithm": "fedavg", "rounds": 2, "plan": PLAN},
        "cohort": {"min_merchants": 3, "max_update_norm": 5, "max_examples": 1000},
        "privacy": {"min_count": 1, "min_positives": 1},
        "secure_aggregation": {"protocol": "double-masking"},
        "robustness": MEDIAN,
        "roster": list(SHOPS[:num_shops]),
    }
    return validate_agreement({**values, **changes}, "the test")


def in_the_clear(agreement):
    values = agreement.model_dump(mode="json")
    return validate_agreement({**values, "secure_aggregation": {"protocol": "none"}}, "the test")


def rows_of(shop):
    random = np.random.default_rng([*shop.encode()])
    size = 60 + 3 * SHOPS.index(shop)
    columns = {name: random.integers(0, 2, size) for name in ("member", "gift", "late")}
    buys = random.random(size) < 1 / (1 + np.exp(1.5 - 2.0 * columns["member"] - columns["gift"]))
    return pd.DataFrame({**columns, "buys": buys.astype(int)}).astype(str)


class Lying(MaskedSums):
    """Masks what was never trained: the longest update that its trainer lets pass."""

    def masked(self, order, reply):
        if isinstance(reply, RoundReply):
            longest = np.full_like(reply.update, 0.999 * 5 / np.sqrt(reply.update.size))
            reply = reply.model_copy(update={"update": longest})
        return super().masked(order, reply)


class Garbage(MaskedSums):
    """Masks numbers that are no encoding of anything."""

    def _vector(self, order, reply):
        vector = super()._vector(order, reply)
        return np.random.default_rng(0).integers(0, 2**32, vector.size, np.uint32)


class Losing(LocalGrid):
    """Loses the orders that `hits` says, before their merchant sees them; keeps the others with their replies."""

    def __init__(self, trainers, hits):
        super().__init__(trainers)
        self.hits, self.orders, self.replies = hits, [], []

    def _answered(self, message):
        order = decode(message.content["hansa"]["message"])
        if self.hits(order):
            lost = Message(Error(2, "lost"), reply_to=message)
            lost.metadata.__dict__["_message_id"] = f"lost-{len(self.orders)}-{order.recipient}"
            lost.metadata.__dict__["_src_node_id"] = message.metadata.dst_node_id
            return lost
        self.orders.append(order)
        reply = super()._answered(message)
        self.replies.append(decode(reply.content["hansa"]["message"]))
        return reply


@pytest.fixture(scope="module")
def shops():
    """Runs over the shops, with one program."""
    first = agreement_with()
    tables = {name: merchant_table(rows_of(name), first, name, name) for name in SHOPS}
    programs = Programs.for_tables(first, *tables.values())

    def run(agreement, liars=(), lying=Lying, hits=lambda _: False):
        workers = simulated_merchants(agreement, tables, programs.sharing(agreement))
        for name in liars:
            sums = lying(agreement, name, development_identity(name), SumMemory())
            workers[name] = MerchantTrainer(
                agreement, name, tables[name], hash_key=None, state=VariateStore(),
                programs=programs.sharing(agreement), sums=sums,
            )  # fmt: skip
        events, grid = [], Losing(in_process(agreement, workers), hits)
        with server_identity():
            result = run_federation(grid, agreement, RunState("run"), on_event=events.append)
        return SimpleNamespace(result=result, events=events, grid=grid)

    return run


@pytest.fixture(scope="module")
def honest(shops):
    return shops(agreement_with())


def groups_of(agreement, number):
    """The groups of the run's batch of this number, counted from 0."""
    first = 5 * number + 1
    return [session_of(agreement, agreement.fingerprint, "run", first + place).cohort for place in range(5)]


def test_masked_groups_come_to_what_the_rule_makes_of_the_same_groups_in_the_clear(shops, honest):
    agreement = agreement_with()
    masked, clear = honest, shops(in_the_clear(agreement))
    assert masked.result.preprocessing == clear.result.preprocessing
    np.testing.assert_allclose(masked.result.weights, clear.result.weights, rtol=0, atol=2e-5)
    assert masked.result.test.num_rows == clear.result.test.num_rows
    assert all(entry.aggregated and not entry.dropped for entry in masked.result.rounds)
    # The mean over everyone is another model.
    mean = shops(in_the_clear(agreement_with(robustness={})))
    assert np.abs(mean.result.weights - masked.result.weights).max() > 1e-3


def test_no_sum_is_smaller_than_a_groups_and_no_vector_is_told_in_the_clear(honest):
    agreement, ran = agreement_with(), honest
    assert {reply.KIND for reply in ran.grid.replies} == {"introduction", "keys-reply", "masked-reply", "unmask-reply"}
    opened = [order for order in ran.grid.orders if isinstance(order, UnmaskOrder) and order.sum]
    assert {len(order.in_sum) for order in opened} == {5}
    assert len({order.sum for order in opened}) == 5 * (1 + 2 + 1)
    for number in range(4):
        groups = groups_of(agreement, number)
        assert sorted(name for group in groups for name in group) == list(SHOPS)


def test_a_round_of_groups_takes_two_exchanges_once_a_run_has_begun(honest):
    asked = dict.fromkeys((order.sequence, order.KIND) for order in honest.grid.orders)
    kinds = [kind for sequence, kind in asked if sequence > 0]
    # No model is chosen by validation, and so none is validated but in a round; the test closes the run.
    sums = ["statistics", "round", "round", "evaluate"]
    assert kinds == ["keys", "unmask", *(kind for what in sums for kind in (what, "unmask"))]


def test_two_liars_of_25_under_masks_move_the_mean_and_not_the_model(shops, honest):
    attacked = shops(agreement_with(), LIARS)
    undefended = agreement_with(robustness={})
    apart = np.linalg.norm(attacked.result.weights - honest.result.weights)
    moved = np.linalg.norm(shops(undefended, LIARS).result.weights - shops(undefended).result.weights)
    assert all(entry.aggregated for entry in attacked.result.rounds)
    assert moved > 2 * apart
    assert attacked.result.test.roc_auc > honest.result.test.roc_auc - 0.01


def test_groups_masks_and_differential_privacy_go_together_and_still_withstand_liars(shops):
    """25 merchants in groups of five, each with noise of its own, two of them liars under their masks."""
    private = {"dp": {"epsilon": 20, "noise_multiplier": 1.0, "sampling_rate": 0.2}}
    agreement, undefended = agreement_with(privacy=private), agreement_with(privacy=private, robustness={})
    honest, attacked = shops(agreement), shops(agreement, LIARS)
    assert all(entry.aggregated and entry.validation is None for entry in honest.result.rounds)
    assert all(entry.train_loss is None for entry in honest.result.rounds)
    apart = np.linalg.norm(attacked.result.weights - honest.result.weights)
    moved = np.linalg.norm(shops(undefended, LIARS).result.weights - shops(undefended).result.weights)
    assert moved > 2 * apart


def test_liar_whose_vector_is_no_encoding_spoils_its_own_group_and_no_more(shops):
    agreement = agreement_with(robustness={**MEDIAN, "num_dishonest": 1})
    ran = shops(agreement, SHOPS[:1], Garbage)
    told = {event.what for event in ran.events if isinstance(event, SumAbandoned)}
    assert all(entry.aggregated for entry in ran.result.rounds)
    assert {what.partition(",")[0] for what in told} >= {"statistics", "round 1", "round 2"}
    # Its company in one group is with others in the next.
    assert len(told) <= 4


def test_group_below_its_threshold_is_abandoned_and_too_few_groups_leave_the_model_as_it_was(shops):
    agreement = agreement_with(robustness={**MEDIAN, "num_dishonest": 1})
    lost = set()

    def hits_of(num_groups):
        def hits(order):
            if isinstance(order, RoundOrder) and order.round == 2:
                # Three of a group of five: two are no sum.
                lost.update(name for group in groups_of(agreement, 2)[:num_groups] for name in group[:3])
                return order.recipient in lost
            return False

        return hits

    one, three = shops(agreement, hits=hits_of(1)), shops(agreement, hits=hits_of(3))
    assert [entry.aggregated for entry in one.result.rounds] == [True, True]
    assert [entry.aggregated for entry in three.result.rounds] == [True, False]
    assert three.result.rounds[1].abandoned == "too-few-groups"
    assert three.result.rounds[1].validation is None
    abandoned = [event.line for event in one.events if isinstance(event, SumAbandoned)]
    # The three have sent no keys either, which costs the next group that two of them would have been in.
    assert [line.partition(" (")[0] for line in abandoned] == [
        "round 2, group 1: too-few-vectors", "after round 2, group 4: too-few-keys",
    ]  # fmt: skip


def test_who_drops_out_after_sharing_is_left_out_of_its_groups_sum(shops):
    agreement = agreement_with()
    ran = shops(agreement, hits=lambda order: isinstance(order, RoundOrder) and order.recipient == SHOPS[7])
    # It has no keys for the next group that it would be in, and sends some then.
    assert [dict(entry.dropped) for entry in ran.result.rounds] == [
        {SHOPS[7]: "client-error"}, {SHOPS[7]: "joining"},
    ]  # fmt: skip
    assert all(entry.aggregated for entry in ran.result.rounds)


def test_merchant_has_no_part_in_another_groups_sum(shops):
    """The number of a sum says its group: asked for another's, a merchant refuses."""
    agreement = agreement_with()
    sums = MaskedSums(agreement, SHOPS[0], development_identity(SHOPS[0]), SumMemory())
    fields = {"run_id": "run", "sequence": 1, "recipient": SHOPS[0], "deadline_seconds": 9.0}
    for number in range(1, 6):
        order = KeysOrder(**fields, fingerprint=agreement.fingerprint, sum=number)
        if SHOPS[0] in groups_of(agreement, 0)[number - 1]:
            assert sums.answer(order, "0" * 64).keys.size
        else:
            with pytest.raises(PolicyError):
                sums.answer(order, "0" * 64)


def test_run_whose_statistics_are_of_too_few_groups_has_no_beginning(shops):
    agreement = agreement_with()
    silent = {name for group in groups_of(agreement, 0)[:1] for name in group[:3]}
    with pytest.raises(RunFailedError, match="gave no sum"):
        shops(agreement, hits=lambda order: isinstance(order, UnmaskOrder) and order.recipient in silent)


def test_agreement_says_what_holds_for_groups_and_refuses_what_does_not():
    assert "merchants of a group, 5 of which are drawn anew" in secure_words(agreement_with())[0]
    for changes, told in (
        ({"robustness": {"rule": "median", "num_dishonest": 1}}, "set robustness.groups"),
        ({"robustness": {**MEDIAN, "groups": 12}}, "leave 2 in a group"),
        ({"secure_aggregation": {"protocol": "double-masking", "colluders": 4}}, "colluders among 5"),
    ):
        with pytest.raises(AgreementError, match=told):
            agreement_with(**changes)


def test_groups_whose_updates_go_in_few_bits_come_to_nearly_the_same_model(shops, honest):
    bounds = {"min_merchants": 3, "max_update_norm": 2, "max_examples": 140}
    section = {"protocol": "double-masking", "update_bits": 8}
    short = shops(agreement_with(cohort=bounds, secure_aggregation=section))
    assert all(entry.aggregated and not entry.dropped for entry in short.result.rounds)
    np.testing.assert_allclose(short.result.weights, honest.result.weights, rtol=0, atol=0.05)
    assert short.result.weights.tobytes() != honest.result.weights.tobytes()
    # Three counts of a histogram in the place of one, where a group has five merchants of 140 rows at most.
    assert short.result.rounds[0].bytes_received < 0.4 * honest.result.rounds[0].bytes_received
