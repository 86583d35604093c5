"""Runs under shared noise: only a sum has enough of it, a merchant's own vector a share, and nothing leaves without."""

from __future__ import annotations

import math

import numpy as np
import pytest

from hansa_client.data import merchant_table
from hansa_client.departures import check_departure
from hansa_client.programs import Programs
from hansa_common.errors import MerchantError
from hansa_common.messages import RoundOrder, RoundReply, encode
from hansa_common.metrics import HISTOGRAM_LENGTH
from hansa_common.privacy import epsilon
from hansa_common.privacy_costs import cost_of, run_epsilon
from hansa_common.secure_agreement import honest_in_smallest_sum
from hansa_common.shared_noise import noise_share_of
from hansa_server.run_events import RoundFinished
from hansa_simulations.scenario import simulated_merchants

RATE = 0.5
DP = {"epsilon": 100, "noise": "shared", "noise_multiplier": 4.0, "sampling_rate": 1.0, "statistics": "domains"}
PLAN = {"optimizer": "sgd", "learning_rate": RATE, "local_steps": 1}
COHORT = {"min_merchants": 4, "max_update_norm": 1.0, "max_examples": 300}
MASKED = {"protocol": "double-masking", "colluders": 1}
MODEL = {"hidden": [100], "dropout": 0.0, "l2": 1e-3}


def agreement_of(five, dp=DP, rounds=1, **changes):
    training = {"algorithm": "fedavg", "rounds": rounds, "plan": PLAN}
    common = {"training": training, "privacy": {"dp": dp}, "cohort": COHORT, "secure_aggregation": MASKED}
    return five.agreement(**{**common, "model": MODEL, **changes})


@pytest.fixture(scope="module")
def compiled(five):
    return Programs(agreement_of(five), capacity_rows=300)


@pytest.fixture(scope="module")
def ran(five, compiled):
    def run(agreement, noise_seed=0, fault=None):
        tables = {name: merchant_table(five.rows(name), agreement, name, name) for name in agreement.roster}
        workers = simulated_merchants(agreement, tables, compiled.sharing(agreement), noise_seed)
        return five.run(agreement, fault, workers=workers)

    return run


def noise_of(ran, agreement) -> np.ndarray:
    """Noise in a mean update: what other noise makes of everything else the same, in units of one release."""
    first, second = (ran(agreement, noise_seed).result.weights.astype(np.float64) for noise_seed in (1, 2))
    return (first - second) / math.sqrt(2)


def test_mean_has_less_noise_by_the_square_root_of_the_honest_merchants(five, ran) -> None:
    shared = agreement_of(five)
    own = agreement_of(five, {**DP, "noise": "own"})
    gain = np.std(noise_of(ran, own)) / np.std(noise_of(ran, shared))
    assert honest_in_smallest_sum(shared) >= 3
    assert gain == pytest.approx(math.sqrt(honest_in_smallest_sum(shared)), rel=0.2)


def test_same_noise_in_the_same_simulation_and_all_rounds_count(five, ran) -> None:
    agreement = agreement_of(five, rounds=3)
    first, again = ran(agreement), ran(agreement)
    assert (first.result.weights == again.result.weights).all()
    rounds = [event for event in first.events if isinstance(event, RoundFinished)]
    assert [event.aggregated for event in rounds] == [True] * 3
    assert {reply.KIND for reply in first.grid.replies} <= {
        "introduction",
        "keys-reply",
        "masked-reply",
        "unmask-reply",
    }
    orders = [order for order in first.grid.orders if order.recipient == "elm"]
    costs = [mechanism for order in orders for mechanism in cost_of(order, agreement).mechanisms]
    assert epsilon(costs, 1e-5) == run_epsilon(agreement)


def test_round_that_one_drops_out_of_counts_with_the_others_noise(five, ran) -> None:
    agreement = agreement_of(five, rounds=2)
    drops = five.fault(lambda order: isinstance(order, RoundOrder) and order.recipient == "elm", is_before=True)
    rounds = [event for event in ran(agreement, fault=drops).events if isinstance(event, RoundFinished)]
    assert rounds[0].aggregated
    assert "elm" in rounds[0].dropped


def test_own_vector_has_a_share_of_the_noise_and_no_more(five, ran) -> None:
    agreement = agreement_of(five)
    share = noise_share_of(agreement, RATE)
    sums = five.sums(agreement, "elm")
    size = len(ran(agreement).result.weights)
    nothing = RoundReply(
        merchant="elm",
        order_hash="0" * 64,
        round=1,
        num_examples=50,
        update=np.zeros(size, np.float32),
        control_delta=np.zeros(0, np.float32),
        validation=np.zeros(HISTOGRAM_LENGTH, np.int64),
        train_loss=0.0,
    )
    drawn = [sums._noised(np.zeros(size, np.uint32), nothing).view(np.int32) for _ in range(2)]
    assert np.std(drawn[0]) == pytest.approx(share.deviation, rel=0.15)
    assert (drawn[0] != drawn[1]).mean() > 0.9
    whole = agreement.privacy.dp.noise_multiplier * share.sensitivity
    assert np.std(drawn[0]) < 0.8 * whole


def test_update_that_hides_nobody_does_not_leave_in_the_clear(five, ran) -> None:
    agreement = agreement_of(five)
    order = next(order for order in ran(agreement).grid.orders if isinstance(order, RoundOrder))
    in_the_clear = order.model_copy(update={"masking": None})
    reply = RoundReply(
        merchant=order.recipient,
        order_hash="0" * 64,
        round=1,
        num_examples=50,
        update=np.zeros(order.weights.size, np.float32),
        control_delta=np.zeros(0, np.float32),
        validation=np.zeros(HISTOGRAM_LENGTH, np.int64),
        train_loss=0.0,
    )
    with pytest.raises(MerchantError, match="in the clear, whose noise is only in a masked sum"):
        check_departure(encode(reply), in_the_clear, "0" * 64, order.recipient, agreement)
