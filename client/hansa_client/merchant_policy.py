"""What one merchant permits beyond the agreement: its own merchant.toml, asked for every order.

Every key is optional, and what is left out is as the agreement says. A key makes nothing stricter in silence: an order
that asks for more is refused, saying what it asks and what is allowed.

key                           refuses
max_rounds                    a round with a higher number, in every stage
max_local_epochs              a round under a plan with more local epochs, or with steps unless max_local_steps is set
max_local_steps               a round under a plan with more local steps
min_cohort                    a round with fewer merchants, or whose masked sum can be of fewer
secure_aggregation_required   whatever would leave in the clear: statistics, updates, and histograms of scores
own_noise_required            every round whose noise is shared: it rests on the other merchants
min_count                     whatever counts rows, where the agreement releases lower counts
min_positives                 whatever is scored, where the agreement releases histograms of fewer positives
max_update_norm               to send an update of a larger L2 norm; and every masked round whose agreement lets them be
                              larger, for a masked update cannot be looked at
allowed_hours                 everything outside these hours of this machine's clock, "22:00-06:00"
max_epsilon, delta            whatever would bring the epsilon at this delta of all orders in the ledger (ledger.py)
                              above this, whichever run, agreement and coordinator they were for; and, under an
                              agreement without [privacy.dp], whatever is about rows: nothing bounds what that costs
paused                        everything

The file is read anew for each order: a merchant that pauses does so at once. What the agreement itself allows is
policy.py's, which agreements are approved approvals.py's.
"""

from __future__ import annotations

import re
import tomllib
from datetime import time
from pathlib import Path
from typing import Annotated, Any, Final, Self

from pydantic import Field, ValidationError, field_validator, model_validator

from hansa_client.ledger_account import Limit
from hansa_common.agreement import Agreement
from hansa_common.agreement_sections import Plan
from hansa_common.errors import NotNowError, PolicyError, UsageError
from hansa_common.messages import CandidateOrder, EvaluateOrder, RangesOrder, RoundOrder, RoundReply, StatisticsOrder
from hansa_common.privacy import epsilon
from hansa_common.privacy_costs import run_cost
from hansa_common.record_types import Order, Reply
from hansa_common.schema import Section
from hansa_common.secure_agreement import smallest_sum_of
from hansa_common.secure_messages import is_masked
from hansa_common.shared_noise import is_shared
from hansa_common.vectors import l2_norm

POLICY_NAME: Final = "merchant.toml"
MAX_POLICY_BYTES: Final = 1 << 16
_ABOUT_ROWS: Final = (StatisticsOrder, RoundOrder, EvaluateOrder, RangesOrder, CandidateOrder)
_HOURS: Final = re.compile(r"([01]\d|2[0-3]):([0-5]\d)-([01]\d|2[0-3]):([0-5]\d)")

Floor = Annotated[int, Field(ge=1, le=10_000)]


class MerchantPolicy(Section):
    """The keys of merchant.toml; see the module."""

    max_rounds: Annotated[int, Field(ge=0)] | None = None
    max_local_epochs: Annotated[int, Field(ge=0)] | None = None
    max_local_steps: Annotated[int, Field(ge=0)] | None = None
    min_cohort: Annotated[int, Field(ge=1)] | None = None
    secure_aggregation_required: bool = False
    own_noise_required: bool = False
    min_count: Floor | None = None
    min_positives: Floor | None = None
    max_update_norm: Annotated[float, Field(gt=0)] | None = None
    allowed_hours: str | None = None
    max_epsilon: Annotated[float, Field(gt=0, le=1e4)] | None = None
    delta: Annotated[float, Field(gt=0, lt=1)] | None = None
    paused: bool = False

    @field_validator("allowed_hours")
    @classmethod
    def _are_hours(cls, value: str | None) -> str | None:
        if value is not None:
            begin, end = _hours(value)
            if begin == end:
                raise ValueError(f"{value} begins where it ends; leave allowed_hours out to allow all hours")
        return value

    @model_validator(mode="after")
    def _epsilon_is_at_a_delta(self) -> Self:
        if (self.max_epsilon is None) != (self.delta is None):
            raise ValueError("max_epsilon and delta belong together: an epsilon is one at a delta; give both")
        return self

    @property
    def limit(self) -> Limit | None:
        """What all orders together may cost; None where only their agreements say."""
        if self.max_epsilon is None or self.delta is None:
            return None
        return Limit(self.max_epsilon, self.delta, f"{POLICY_NAME} has max_epsilon = {_toml(self.max_epsilon)}")

    def verify(self, order: Order, agreement: Agreement, now: time) -> None:
        """Permit an order that the agreement permits, at this time of the merchant's clock.

        Raises:
            NotNowError: it is paused, or outside the allowed hours.
            PolicyError: it asks for more than this merchant allows.
        """
        self._verify_time(now)
        if self.limit is not None and agreement.privacy.dp is None and order.RELEASE != "nothing":
            asked = "what has no noise, and so no epsilon:"
            raise PolicyError(_refusal(asked, order.KIND, "max_epsilon", self.max_epsilon))
        if self.secure_aggregation_required and not is_masked(order) and isinstance(order, _ABOUT_ROWS):
            raise PolicyError(
                f"the order asks for what leaves in the clear ({order.KIND!r}), {POLICY_NAME} has "
                "secure_aggregation_required = true"
            )
        if isinstance(order, StatisticsOrder | RangesOrder):
            self._verify_floor("min_count", agreement.privacy.min_count, self.min_count)
        if isinstance(order, RoundOrder | EvaluateOrder | CandidateOrder):
            self._verify_floor("min_positives", agreement.privacy.min_positives, self.min_positives)
        if isinstance(order, RoundOrder):
            self._verify_round(order, agreement)

    def verify_reply(self, reply: Reply) -> None:
        """Let a reply go that this merchant has computed.

        Raises:
            PolicyError: it holds an update that is longer than this merchant allows.
        """
        if not isinstance(reply, RoundReply) or self.max_update_norm is None:
            return
        norm, most = l2_norm(reply.update), self.max_update_norm
        if norm > most:
            raise PolicyError(f"the update has norm {norm:.6g}, {POLICY_NAME} has max_update_norm = {most}")

    def conflicts(self, agreement: Agreement) -> list[str]:
        """What of this agreement would be refused sooner or later, one line each; nothing where all fits."""
        plans, privacy = agreement.training.plans, agreement.privacy
        last_round = agreement.training.rounds
        if agreement.compression.sparsity:
            last_round += agreement.compression.pruning_rounds
        work = [beyond for plan in plans if (beyond := self._work_beyond(plan))][:1]
        least = _smallest_sum(agreement) or agreement.cohort.min_merchants
        found = [
            (self._exceeds(self.max_rounds, last_round), "max_rounds", f"rounds up to {last_round}"),
            *((True, key, f"{number} {unit}") for unit, number, key in work),
            (self._exceeds(least, self.min_cohort), "min_cohort", f"cohorts of {least}"),
            (
                self.secure_aggregation_required and not agreement.secure_aggregation.is_on,
                "secure_aggregation_required",
                "updates in the clear",
            ),
            (self.own_noise_required and is_shared(agreement), "own_noise_required", "noise that merchants share"),
            (self._is_masked_too_long(agreement), "max_update_norm", f"masked updates {_up_to(agreement)}"),
            (self._exceeds(privacy.min_count, self.min_count), "min_count", f"counts from {privacy.min_count} on"),
            (
                self._exceeds(privacy.min_positives, self.min_positives),
                "min_positives",
                f"histograms from {privacy.min_positives} positives on",
            ),
        ]
        if self.limit is not None:
            found.append(_over_budget(agreement, self.limit))
        return [
            f"the agreement asks for {asked}, {POLICY_NAME} has {key} = {_toml(getattr(self, key))}"
            for is_refused, key, asked in found
            if is_refused
        ]

    @staticmethod
    def _exceeds(most: int | None, asked: int | None) -> bool:
        return most is not None and asked is not None and asked > most

    def _verify_time(self, now: time) -> None:
        if self.paused:
            raise NotNowError(f"the order comes while this merchant is paused; {POLICY_NAME} has paused = true")
        if self.allowed_hours is not None and not _is_within(now, *_hours(self.allowed_hours)):
            raise NotNowError(
                f"the order comes at {now:%H:%M}, {POLICY_NAME} has allowed_hours = {_toml(self.allowed_hours)}"
            )

    def _verify_round(self, order: RoundOrder, agreement: Agreement) -> None:
        if self.own_noise_required and is_shared(agreement):
            raise PolicyError(
                _refusal("a round whose noise is", "shared", "own_noise_required", self.own_noise_required)
            )
        if self._is_masked_too_long(agreement):
            raise PolicyError(
                _refusal("a masked update of a norm", _up_to(agreement), "max_update_norm", self.max_update_norm)
            )
        if self._exceeds(self.max_rounds, order.round):
            raise PolicyError(_refusal("round", order.round, "max_rounds", self.max_rounds))
        if beyond := self._work_beyond(agreement.training.plans[order.plan]):
            unit, number, key = beyond
            raise PolicyError(_refusal(f"{unit}:", number, key, getattr(self, key)))
        # Of a masked round the cohort is the roster, and what becomes known a sum over a part of it.
        together = _smallest_sum(agreement) or len(order.cohort)
        if self._exceeds(together, self.min_cohort):
            raise PolicyError(_refusal("a cohort of", together, "min_cohort", self.min_cohort))

    def _work_beyond(self, plan: Plan) -> tuple[str, int, str] | None:
        """What a plan asks for beyond what this merchant allows: the unit, how many, and the key that says so."""
        if plan.local_steps is None:
            refused = self._exceeds(self.max_local_epochs, plan.local_epochs)
            return ("local epochs", plan.local_epochs, "max_local_epochs") if refused else None
        # How many epochs the steps are, only the table would tell: an owner who limits work has to say it in steps.
        key = "max_local_epochs" if self.max_local_steps is None else "max_local_steps"
        refused = getattr(self, key) is not None and (self.max_local_steps or 0) < plan.local_steps
        return ("local steps", plan.local_steps, key) if refused else None

    def _is_masked_too_long(self, agreement: Agreement) -> bool:
        most = self.max_update_norm
        return most is not None and agreement.secure_aggregation.is_on and agreement.cohort.max_update_norm > most

    def _verify_floor(self, key: str, agreed: int, own: int | None) -> None:
        if self._exceeds(agreed, own):
            raise PolicyError(_refusal(f"what is released from {key}", agreed, key, own))


class PolicyFile:
    """merchant.toml on disk. One that is not there allows what the agreement allows; one that goes while it is in use
    allows nothing.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._was_there = False

    def current(self) -> MerchantPolicy:
        """The policy as it stands now.

        Raises:
            UsageError: the file cannot be read or does not hold, or is gone since it was last read.
        """
        try:
            with self.path.open("rb") as file:
                content = file.read(MAX_POLICY_BYTES + 1)
        except FileNotFoundError:
            if self._was_there:
                raise UsageError(f"{self.path} is gone, and what it allowed with it; put it back") from None
            return MerchantPolicy()
        except OSError as error:
            raise UsageError(f"{self.path} cannot be read: {error.strerror}") from error
        self._was_there = True
        if len(content) > MAX_POLICY_BYTES:
            raise UsageError(f"{self.path} has more than {MAX_POLICY_BYTES} bytes, which is no merchant's policy")
        return parse_policy(content, str(self.path))


def parse_policy(content: bytes, source: str) -> MerchantPolicy:
    """Read TOML into a policy.

    Raises:
        UsageError: not TOML, or a key is unknown, or a value is out of bounds.
    """
    try:
        values = tomllib.loads(content.decode())
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{source} is not TOML: {error}") from error
    try:
        return MerchantPolicy.model_validate(values, strict=True)
    except ValidationError as error:
        problems = [_problem(dict(problem)) for problem in error.errors(include_url=False)]
        raise UsageError(f"{source} does not hold: {'; '.join(problems)}") from None


def _problem(error: dict[str, Any]) -> str:
    message = str(error["msg"]).removeprefix("Value error, ")
    place = ".".join(map(str, error["loc"]))
    return f"{place}: {message}" if place else message


def _hours(text: str) -> tuple[time, time]:
    """Begin and end of the allowed hours.

    >>> _hours("22:00-06:00")
    (datetime.time(22, 0), datetime.time(6, 0))
    """
    found = _HOURS.fullmatch(text)
    if found is None:
        raise ValueError(f'{text!r} is no time of day; hours look like "22:00-06:00"')
    begin_hour, begin_minute, end_hour, end_minute = map(int, found.groups())
    return time(begin_hour, begin_minute), time(end_hour, end_minute)


def _is_within(now: time, begin: time, end: time) -> bool:
    """Whether a time is in [begin, end), which may go over midnight.

    >>> [_is_within(time(hour), time(22), time(6)) for hour in (21, 22, 0, 5, 6)]
    [False, True, True, True, False]
    """
    return begin <= now < end if begin < end else now >= begin or now < end


def _smallest_sum(agreement: Agreement) -> int | None:
    """Of how many merchants a masked sum is at least; None where nothing is masked."""
    return smallest_sum_of(agreement) if agreement.secure_aggregation.is_on else None


def _up_to(agreement: Agreement) -> str:
    return f"up to {agreement.cohort.max_update_norm:g}"


def _over_budget(agreement: Agreement, limit: Limit) -> tuple[bool, str, str]:
    """Whether a run under this agreement would be refused from its beginning, or before its end, and in which words."""
    if agreement.privacy.dp is None:
        return True, "max_epsilon", "what has no noise, and so no epsilon"
    cost = epsilon(run_cost(agreement).mechanisms, limit.delta)
    return cost > limit.epsilon, "max_epsilon", f"epsilon {cost:g} at delta {limit.delta:g} in a run"


def _refusal(what: str, asked: object, key: str, allowed: object) -> str:
    return f"the order asks for {what} {asked}, {POLICY_NAME} has {key} = {_toml(allowed)}"


def _toml(value: object) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return f'"{value}"' if isinstance(value, str) else f"{value}"
