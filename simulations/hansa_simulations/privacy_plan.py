"""Which model, noise, sampling and steps to agree on for an epsilon, found by trying some on a table.

For logistic regression, a small network where the agreed one is larger, and the agreed one:

- Adam over every row in every step, which is the least noise at one epsilon, with numbers scaled by their domains alone
  and by noised statistics; then with the better of the two, other learning rates;
- plain SGD over a share of the rows in each step: its learning rate, then other shares and numbers of steps.

Each gets the least noise that keeps a whole run to epsilon (privacy_proposals.py). What is best on validation rows is
recommended, and its test rows say what it is worth; the agreement without privacy stands beside.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final, Protocol

from hansa_client.data import MerchantTable
from hansa_common.agreement import Agreement
from hansa_common.privacy_agreement import DifferentialPrivacy
from hansa_common.privacy_costs import run_epsilon
from hansa_common.privacy_statement import privacy_json
from hansa_simulations.privacy_proposals import (
    Promise,
    Setting,
    Statistics,
    num_weights,
    rate_logit,
    without_privacy,
)
from hansa_simulations.privacy_trials import Trials, Tried

FULL_BATCH: Final = Setting("adam", 0.03, 1.0, 200, "domains")
SHARES: Final = Setting("sgd", 1.0, 0.3, 100, "domains")
# (sampling rate, steps of a run) besides.
OTHER_SHARES: Final = ((0.1, 100), (0.3, 300))
# A setting's own is tried, those beside it, and further ones as long as the last one at an end is the best.
LEARNING_RATES: Final = {"adam": (0.003, 0.01, 0.03, 0.1, 0.3), "sgd": (0.03, 0.1, 0.3, 1.0, 3.0, 9.0)}
SMALL: Final = (16,)
# A network must be better than a smaller one by this much to be worth its noise.
WORTHWHILE: Final = 0.002
# How many settings are tried for a network, more or less.
_USUAL_TRIALS: Final = 10


class Watching(Protocol):
    """Whoever is told how far it is."""

    def begin(self, agreement: Agreement, share_done: float) -> None:
        """A plan is to be tried; about such a share of all is done."""
        ...

    def tried(self, tried: Tried) -> None:
        """It was tried."""
        ...


@dataclass(frozen=True)
class PrivacyPlan:
    """What was tried, what is recommended, and the agreement without privacy beside it."""

    epsilon: float
    delta: float
    tried: tuple[Tried, ...]
    without: Tried

    @property
    def of_networks(self) -> tuple[Tried, ...]:
        """The best of each network that was tried, the smallest network first."""
        best: dict[tuple[int, ...], Tried] = {}
        for one in self.tried:
            hidden = one.agreement.model.hidden
            best[hidden] = max(best.get(hidden, one), one, key=_by_validation)
        return tuple(sorted(best.values(), key=lambda one: num_weights(one.agreement)))

    @property
    def recommended(self) -> Tried:
        """The best on validation rows; of networks that are no better than a smaller one, that."""
        best = max(map(_by_validation, self.of_networks))
        return next(one for one in self.of_networks if _by_validation(one) >= best - WORTHWHILE)

    @property
    def loss(self) -> float | None:
        """By how much less PR-AUC the recommended model has on test rows than the one without privacy."""
        private, plain = self.recommended.test, self.without.test
        return None if private is None or plain is None else plain.pr_auc - private.pr_auc

    @property
    def advice(self) -> str:
        """Whether a smaller model is the better one, in a sentence; empty where only one was tried."""
        agreed, networks = self.without.agreement.model.hidden, self.of_networks
        if len(networks) == 1:
            return ""
        figures = ", ".join(f"{_network(one, agreed)} {_shown(one)}" for one in networks)
        if self.recommended.agreement.model.hidden != agreed:
            return f"the smaller model is the better one at this epsilon: {figures} (validation PR-AUC)"
        return f"the agreed network is worth its noise: {figures} (validation PR-AUC)"

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        agreement = self.recommended.agreement
        return {
            "epsilon": self.epsilon,
            "delta": self.delta,
            "recommended": sections_of(agreement),
            "predicted": {
                "epsilon": run_epsilon(agreement),
                "pr_auc": _areas(self.recommended),
                "pr_auc_without_privacy": _areas(self.without),
                "loss": self.loss,
                "how": "tried on the given table, whose rows paid for it outside of any accounting",
            },
            "advice": self.advice,
            "statement": (privacy_json(agreement) or {}).get("statement"),
            "tried": [{**sections_of(one.agreement), "pr_auc": _areas(one)} for one in self.tried],
        }


def find_plan(
    agreement: Agreement, tables: Mapping[str, MerchantTable], epsilon: float, delta: float, watching: Watching
) -> PrivacyPlan:
    """Try plans on these tables, by merchant, and choose.

    Raises:
        UsageError: no noise keeps so many steps to epsilon.
    """
    trials, promise = Trials(tables), Promise(agreement, epsilon, delta, rate_logit(tables))
    networks = promise.networks(SMALL)

    def tried(agreed: Agreement, share_done: float) -> Tried:
        watching.begin(agreed, share_done)
        one = trials.tried(agreed)
        watching.tried(one)
        return one

    found: list[Tried] = []
    for place, hidden in enumerate(networks):
        of_network: list[Tried] = []

        def try_setting(
            setting: Setting, hidden: tuple[int, ...] = hidden, place: int = place, done: list[Tried] = of_network
        ) -> float:
            share = (place + min(1.0, len(done) / _USUAL_TRIALS)) / len(networks)
            done.append(tried(promise.agreement(hidden, setting), share))
            return done[-1].validation_pr_auc

        search(try_setting, promise.statistics)
        found += of_network
    return PrivacyPlan(epsilon, delta, tuple(found), tried(without_privacy(agreement), 1.0))


def search(score: Callable[[Setting], float], statistics: Sequence[Statistics]) -> None:
    """Score the settings that are tried for a network; the higher, the better.

    statistics: what there is to choose from.
    """
    scores = {kind: score(replace(FULL_BATCH, statistics=kind)) for kind in statistics}
    best = max(scores, key=lambda kind: scores[kind])
    _walk(replace(FULL_BATCH, statistics=best), scores[best], score)
    shares = replace(SHARES, statistics=best)
    rate = _walk(shares, score(shares), score)
    for sampling_rate, num_steps in OTHER_SHARES:
        score(replace(shares, learning_rate=rate, sampling_rate=sampling_rate, num_steps=num_steps))


def _walk(setting: Setting, its_score: float, score: Callable[[Setting], float]) -> float:
    """Score learning rates until the best one has been tried with one on either side, or there is no further one;
    returns the best.
    """
    rates = LEARNING_RATES[setting.optimizer]
    found = {rates.index(setting.learning_rate): its_score}
    while True:
        best = max(found, key=lambda place: found[place])
        beside = [place for place in (best - 1, best + 1) if place not in found and 0 <= place < len(rates)]
        if not beside:
            return rates[best]
        found[beside[0]] = score(replace(setting, learning_rate=rates[beside[0]]))


def sections_of(agreement: Agreement) -> dict[str, Any]:
    """What a plan decides of an agreement, as sections of its file."""
    model, plan, dp = agreement.model, agreement.training.plan, agreement.privacy.dp
    return {
        "model": {"hidden": list(model.hidden), "dropout": model.dropout, "output_bias": model.output_bias},
        "training": {"algorithm": agreement.training.algorithm, "rounds": agreement.training.rounds},
        "training.plan": {key: getattr(plan, key) for key in ("optimizer", "learning_rate", "local_steps")},
        "privacy.dp": {} if dp is None else _promised(dp),
    }


def _promised(dp: DifferentialPrivacy) -> dict[str, Any]:
    keys = ["epsilon", "delta", "noise_multiplier", "max_norm", "sampling_rate", "statistics"]
    if dp.statistics == "noised":
        keys.append("statistics_noise_multiplier")
    if dp.entity_column is not None:
        keys += ["entity_column", "max_rows_per_entity"]
    return {key: getattr(dp, key) for key in keys}


def toml_of(agreement: Agreement) -> str:
    """These sections, to be put in the place of an agreement's own."""
    return "\n".join(_toml_lines(sections_of(agreement)))


def _toml_lines(sections: Mapping[str, Mapping[str, Any]]) -> Iterator[str]:
    for name, values in sections.items():
        yield f"[{name}]"
        yield from (f"{key} = {_toml(value)}" for key, value in values.items())
        yield ""


def _toml(value: Any) -> str:
    # As JSON writes a text, so may TOML.
    return json.dumps(value, ensure_ascii=False) if isinstance(value, str) else repr(value)


def _by_validation(tried: Tried) -> float:
    return tried.validation_pr_auc


def _network(tried: Tried, agreed: tuple[int, ...]) -> str:
    hidden = tried.agreement.model.hidden
    if not hidden:
        return "logistic regression"
    return f"the agreed network {list(hidden)}" if hidden == agreed else f"one of {list(hidden)}"


def _shown(tried: Tried) -> str:
    return "no model" if tried.validation is None else f"{tried.validation.pr_auc:.3f}"


def _areas(tried: Tried) -> dict[str, float | None]:
    return {
        "validation": None if tried.validation is None else tried.validation.pr_auc,
        "test": None if tried.test is None else tried.test.pr_auc,
    }
