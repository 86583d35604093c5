"""What an agreement promises a person in numbers and words: the unit, epsilon and delta of a whole run, which tables
are neighbours, who is trusted with what, how it is accounted for, and what it does not cover. That is what NIST SP
800-226 ("Guidelines for Evaluating Differential Privacy Guarantees", 2025) asks of whoever claims differential privacy.
"""

from __future__ import annotations

from typing import Any, Final

from hansa_common import noised_statistics
from hansa_common.agreement import Agreement
from hansa_common.plain_text import printable
from hansa_common.privacy import epsilon, epsilon_by_rdp
from hansa_common.privacy_agreement import DifferentialPrivacy
from hansa_common.privacy_costs import run_cost
from hansa_common.secure_agreement import honest_in_smallest_sum
from hansa_common.shared_noise import is_shared

NEIGHBOURS: Final = (
    "neighbouring tables: one lacks what that unit contributes to sums and counts; how many rows a table has, and how "
    "they are divided into parts, is not hidden"
)
TRUST_MODEL: Final = (
    "whom it asks to trust: the merchant's own trainer, which adds the noise before anything leaves; not the "
    "coordinator, other merchants, the network, or whoever gets the model"
)
ACCOUNTING: Final = (
    "accounted for with privacy loss distributions of Poisson-sampled Gaussian mechanisms (dp-accounting); everything "
    "that leaves adds up, statistics and evaluations too"
)
NOT_COVERED: Final = (
    "not covered: what the merchant keeps to itself (its own figures, threshold and files), that an order was refused "
    "and how long an answer took, other runs over the same rows (they add up in the merchant's ledger), and gaps "
    "between floating-point numbers"
)
SHARED_TRUST_MODEL: Final = (
    "whom it asks to trust: the merchant's own trainer; secure aggregation, whose masks nobody else is to be able to "
    "compute; and the other merchants in so far as no more than {colluders} of a sum collude with the coordinator, "
    "take their shares of the noise out of what they learn, or add none: with more of them there is less noise than "
    "is accounted for. Not the coordinator, the network, or whoever gets the model"
)
SHARED_ACCOUNTING: Final = (
    "accounted for with Renyi divergences, at whole orders, of Poisson-sampled discrete Gaussian mechanisms "
    "(dp-accounting); everything that leaves adds up, statistics and evaluations too"
)
SHARED_NOT_COVERED: Final = (
    "not covered: what the merchant keeps to itself (its own figures, threshold and files), that an order was refused "
    "and how long an answer took, and other runs over the same rows (they add up in the merchant's ledger)"
)


def statement(agreement: Agreement) -> list[str]:
    """The promise as sentences; nothing without [privacy.dp]."""
    dp = agreement.privacy.dp
    if dp is None:
        return []
    told = [_promise(agreement, dp), _unit(dp), NEIGHBOURS, _noise(agreement, dp)]
    if not is_shared(agreement):
        return [*told, TRUST_MODEL, ACCOUNTING, NOT_COVERED]
    trusted = SHARED_TRUST_MODEL.format(colluders=agreement.secure_aggregation.colluders)
    return [*told, trusted, SHARED_ACCOUNTING, SHARED_NOT_COVERED]


def privacy_json(agreement: Agreement) -> dict[str, Any] | None:
    """The promise as plain values, for metrics.json and the report; None without [privacy.dp]."""
    dp = agreement.privacy.dp
    if dp is None:
        return None
    mechanisms = run_cost(agreement).mechanisms
    return {
        "unit": "row" if dp.entity_column is None else "entity",
        "entity_column": dp.entity_column,
        "max_rows_per_entity": dp.max_rows_per_entity,
        "epsilon": epsilon(mechanisms, dp.delta),
        "epsilon_by_rdp": epsilon_by_rdp(mechanisms, dp.delta),
        "promised_epsilon": dp.epsilon,
        "delta": dp.delta,
        "noise": dp.noise,
        "statement": statement(agreement),
    }


def _promise(agreement: Agreement, dp: DifferentialPrivacy) -> str:
    found = epsilon(run_cost(agreement).mechanisms, dp.delta)
    return (
        f"differential privacy: a whole run costs at most epsilon {found} at delta {dp.delta:g} (the agreement "
        f"allows {dp.epsilon:g}), for each unit of each merchant"
    )


def _unit(dp: DifferentialPrivacy) -> str:
    if dp.entity_column is None:
        return "the unit: one row; who has several rows in a table has less than this"
    name = printable(dp.entity_column, 60)
    return (
        f"the unit: all rows with the same {name!r}; of each at most {dp.max_rows_per_entity} are used in each part of "
        "a table, the first ones"
    )


def _noise(agreement: Agreement, dp: DifferentialPrivacy) -> str:
    cost = run_cost(agreement)
    statistics = (
        f"statistics have noise of {dp.statistics_noise_multiplier:g}"
        if noised_statistics.is_needed(agreement)
        else "no statistics leave"
    )
    evaluation = (
        "scores stay with the merchant"
        if dp.evaluation_noise_multiplier is None
        else f"a histogram of scores with noise of {dp.evaluation_noise_multiplier:g}"
    )
    return (
        f"what leaves: {cost.what}; {_step(agreement, dp)}; {statistics}; {evaluation}; no loss and no validation "
        "histogram leaves"
    )


def _step(agreement: Agreement, dp: DifferentialPrivacy) -> str:
    sampled = f"samples each unit with chance {dp.sampling_rate:g}, clips it to norm {dp.max_norm:g} and"
    if not is_shared(agreement):
        return f"a local step {sampled} adds noise of {dp.noise_multiplier:g} times that"
    honest = honest_in_smallest_sum(agreement)
    return (
        f"a round is one step, which {sampled} has noise of {dp.noise_multiplier:g} times what that moves the masked "
        f"sum: of its variance each merchant adds 1/{honest}, for there are at least so many in any sum who do not "
        "collude"
    )
