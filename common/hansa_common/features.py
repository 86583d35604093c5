"""Rows to model inputs, by preprocessing that all merchants share and that is fitted to their merged statistics.

- The same rows, preprocessing and key give the same bytes; inputs are always finite.
- A missing value becomes the middle of its feature (0) and, where the agreement says so, a flag of 1.
- A category becomes an id: 0 missing, 1 out of vocabulary, then entries or buckets. A vocabulary entry that every
  merchant holds below the floor counts as out of vocabulary for all: no weight of the shared model speaks of it.
- Hashed categories need the merchants' key, which the coordinator does not have: keyed BLAKE2b of name and text.

kind                          inputs
numeric, standard or log      (position - mean) / standard deviation, positions as in statistics.py; flag
numeric, quantile             the share of values below, moved and scaled to mean 0 and variance 1; flag
boolean                       -1 or 1; flag
timestamp                     sine and cosine of the hour of day, then of the day of the week; flag
categorical, one-hot          a column for each id
categorical, embedding        its id, in the id matrix

Fitted preprocessing is part of the model's identity: it travels as canonical JSON, and what arrives is believed only
within bounds.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any, Final, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import AfterValidator, Field, ValidationError, model_validator

from hansa_common import noised_statistics, statistics
from hansa_common.agreement import Agreement
from hansa_common.errors import DataError, MessageError
from hansa_common.plain_text import printable
from hansa_common.schema import (
    MISSING_ID,
    NUM_SPECIAL_IDS,
    UNKNOWN_ID,
    BooleanFeature,
    CategoricalFeature,
    Feature,
    NumericFeature,
    Section,
    TimestampFeature,
    embedded,
    num_dense,
)
from hansa_common.statistics import Columns, Statistics

# A deviation below this share of the domain is taken as this: a variance below one unit of the sums is rounding, and
# neither a constant column nor one in a corner of its domain may explode.
MIN_DEVIATION: Final = statistics.SCALE**-0.5
DAY: Final = 86_400.0
# 1 January 1970 was a Thursday, and weeks begin on Monday.
DAYS_SINCE_MONDAY: Final = 3
# What was sent can have megabytes; what is said of it fits a log.
_MAX_PROBLEM_CHARS: Final = 300
# As many as an agreement may have.
_MAX_FEATURES: Final = 4096
UNIFORM_DEVIATION: Final = math.sqrt(1.0 / 12.0)

# -0.0 equals 0.0 but is written otherwise: equal preprocessing must have equal text.
Share = Annotated[float, Field(ge=0, le=1), AfterValidator(lambda value: value + 0.0)]


@dataclass(frozen=True)
class Inputs:
    """Model inputs: dense (rows, num_dense) float32, ids (rows, num_embedded) int32."""

    dense: NDArray[np.float32]
    ids: NDArray[np.int32]

    def take(self, rows: NDArray[np.int64]) -> Inputs:
        """The inputs of these rows, copied."""
        return Inputs(self.dense[rows], self.ids[rows])

    def __len__(self) -> int:
        return len(self.dense)


class Scale(Section):
    """Mean and standard deviation of positions."""

    mean: Share
    deviation: Annotated[float, Field(ge=MIN_DEVIATION, le=1)]


class Fitted(Section):
    """What was learned of one feature: of a numeric one its scale or the share of values up to each end of its bins,
    of one with a vocabulary whether each entry is known.
    """

    scale: Scale | None = None
    shares: Annotated[tuple[Share, ...], Field(max_length=4097, fail_fast=True)] = ()
    known: Annotated[tuple[bool, ...], Field(max_length=65_536, fail_fast=True)] = ()


class FittedPreprocessing(Section):
    """The features of an agreement with what was fitted, one for one."""

    # Telling each of a million wrong entries would take gigabytes: the first one ends it.
    features: Annotated[tuple[Feature, ...], Field(max_length=_MAX_FEATURES, fail_fast=True)]
    fitted: Annotated[tuple[Fitted, ...], Field(max_length=_MAX_FEATURES, fail_fast=True)]

    @classmethod
    def fit(cls, agreement: Agreement, merged: Statistics) -> FittedPreprocessing:
        """Fit to merged statistics, (statistics_length(agreement),) int64; under [privacy.dp] to noised ones."""
        dp = agreement.privacy.dp
        merged = merged if dp is None else noised_statistics.plausible(agreement, dp, merged)
        found = tuple(_fitted(feature, part) for feature, part in statistics.parts(agreement.features, merged))
        return cls(features=agreement.features, fitted=found)

    @classmethod
    def from_json(cls, text: str) -> FittedPreprocessing:
        """Read what `to_json` wrote.

        Raises:
            MessageError: the text is anything else.
        """
        try:
            return cls.model_validate_json(text)
        except ValidationError as error:
            first = error.errors(include_input=False)[0]
            problem = f"{'.'.join(map(str, first['loc']))}: {first['msg']}"
            raise MessageError(f"the preprocessing is not valid: {printable(problem, _MAX_PROBLEM_CHARS)}") from None

    def to_json(self) -> str:
        """Canonical JSON: equal preprocessing, equal text."""
        return json.dumps(self.model_dump(mode="json"), sort_keys=True, separators=(",", ":"), ensure_ascii=False)

    def transform(self, columns: Columns, hash_key: bytes | None) -> Inputs:
        """Turn columns, feature name -> (rows,) as a merchant's table parses them, into inputs.

        Raises:
            DataError: a column is not there, or a hashed category has no key.
        """
        num_rows = len(_column(columns, self.features[0].name))
        dense = np.zeros((num_rows, num_dense(self.features)), np.float32)
        ids = np.zeros((num_rows, len(embedded(self.features))), np.int32)
        place, id_place = 0, 0
        for feature, fitted in zip(self.features, self.fitted, strict=True):
            values = _column(columns, feature.name)
            if isinstance(feature, CategoricalFeature) and feature.encoding == "embedding":
                ids[:, id_place] = _ids(feature, fitted, values, hash_key)
                id_place += 1
                continue
            dense[:, place : place + feature.dense_width] = _dense(feature, fitted, values, hash_key)
            place += feature.dense_width
        return Inputs(dense, ids)

    @model_validator(mode="after")
    def _fits_its_features(self) -> Self:
        if len(self.fitted) != len(self.features) or not self.features:
            raise ValueError(f"{len(self.fitted)} of {len(self.features)} features are fitted")
        for feature, fitted in zip(self.features, self.fitted, strict=True):
            if not _fits(feature, fitted):
                raise ValueError(f"feature {feature.name!r} is not fitted as one of its kind")
        return self


def id_of_text(feature: CategoricalFeature, fitted: Fitted, hash_key: bytes | None) -> Callable[[str], int]:
    """The function from a text of this feature to its id.

    Raises:
        DataError: the feature is hashed and there is no key.
    """
    return _vocabulary_id(feature, fitted) if feature.vocabulary else _bucket_id(feature, hash_key)


def _fitted(feature: Feature, part: Statistics) -> Fitted:
    match feature:
        case NumericFeature(scaling="quantile"):
            # Nothing known: as if values were spread evenly.
            counts = part if part.any() else np.ones_like(part)
            shares = np.concatenate([[0], np.cumsum(counts)]) / counts.sum()
            return Fitted(shares=tuple(shares.tolist()))
        case NumericFeature():
            return Fitted(scale=_scale(*part.tolist()))
        case CategoricalFeature():
            return Fitted(known=tuple((part > 0).tolist()))
    return Fitted()


def _scale(count: int, total: int, squares: int) -> Scale:
    if count == 0:
        return Scale(mean=0.5, deviation=0.5)
    mean, mean_square = total / (count * statistics.SCALE), squares / (count * statistics.SCALE)
    deviation = math.sqrt(max(mean_square - mean**2, 0.0))
    return Scale(mean=min(max(mean, 0.0), 1.0), deviation=min(max(deviation, MIN_DEVIATION), 1.0))


def _fits(feature: Feature, fitted: Fitted) -> bool:
    match feature:
        case NumericFeature(scaling="quantile"):
            ascending = all(a <= b for a, b in zip(fitted.shares, fitted.shares[1:], strict=False))
            return len(fitted.shares) == feature.bins + 1 and ascending and fitted.scale is None and not fitted.known
        case NumericFeature():
            return fitted.scale is not None and not fitted.shares and not fitted.known
        case CategoricalFeature():
            return fitted == Fitted(known=fitted.known) and len(fitted.known) == len(feature.vocabulary)
    return fitted == Fitted()


def _column(columns: Columns, name: str) -> NDArray[Any]:
    try:
        return columns[name]
    except KeyError:
        raise DataError(f"there is no column {name!r}, which the preprocessing needs") from None


def _dense(feature: Feature, fitted: Fitted, values: NDArray[Any], hash_key: bytes | None) -> NDArray[np.float64]:
    """(rows, feature.dense_width)"""
    match feature:
        case CategoricalFeature():
            ids = _ids(feature, fitted, values, hash_key)
            return np.asarray(ids[:, None] == np.arange(feature.num_ids), np.float64)
        case NumericFeature():
            columns = [_scaled(feature, fitted, values)]
        case BooleanFeature():
            columns = [2.0 * values - 1.0]
        case TimestampFeature():
            columns = _cyclic(values)
    is_missing = np.isnan(values)
    filled = [np.where(is_missing, 0.0, column) for column in columns]
    return np.stack([*filled, is_missing] if feature.missing == "flag" else filled, axis=1)


def _scaled(feature: NumericFeature, fitted: Fitted, values: NDArray[np.float64]) -> NDArray[np.float64]:
    place = statistics.positions(feature, values)
    if fitted.scale is not None:
        return (place - fitted.scale.mean) / fitted.scale.deviation
    below = np.interp(place, np.linspace(0.0, 1.0, feature.bins + 1), fitted.shares)
    found: NDArray[np.float64] = (below - 0.5) / UNIFORM_DEVIATION
    return found


def _cyclic(seconds: NDArray[np.float64]) -> list[NDArray[np.float64]]:
    day, second = np.divmod(seconds, DAY)
    hour = 2.0 * np.pi * second / DAY
    weekday = 2.0 * np.pi * np.mod(day + DAYS_SINCE_MONDAY, 7.0) / 7.0
    return [np.sin(hour), np.cos(hour), np.sin(weekday), np.cos(weekday)]


def _ids(
    feature: CategoricalFeature, fitted: Fitted, values: NDArray[Any], hash_key: bytes | None
) -> NDArray[np.int32]:
    """(rows,) ids below feature.num_ids"""
    id_of = id_of_text(feature, fitted, hash_key)
    found: dict[str | None, int] = {value: id_of(value) for value in set(values.tolist()) if value is not None}
    found[None] = MISSING_ID
    return np.fromiter((found[value] for value in values.tolist()), np.int32, len(values))


def _vocabulary_id(feature: CategoricalFeature, fitted: Fitted) -> Callable[[str], int]:
    entries = zip(feature.vocabulary, fitted.known, strict=True)
    known = {entry: NUM_SPECIAL_IDS + i for i, (entry, is_known) in enumerate(entries) if is_known}
    return lambda value: known.get(value, UNKNOWN_ID)


def _bucket_id(feature: CategoricalFeature, hash_key: bytes | None) -> Callable[[str], int]:
    if hash_key is None:
        raise DataError(
            f"feature {feature.name!r} is hashed with the merchants' key, and this merchant has none; agree on "
            "privacy.hash_key_id and give the key with --hash-key"
        )
    # The name goes in, so that the same text in two features falls in unrelated buckets.
    prefix = feature.name.encode() + b"\0"

    def bucket(value: str) -> int:
        digest = hashlib.blake2b(prefix + value.encode(), digest_size=8, key=hash_key).digest()
        return NUM_SPECIAL_IDS + int.from_bytes(digest, "big") % feature.hash_buckets

    return bucket
