"""What a feature is: its kind, its domain, how it becomes model inputs, and how wide those are.

A domain (bounds, vocabulary, number of buckets) is fixed by the agreement before any row is read, so that
every statistic over it is a vector of fixed length (statistics.py) and no merchant's data shapes a message.
Turning rows into inputs is features.py's; what a model does with them is model.py's.
"""

from __future__ import annotations

from collections import Counter
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator
from pydantic_core import PydanticCustomError

from hansa_common.nearest import nearest

Name = Annotated[str, Field(min_length=1, max_length=120, pattern=r"^[^\x00-\x1f]+$")]
# Wide enough for any quantity, and what is computed from it stays finite, in float32 too.
Number = Annotated[float, Field(ge=-1e30, le=1e30)]
CellText = Annotated[str, Field(min_length=1, max_length=4096)]
Missing = Literal["flag", "refuse"]

NUM_SPECIAL_IDS = 2
MISSING_ID = 0
UNKNOWN_ID = 1


class Section(BaseModel):
    """A frozen part of what is agreed on or fitted, in JSON; refuses unknown keys with the nearest right one."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _refuse_unknown_keys(cls, values: Any) -> Any:
        if isinstance(values, dict):
            for key in values:
                if key not in cls.model_fields:
                    raise PydanticCustomError(
                        "unknown_key", "{problem}", {"problem": unknown_key(str(key), list(cls.model_fields))}
                    )
        return values

    @field_validator("*", mode="after")
    @classmethod
    def _zero_has_no_sign(cls, value: Any) -> Any:
        # -0.0 equals 0.0 but is written otherwise: equal sections must have equal canonical JSON.
        return value + 0.0 if isinstance(value, float) else value


def unknown_key(key: str, allowed: list[str]) -> str:
    """Say that a key is unknown and which one was probably meant.

    >>> unknown_key("roundz", ["rounds", "seed"])
    "unknown key 'roundz'; did you mean 'rounds'?"
    """
    meant = nearest(key, allowed)
    hint = f"did you mean {meant!r}?" if meant is not None else "allowed: " + ", ".join(sorted(allowed))
    return f"unknown key {key!r}; {hint}"


class NumericFeature(Section):
    """A number, clipped to [low, high]; scaled by statistics of all merchants over that domain."""

    kind: Literal["numeric"] = "numeric"
    name: Name
    low: Number
    high: Number
    scaling: Literal["standard", "log", "quantile"] = "standard"
    missing: Missing = "flag"
    bins: Annotated[int, Field(ge=8, le=4096)] = 256

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if not self.low < self.high:
            raise ValueError(f"feature {self.name!r}: low {self.low} must be below high {self.high}")
        return self

    @property
    def dense_width(self) -> int:
        return 2 if self.missing == "flag" else 1


class CategoricalFeature(Section):
    """A string from a declared vocabulary, or one that falls in a keyed-hash bucket; never sent as text.

    Ids: 0 missing, 1 out of vocabulary, then one per vocabulary entry or bucket.
    """

    kind: Literal["categorical"] = "categorical"
    name: Name
    vocabulary: Annotated[tuple[CellText, ...], Field(max_length=65_536)] = ()
    hash_buckets: Annotated[int, Field(ge=0, le=65_536)] = 0
    encoding: Literal["one_hot", "embedding"] = "one_hot"
    embedding_dim: Annotated[int, Field(ge=1, le=256)] = 8
    missing: Missing = "flag"

    @model_validator(mode="after")
    def _one_domain(self) -> Self:
        if bool(self.vocabulary) == bool(self.hash_buckets):
            raise ValueError(
                f"feature {self.name!r}: give either a vocabulary or hash_buckets, not both or none "
                f"({len(self.vocabulary)} entries, {self.hash_buckets} hash_buckets)"
            )
        for entry, times in Counter(self.vocabulary).items():
            if times > 1:
                raise ValueError(f"feature {self.name!r}: the vocabulary has the entry {entry!r} twice")
        return self

    @property
    def num_ids(self) -> int:
        return NUM_SPECIAL_IDS + (len(self.vocabulary) or self.hash_buckets)

    @property
    def dense_width(self) -> int:
        return self.num_ids if self.encoding == "one_hot" else 0


class BooleanFeature(Section):
    """true/false, yes/no, 1/0 in any case; becomes -1 or 1, and 0 where missing."""

    kind: Literal["boolean"] = "boolean"
    name: Name
    missing: Missing = "flag"

    @property
    def dense_width(self) -> int:
        return 2 if self.missing == "flag" else 1


class TimestampFeature(Section):
    """A moment; becomes hour of day and day of week, each as sine and cosine."""

    kind: Literal["timestamp"] = "timestamp"
    name: Name
    unit: Literal["iso", "seconds"] = "iso"
    missing: Missing = "flag"

    @property
    def dense_width(self) -> int:
        return 5 if self.missing == "flag" else 4


Feature = Annotated[
    NumericFeature | CategoricalFeature | BooleanFeature | TimestampFeature, Field(discriminator="kind")
]


def num_dense(features: tuple[Feature, ...]) -> int:
    """Width of the dense input matrix of these features."""
    return sum(feature.dense_width for feature in features)


def embedded(features: tuple[Feature, ...]) -> tuple[CategoricalFeature, ...]:
    """The features that become ids for an embedding, in order: the columns of the id matrix."""
    return tuple(f for f in features if isinstance(f, CategoricalFeature) and f.encoding == "embedding")
