"""Flower's grid inside one process: encoded bytes and nothing else travel, a merchant works when its reply is asked
for, and one that raises costs the round that merchant."""

from __future__ import annotations

import numpy as np
import pytest
from flwr.app import ConfigRecord, Message, RecordDict
from flwr.supercore.run import Run
from flwr.supercore.task_identity import TaskIdentity

from hansa_common.messages import (
    EvaluateOrder,
    EvaluateReply,
    IntroduceOrder,
    Introduction,
    RoundOrder,
    RoundReply,
    StatisticsOrder,
    StatisticsReply,
    decode,
)
from hansa_server.federation import run_federation
from hansa_server.run_state import RunState
from hansa_simulations.grid import SERVER_NODE_ID, LocalGrid, server_identity

KINDS = {
    IntroduceOrder: Introduction,
    StatisticsOrder: StatisticsReply,
    RoundOrder: RoundReply,
    EvaluateOrder: EvaluateReply,
}


class Echo:
    """A merchant whose answer is the order, with its name before it."""

    def __init__(self, name):
        self.name = name
        self.num_answered = 0

    def answer(self, order):
        self.num_answered += 1
        return self.name.encode() + b":" + order


class FailsAtRound:
    """A merchant whose process breaks at one round, with a secret in the traceback."""

    def __init__(self, trainer, round_number):
        self.trainer = trainer
        self.round = round_number

    def answer(self, order):
        record = decode(order)
        if isinstance(record, RoundOrder) and record.round == self.round:
            raise ZeroDivisionError("Ada Lovelace owes 12.50")
        return self.trainer.answer(order)


@pytest.fixture
def echoes():
    return {name: Echo(name) for name in ("alder", "birch", "cedar")}


@pytest.fixture
def grid(echoes):
    with server_identity():
        yield LocalGrid(echoes)


def order_to(node_id, content=b"order"):
    return Message(RecordDict({"hansa": ConfigRecord({"message": content})}), node_id, "train")


def content_of(message):
    return message.content["hansa"]["message"]


def federation_over(grid, agreement):
    events = []
    with server_identity():
        result = run_federation(grid, agreement, RunState("run"), on_event=events.append)
    return result, events


@pytest.fixture(scope="module")
def recorded(shops, tiny_programs):
    scenario = shops.scenario()
    grid = shops.recording_grid(shops.trainers(scenario, tiny_programs))
    result, _ = federation_over(grid, scenario.agreement)
    return grid, result


def test_nodes_are_numbered_in_the_order_of_merchants(grid):
    first, second, third = grid.get_node_ids()
    assert SERVER_NODE_ID < first < second < third
    replies = grid.send_and_receive([order_to(third), order_to(first)])
    assert [content_of(reply) for reply in replies] == [b"cedar:order", b"alder:order"]


def test_merchant_works_when_its_reply_is_asked_for_and_once(grid, echoes):
    ids = grid.push_messages(order_to(node_id) for node_id in grid.get_node_ids())
    assert [echo.num_answered for echo in echoes.values()] == [0, 0, 0]
    (reply,) = grid.pull_messages(ids[1:])
    assert [echo.num_answered for echo in echoes.values()] == [0, 1, 0]
    assert content_of(reply) == b"birch:order"
    assert grid.pull_messages([ids[1]]) == []
    assert [content_of(reply) for _ in ids for reply in grid.pull_messages(ids)] == [b"alder:order", b"cedar:order"]
    assert [echo.num_answered for echo in echoes.values()] == [1, 1, 1]


def test_reply_says_which_message_it_answers_and_who_answers(grid):
    node_id = grid.get_node_ids()[1]
    (message_id,) = grid.push_messages([order_to(node_id)])
    (reply,) = grid.pull_messages([message_id])
    assert reply.metadata.reply_to_message_id == message_id
    assert reply.metadata.src_node_id == node_id
    assert reply.metadata.dst_node_id == SERVER_NODE_ID
    assert reply.metadata.message_id not in {"", message_id}


def test_message_to_nobody_gets_no_id_and_an_unknown_id_no_reply(grid):
    assert grid.push_messages([order_to(99)]) == []
    assert grid.pull_messages(["message-4711"]) == []


def test_message_without_an_order_is_answered_with_flowers_error(grid, echoes):
    node_id = grid.get_node_ids()[0]
    stranger = Message(RecordDict({"hansa": ConfigRecord({"message": "text"})}), node_id, "train")
    (reply,) = grid.send_and_receive([stranger])
    assert reply.has_error()
    assert echoes["alder"].num_answered == 0


def test_client_app_that_raises_answers_with_an_error_that_says_nothing(grid, echoes, monkeypatch):
    def fail(_):
        raise ZeroDivisionError("Ada Lovelace owes 12.50")

    monkeypatch.setattr(echoes["birch"], "answer", fail)
    replies = grid.send_and_receive([order_to(node_id) for node_id in grid.get_node_ids()])
    assert [reply.has_error() for reply in replies] == [False, True, False]
    assert replies[1].error.code != 0
    assert "Lovelace" not in str(replies[1].error.reason)


def test_identity_of_the_server_is_lent_and_given_back():
    names = ("_run_id", "_node_id", "_task_id")
    before = [getattr(TaskIdentity, name) for name in names]

    def fail():
        with server_identity():
            assert TaskIdentity.node_id == SERVER_NODE_ID
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert [getattr(TaskIdentity, name) for name in names] == before


def test_run_is_flowers(grid):
    grid.set_run(Run.create_empty(12))
    assert grid.run.run_id == 12


def test_only_encoded_records_travel(recorded, shops):
    grid, result = recorded
    orders, replies = ([decode(only_bytes(m)) for m in messages] for messages in (grid.orders, grid.replies))
    # Introductions, statistics, rounds, the last model's validation, the kept one's test.
    assert len(orders) == len(replies) == len(shops.num_rows) * (1 + 1 + len(result.rounds) + 1 + 1)
    assert [KINDS[type(order)] for order in orders] == [type(reply) for reply in replies]


def only_bytes(message):
    """The one field of the one record of a message, which is bytes; nothing else is in it."""
    assert list(message.content) == ["hansa"]
    assert message.content["hansa"] == ConfigRecord({"message": content_of(message)})
    assert type(content_of(message)) is bytes
    return content_of(message)


@pytest.mark.parametrize("name", ["alder", "cedar"])
def test_merchant_that_raises_is_left_out_of_that_round_and_the_run_goes_on(shops, tiny_programs, name, caplog):
    scenario = shops.scenario()
    nodes = shops.trainers(scenario, tiny_programs)
    nodes[name] = FailsAtRound(nodes[name], 2)
    result, events = federation_over(LocalGrid(nodes), scenario.agreement)
    assert [entry.dropped for entry in result.rounds] == [{}, {name: "client-error"}, {}, {}]
    assert all(entry.aggregated for entry in result.rounds)
    # The merchant's own log has the reason; the coordinator never hears of it.
    assert "Lovelace" in caplog.text
    assert not any("Lovelace" in str(event) for event in events)


def test_round_without_a_merchant_is_the_mean_of_the_others(shops, tiny_programs):
    """Who raises in the only round might as well not have been there."""
    training = {"algorithm": "fedavg", "rounds": 1, "plan": shops.plan}
    scenario = shops.scenario(training=training)
    nodes = shops.trainers(scenario, tiny_programs.sharing(scenario.agreement))
    grid = shops.recording_grid({**nodes, "birch": FailsAtRound(nodes["birch"], 1)})
    result, _ = federation_over(grid, scenario.agreement)
    rounds = [record for record in map(decode_answer, grid.replies) if isinstance(record, RoundReply)]
    start = next(record for record in map(decode_answer, grid.orders) if isinstance(record, RoundOrder)).weights
    num_rows = sum(reply.num_examples for reply in rounds)
    mean = sum(reply.num_examples / num_rows * reply.update.astype(float) for reply in rounds)
    assert [reply.merchant for reply in rounds] == ["alder", "cedar"]
    np.testing.assert_array_max_ulp(result.weights, (start + mean).astype(np.float32))


def decode_answer(message):
    return None if message.has_error() else decode(content_of(message))
