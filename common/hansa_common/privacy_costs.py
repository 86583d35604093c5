"""What each record costs a unit's privacy under an agreement, and what a whole run does.

Every kind of record declares what of a merchant's rows it is about (`RELEASE`); here stands what that costs. An order
of a kind that declares nothing, or of which no private form exists, is refused under `[privacy.dp]`.

release      what leaves under [privacy.dp]                                  cost
nothing      names, versions, that a bundle arrived                          none
statistics   counts and sums with Gaussian noise; none for domains alone     one Gaussian release; or none
training     weights after local_steps noised steps; no loss, no histogram   that many sampled Gaussian steps
             with shared noise a share of a masked sum, which has the rest   one sampled discrete Gaussian
evaluation   a coarse histogram with noise; or none                          one Gaussian release; or none
activations  refused                                                         -
judgement    refused                                                         -

How much a unit can change in each is stated where the noise is made: private_training.py, shared_noise.py,
noised_statistics.py, noised_histograms.py. The number of rows and their division into parts are not hidden, and cost
nothing (see privacy_agreement.py).
"""

from __future__ import annotations

from dataclasses import dataclass

from hansa_common import noised_statistics
from hansa_common.agreement import Agreement
from hansa_common.errors import AgreementError, PolicyError
from hansa_common.messages import RoundOrder
from hansa_common.privacy import (
    Gaussian,
    Mechanism,
    SampledDiscreteGaussian,
    SampledGaussian,
    epsilon,
    noise_multiplier_for,
)
from hansa_common.privacy_agreement import DifferentialPrivacy
from hansa_common.record_types import Order
from hansa_common.shared_noise import check_shared_noise_fits


@dataclass(frozen=True)
class PrivacyCost:
    """What leaves for one order as mechanisms, none where it costs nothing; `what` says it in words."""

    mechanisms: tuple[Mechanism, ...]
    what: str


def cost_of(order: Order, agreement: Agreement) -> PrivacyCost:
    """What an answer to this order costs each unit.

    Without [privacy.dp] whatever is about rows leaves without noise, and its cost has no bound.

    Raises:
        PolicyError: the order's kind declares no cost, or its answer has no private form.
    """
    release, dp = getattr(order, "RELEASE", None), agreement.privacy.dp
    if release is None:
        raise PolicyError(f"a {order.KIND!r} order declares no cost of privacy, so none is obeyed")
    if release == "nothing":
        return PrivacyCost((), "nothing about a row")
    if dp is None:
        return PrivacyCost((Gaussian(0.0),), f"{release} without noise")
    match release:
        case "statistics":
            return _statistics(agreement, dp)
        case "training":
            plan = order.plan if isinstance(order, RoundOrder) else 0
            return _training(agreement, dp, plan)
        case "evaluation":
            return _evaluation(dp)
    raise PolicyError(f"a {order.KIND!r} order asks for {release}, which has no noise; [privacy.dp] allows none of it")


def run_cost(agreement: Agreement) -> PrivacyCost:
    """What a whole run costs each unit of a merchant that takes part in every round: statistics, rounds, and the test.

    Raises:
        ValueError: the agreement has no [privacy.dp].
    """
    dp = _dp(agreement)
    rounds = [_training(agreement, dp, 0)] * agreement.training.rounds
    costs = [_statistics(agreement, dp), *rounds, _evaluation(dp)]
    mechanisms = tuple(mechanism for cost in costs for mechanism in cost.mechanisms)
    return PrivacyCost(mechanisms, f"statistics, {agreement.training.rounds} rounds and a test")


def run_epsilon(agreement: Agreement) -> float:
    """The epsilon of a whole run at the agreement's delta, rounded up; ValueError without [privacy.dp]."""
    return epsilon(run_cost(agreement).mechanisms, _dp(agreement).delta)


def check_affordable(agreement: Agreement) -> None:
    """See that a whole run keeps what the agreement promises; whatever has no [privacy.dp] passes.

    Raises:
        AgreementError: it costs more, and the message says which noise would hold; or shared noise does not fit.
    """
    check_shared_noise_fits(agreement)
    dp = agreement.privacy.dp
    if dp is None or (found := run_epsilon(agreement)) <= dp.epsilon:
        return
    raise AgreementError(
        f"[privacy.dp] promises epsilon {dp.epsilon:g} at delta {dp.delta:g}, and a run of {agreement.training.rounds} "
        f"rounds of {_num_steps(agreement, 0)} local_steps costs {found:g}; {_remedy(agreement, dp)}, or agree on "
        "fewer rounds or steps, or a smaller sampling_rate"
    )


def _remedy(agreement: Agreement, dp: DifferentialPrivacy) -> str:
    steps = agreement.training.rounds * _num_steps(agreement, 0)
    beside = (*_statistics(agreement, dp).mechanisms, *_evaluation(dp).mechanisms)
    try:
        enough = noise_multiplier_for(dp.epsilon, dp.delta, dp.sampling_rate, steps, beside, _steps_of(dp))
    except ValueError:
        return "statistics and evaluation alone cost more, so raise their noise multipliers"
    return f"set noise_multiplier = {enough:g}"


def _statistics(agreement: Agreement, dp: DifferentialPrivacy) -> PrivacyCost:
    if not noised_statistics.is_needed(agreement):
        return PrivacyCost((), "nothing: numbers are scaled by their domains, or there are none")
    return PrivacyCost((Gaussian(dp.statistics_noise_multiplier),), "statistics of columns")


def _training(agreement: Agreement, dp: DifferentialPrivacy, plan: int) -> PrivacyCost:
    steps = _steps_of(dp)(dp.noise_multiplier, dp.sampling_rate, _num_steps(agreement, plan))
    return PrivacyCost((steps,), f"{steps.num_steps} local steps")


def _steps_of(dp: DifferentialPrivacy) -> type[SampledGaussian]:
    return SampledDiscreteGaussian if dp.noise == "shared" else SampledGaussian


def _evaluation(dp: DifferentialPrivacy) -> PrivacyCost:
    if dp.evaluation_noise_multiplier is None:
        return PrivacyCost((), "nothing: histograms of scores are withheld")
    return PrivacyCost((Gaussian(dp.evaluation_noise_multiplier),), "a histogram of scores")


def _num_steps(agreement: Agreement, plan: int) -> int:
    # Policy refuses a plan that the agreement has not; the section, one without local_steps.
    steps = agreement.training.plans[plan].local_steps
    if steps is None:
        raise ValueError(f"plan {plan} has no local_steps")
    return steps


def _dp(agreement: Agreement) -> DifferentialPrivacy:
    if agreement.privacy.dp is None:
        raise ValueError("the agreement has no [privacy.dp]")
    return agreement.privacy.dp
