"""Membership inference: which rows a model was trained on, told from how sure it is of them.

confidence   the logit of the probability that the model gives a row's own label. For one logit z and a label of 0 or 1
             that is z or -z, exactly; the logit-scaled confidence of Carlini et al.
loss         the confidence itself: a row that the model is sure of is called a member. Yeom, Giacomelli, Fredrikson and
             Jha, "Privacy Risk in Machine Learning: Analyzing the Connection to Overfitting" (2018). A threshold on the
             loss is one on the confidence, because the one falls as the other rises.
lira         what is usual for this very row is known from shadow models, of which half were trained on it: Carlini,
             Chien, Nasr, Song, Terzis and Tramer, "Membership Inference Attacks From First Principles" (2022), online
             (both halves) or offline (the half without it). A normal distribution is fitted to each half; one standard
             deviation serves all rows below PER_ROW_SHADOWS shadows, as the paper advises for few, and is taken about
             each row's own mean.

Pure functions on arrays, (rows,) and (shadows, rows).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal

import numpy as np
from numpy.typing import NDArray

PER_ROW_SHADOWS: Final = 64
MIN_SHADOWS: Final = 4
# Rows of which all shadows say the same have no deviation of their own.
_LEAST_DEVIATION: Final = 1e-6

Scores = NDArray[np.float64]
Variant = Literal["online", "offline"]


def confidences(logits: NDArray[np.float32], labels: NDArray[np.uint8]) -> Scores:
    """(rows,) how sure a model with these logits (rows,) is of the labels (rows,).

    >>> confidences(np.array([2.0, 2.0], np.float32), np.array([1, 0], np.uint8))
    array([ 2., -2.])
    """
    return np.where(labels.astype(bool), 1.0, -1.0) * logits.astype(np.float64)


def memberships(num_shadows: int, num_rows: int, rng: np.random.Generator) -> NDArray[np.bool_]:
    """(shadows, rows) which rows each shadow is trained on: a random half of the shadows for each row.

    Raises:
        ValueError: the number of shadows is odd, or too small for a deviation.
    """
    if num_shadows < MIN_SHADOWS or num_shadows % 2:
        raise ValueError(f"{num_shadows} shadows: an even number is needed, {MIN_SHADOWS} at least")
    order = rng.random((num_shadows, num_rows)).argsort(axis=0).argsort(axis=0)
    return order < num_shadows // 2


@dataclass(frozen=True)
class Shadows:
    """What shadow models say of rows: confidences (shadows, rows), and which rows each was trained on."""

    confidences: Scores
    is_in: NDArray[np.bool_]

    def without(self, shadow: int) -> Shadows:
        """All but one, which can then be attacked itself, and but for one more for each row: the next that has the row
        where this one has not, or the other way round. So as many have a row as have it not, whichever it is: else the
        number itself would tell, and hide what there is to find.
        """
        others = (shadow + np.arange(1, len(self.is_in))) % len(self.is_in)
        is_other = self.is_in[others] != self.is_in[shadow]
        is_left = np.ones_like(is_other)
        np.put_along_axis(is_left, is_other.argmax(axis=0)[None], False, axis=0)
        chosen = others[np.argsort(~is_left, axis=0, kind="stable")[:-1]]
        return Shadows(
            np.take_along_axis(self.confidences, chosen, axis=0), np.take_along_axis(self.is_in, chosen, axis=0)
        )


def lira(target: Scores, shadows: Shadows, variant: Variant = "online") -> Scores:
    """(rows,) scores of rows of which the attacked model is as sure as `target` (rows,) says.

    Online: the logarithm of the likelihood ratio of the row being in and out. Offline: by how many deviations the
    target is above those without it, which puts rows in the same order as the paper's probability.
    """
    outside = _fitted(shadows.confidences, ~shadows.is_in)
    if variant == "offline":
        return (target - outside.mean) / outside.deviation
    return _log_density(target, _fitted(shadows.confidences, shadows.is_in)) - _log_density(target, outside)


@dataclass(frozen=True)
class _Normal:
    mean: Scores
    deviation: Scores


def _fitted(confidences: Scores, chosen: NDArray[np.bool_]) -> _Normal:
    """The mean of each row's chosen confidences, and the deviation about it: the row's own, or one for all."""
    number = chosen.sum(axis=0)
    mean = np.sum(confidences, axis=0, where=chosen) / number
    squares = np.sum((confidences - mean) ** 2, axis=0, where=chosen)
    if len(chosen) < PER_ROW_SHADOWS:
        squares, number = np.full_like(mean, squares.sum()), np.full_like(number, number.sum())
    return _Normal(mean, np.maximum(np.sqrt(squares / number), _LEAST_DEVIATION))


def _log_density(values: Scores, normal: _Normal) -> Scores:
    return -0.5 * ((values - normal.mean) / normal.deviation) ** 2 - np.log(normal.deviation)
