"""Each algorithm's server step against a slow reference that follows its paper, number by number.

The references below are written from the papers, with a plain mean over the cohort replaced by the mean by rows.
"""

from __future__ import annotations

import math

import numpy as np
import pytest

from hansa_common.agreement_sections import Plan
from hansa_server.aggregation import WeightedSum, weighted_mean
from hansa_server.algorithms import ServerState, initial_state, step

NUM_PARAMS = 7
NUM_ROUNDS = 12
ROWS = {"alpha": 30, "beta": 500, "gamma": 7, "delta": 100}


def cohort_of(round_number):
    """Another cohort each round; never everyone."""
    names = list(ROWS)
    return [names[round_number % 4], names[(round_number + 1) % 4]]


def mean_by_rows(vectors):
    """{name: list of floats} -> list of floats."""
    total = sum(ROWS[name] for name in vectors)
    return [sum(ROWS[n] * v[j] for n, v in vectors.items()) / total for j in range(NUM_PARAMS)]


def fedavg_reference(x, updates, plan):
    """McMahan et al. 2017: w <- sum n_k / n * w_k; with a server rate as in Reddi et al. 2021, algorithm 1."""
    delta = mean_by_rows(updates)
    return [x[j] + plan.server_learning_rate * delta[j] for j in range(NUM_PARAMS)]


def fedavgm_reference(x, updates, plan, v):
    """Hsu et al. 2019: v <- beta v + dw, w <- w - v, where dw = w - w_k on average."""
    dw = [-d for d in mean_by_rows(updates)]
    v = [plan.server_momentum * v[j] + dw[j] for j in range(NUM_PARAMS)]
    return [x[j] - plan.server_learning_rate * v[j] for j in range(NUM_PARAMS)], v


def adaptive_reference(x, updates, plan, m, v):
    """Reddi et al. 2021, algorithm 2."""
    delta, beta1, beta2 = mean_by_rows(updates), plan.server_momentum, plan.server_beta2
    m = [beta1 * m[j] + (1 - beta1) * delta[j] for j in range(NUM_PARAMS)]
    if plan.algorithm == "fedadam":
        v = [beta2 * v[j] + (1 - beta2) * delta[j] ** 2 for j in range(NUM_PARAMS)]
    else:
        v = [
            v[j] - (1 - beta2) * delta[j] ** 2 * ((v[j] > delta[j] ** 2) - (v[j] < delta[j] ** 2))
            for j in range(NUM_PARAMS)
        ]
    rate, tau = plan.server_learning_rate, plan.server_tau
    return [x[j] + rate * m[j] / (math.sqrt(v[j]) + tau) for j in range(NUM_PARAMS)], m, v


def updates_of(round_number, names):
    values = np.random.default_rng(round_number)
    return {name: values.normal(scale=0.3, size=NUM_PARAMS).astype(np.float32) for name in names}


def start():
    return np.random.default_rng(99).normal(size=NUM_PARAMS).astype(np.float32)


def stepped(state, plan, updates):
    return step(state, plan, weighted_mean(list(updates.values()), [ROWS[name] for name in updates]))


def as_lists(vectors):
    return {name: [float(value) for value in vector] for name, vector in vectors.items()}


@pytest.mark.parametrize("algorithm", ["fedavg", "fedprox", "fedavgm", "fedadam", "fedyogi"])
@pytest.mark.parametrize("server_learning_rate", [1.0, 0.3])
def test_step_follows_the_paper(algorithm, server_learning_rate):
    plan = Plan(algorithm=algorithm, server_learning_rate=server_learning_rate, server_tau=0.01)
    state, x = initial_state(start(), plan), [float(value) for value in start()]
    m, v = [0.0] * NUM_PARAMS, [plan.server_tau**2 if algorithm != "fedavgm" else 0.0] * NUM_PARAMS
    for number in range(NUM_ROUNDS):
        updates = updates_of(number, cohort_of(number))
        state = stepped(state, plan, updates)
        if algorithm in {"fedavg", "fedprox"}:
            x = fedavg_reference(x, as_lists(updates), plan)
        elif algorithm == "fedavgm":
            x, v = fedavgm_reference(x, as_lists(updates), plan, v)
        else:
            x, m, v = adaptive_reference(x, as_lists(updates), plan, m, v)
        # The state's weights are float32, the reference never rounds.
        np.testing.assert_allclose(state.weights, x, rtol=1e-5, atol=1e-5)
    assert state.weights.dtype == np.float32
    if algorithm in {"fedadam", "fedyogi"}:
        np.testing.assert_allclose(state.momentum, m, rtol=1e-12)
        np.testing.assert_allclose(state.second_moment, v, rtol=1e-12)
        assert (state.second_moment > 0).all()


def test_scaffold_follows_algorithm_1_with_its_clients():
    """Karimireddy et al. 2020, algorithm 1, option II, on quadratics (y - target)^2 / 2 with K local steps; the
    server's mean and the population's mean are by rows, and only the cohort's variates change."""
    plan = Plan(algorithm="scaffold", learning_rate=0.1, server_learning_rate=0.7)
    targets = {name: np.random.default_rng([5, i]).normal(size=NUM_PARAMS) for i, name in enumerate(ROWS)}
    num_all_rows, lr = sum(ROWS.values()), plan.learning_rate
    num_steps = {name: 2 + i for i, name in enumerate(ROWS)}

    state = initial_state(start(), plan)
    x, c = [float(value) for value in start()], [0.0] * NUM_PARAMS
    variates = {name: [0.0] * NUM_PARAMS for name in ROWS}
    for number in range(NUM_ROUNDS):
        cohort = cohort_of(number)
        deltas_y, deltas_c = {}, {}
        for name in cohort:
            y = list(x)
            for _ in range(num_steps[name]):
                for j in range(NUM_PARAMS):
                    gradient = y[j] - targets[name][j]
                    y[j] -= lr * (gradient - variates[name][j] + c[j])
            fresh = [variates[name][j] - c[j] + (x[j] - y[j]) / (num_steps[name] * lr) for j in range(NUM_PARAMS)]
            deltas_y[name] = [y[j] - x[j] for j in range(NUM_PARAMS)]
            deltas_c[name] = [fresh[j] - variates[name][j] for j in range(NUM_PARAMS)]
            variates[name] = fresh
        mean = mean_by_rows(deltas_y)
        x = [x[j] + plan.server_learning_rate * mean[j] for j in range(NUM_PARAMS)]
        c = [c[j] + sum(ROWS[n] * deltas_c[n][j] for n in cohort) / num_all_rows for j in range(NUM_PARAMS)]

        controls = WeightedSum(NUM_PARAMS)
        for name in cohort:
            controls.add(np.array(deltas_c[name], np.float32), ROWS[name])
        updates = [np.array(deltas_y[name], np.float32) for name in cohort]
        mean_update = weighted_mean(updates, [ROWS[name] for name in cohort])
        state = step(state, plan, mean_update, controls.divided_by(num_all_rows))
        np.testing.assert_allclose(state.weights, x, rtol=1e-5, atol=1e-5)
        np.testing.assert_allclose(state.control, c, rtol=1e-5, atol=1e-6)

    # What the reference's c stands for: everyone's variate, averaged by rows.
    np.testing.assert_allclose(
        c, [sum(ROWS[n] * variates[n][j] for n in ROWS) / num_all_rows for j in range(NUM_PARAMS)]
    )


def test_fedadam_with_a_huge_tau_is_scaled_momentum():
    """For tau -> infinity the second moment no longer matters; at beta1 = 0 what is left is fedavg's direction."""
    adam = Plan(algorithm="fedadam", server_momentum=0.0, server_tau=1.0, server_beta2=0.999, server_learning_rate=1.0)
    update = np.full(NUM_PARAMS, 1e-6)
    moved = step(initial_state(np.zeros(NUM_PARAMS, np.float32), adam), adam, update)
    np.testing.assert_allclose(moved.weights, update / 2, rtol=1e-3)


def test_fedyogi_second_moment_grows_where_fedadam_forgets():
    """Yogi's v moves by (1 - beta2) u^2 at most, so after one large update it shrinks more slowly than Adam's."""
    seconds = {}
    for algorithm in ("fedadam", "fedyogi"):
        plan = Plan(algorithm=algorithm, server_beta2=0.5)
        state = initial_state(np.zeros(1, np.float32), plan)
        for size in (10.0, 0.01, 0.01, 0.01):
            state = step(state, plan, np.array([size]))
        seconds[algorithm] = state.second_moment[0]
    assert seconds["fedyogi"] > 5 * seconds["fedadam"]


def test_state_is_a_value():
    plan = Plan(algorithm="fedavgm")
    before = initial_state(start(), plan)
    copies = before.weights.copy(), before.momentum.copy()
    step(before, plan, np.ones(NUM_PARAMS))
    np.testing.assert_array_equal(before.weights, copies[0])
    np.testing.assert_array_equal(before.momentum, copies[1])


@pytest.mark.parametrize("lengths", [(NUM_PARAMS - 1, NUM_PARAMS), (NUM_PARAMS, 0), (NUM_PARAMS, NUM_PARAMS + 1)])
def test_vectors_that_do_not_fit_the_state_are_refused(lengths):
    plan = Plan(algorithm="scaffold")
    with pytest.raises(ValueError, match="do not fit"):
        step(initial_state(start(), plan), plan, np.zeros(lengths[0]), np.zeros(lengths[1]))


def test_zero_update_leaves_the_weights_bit_by_bit():
    for algorithm in ("fedavg", "fedprox", "fedavgm", "fedadam", "fedyogi"):
        plan = Plan(algorithm=algorithm)
        state = step(initial_state(start(), plan), plan, np.zeros(NUM_PARAMS))
        assert state.weights.tobytes() == start().tobytes()
        assert isinstance(state, ServerState)
