"""Every order gets one answer, in order and in time, and a reply only where it truly answers that order."""

from __future__ import annotations

import pytest
from flwr.app import ArrayRecord, ConfigRecord, RecordDict

from hansa_common.messages import (
    IntroduceOrder,
    Introduction,
    Refusal,
    StatisticsOrder,
    encode,
    message_hash,
)
from hansa_server.exchange import (
    GRACE_SECONDS,
    LONGEST_WAIT_SECONDS,
    LOST_CODE,
    WINDOW,
    Addressed,
    Exchange,
)
from hansa_server.seals import Unsealed

HEADER = {"run_id": "run", "sequence": 1, "fingerprint": "0" * 64, "deadline_seconds": 10.0}


def order(name):
    return StatisticsOrder(recipient=name, **HEADER)


def introduction(name, order_bytes):
    return Introduction(merchant=name, order_hash=message_hash(order_bytes), hansa_version="0", backend="b", device="d")


def honest(name):
    return lambda order_bytes: encode(introduction(name, order_bytes))


@pytest.fixture
def ask(world, manual_clock):
    """Ask each of these peers, by name, once; node ids count from 100."""

    def ask_peers(deadline=10.0, **peers):
        grid = world.PeerGrid({100 + i: peer for i, peer in enumerate(peers.values())}, manual_clock)
        exchange = Exchange(grid, manual_clock.clock, Unsealed())
        orders = [Addressed(100 + i, order(name)) for i, name in enumerate(peers)]
        return list(exchange.ask(orders, deadline)), grid

    return ask_peers


def codes(answers):
    return [answer.code for answer in answers]


def test_answers_come_in_order_of_the_orders_whatever_arrives_first(ask, world):
    def after(seconds, name):
        return lambda order_bytes: world.Delivery(honest(name)(order_bytes), after=seconds)

    answers, _ = ask(alpha=after(3, "alpha"), beta=after(1, "beta"), gamma=after(2, "gamma"))
    assert [answer.reply.merchant for answer in answers] == ["alpha", "beta", "gamma"]
    assert [answer.sent.node_id for answer in answers] == [100, 101, 102]


def test_answer_holds_sizes_and_the_hash_of_the_reply(ask):
    (answer,), grid = ask(alpha=honest("alpha"))
    sent = grid.orders[0][1]
    reply = encode(introduction("alpha", sent))
    assert (answer.reply_hash, answer.bytes_received) == (message_hash(reply), len(reply))
    assert (answer.sent.order_hash, answer.sent.num_bytes) == (message_hash(sent), len(sent))
    assert sent == encode(order("alpha"))


def test_silence_ends_at_the_deadline_and_its_grace(ask, manual_clock):
    answers, _ = ask(deadline=10.0, alpha=honest("alpha"), beta=lambda _: None, gamma=honest("gamma"))
    assert codes(answers) == ["", "deadline", ""]
    assert manual_clock.seconds == pytest.approx(10.0 + GRACE_SECONDS)


def test_late_reply_is_not_waited_for(ask, world):
    late = lambda order_bytes: world.Delivery(honest("alpha")(order_bytes), after=11 + GRACE_SECONDS)  # noqa: E731
    answers, _ = ask(deadline=10.0, alpha=late)
    assert codes(answers) == ["deadline"]


def test_replies_behind_many_silent_merchants_are_not_lost(ask):
    silent = {f"silent{i}": lambda _: None for i in range(2 * WINDOW)}
    answers, _ = ask(**silent, zeta=honest("zeta"))
    assert codes(answers) == ["deadline"] * 2 * WINDOW + [""]


def test_waits_grow_but_stay_below_half_a_second(ask, manual_clock):
    ask(deadline=20.0, alpha=lambda _: None)
    assert manual_clock.waits[0] == 0.05
    assert manual_clock.waits[:8] == sorted(manual_clock.waits[:8])
    assert max(manual_clock.waits) == LONGEST_WAIT_SECONDS


def test_after_a_reply_the_next_is_looked_for_soon(ask, world, manual_clock):
    late = lambda order_bytes: world.Delivery(honest("alpha")(order_bytes), after=6)  # noqa: E731
    ask(deadline=10.0, alpha=late, beta=lambda _: None)
    assert manual_clock.waits.count(0.05) == 2


def test_what_is_there_at_once_is_not_waited_for(ask, manual_clock):
    ask(alpha=honest("alpha"), beta=honest("beta"))
    assert manual_clock.waits == []


def test_only_a_window_of_replies_is_fetched_at_once(ask):
    peers = {f"m{i:03}": honest(f"m{i:03}") for i in range(5 * WINDOW)}
    answers, grid = ask(**peers)
    assert codes(answers) == [""] * len(peers)
    assert grid.most_delivered_at_once <= WINDOW


def test_orders_are_made_one_by_one_as_they_are_sent(world, manual_clock):
    grid = world.PeerGrid({1: honest("alpha"), 2: honest("beta")}, manual_clock)
    sent_before = []

    def orders():
        for node_id, name in ((1, "alpha"), (2, "beta")):
            sent_before.append(len(grid.orders))
            yield Addressed(node_id, order(name))

    list(Exchange(grid, manual_clock.clock, Unsealed()).ask(orders(), 1.0))
    assert sent_before == [0, 1]


def test_order_that_flower_does_not_take_is_unreachable(world, manual_clock):
    grid = world.PeerGrid({1: honest("alpha")}, manual_clock, unreachable={1})
    answers = list(Exchange(grid, manual_clock.clock, Unsealed()).ask([Addressed(1, order("alpha"))], 5.0))
    assert codes(answers) == ["unreachable"]
    assert manual_clock.waits == []


def test_node_unavailable_comes_from_another_node_and_is_matched_by_its_message(ask, world):
    def lost(_):
        return world.Delivery(world.Error(code=5, reason="Node Unavailable"), from_node=1)

    answers, _ = ask(alpha=honest("alpha"), beta=lost)
    assert codes(answers) == ["", "unreachable"]


@pytest.mark.parametrize(("times", "code"), [(1, ""), (2, "unreachable")])
def test_order_that_was_lost_with_its_node_is_sent_once_more_byte_for_byte_and_no_oftener(ask, world, times, code):
    left = iter(range(times))

    def dies(order_bytes):
        if next(left, None) is None:
            return honest("beta")(order_bytes)
        return world.Delivery(world.Error(code=LOST_CODE, reason="gone"), after=1.0, from_node=1)

    answers, grid = ask(alpha=honest("alpha"), beta=dies, gamma=honest("gamma"))
    assert codes(answers) == ["", code, ""]
    assert [answer.sent.recipient for answer in answers] == ["alpha", "beta", "gamma"]
    sent = [order_bytes for node_id, order_bytes in grid.orders if node_id == 101]
    assert sent == [encode(order("beta"))] * 2


def test_merchants_own_word_that_an_order_is_lost_makes_nobody_send_it_again(ask, world):
    answers, grid = ask(alpha=lambda _: world.Error(code=LOST_CODE, reason="gone"))
    assert codes(answers) == ["client-error"]
    assert len(grid.orders) == 1


def test_error_of_a_client_travels_as_a_code_without_its_text(ask, world):
    answers, _ = ask(alpha=lambda _: world.Error(code=2, reason="/home/alpha/customers.csv: bad row 7"))
    assert codes(answers) == ["client-error"]
    assert "customers" not in repr(answers)


@pytest.mark.parametrize("code", ["busy", "deadline", "data-invalid", "not-permitted"])
def test_refusal_becomes_its_code(ask, code):
    def refuse(order_bytes):
        return encode(Refusal(merchant="alpha", order_hash=message_hash(order_bytes), code=code))

    (answer,), _ = ask(alpha=refuse)
    assert (answer.code, answer.reply) == (code, None)


def test_impersonated_name_is_dropped(ask):
    answers, _ = ask(alpha=honest("beta"), beta=honest("beta"))
    assert codes(answers) == ["wrong-merchant", ""]


def test_reply_from_another_node_is_dropped(ask, world):
    answers, _ = ask(alpha=lambda o: world.Delivery(honest("alpha")(o), from_node=999))
    assert codes(answers) == ["wrong-merchant"]


def test_replayed_reply_is_dropped(world, manual_clock):
    kept = []

    def replaying(order_bytes):
        kept.append(honest("alpha")(order_bytes))
        return kept[0]

    exchange = Exchange(world.PeerGrid({1: replaying}, manual_clock), manual_clock.clock, Unsealed())
    first, second = order("alpha"), order("alpha").model_copy(update={"run_id": "next"})
    assert codes(exchange.ask([Addressed(1, first)], 5.0)) == [""]
    assert codes(exchange.ask([Addressed(1, second)], 5.0)) == ["wrong-order"]


def test_order_sent_back_is_no_reply(ask):
    answers, _ = ask(alpha=lambda order_bytes: order_bytes)
    assert codes(answers) == ["wrong-kind"]


@pytest.mark.parametrize(
    "garbage",
    [
        b"",
        b"\x00" * 100,
        b"HANSA\x01\xff\xff\xff\xff",
        RecordDict(),
        RecordDict({"hansa": ConfigRecord({"message": "text"})}),
        RecordDict({"hansa": ConfigRecord({"other": b"x"})}),
        RecordDict({"hansa": ConfigRecord({"message": b"x", "more": b"x"})}),
        RecordDict({"hansa": ArrayRecord()}),
    ],
    ids=range(8),
)
def test_garbage_is_message_invalid(ask, garbage):
    answers, _ = ask(alpha=lambda _: garbage, beta=honest("beta"))
    assert codes(answers) == ["message-invalid", ""]


def test_whole_reply_beside_another_record_is_message_invalid(ask):
    def crowded(order_bytes):
        return RecordDict(
            {"hansa": ConfigRecord({"message": honest("alpha")(order_bytes)}), "more": ConfigRecord({"x": 1})}
        )

    answers, _ = ask(alpha=crowded)
    assert codes(answers) == ["message-invalid"]


def test_reply_to_everyone_may_name_anyone(world, manual_clock):
    grid = world.PeerGrid({1: honest("whoever")}, manual_clock)
    orders = [Addressed(1, IntroduceOrder(**{**HEADER, "recipient": "*", "sequence": 0}))]
    (answer,) = Exchange(grid, manual_clock.clock, Unsealed()).ask(orders, 1.0)
    assert answer.reply.merchant == "whoever"


def test_reply_that_no_one_waits_for_is_ignored(world, manual_clock):
    class Confused(world.PeerGrid):
        def pull_messages(self, message_ids):
            replies = super().pull_messages(message_ids)
            for reply in replies[:1]:
                self._delivered.remove(reply.metadata.reply_to_message_id)
                reply.metadata.__dict__["_reply_to_message_id"] = "message-of-another-run"
            return replies

    grid = Confused({1: honest("alpha"), 2: honest("beta")}, manual_clock)
    orders = [Addressed(1, order("alpha")), Addressed(2, order("beta"))]
    assert codes(Exchange(grid, manual_clock.clock, Unsealed()).ask(orders, 1.0)) == ["deadline", ""]


@pytest.mark.parametrize(
    "make", [introduction, lambda name, order: Refusal(merchant=name, order_hash=message_hash(order), code="busy")]
)
def test_answer_says_what_its_merchant_says_of_its_ledger_and_its_hash_does_not_hang_on_that(ask, make):
    def peer(ledger):
        return lambda order: encode(make("a", order).model_copy(update={"ledger": ledger}))

    states = ["", "4:" + "c" * 64, "5:" + "d" * 64]
    answers = [ask(a=peer(ledger))[0][0] for ledger in states]
    assert [answer.ledger for answer in answers] == states
    assert len({answer.reply_hash for answer in answers}) == 1


@pytest.mark.parametrize("ledger", ["4", "04:" + "a" * 64, "-1:" + "a" * 64, "4:" + "A" * 64, "4:" + "a" * 65, " "])
def test_reply_with_a_state_of_a_ledger_that_is_none_is_no_message(ask, ledger):
    answers, _ = ask(a=lambda order: encode(introduction("a", order).model_copy(update={"ledger": ledger})))
    assert codes(answers) == ["message-invalid"]
