"""Which model, noise, sampling and steps to agree on for an epsilon, found by trying some on a table.

For the agreed network, and for logistic regression, plain SGD with clipped rows: first its learning rate, then how many
rows a step has and how many steps there are. Each gets the least noise that keeps a whole run to epsilon. What is best
on validation rows is recommended, and its test rows say what it is worth; the agreement without privacy stands beside.

What is a rule and not tried: norms are clipped to 1; statistics get STATISTICS_SHARE of what a single release could
spend; the number of rounds is the agreement's, since steps cost the same however they are cut into rounds; the last
bias starts at the table's own rate of positives.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

from hansa_client.data import MerchantTable
from hansa_common.agreement import Agreement, validate_agreement
from hansa_common.errors import UsageError
from hansa_common.privacy import Gaussian, noise_multiplier_for
from hansa_common.privacy_costs import run_epsilon
from hansa_common.privacy_statement import privacy_json
from hansa_simulations.privacy_trials import Trials, Tried

# The first three are tried, and one further as long as the last one at that end is the best.
LEARNING_RATES: Final = (0.03, 0.1, 0.3, 1.0, 3.0, 9.0)
_FIRST_RATES: Final = (2, 3, 4)
MAX_NORM: Final = 1.0
# Of the squared noise ratios that an epsilon allows, in one release.
STATISTICS_SHARE: Final = 0.03
# A network must be better than logistic regression by this much to be worth its noise.
WORTHWHILE: Final = 0.002


@dataclass(frozen=True)
class Work:
    """A chance for each row to be in a step, and how many steps a run has."""

    sampling_rate: float
    num_steps: int


FIRST_WORK: Final = Work(0.3, 100)
OTHER_WORK: Final = (Work(0.1, 100), Work(0.3, 300))


@dataclass(frozen=True)
class PrivacyPlan:
    """What was tried, what is recommended, and the agreement without privacy beside it."""

    epsilon: float
    delta: float
    tried: tuple[Tried, ...]
    without: Tried

    @property
    def recommended(self) -> Tried:
        """The best on validation rows; of networks that are no better than logistic regression, that."""
        best = max(self.tried, key=lambda one: one.validation_pr_auc)
        smallest = self.best_of(())
        worth_it = smallest is None or best.validation_pr_auc > smallest.validation_pr_auc + WORTHWHILE
        return best if worth_it or smallest is None else smallest

    def best_of(self, hidden: tuple[int, ...]) -> Tried | None:
        """The best that was tried with these hidden layers."""
        of_network = [one for one in self.tried if one.agreement.model.hidden == hidden]
        return max(of_network, key=lambda one: one.validation_pr_auc, default=None)

    @property
    def loss(self) -> float | None:
        """By how much less PR-AUC the recommended model has on test rows than the one without privacy."""
        private, plain = self.recommended.test, self.without.test
        return None if private is None or plain is None else plain.pr_auc - private.pr_auc

    @property
    def advice(self) -> str:
        """Whether a smaller model is the better one, in a sentence; empty where only one was tried."""
        hidden = self.without.agreement.model.hidden
        network, smallest = self.best_of(hidden), self.best_of(())
        if not hidden or network is None or smallest is None:
            return ""
        figures = f"logistic regression {_shown(smallest)}, the agreed network {list(hidden)} {_shown(network)}"
        if self.recommended is smallest:
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
    agreement: Agreement,
    tables: Mapping[str, MerchantTable],
    epsilon: float,
    delta: float,
    on_tried: Callable[[Tried], None] = lambda _: None,
) -> PrivacyPlan:
    """Try plans on these tables, by merchant, and choose.

    Raises:
        UsageError: no noise keeps so many steps to epsilon.
    """
    trials = Trials(tables)
    found: list[Tried] = []

    def tried(agreed: Agreement) -> Tried:
        one = trials.tried(agreed)
        on_tried(one)
        return one

    bias = _logit(tables)
    for hidden in dict.fromkeys([(), agreement.model.hidden]):
        found += _of_network(_Proposal(agreement, hidden, bias, epsilon, delta), tried)
    return PrivacyPlan(epsilon, delta, tuple(found), tried(without_privacy(agreement)))


@dataclass(frozen=True)
class _Proposal:
    """What is proposed for one network, but for the work and the learning rate."""

    given: Agreement
    hidden: tuple[int, ...]
    output_bias: float
    epsilon: float
    delta: float

    def agreement(self, work: Work, learning_rate: float) -> Agreement:
        """The given agreement with privacy."""
        values = self.given.model_dump(mode="json")
        local_steps = math.ceil(work.num_steps / self.given.training.rounds)
        values["model"] |= {"hidden": list(self.hidden), "dropout": 0.0, "precision": "float32"}
        values["model"] |= {"output_bias": self.output_bias}
        plan = {"algorithm": "fedavg", "optimizer": "sgd", "learning_rate": learning_rate, "local_steps": local_steps}
        values["training"] = {"algorithm": "fedavg", "rounds": self.given.training.rounds, "plan": plan}
        values["compression"] = {}
        values["privacy"] |= {"share_metrics": False, "dp": self._dp(work, local_steps * self.given.training.rounds)}
        return validate_agreement(values, "the proposed agreement")

    def _dp(self, work: Work, num_steps: int) -> dict[str, Any]:
        given = self.given.privacy.dp
        unit = {} if given is None else {key: getattr(given, key) for key in ("entity_column", "max_rows_per_entity")}
        try:
            one_release = noise_multiplier_for(self.epsilon, self.delta, 1.0, 1)
            statistics = math.ceil(one_release / math.sqrt(STATISTICS_SHARE))
            beside = [Gaussian(statistics)]
            noise = noise_multiplier_for(self.epsilon, self.delta, work.sampling_rate, num_steps, beside)
        except ValueError as error:
            raise UsageError(f"epsilon {self.epsilon:g} at delta {self.delta:g}: {error}") from None
        return {
            "epsilon": self.epsilon,
            "delta": self.delta,
            "noise_multiplier": noise,
            "max_norm": MAX_NORM,
            "sampling_rate": work.sampling_rate,
            "statistics_noise_multiplier": statistics,
            **unit,
        }


def _of_network(proposal: _Proposal, tried: Callable[[Agreement], Tried]) -> list[Tried]:
    """The plans of one network: learning rates, and the best of them with other work."""
    by_rate = _walked(lambda rate: tried(proposal.agreement(FIRST_WORK, rate)))
    best = max(by_rate, key=lambda one: one.validation_pr_auc).agreement.training.plan.learning_rate
    return [*by_rate, *(tried(proposal.agreement(work, best)) for work in OTHER_WORK)]


def _walked(try_rate: Callable[[float], Tried]) -> list[Tried]:
    """Learning rates until the best one has been tried with one on either side, or there is no further one."""
    found = {place: try_rate(LEARNING_RATES[place]) for place in _FIRST_RATES}
    while True:
        best = max(found, key=lambda place: found[place].validation_pr_auc)
        beside = [place for place in (best - 1, best + 1) if place not in found and 0 <= place < len(LEARNING_RATES)]
        if not beside:
            return list(found.values())
        found[beside[0]] = try_rate(LEARNING_RATES[beside[0]])


def without_privacy(agreement: Agreement) -> Agreement:
    """The agreement as it would be without [privacy.dp], and without making the model small."""
    values = agreement.model_dump(mode="json")
    values["privacy"]["dp"] = None
    values["compression"] = {}
    return validate_agreement(values, "the agreement without privacy")


def sections_of(agreement: Agreement) -> dict[str, Any]:
    """What a plan decides of an agreement, as sections of its file."""
    model, plan, dp = agreement.model, agreement.training.plan, agreement.privacy.dp
    unit = () if dp is None or dp.entity_column is None else ("entity_column", "max_rows_per_entity")
    noise = ("epsilon", "delta", "noise_multiplier", "max_norm", "sampling_rate", "statistics_noise_multiplier")
    return {
        "model": {"hidden": list(model.hidden), "dropout": model.dropout, "output_bias": model.output_bias},
        "training": {"algorithm": agreement.training.algorithm, "rounds": agreement.training.rounds},
        "training.plan": {key: getattr(plan, key) for key in ("optimizer", "learning_rate", "local_steps")},
        "privacy.dp": {} if dp is None else {key: getattr(dp, key) for key in (*noise, *unit)},
    }


def toml_of(agreement: Agreement) -> str:
    """These sections, to be put in the place of an agreement's own."""
    return "\n".join(_toml_lines(sections_of(agreement)))


def _toml_lines(sections: Mapping[str, Mapping[str, Any]]) -> Iterator[str]:
    for name, values in sections.items():
        yield f"[{name}]"
        yield from (f"{key} = {_toml(value)}" for key, value in values.items())
        yield ""


def _toml(value: Any) -> str:
    if isinstance(value, str):
        # As JSON writes a text, so may TOML.
        import json

        return json.dumps(value, ensure_ascii=False)
    return repr(value)


def _logit(tables: Mapping[str, MerchantTable]) -> float:
    """Of the share of positives in all training rows, as a whole number."""
    positives = sum(int(table.labels[table.train].sum()) for table in tables.values())
    negatives = sum(len(table.train) for table in tables.values()) - positives
    return float(round(math.log(max(positives, 1) / max(negatives, 1))))


def _shown(tried: Tried) -> str:
    return "no model" if tried.validation is None else f"{tried.validation.pr_auc:.3f}"


def _areas(tried: Tried) -> dict[str, float | None]:
    return {
        "validation": None if tried.validation is None else tried.validation.pr_auc,
        "test": None if tried.test is None else tried.test.pr_auc,
    }
