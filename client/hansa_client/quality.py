"""What a merchant should know about its table before it trusts a model trained on it.

Counts only, over the rows that are kept; they stay at the merchant unless it shows them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from hansa_common.schema import CategoricalFeature, Feature, NumericFeature


@dataclass(frozen=True)
class Quality:
    """The state of one merchant's rows; the counts by feature name only those above zero.

    num_rows: rows kept. duplicates: rows found equal to an earlier one in all columns of the agreement.
    clipped: numbers outside the agreed domain. unseen_categories: texts outside the agreed vocabulary.
    constant: features with one value in all rows, or none at all.
    """

    num_rows: int
    num_positives: int
    duplicates: int
    duplicates_removed: bool
    missing: Mapping[str, int]
    clipped: Mapping[str, int]
    unseen_categories: Mapping[str, int]
    constant: tuple[str, ...]

    @property
    def line(self) -> str:
        """The state of the rows in one line, without what there is nothing to say of."""
        removed = "removed" if self.duplicates_removed else "kept"
        told = [
            f"{self.num_rows} rows, {self.num_positives} positive",
            self.duplicates and f"{self.duplicates} exact duplicates {removed}",
            self.missing and f"missing: {_listed(self.missing)}",
            self.clipped and f"outside the agreed range: {_listed(self.clipped)}",
            self.unseen_categories and f"not in the vocabulary: {_listed(self.unseen_categories)}",
            self.constant and f"one value only: {', '.join(self.constant)}",
        ]
        return "; ".join(str(part) for part in told if part)

    def to_json(self) -> dict[str, Any]:
        """Plain values for metrics.json and the report."""
        return {
            "num_rows": self.num_rows,
            "num_positives": self.num_positives,
            "duplicates": self.duplicates,
            "duplicates_removed": self.duplicates_removed,
            "missing": dict(self.missing),
            "clipped": dict(self.clipped),
            "unseen_categories": dict(self.unseen_categories),
            "constant": list(self.constant),
        }


def measure_quality(
    columns: Mapping[str, NDArray[Any]],
    labels: NDArray[np.uint8],
    features: tuple[Feature, ...],
    *,
    duplicates: int,
    duplicates_removed: bool,
) -> Quality:
    """Count what is missing, clipped, unseen and constant.

    columns: feature name -> (rows,) as in common's Columns; labels: (rows,) 0 or 1.
    """
    return Quality(
        num_rows=len(labels),
        num_positives=int(labels.sum()),
        duplicates=duplicates,
        duplicates_removed=duplicates_removed,
        missing=_above_zero({f.name: int(np.sum(pd.isna(columns[f.name]))) for f in features}),
        clipped=_above_zero({f.name: _num_clipped(f, columns[f.name]) for f in features}),
        unseen_categories=_above_zero({f.name: _num_unseen(f, columns[f.name]) for f in features}),
        constant=tuple(f.name for f in features if _is_constant(columns[f.name])),
    )


def _num_clipped(feature: Feature, values: NDArray[Any]) -> int:
    if not isinstance(feature, NumericFeature):
        return 0
    return int(np.sum((values < feature.low) | (values > feature.high)))


def _num_unseen(feature: Feature, values: NDArray[Any]) -> int:
    if not isinstance(feature, CategoricalFeature) or not feature.vocabulary:
        return 0
    column = pd.Series(values, dtype=object)
    return int((column.notna() & ~column.isin(feature.vocabulary)).sum())


def _is_constant(values: NDArray[Any]) -> bool:
    is_missing = pd.isna(values)
    return bool(is_missing.all() or (not is_missing.any() and (values == values[0]).all()))


def _listed(counts: Mapping[str, int]) -> str:
    """Counts by name, in words.

    >>> _listed({"amount": 3, "age": 1})
    'amount (3), age (1)'
    """
    return ", ".join(f"{name} ({count})" for name, count in counts.items())


def _above_zero(counts: dict[str, int]) -> dict[str, int]:
    return {name: count for name, count in counts.items() if count > 0}
