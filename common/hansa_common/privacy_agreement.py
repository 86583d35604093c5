"""`[privacy.dp]`: the differential privacy that a consortium agreed on, and what an agreement must not ask beside it.

What is promised holds for one *unit*: a row, or with `entity_column` all rows of one customer, of whom at most
`max_rows_per_entity` rows are taken in each part of the table. Two tables are neighbours where one lacks a unit's
contribution; how many rows a table has, and how they are divided, is not hidden.

Each release's noise is a multiple of what one unit can change in it: `noise_multiplier` in every local step,
`statistics_noise_multiplier` for the statistics before the first round (with statistics = "domains" nothing of rows
leaves then, and numbers are scaled by their agreed domains alone), `evaluation_noise_multiplier` for a histogram
of scores (None: none leaves). What they cost together is privacy_costs.py's; `epsilon` is what it may come to.

With noise = "own" each merchant adds all of the noise to each of its local steps. With "shared" the masked sum of a
round has it, and each merchant adds a share (shared_noise.py): so a round is one step, of which nothing else is made.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, Literal, Self

from pydantic import Field, model_validator

from hansa_common.schema import Name, Section

if TYPE_CHECKING:
    # Which has this section in one of its own.
    from hansa_common.agreement_sections import Compression, Data, Label, Model, Privacy, Training
    from hansa_common.secure_agreement import SecureAggregation

Noise = Annotated[float, Field(ge=0.01, le=10_000)]


class DifferentialPrivacy(Section):
    """How much is promised to a unit, and by which noise."""

    epsilon: Annotated[float, Field(gt=0, le=100)]
    delta: Annotated[float, Field(gt=0, le=0.01)] = 1e-5
    noise: Literal["own", "shared"] = "own"
    noise_multiplier: Noise
    max_norm: Annotated[float, Field(gt=0, le=1e6)] = 1.0
    sampling_rate: Annotated[float, Field(gt=0, le=1)]
    statistics: Literal["noised", "domains"] = "noised"
    statistics_noise_multiplier: Noise = 10.0
    evaluation_noise_multiplier: Noise | None = None
    entity_column: Name | None = None
    max_rows_per_entity: Annotated[int, Field(ge=1, le=100_000)] = 1

    @model_validator(mode="after")
    def _rows_are_of_an_entity(self) -> Self:
        if self.entity_column is None and self.max_rows_per_entity != 1:
            raise ValueError(
                f"max_rows_per_entity {self.max_rows_per_entity} needs entity_column: without one the unit is a row"
            )
        return self


def check_dp_fits(
    privacy: Privacy,
    label: Label,
    data: Data,
    model: Model,
    training: Training,
    compression: Compression,
    secure_aggregation: SecureAggregation,
) -> None:
    """Refuse what would leave a merchant without noise, or has no accounting.

    Raises:
        ValueError: with all of it in one line.
    """
    if privacy.dp is None:
        return
    found = [
        *_of_training(model, training),
        *_of_rows(privacy.dp, label, data),
        *_of_releases(compression, share_metrics=privacy.share_metrics),
        *(_of_shares(training, secure_aggregation) if privacy.dp.noise == "shared" else ()),
    ]
    if found:
        raise ValueError("; ".join(f"[privacy.dp] {problem}" for problem in found))


def _of_training(model: Model, training: Training) -> Iterator[str]:
    if training.algorithm == "auto":
        yield "refuses algorithm = 'auto': it chooses by histograms of scores, which do not leave; name one algorithm"
    elif training.plan.local_steps is None:
        yield "needs training.plan.local_steps: a step chooses its rows by coins, so there are no epochs and batches"
    if model.dropout:
        yield (
            f"refuses model.dropout {model.dropout:g}: what it drops depends on which other rows a step has; "
            "set dropout = 0"
        )
    if model.precision != "float32":
        yield f"refuses model.precision {model.precision!r}: norms are computed in float32; set precision = 'float32'"


def _of_shares(training: Training, secure_aggregation: SecureAggregation) -> Iterator[str]:
    plan = training.plan
    if not secure_aggregation.is_on:
        yield (
            "noise = 'shared' needs [secure_aggregation] protocol = 'double-masking': outside a masked sum a share of "
            "the noise hides nobody; set it, or noise = 'own'"
        )
    elif not secure_aggregation.colluders:
        yield (
            "noise = 'shared' needs secure_aggregation.colluders = 1 or more: each merchant knows its own share of the "
            "noise, and takes it out of what it learns"
        )
    if plan.local_steps not in {None, 1}:
        yield (
            f"noise = 'shared' refuses training.plan.local_steps {plan.local_steps}: noise is added after them, and "
            "once a step has been taken every row's gradient depends on every other row, so nothing bounds what one "
            "moves; set local_steps = 1, or noise = 'own'"
        )
    if plan.algorithm == "scaffold":
        yield (
            "noise = 'shared' refuses algorithm 'scaffold': a variate is made of one merchant's own updates, which "
            "have no noise before they are summed; name another algorithm, or set noise = 'own'"
        )
    if plan.optimizer != "sgd":
        yield (
            f"noise = 'shared' refuses training.plan.optimizer {plan.optimizer!r}: what it makes of a sum of clipped "
            "gradients before there is noise in it has no bound; set optimizer = 'sgd' (what is made of the whole sum "
            "is free: algorithm = 'fedadam' or 'fedavgm')"
        )


def _of_rows(dp: DifferentialPrivacy, label: Label, data: Data) -> Iterator[str]:
    if dp.entity_column is None:
        return
    if dp.entity_column == label.column:
        yield f"entity_column {dp.entity_column!r} is the label; name the column that tells customers apart"
    if data.duplicates == "remove":
        yield "refuses data.duplicates = 'remove' with entity_column: one customer's row would stand for another's"


def _of_releases(compression: Compression, *, share_metrics: bool) -> Iterator[str]:
    if compression.format != "none":
        yield (
            f"refuses compression.format {compression.format!r}: ranges and judgements would leave without noise; "
            "set format = 'none'"
        )
    if share_metrics:
        yield "refuses privacy.share_metrics: own figures would leave without noise; set share_metrics = false"
