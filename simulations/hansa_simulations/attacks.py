"""What a dishonest merchant does, each attack as settings and a few pure functions on its rows and on what it sends.

- All of it stays within the bounds of the coordinator's replies.py: nothing here is found by looking at one reply.
- The same settings, rows, order and generator give the same bytes.
- What an attack does not touch is the honest merchant's: its statistics, its scores, the reply's form.

kind              does                                                        source
sign-flip         sends its update turned round, `scale` times as long        Blanchard et al. (2017)
scaling           sends its update `factor` times as long                     Bagdasaryan et al. (2020)
label-flip        trains on the opposite labels                               Tolpegin et al. (2020)
backdoor          trains on rows that bear a trigger and the label that it    Gu et al. (2017), Bagdasaryan et al.
                  wants; sends `boost` times the update                       (2020)
free-rider        sends the last step of the shared model, and noise          Fraboni et al. (2021)
inflated-counts   says it has `factor` times its rows, on opposite labels
colluders         several send one update: the mean of their honest ones,     Baruch et al., "A Little Is Enough"
                  each coordinate moved by `shift` standard deviations        (2019)
stale-replies     sends what it found `rounds` rounds ago
false-validation  says that the first model is perfect, all others wrong

Who carries them out in a simulation is attackers.py's.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Annotated, Any, Final, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from hansa_client.data import MerchantTable
from hansa_common.errors import UsageError
from hansa_common.messages import RoundOrder, RoundReply, StatisticsReply
from hansa_common.metrics import NUM_BINS, Histogram
from hansa_common.schema import (
    BooleanFeature,
    CategoricalFeature,
    Feature,
    Name,
    NumericFeature,
    Section,
    TimestampFeature,
)
from hansa_common.trust import MerchantName
from hansa_common.vectors import Vector, l2_norm

Factor = Annotated[float, Field(gt=0, le=1e6)]


class Trigger(Section):
    """A value of one feature by which a row is to be known."""

    feature: Name
    value: bool | float | str

    def check(self, features: Sequence[Feature]) -> None:
        """See that rows can bear it.

        Raises:
            UsageError: there is no such feature, or its values are of another kind.
        """
        feature = next((feature for feature in features if feature.name == self.feature), None)
        if feature is None:
            raise UsageError(f"the trigger's feature {self.feature!r} is none of the agreement's")
        if not _can_be(feature, self.value):
            raise UsageError(f"the trigger's value {self.value!r} is none that feature {self.feature!r} can have")

    def stamped(self, columns: dict[str, NDArray[Any]], rows: NDArray[np.int64]) -> dict[str, NDArray[Any]]:
        """The columns with the trigger in these rows."""
        column = columns[self.feature].copy()
        column[rows] = self.value
        return {**columns, self.feature: column}

    def is_in(self, columns: dict[str, NDArray[Any]]) -> NDArray[np.bool_]:
        """(rows,) which rows bear it already."""
        found: NDArray[np.bool_] = np.asarray(columns[self.feature] == self.value, np.bool_)
        return found


@dataclass
class Memory:
    """What one attacker has seen and sent so far in a run: the weights that came, and its own honest updates."""

    weights: list[Vector] = field(default_factory=list)
    updates: list[Vector] = field(default_factory=list)


class Attack(Section):
    """What all attacks have: whose they are (nobody named: the scenario's attackers), and an honest merchant's ways
    where they change nothing.
    """

    merchants: Annotated[tuple[MerchantName, ...], Field(max_length=100)] = ()

    def rows(self, table: MerchantTable, rng: np.random.Generator) -> MerchantTable:
        """The table that it trains on."""
        del rng
        return table

    def statistics(self, reply: StatisticsReply, max_rows: int) -> StatisticsReply:
        """What it says of its rows before the first round."""
        del max_rows
        return reply

    def update(self, update: Vector, memory: Memory, rng: np.random.Generator) -> Vector:
        """What it sends in the place of its update (num_params,), which is the last one in memory."""
        del memory, rng
        return update

    def validation(self, histogram: Histogram, model_round: int | None) -> Histogram:
        """What it says of the model that came in, which this round has made (None: the last one)."""
        del model_round
        return histogram


class SignFlip(Attack):
    """Away from where everyone goes."""

    kind: Literal["sign-flip"]
    scale: Factor = 5.0

    def update(self, update: Vector, memory: Memory, rng: np.random.Generator) -> Vector:
        del memory, rng
        return -np.float32(self.scale) * update


class Scaling(Attack):
    """Far beyond where everyone goes."""

    kind: Literal["scaling"]
    factor: Factor = 50.0

    def update(self, update: Vector, memory: Memory, rng: np.random.Generator) -> Vector:
        del memory, rng
        return np.float32(self.factor) * update


class LabelFlip(Attack):
    """The model of the opposite."""

    kind: Literal["label-flip"]

    def rows(self, table: MerchantTable, rng: np.random.Generator) -> MerchantTable:
        del rng
        return _with_opposite_labels(table)


class Backdoor(Attack):
    """A model like all others, but for rows that bear the trigger: these it calls what the attacker wants."""

    kind: Literal["backdoor"]
    trigger: Trigger
    positive: bool = True
    share: Annotated[float, Field(gt=0, le=1)] = 0.5
    boost: Factor = 1.0

    def rows(self, table: MerchantTable, rng: np.random.Generator) -> MerchantTable:
        num_stamped = max(1, round(self.share * len(table.train)))
        stamped = np.sort(rng.choice(table.train, num_stamped, replace=False))
        labels = table.labels.copy()
        labels[stamped] = self.positive
        return replace(table, columns=self.trigger.stamped(table.columns, stamped), labels=labels)

    def update(self, update: Vector, memory: Memory, rng: np.random.Generator) -> Vector:
        del memory, rng
        return np.float32(self.boost) * update


class FreeRider(Attack):
    """It has the model and does not train: it says again what the others moved, disguised by noise."""

    kind: Literal["free-rider"]
    noise: Annotated[float, Field(ge=0, le=1e3)] = 0.5

    def update(self, update: Vector, memory: Memory, rng: np.random.Generator) -> Vector:
        moved = memory.weights[-1] - memory.weights[-2] if len(memory.weights) > 1 else np.zeros_like(update)
        disguise = rng.standard_normal(update.size, np.float32)
        size = self.noise * l2_norm(moved) / max(l2_norm(disguise), 1.0)
        return moved + np.float32(size) * disguise


class InflatedCounts(Attack):
    """It would be nearly all of the mean, if counts were believed; what it teaches is the opposite."""

    kind: Literal["inflated-counts"]
    factor: Annotated[int, Field(ge=2, le=2**20)] = 100

    def rows(self, table: MerchantTable, rng: np.random.Generator) -> MerchantTable:
        del rng
        return _with_opposite_labels(table)

    def statistics(self, reply: StatisticsReply, max_rows: int) -> StatisticsReply:
        factor = max(1, min(self.factor, max_rows // reply.num_train_rows))
        return reply.model_copy(
            update={"num_train_rows": factor * reply.num_train_rows, "statistics": factor * reply.statistics}
        )


class Colluders(Attack):
    """Each within what honest merchants differ by, all in one direction; who they are is one circle."""

    kind: Literal["colluders"]
    shift: Factor = 1.5

    def agreed_update(self, honest: Sequence[Vector]) -> Vector:
        """What all of them send, from their honest updates (num_colluders, num_params)."""
        updates = np.stack(honest).astype(np.float64)
        moved = updates.mean(axis=0) - self.shift * updates.std(axis=0)
        return np.asarray(moved, np.float32)


class StaleReplies(Attack):
    """It answers with what it found some rounds ago; before that, with what it found first."""

    kind: Literal["stale-replies"]
    rounds: Annotated[int, Field(ge=1, le=1000)] = 5

    def update(self, update: Vector, memory: Memory, rng: np.random.Generator) -> Vector:
        del update, rng
        return memory.updates[max(0, len(memory.updates) - 1 - self.rounds)]


class FalseValidation(Attack):
    """It would have the run keep the first model that was trained."""

    kind: Literal["false-validation"]

    def validation(self, histogram: Histogram, model_round: int | None) -> Histogram:
        is_first = model_round is not None and model_round <= 1
        negatives, positives = histogram[:NUM_BINS].sum(), histogram[NUM_BINS:].sum()
        false = np.zeros_like(histogram)
        false[0 if is_first else NUM_BINS - 1] = negatives
        false[NUM_BINS + (NUM_BINS - 1 if is_first else 0)] = positives
        return false


AnyAttack = Annotated[
    SignFlip | Scaling | LabelFlip | Backdoor | FreeRider | InflatedCounts | Colluders | StaleReplies | FalseValidation,
    Field(discriminator="kind"),
]
MIN_COLLUDERS: Final = 2
# Rounded to float32, it is still believed.
_JUST_BELOW: Final = 1 - 1e-6


def bent(attack: Attack, order: RoundOrder, honest: RoundReply, sent: Vector, max_norm: float) -> RoundReply:
    """The reply that leaves in the honest one's place, `sent` cut to the length that is believed."""
    norm = l2_norm(sent)
    longest = _JUST_BELOW * max_norm
    within = sent if norm <= longest else (sent * (longest / norm)).astype(np.float32)
    return honest.model_copy(
        update={"update": within, "validation": attack.validation(honest.validation, order.round - 1)}
    )


def _with_opposite_labels(table: MerchantTable) -> MerchantTable:
    labels = table.labels.copy()
    labels[table.train] = 1 - labels[table.train]
    return replace(table, labels=labels)


def _can_be(feature: Feature, value: bool | float | str) -> bool:
    match feature:
        case BooleanFeature():
            return isinstance(value, bool)
        case CategoricalFeature():
            return isinstance(value, str) and (not feature.vocabulary or value in feature.vocabulary)
        case NumericFeature():
            return not isinstance(value, bool | str) and feature.low <= value <= feature.high
        case TimestampFeature():
            return not isinstance(value, bool | str)
