"""A first agreement, drafted from one table, in which what a person must decide stands as a comment.

- The draft is valid: `parse_agreement` reads it, and still does when a left-out feature is uncommented.
- It shows less of the table than the table: a number's domain is rounded outward, and a text that occurs in fewer
  rows than `privacy.min_count` is not in a vocabulary.
- The same table and options give the same draft.

What a column is, profiles.py says; what is wrong with it, suspicions.py; how it is written, drafting_toml.py. How a
number's domain and a category's are chosen stands here.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from hansa_client import cells, drafting_toml
from hansa_client.profiles import Profile, profile
from hansa_client.silos import SiloSpec, split_silos
from hansa_client.suspicions import MIN_ROWS_OF_A_CLASS, Finding, inspect_columns
from hansa_common.agreement import Agreement, parse_agreement
from hansa_common.agreement_sections import Privacy
from hansa_common.errors import DataError, UsageError
from hansa_common.natural_order import natural_key
from hansa_common.nearest import did_you_mean
from hansa_common.schema import BooleanFeature, CategoricalFeature, Feature, NumericFeature, TimestampFeature

Task = Literal["fraud", "purchase"]

RARE_POSITIVES: Final = 0.05
MAX_ONE_HOT: Final = 32
MAX_VOCABULARY: Final = 1024
MIN_BUCKETS: Final = 16
MAX_BUCKETS: Final = 4096
DISTINCT_PER_BUCKET: Final = 4
HEAVY_TAIL_SKEWNESS: Final = 2.0
MIN_LOG_HIGH: Final = 10.0
MAX_LISTED: Final = 8
_INNER_SHARE: Final = 0.001
# Nearer to the ends of float64 its powers of ten give out.
_LEAST_WIDTH: Final = 1e-290
_MOST_WIDTH: Final = 1e290


@dataclass(frozen=True)
class Draft:
    """The TOML, what it says, and what a person should look at."""

    toml: str
    agreement: Agreement
    findings: tuple[Finding, ...]
    num_rows: int
    num_positives: int

    @property
    def left_out(self) -> tuple[str, ...]:
        """Columns that are not features of the draft, though they might be."""
        return tuple(str(finding.column) for finding in self.findings if finding.leaves_out)


def draft_agreement(
    frame: pd.DataFrame,
    *,
    label: str,
    source: str,
    silo: SiloSpec | None = None,
    min_silo_rows: int = 1,
    task: Task | None = None,
    name: str = "hansa",
    positive: str | None = None,
) -> Draft:
    """Draft an agreement over every column of a raw frame.

    Raises:
        UsageError: there is no such column, or the label has more than two values and none is said to be positive.
        DataError: no rows, a missing label, one class only, or no column is left to learn from.
    """
    present = [str(column) for column in frame.columns]
    _refuse_what_has_no_draft(frame, present, label, silo, source)
    positive, label_findings = _positive(frame, label, positive, source)
    labels = cells.labels(frame[label], positive).array
    profiles = {column: profile(column, frame[column]) for column in present}
    silos = {} if silo is None else split_silos(frame, silo, min_silo_rows)
    candidates = [profiles[column] for column in present if column != label]
    by_column = inspect_columns(candidates, labels)
    if silo is not None:
        by_column[silo.column] = [*_silo_findings(silo, silos), *by_column[silo.column]]
    features = {column: _feature(profiles[column], found) for column, found in by_column.items()}
    table_findings = [*label_findings, *_table_findings(profiles, labels)]
    if all(any(f.leaves_out for f in found) for found in by_column.values()):
        raise DataError(f"{source}: no column is left to learn from: {_listed(by_column)}")
    toml = drafting_toml.render(
        name=name,
        task=task or guess_task(labels),
        label=label,
        positive=positive,
        roster=tuple(silos),
        table_findings=table_findings,
        features=[(features[column], found) for column, found in by_column.items()],
    )
    findings = (*table_findings, *(finding for found in by_column.values() for finding in found))
    return Draft(toml, parse_agreement(toml, "the draft"), findings, len(frame), int(labels.sum()))


def draft_feature(column: Profile) -> Feature:
    """Declare a column as what it seems to be; missing values are refused where the table has none."""
    missing: Literal["flag", "refuse"] = "flag" if column.num_missing > 0 else "refuse"
    name = column.name
    match column.kind:
        case "boolean":
            return BooleanFeature(name=name, missing=missing)
        case "iso" | "seconds":
            return TimestampFeature(name=name, unit=column.kind, missing=missing)
        case "numeric":
            low, high = robust_bounds(column.array[column.codes >= 0])
            scaling: Literal["log", "standard"] = "log" if _is_heavy_tailed(column, low, high) else "standard"
            return NumericFeature(name=name, low=low, high=high, scaling=scaling, missing=missing)
        case "categorical":
            return _categorical(column, name, missing)


def robust_bounds(values: NDArray[np.float64]) -> tuple[float, float]:
    """The domain of a number: the middle 99.8 % widened by half on either side, within the extremes, rounded outward.

    values: (rows,) finite, at least one. Two significant digits of the width are kept, so that an extreme shows
    its size and no more.

    >>> robust_bounds(np.arange(1000.0)), robust_bounds(np.array([3.0]))
    ((0.0, 1000.0), (3.0, 6.0))
    """
    least, most = float(values.min()), float(values.max())
    inner_low, inner_high = (float(edge) for edge in np.quantile(values, [_INNER_SHARE, 1 - _INNER_SHARE]))
    margin = (inner_high - inner_low) / 2
    # A column that is nearly always the same has no middle: then the extremes are its domain.
    low = max(least, inner_low - margin) if margin > 0 else least
    high = min(most, inner_high + margin) if margin > 0 else most
    if low == high:
        return low, low + max(1.0, abs(low))
    exponent = math.floor(math.log10(min(max(high - low, _LEAST_WIDTH), _MOST_WIDTH))) - 1
    return _rounded(low, exponent, math.floor), _rounded(high, exponent, math.ceil)


def guess_task(labels: NDArray[np.uint8]) -> Task:
    """Fraud is rare: below one positive in twenty; a purchase is not."""
    return "fraud" if labels.mean() < RARE_POSITIVES else "purchase"


def _refuse_what_has_no_draft(
    frame: pd.DataFrame, present: list[str], label: str, silo: SiloSpec | None, source: str
) -> None:
    if label not in present:
        raise UsageError(f"--label: {source} has no column {label!r}{did_you_mean(label, present)}")
    if silo is not None and silo.column == label:
        raise UsageError(f"--silo: {label!r} is the label; divide the rows by something else")
    if len(frame) == 0:
        raise DataError(f"{source} has no rows")


def _feature(column: Profile, findings: list[Finding]) -> Feature | None:
    """The drafted feature; findings gains what follows from it. None where the name cannot be a feature's."""
    if any(finding.code == "name" for finding in findings):
        return None
    feature = draft_feature(column)
    if isinstance(feature, CategoricalFeature) and feature.hash_buckets and not any(f.leaves_out for f in findings):
        message = f"{column.num_distinct} different texts are hashed, under a key that the merchants share"
        findings.append(Finding(column.name, "hashed", message))
    return feature


def _rounded(value: float, exponent: int, rounding: Callable[[float], int]) -> float:
    # Whole multiples of a power of ten, written with its digits: 3 * 0.1 would be 0.30000000000000004.
    if exponent >= 0:
        return float(rounding(value / 10**exponent) * 10**exponent)
    return float(round(rounding(value * 10**-exponent) / 10**-exponent, -exponent))


def _is_heavy_tailed(column: Profile, low: float, high: float) -> bool:
    """Whether a logarithm helps: none negative, a long right tail, and values large enough to bend."""
    values = np.clip(column.array[column.codes >= 0], low, high)
    spread = float(values.std())
    if low < 0 or high < MIN_LOG_HIGH or spread == 0:
        return False
    return float(np.mean(((values - values.mean()) / spread) ** 3)) > HEAVY_TAIL_SKEWNESS


def _categorical(column: Profile, name: str, missing: Literal["flag", "refuse"]) -> CategoricalFeature:
    frequent = column.distinct[column.counts >= Privacy().min_count]
    vocabulary = tuple(sorted((str(value) for value in frequent), key=natural_key))
    if not 0 < len(vocabulary) <= MAX_VOCABULARY:
        wanted = max(column.num_distinct, 1) / DISTINCT_PER_BUCKET
        buckets = 2 ** round(math.log2(min(max(wanted, MIN_BUCKETS), MAX_BUCKETS)))
        return CategoricalFeature(name=name, hash_buckets=buckets, encoding="embedding", missing=missing)
    encoding: Literal["one_hot", "embedding"] = "one_hot" if len(vocabulary) <= MAX_ONE_HOT else "embedding"
    return CategoricalFeature(name=name, vocabulary=vocabulary, encoding=encoding, missing=missing)


def _positive(frame: pd.DataFrame, label: str, positive: str | None, source: str) -> tuple[str, list[Finding]]:
    """The text of the positive value, asked for or guessed."""
    texts = cells.texts(frame[label]).array
    is_missing = pd.isna(texts)
    if is_missing.any():
        row = frame.index[int(np.flatnonzero(is_missing)[0])]
        raise DataError(
            f"{source}: row {row}, column {label!r}: the label is missing, in {int(is_missing.sum())} rows in all; "
            "leave such rows out"
        )
    counts = {str(value): int(count) for value, count in pd.Series(texts).value_counts().items()}
    if len(counts) == 1:
        raise DataError(f"{source} holds one class only: every row has {label!r} = {next(iter(counts))!r}")
    if positive is not None:
        labels = cells.labels(frame[label], positive).array
        if not labels.any():
            raise UsageError(f"--positive: no row has {label!r} = {positive!r}{did_you_mean(positive, list(counts))}")
        if labels.all():
            raise DataError(f"{source} holds one class only: every row has {label!r} = {positive!r}")
        return positive, []
    return _guessed_positive(label, counts)


def _guessed_positive(label: str, counts: Mapping[str, int]) -> tuple[str, list[Finding]]:
    if len(counts) > 2:  # noqa: PLR2004 - two classes
        raise UsageError(f"{label!r} has {len(counts)} values ({_listed(counts)}); say which one with --positive")
    true = [value for value in counts if value.lower() in cells.TRUE_TOKENS]
    false = [value for value in counts if value.lower() in cells.FALSE_TOKENS]
    if true and false:
        return true[0], []
    rarer = min(counts, key=lambda value: (counts[value], value))
    message = f"{rarer!r}, the rarer of {_listed(counts)}, is taken for the positive value; if not, say --positive"
    return rarer, [Finding(label, "positive", message)]


def _table_findings(profiles: Mapping[str, Profile], labels: NDArray[np.uint8]) -> list[Finding]:
    findings = []
    # Codes instead of cells: equal where the parsed cells are equal, and quick to compare.
    codes = pd.DataFrame(dict(enumerate(profile.codes for profile in profiles.values())))
    num_duplicates = int(codes.duplicated().sum())
    if num_duplicates > 0:
        message = (
            f"{num_duplicates} rows equal an earlier one in every column; "
            'if that is a fault of the export, set duplicates = "remove"'
        )
        findings.append(Finding(None, "duplicate-rows", message))
    num_positives = int(labels.sum())
    if min(num_positives, len(labels) - num_positives) < MIN_ROWS_OF_A_CLASS:
        message = f"{num_positives} positives in {len(labels)} rows are too few to look for leakage"
        findings.append(Finding(None, "few-rows-of-a-class", message))
    return findings


def _silo_findings(silo: SiloSpec, silos: Mapping[str, pd.DataFrame]) -> list[Finding]:
    if silo.edges:
        return []
    if all(len(pd.unique(cells.texts(rows[silo.column]).array)) == 1 for rows in silos.values()):
        return [Finding(silo.column, "silo", "it divides the silos and is the same within each", leaves_out=True)]
    return [Finding(silo.column, "silo", "it divides the silos; a merged one holds several values, so it stays")]


def _listed(names: Sequence[str] | Mapping[str, Any]) -> str:
    shown = list(names)[:MAX_LISTED]
    return ", ".join(repr(name) for name in shown) + (", ..." if len(names) > len(shown) else "")
