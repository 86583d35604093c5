"""A model is made small again over the rows that it was trained on, and over no others. That what comes of it is that
of a whole run, byte for byte, is in tests/system/test_compress_command.py."""

from __future__ import annotations

import pytest

from hansa_common.errors import RunFailedError, UsageError
from hansa_common.messages import RangesOrder, RoundOrder, StatisticsOrder, decode
from hansa_common.statistics import SCALE
from hansa_server.federation import run_federation
from hansa_server.finishing import Trained
from hansa_server.refinishing import finish_again
from hansa_server.run_state import RunState

MODEL, COMPRESSION = {"hidden": [4]}, {"format": "int8", "sparsity": 0.5, "pruning_rounds": 1}
NUM_ROUNDS = 3


def ignorant(peer):
    """The same merchant, who does not answer what is asked of small models: nothing here is about these."""
    return lambda order: None if isinstance(decode(order), RangesOrder) else peer(order)


@pytest.fixture
def refinish(world, manual_clock):
    """Train over shops, then make the model small again over the same, one of them changed or gone."""

    def over(agreement, peers):
        return world.PeerGrid(dict(enumerate(ignorant(peer) for peer in peers.values())), manual_clock)

    def again(change=None, absent=()):
        plain, chosen = world.agreement(model=MODEL), world.agreement(model=MODEL, compression=COMPRESSION)
        time = {"on_event": lambda _: None, "clock": manual_clock.clock}
        shops = {name: world.Shop(name, plain) for name in plain.roster}
        result = run_federation(over(plain, shops), plain, RunState("first"), **time)
        trained = Trained(result.weights, result.preprocessing.to_json(), result.plan_index, NUM_ROUNDS)
        shops = {name: world.Shop(name, chosen) for name in plain.roster if name not in absent}
        peers = {**shops, **({"beta": world.changed(shops["beta"], change, StatisticsOrder)} if change else {})}
        return finish_again(over(chosen, peers), chosen, trained, run_id="second", **time), shops, trained

    return again


def test_rounds_go_on_from_the_runs_model_and_number(refinish):
    finished, shops, trained = refinish()
    assert "0 merchants sent activation histograms" in finished.refusal
    rounds = [order for order in shops["alpha"].seen if isinstance(order, RoundOrder)]
    assert [(order.stage, order.round) for order in rounds] == [
        (stage, NUM_ROUNDS + place) for stage in ("prune", "control") for place in (1, 2)
    ]
    assert rounds[2].weights.tobytes() == trained.weights.tobytes()


def with_other_amounts(_, reply):
    statistics = reply.statistics.copy()
    statistics[2:5] = 30, 15 * SCALE, 10 * SCALE
    return reply.model_copy(update={"statistics": statistics})


def test_other_rows_than_the_runs_are_refused_before_anything_is_trained(refinish):
    with pytest.raises(UsageError, match="not those that the model was trained on"):
        refinish(with_other_amounts)


def test_too_few_merchants_are_no_run(refinish):
    with pytest.raises(RunFailedError):
        refinish(absent=("alpha", "beta"))
