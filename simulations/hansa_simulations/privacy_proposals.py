"""Agreements that are proposed for an epsilon: a network, how it is trained, and the least noise that keeps to it.

What is a rule and not tried: norms are clipped to 1; statistics get STATISTICS_SHARE of what a single release could
spend; the number of rounds is the agreement's, since steps cost the same however they are cut into rounds; the last
bias starts at the table's own rate of positives.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal

from hansa_client.data import MerchantTable
from hansa_common.agreement import Agreement, validate_agreement
from hansa_common.errors import UsageError
from hansa_common.model import ModelSpec
from hansa_common.noised_statistics import is_needed
from hansa_common.privacy import Gaussian, noise_multiplier_for
from hansa_common.vectors import num_params

MAX_NORM: Final = 1.0
# Of the squared noise ratios that an epsilon allows, in one release.
STATISTICS_SHARE: Final = 0.03
Statistics = Literal["noised", "domains"]


@dataclass(frozen=True)
class Setting:
    """How a network is trained: a chance for each row to be in a step, how many steps a run has, and what scales."""

    optimizer: Literal["sgd", "adam"]
    learning_rate: float
    sampling_rate: float
    num_steps: int
    statistics: Statistics


@dataclass(frozen=True)
class Promise:
    """The agreement that is to promise epsilon at delta, and the last bias that its networks begin with."""

    given: Agreement
    epsilon: float
    delta: float
    output_bias: float

    def networks(self, small: tuple[int, ...]) -> list[tuple[int, ...]]:
        """Hidden layers to try: none, the small network where the agreed one is larger, the agreed ones."""
        hidden = self.given.model.hidden
        is_larger = num_weights(self.given) > num_weights(_with_hidden(self.given, small))
        return list(dict.fromkeys([(), *([small] if is_larger else []), hidden]))

    @property
    def statistics(self) -> tuple[Statistics, ...]:
        """What there is to choose from; without numbers nothing is scaled, and nothing has to leave."""
        return ("domains", "noised") if is_needed(without_privacy(self.given)) else ("domains",)

    def agreement(self, hidden: tuple[int, ...], setting: Setting) -> Agreement:
        """The given agreement with these hidden layers and privacy.

        Raises:
            UsageError: no noise keeps so many steps to epsilon.
        """
        values = self.given.model_dump(mode="json")
        rounds = self.given.training.rounds
        local_steps = math.ceil(setting.num_steps / rounds)
        values["model"] |= {"hidden": list(hidden), "dropout": 0.0, "precision": "float32"}
        values["model"] |= {"output_bias": self.output_bias}
        plan = {"algorithm": "fedavg", "optimizer": setting.optimizer, "learning_rate": setting.learning_rate}
        plan |= {"local_steps": local_steps}
        values["training"] = {"algorithm": "fedavg", "rounds": rounds, "plan": plan}
        values["compression"] = {}
        values["privacy"] |= {"share_metrics": False, "dp": self._dp(setting, local_steps * rounds)}
        return validate_agreement(values, "the proposed agreement")

    def _dp(self, setting: Setting, num_steps: int) -> dict[str, Any]:
        given = self.given.privacy.dp
        unit = {} if given is None else {key: getattr(given, key) for key in ("entity_column", "max_rows_per_entity")}
        try:
            statistics = self._statistics_noise()
            beside = [Gaussian(statistics)] if setting.statistics == "noised" else []
            noise = noise_multiplier_for(self.epsilon, self.delta, setting.sampling_rate, num_steps, beside)
        except ValueError as error:
            raise UsageError(f"epsilon {self.epsilon:g} at delta {self.delta:g}: {error}") from None
        scaled = {"statistics_noise_multiplier": statistics} if setting.statistics == "noised" else {}
        return {
            "epsilon": self.epsilon,
            "delta": self.delta,
            "noise_multiplier": noise,
            "max_norm": MAX_NORM,
            "sampling_rate": setting.sampling_rate,
            "statistics": setting.statistics,
            **scaled,
            **unit,
        }

    def _statistics_noise(self) -> int:
        one_release = noise_multiplier_for(self.epsilon, self.delta, 1.0, 1)
        return math.ceil(one_release / math.sqrt(STATISTICS_SHARE))


def num_weights(agreement: Agreement) -> int:
    """Of the agreed network: noise falls on each."""
    return num_params(ModelSpec.from_agreement(agreement).shapes)


def without_privacy(agreement: Agreement) -> Agreement:
    """The agreement as it would be without [privacy.dp], and without making the model small."""
    values = agreement.model_dump(mode="json")
    values["privacy"]["dp"] = None
    values["compression"] = {}
    return validate_agreement(values, "the agreement without privacy")


def _with_hidden(agreement: Agreement, hidden: tuple[int, ...]) -> Agreement:
    values = agreement.model_dump(mode="json")
    values["model"] |= {"hidden": list(hidden)}
    return validate_agreement(values, "the agreement with another network")


def rate_logit(tables: Mapping[str, MerchantTable]) -> float:
    """The logit of the share of positives in all training rows, as a whole number."""
    positives = sum(int(table.labels[table.train].sum()) for table in tables.values())
    negatives = sum(len(table.train) for table in tables.values()) - positives
    return float(round(math.log(max(positives, 1) / max(negatives, 1))))
