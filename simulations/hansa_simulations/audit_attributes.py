"""Attribute inference: one column of a row told from its other columns, its label and the model.

attack      the value under which the model is surest of the row's own label, weighted by how usual the value is: the
            maximum a posteriori of Fredrikson et al., "Privacy in Pharmacogenetics" (2014)
imputation  the value told from the other columns and the label alone, by linear least squares on validation rows; no
            model of the federation is asked (Jayaraman and Evans, "Are Attribute Inference Attacks Just Imputation?",
            2022)
most usual  the commonest value on validation rows

What training gave away is not that the attack is often right, since columns depend on each other, but that it is right
more often for the run's training rows than for its test rows (Yeom et al., 2018). How usual a value is comes from
validation rows, which are neither. Rows without the value are left out.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from hansa_client.data import MerchantTable
from hansa_client.programs import Programs
from hansa_common.agreement import Agreement
from hansa_common.bootstrap import Interval
from hansa_common.errors import UsageError
from hansa_common.features import FittedPreprocessing
from hansa_common.nearest import did_you_mean
from hansa_common.schema import BooleanFeature, CategoricalFeature
from hansa_common.vectors import Vector
from hansa_simulations.audit_membership import confidences
from hansa_simulations.audit_rates import clopper_pearson, difference
from hansa_simulations.row_scores import RowScorer

MAX_VALUES: Final = 100
_RIDGE: Final = 1.0


@dataclass(frozen=True)
class Guesses:
    """How often one way of guessing is right, for training rows (members) and for test rows."""

    members: Interval
    non_members: Interval

    @property
    def given_away(self) -> Interval:
        """By how much more often it is right for members."""
        return difference(self.members, self.non_members)

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        shares = {"members": self.members, "non_members": self.non_members, "difference": self.given_away}
        return {name: share.to_json() for name, share in shares.items()}


@dataclass(frozen=True)
class AttributeInference:
    """What comes of guessing one column, in the ways that the module names."""

    attribute: str
    num_values: int
    num_members: int
    num_non_members: int
    attack: Guesses
    imputation: Guesses
    most_usual: Guesses

    @property
    def verdict(self) -> str:
        """What was found, in words."""
        away, attack = self.attack.given_away, self.attack
        told = (
            f"{self.attribute!r} is guessed from the model for {attack.members.estimate:.1%} of the training rows and "
            f"{attack.non_members.estimate:.1%} of the test rows, {away.estimate:+.1%} ({away.low:+.1%} to "
            f"{away.high:+.1%}); without the model for {self.imputation.members.estimate:.1%} and "
            f"{self.imputation.non_members.estimate:.1%}."
        )
        return told if away.low <= 0.0 else f"{told} Training gave some of it away."

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        ways = {"attack": self.attack, "imputation": self.imputation, "most_usual": self.most_usual}
        counts = ("attribute", "num_values", "num_members", "num_non_members", "verdict")
        return {**{name: getattr(self, name) for name in counts}, **{name: way.to_json() for name, way in ways.items()}}


def values_of(agreement: Agreement, attribute: str) -> tuple[Any, ...]:
    """The values that an attribute can have.

    Raises:
        UsageError: the agreement has no such column, or it is none of a few values.
    """
    feature = next((feature for feature in agreement.features if feature.name == attribute), None)
    match feature:
        case None:
            names = [feature.name for feature in agreement.features]
            raise UsageError(f"--attribute: no feature {attribute!r}{did_you_mean(attribute, names)}")
        case BooleanFeature():
            return (0.0, 1.0)
        case CategoricalFeature() if feature.vocabulary and len(feature.vocabulary) <= MAX_VALUES:
            return feature.vocabulary
    raise UsageError(
        f"--attribute: {attribute!r} is not a boolean, nor a category with a vocabulary of at most {MAX_VALUES}; what "
        "is guessed must be one of a few values"
    )


class AttributeAttack:
    """Guesses one column of a run's rows."""

    def __init__(
        self,
        tables: Mapping[str, MerchantTable],
        programs: Programs,
        hash_key: bytes,
        model: tuple[Vector, FittedPreprocessing],
    ) -> None:
        """Take the run's tables, and the model that is asked, (num_params,) weights and its preprocessing."""
        self._tables = tables
        self._programs = programs
        self._hash_key = hash_key
        self._model = model

    def inferred(self, attribute: str, values: tuple[Any, ...]) -> AttributeInference:
        """Guess the column `attribute`, which has one of `values`.

        Raises:
            UsageError: no row of a part has one of the values.
        """
        parts = {part: self._part(part, attribute, values) for part in ("validation", "train", "test")}
        for part, rows in parts.items():
            if not len(rows.truth):
                raise UsageError(f"--attribute: no {part} row has a value of {attribute!r}")
        known = parts.pop("validation")
        prior = (np.bincount(known.truth, minlength=len(values)) + 1.0) / (len(known.truth) + len(values))
        weights = fitted_imputation(known, len(values))
        found = {
            "attack": [(np.log(prior)[:, None] + rows.log_likelihoods).argmax(axis=0) for rows in parts.values()],
            "imputation": [imputed(rows, weights) for rows in parts.values()],
            "most_usual": [np.full(len(rows.truth), prior.argmax()) for rows in parts.values()],
        }
        truths = [rows.truth for rows in parts.values()]
        ways = {name: Guesses(*map(_share_right, guesses, truths)) for name, guesses in found.items()}
        return AttributeInference(
            attribute,
            len(values),
            len(truths[0]),
            len(truths[1]),
            attack=ways["attack"],
            imputation=ways["imputation"],
            most_usual=ways["most_usual"],
        )

    def _part(self, part: str, attribute: str, values: tuple[Any, ...]) -> _Rows:
        taken, truth = {}, []
        for name, table in self._tables.items():
            rows = getattr(table, part)
            place = {value: number for number, value in enumerate(values)}
            numbers = np.array([place.get(value, -1) for value in table.columns[attribute][rows].tolist()], np.int64)
            taken[name] = rows[numbers >= 0]
            truth.append(numbers[numbers >= 0])
        tables = {name: replace(table, test=taken[name]) for name, table in self._tables.items()}
        labels = np.concatenate([tables[name].labels[taken[name]] for name in tables])
        sure = np.stack([self._confidences(tables, attribute, value, labels) for value in values])
        # The logarithm of the probability that the model gives the row's own label.
        return _Rows(-np.logaddexp(0.0, -sure), self._others(tables, attribute, labels), np.concatenate(truth))

    def _confidences(
        self, tables: Mapping[str, MerchantTable], attribute: str, value: Any, labels: NDArray[np.uint8]
    ) -> NDArray[np.float64]:
        scorer = RowScorer(_with_value(tables, attribute, value), self._programs, self._hash_key)
        return confidences(np.concatenate([scorer.logits(name, "test", *self._model) for name in tables]), labels)

    def _others(
        self, tables: Mapping[str, MerchantTable], attribute: str, labels: NDArray[np.uint8]
    ) -> NDArray[np.float64]:
        """(rows, columns) the other columns as model inputs, an embedded one by its number, and the label."""
        found = []
        for table in _with_value(tables, attribute, None).values():
            columns = {name: values[table.test] for name, values in table.columns.items()}
            inputs = self._model[1].transform(columns, self._hash_key)
            found.append(np.concatenate([inputs.dense, inputs.ids], axis=1))
        return np.column_stack([np.ones(len(labels)), np.concatenate(found), labels]).astype(np.float64)


@dataclass(frozen=True)
class _Rows:
    """Rows of one part: the model's (values, rows) log-likelihoods of their labels, (rows, columns) their other
    columns, and (rows,) the places of their true values.
    """

    log_likelihoods: NDArray[np.float64]
    others: NDArray[np.float64]
    truth: NDArray[np.int64]


def fitted_imputation(known: _Rows, num_values: int) -> NDArray[np.float64]:
    """(columns, values) linear least squares from other columns to each value, a little held back."""
    wanted = np.eye(num_values)[known.truth]
    squares = known.others.T @ known.others + _RIDGE * np.eye(known.others.shape[1])
    return np.asarray(np.linalg.solve(squares, known.others.T @ wanted))


def imputed(rows: _Rows, weights: NDArray[np.float64]) -> NDArray[np.int64]:
    """(rows,) the places of the guessed values."""
    return np.asarray((rows.others @ weights).argmax(axis=1))


def _with_value(tables: Mapping[str, MerchantTable], attribute: str, value: Any) -> dict[str, MerchantTable]:
    """The tables with one value in the whole column; None: missing."""
    found = {}
    for name, table in tables.items():
        column = np.empty_like(table.columns[attribute])
        column[:] = np.nan if value is None and column.dtype.kind == "f" else value
        found[name] = replace(table, columns={**table.columns, attribute: column})
    return found


def _share_right(guesses: NDArray[np.int64], truth: NDArray[np.int64]) -> Interval:
    return clopper_pearson(int((guesses == truth).sum()), len(truth))
