"""The coordinator's half of each federated algorithm: a state, and the step from one state to the next.

An update is the mean over the cohort, by training rows, of (merchant's weights after local training - weights
sent); where a paper writes a plain mean, this is the row-weighted one. The merchants' half is the client's.
Arithmetic is float64; weights are rounded to float32 once, at the end of a step.

Sources:
    fedavg            McMahan et al., "Communication-Efficient Learning of Deep Networks from Decentralized Data" (2017)
    fedprox           Li et al., "Federated Optimization in Heterogeneous Networks" (2020)
    scaffold          Karimireddy et al., "SCAFFOLD: Stochastic Controlled Averaging for Federated Learning" (2020)
    fedavgm           Hsu et al., "Measuring the Effects of Non-Identical Data Distribution ..." (2019)
    fedadam, fedyogi  Reddi et al., "Adaptive Federated Optimization" (2021), algorithm 2, with no bias correction
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Final

import numpy as np

from hansa_common.agreement_sections import Plan
from hansa_common.vectors import Vector
from hansa_server.aggregation import Doubles

NONE: Final[Doubles] = np.zeros(0, np.float64)


@dataclass(frozen=True)
class ServerState:
    """What the coordinator carries from round to round; a vector that the algorithm has no use for is empty.

    weights: (num_params,) float32; control, momentum, second_moment: (num_params,) float64.
    """

    weights: Vector
    control: Doubles = field(default_factory=lambda: NONE)
    momentum: Doubles = field(default_factory=lambda: NONE)
    second_moment: Doubles = field(default_factory=lambda: NONE)


def initial_state(weights: Vector, plan: Plan) -> ServerState:
    """The state before the first round of a plan."""
    zeros = np.zeros(weights.size, np.float64)
    match plan.algorithm:
        case "scaffold":
            return ServerState(weights, control=zeros)
        case "fedavgm":
            return ServerState(weights, momentum=zeros)
        case "fedadam" | "fedyogi":
            # The paper asks for v >= tau^2 at the start; the smallest such v.
            return ServerState(weights, momentum=zeros, second_moment=np.full(weights.size, plan.server_tau**2))
    return ServerState(weights)


def step(state: ServerState, plan: Plan, mean_update: Doubles, control_step: Doubles = NONE) -> ServerState:
    """The state after a round.

    mean_update: (num_params,) float64. control_step: (num_params,) float64 for scaffold, else empty: the sum over
    the cohort of rows * control_delta, divided by the rows of ALL registered merchants; those who were not asked
    have not changed their variates, so that `control` stays the row-weighted mean of everyone's.

    Raises:
        ValueError: a vector's length is not the state's.
    """
    if mean_update.shape != state.weights.shape or control_step.shape != state.control.shape:
        raise ValueError(
            f"updates of shapes {mean_update.shape} and {control_step.shape} do not fit a state of shapes "
            f"{state.weights.shape} and {state.control.shape}"
        )
    match plan.algorithm:
        case "fedavg" | "fedprox":
            return _moved(state, plan, mean_update)
        case "scaffold":
            return _moved(replace(state, control=state.control + control_step), plan, mean_update)
        case "fedavgm":
            momentum = plan.server_momentum * state.momentum + mean_update
            return _moved(replace(state, momentum=momentum), plan, momentum)
        case "fedadam" | "fedyogi":
            return _adaptive(state, plan, mean_update)


def control_step_from_mean(
    control: Doubles, mean_update: Doubles, num_steps: int, learning_rate: float, share_of_rows: float
) -> Doubles:
    """SCAFFOLD's control_step where every merchant took the same steps at the same learning rate: from the mean update
    alone, so that a masked round needs one sum. `share_of_rows` is the cohort's of all registered merchants' rows.

    Each merchant's change, -c - update / (num_steps * learning_rate), is the same affine function of its update, so the
    mean change is that of the mean. Where steps differ, it is not, and no second sum may say it: two sums weighted
    otherwise give single merchants' updates away.
    """
    return -share_of_rows * (control + mean_update / (num_steps * learning_rate))


def _adaptive(state: ServerState, plan: Plan, mean_update: Doubles) -> ServerState:
    momentum = plan.server_momentum * state.momentum + (1 - plan.server_momentum) * mean_update
    square = mean_update**2
    if plan.algorithm == "fedadam":
        second_moment = plan.server_beta2 * state.second_moment + (1 - plan.server_beta2) * square
    else:
        sign = np.sign(state.second_moment - square)
        second_moment = state.second_moment - (1 - plan.server_beta2) * square * sign
    direction = momentum / (np.sqrt(second_moment) + plan.server_tau)
    return _moved(replace(state, momentum=momentum, second_moment=second_moment), plan, direction)


def _moved(state: ServerState, plan: Plan, direction: Doubles) -> ServerState:
    weights = state.weights.astype(np.float64) + plan.server_learning_rate * direction
    return replace(state, weights=weights.astype(np.float32))
