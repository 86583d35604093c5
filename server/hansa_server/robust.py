"""Aggregation rules that a few dishonest merchants cannot bend at will, as pure functions on arrays.

Each takes updates (num_merchants, num_params) and gives one vector (num_params,) float64, every merchant counted
alike: a rule that weighs by a count that the merchant states lets the liar choose its weight.

| rule             | holds against f of n dishonest           | source                                            |
|------------------|------------------------------------------|---------------------------------------------------|
| median           | f < n / 2, coordinate by coordinate      | Yin et al., "Byzantine-Robust Distributed         |
| trimmed_mean     | f <= the trimmed number at either end    |   Learning: Towards Optimal Statistical Rates"    |
|                  |                                          |   (2018)                                          |
| mixed_mean       | f < n / 2; honest updates may differ     | Allouah et al., "Fixing by Mixing: A Recipe for   |
|                  |   more than under the others             |   Optimal Byzantine ML under Heterogeneity"       |
|                  |                                          |   (2023)                                          |
| krum             | 2 f + 2 < n                              | Blanchard et al., "Machine Learning with          |
|                  |                                          |   Adversaries: Byzantine Tolerant Gradient        |
| multi_krum       |                                          |   Descent" (2017)                                 |
| geometric_median | f < n / 2, as a whole vector             | Pillutla et al., "Robust Aggregation for          |
|                  |                                          |   Federated Learning" (2022)                      |
| clipped_mean     | none may move the mean by more than      | Sun et al., "Can You Really Backdoor Federated    |
|                  |   max_norm / n                           |   Learning?" (2019)                               |

Updates are finite: replies.py has seen to it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final

import numpy as np

from hansa_common.vectors import Vector, l2_norm
from hansa_server.aggregation import Doubles, weighted_mean

# (num_merchants, num_params), as merchants send them or as the mean of a group of them.
Updates = Sequence[Vector | Doubles]

# In pieces: sorting all coordinates at once would take several times the updates' memory.
_CHUNK: Final = 1 << 16
# Weiszfeld's smoothing and end, as parts of the updates' own size: it must not depend on their unit.
_SMOOTHING: Final = 1e-6
_CLOSE_ENOUGH: Final = 1e-9
_MAX_STEPS: Final = 100


def median(updates: Updates) -> Doubles:
    """The median of each coordinate; of an even number, the mean of the two in the middle.

    >>> median(np.float32([[0, 5], [1, 6], [100, -100]]))
    array([1., 5.])
    """
    return _by_coordinate(updates, lambda piece: np.median(piece, axis=0))


def trimmed_mean(updates: Updates, num_trimmed: int) -> Doubles:
    """The mean of each coordinate without its `num_trimmed` smallest and as many largest values.

    >>> trimmed_mean(np.float32([[0], [1], [2], [1000]]), 1)
    array([1.5])

    Raises:
        ValueError: nothing would be left.
    """
    num_merchants = len(updates)
    if not 0 <= 2 * num_trimmed < num_merchants:
        raise ValueError(f"trimming {num_trimmed} at either end leaves nothing of {num_merchants} updates")

    def kept_mean(piece: Doubles) -> Doubles:
        kept = np.sort(piece, axis=0)[num_trimmed : num_merchants - num_trimmed]
        return np.asarray(kept.mean(axis=0), np.float64)

    return _by_coordinate(updates, kept_mean)


def krum(updates: Updates, num_dishonest: int) -> Doubles:
    """The one update whose squared distances to its num_merchants - num_dishonest - 2 nearest others sum to the least;
    of equals the first.

    Raises:
        ValueError: 2 * num_dishonest + 2 < num_merchants does not hold: the rule would promise nothing.
    """
    return updates[krum_choice(updates, num_dishonest)].astype(np.float64)


def krum_choice(updates: Updates, num_dishonest: int) -> int:
    """The place of the update that Krum takes.

    Raises:
        ValueError: as `krum`.
    """
    return int(np.argmin(_krum_scores(updates, num_dishonest)))


def multi_krum(updates: Updates, num_dishonest: int) -> Doubles:
    """The mean of the num_merchants - num_dishonest updates with the least scores of Krum; of equals the first.

    >>> multi_krum(np.float32([[0], [1], [2], [3], [1000]]), 1)
    array([1.5])

    Raises:
        ValueError: as `krum`.
    """
    order = np.argsort(_krum_scores(updates, num_dishonest), kind="stable")
    # In roster order, so that the sum has the same bytes.
    chosen = [updates[place] for place in sorted(order[: len(updates) - num_dishonest].tolist())]
    return weighted_mean(chosen, [1.0] * len(chosen))


def _krum_scores(updates: Updates, num_dishonest: int) -> Doubles:
    """(num_merchants,) of each update the squared distances to its nearest others, added up.

    Raises:
        ValueError: as `krum`.
    """
    num_merchants = len(updates)
    if num_dishonest < 0 or 2 * num_dishonest + 2 >= num_merchants:
        raise ValueError(
            f"Krum against {num_dishonest} dishonest merchants needs at least {2 * max(num_dishonest, 0) + 3}, "
            f"there are {num_merchants}"
        )
    distances = _squared_distances(updates)
    np.fill_diagonal(distances, np.inf)
    nearest = np.sort(distances, axis=1)[:, : num_merchants - num_dishonest - 2]
    return np.asarray(nearest.sum(axis=1), np.float64)


def mixed_mean(updates: Updates, num_dishonest: int) -> Doubles:
    """The trimmed mean of mixtures: each update's is the mean of the num_merchants - num_dishonest nearest to it,
    itself among them; of equally near the first. Honest updates that differ much come close to one another so, and what
    is far from all of them is in nobody's mixture but its own.

    >>> mixed_mean(np.float32([[0], [1], [5], [1000]]), 1)
    array([2.])

    Raises:
        ValueError: 2 * num_dishonest < num_merchants does not hold: the rule would promise nothing.
    """
    num_merchants = len(updates)
    if num_dishonest < 0 or 2 * num_dishonest >= num_merchants:
        raise ValueError(f"mixtures against {num_dishonest} dishonest of {num_merchants} merchants promise nothing")
    order = np.argsort(_squared_distances(updates), axis=1, kind="stable")[:, : num_merchants - num_dishonest]
    # As a mask, so that each mixture adds up in roster order.
    nearest = np.zeros((num_merchants, num_merchants), np.bool_)
    np.put_along_axis(nearest, order, True, axis=1)

    def mixed(piece: Doubles) -> Doubles:
        mixtures = np.stack([piece[row].mean(axis=0) for row in nearest])
        kept = np.sort(mixtures, axis=0)[num_dishonest : num_merchants - num_dishonest]
        return np.asarray(kept.mean(axis=0), np.float64)

    return _by_coordinate(updates, mixed)


def geometric_median(updates: Updates) -> Doubles:
    """The point whose distances to all updates sum to the least, by smoothed Weiszfeld steps from the mean.

    >>> np.round(geometric_median(np.float32([[0, 0], [0, 0], [9, 9]])), 3) + 0.0
    array([0., 0.])
    """
    center = weighted_mean(updates, [1.0] * len(updates))
    size = max(float(np.median([l2_norm(update) for update in updates])), np.finfo(np.float64).tiny)
    for _ in range(_MAX_STEPS):
        distances = [float(np.sqrt(np.sum(np.square(update - center)))) for update in updates]
        moved = weighted_mean(updates, [1.0 / max(distance, _SMOOTHING * size) for distance in distances])
        step = float(np.sqrt(np.sum(np.square(moved - center))))
        center = moved
        if step <= _CLOSE_ENOUGH * size:
            break
    return center


def clipped_mean(updates: Updates, max_norm: float) -> Doubles:
    """The mean of the updates, each scaled down to `max_norm` where it is longer.

    >>> clipped_mean(np.float32([[3, 4], [0, 0]]), 1.0)
    array([0.3, 0.4])

    Raises:
        ValueError: max_norm is not above zero.
    """
    if not max_norm > 0:
        raise ValueError(f"an update cannot be scaled to a norm of {max_norm}")
    total = np.zeros(len(updates[0]), np.float64)
    for update in updates:
        total += update.astype(np.float64) * min(1.0, max_norm / max(l2_norm(update), np.finfo(np.float64).tiny))
    return total / len(updates)


def _by_coordinate(updates: Updates, rule: Callable[[Doubles], Doubles]) -> Doubles:
    result = np.empty(len(updates[0]), np.float64)
    for start in range(0, result.size, _CHUNK):
        piece = np.stack([update[start : start + _CHUNK] for update in updates]).astype(np.float64)
        result[start : start + piece.shape[1]] = rule(piece)
    return result


def _squared_distances(updates: Updates) -> Doubles:
    num_merchants = len(updates)
    distances = np.zeros((num_merchants, num_merchants), np.float64)
    for i in range(num_merchants):
        for j in range(i):
            # Differences first: products of long vectors would cancel what tells them apart.
            difference = np.subtract(updates[i], updates[j], dtype=np.float64)
            distances[i, j] = distances[j, i] = np.sum(np.square(difference))
    return distances
