"""`[secure_aggregation]`: whether merchants' vectors are masked, against how many colluders, and what it refuses.

Under `double-masking` the coordinator learns sums over at least `smallest_sum` merchants of the roster
(secure_thresholds.py), or of a group of it, and no single merchant's vector. Without groups every sum is asked of the
whole roster, so that no two sums differ in whom they were asked of.

A sum is of whole numbers: how far a masked mean is off follows from the bounds that were agreed on (masking.py), so
these have to be near what updates and tables really are; the more so where an update goes in few bits
(short_updates.py).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from itertools import chain
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal, Self

from pydantic import Field, model_validator

from hansa_common.schema import Section
from hansa_common.secure_thresholds import MIN_MERCHANTS, Thresholds, secure_thresholds

if TYPE_CHECKING:
    # Which have this section in one of their own, or bring a library that few agreements need.
    from hansa_common.agreement import Agreement
    from hansa_common.agreement_sections import Cohort, Compression, Privacy, Training
    from hansa_common.masking import FixedPoint
    from hansa_common.robust_agreement import Robustness

# Two merchants in a sum know each other's part of it.
LEAST_IN_SUM: Final = 3
# Of a mean update, by coordinate, where merchants have so many training rows on average.
MAX_MEAN_ERROR: Final = 1e-4
ROWS_OF_ERROR: Final = 1000
# Of SCAFFOLD's mean variate where updates go in few bits, in steps that it makes of an update, by max_update_norm.
MAX_VARIATE_ERROR: Final = 0.25
_USUAL_NORM: Final = 10.0
# Of counts that are packed (packing.py).
_LARGEST_SUM: Final = 2**32 - 2


class SecureAggregation(Section):
    """How merchants' vectors are added up unseen. `threshold` is how many shares open a secret; None: the least of
    those that tolerate the most dropouts. `update_bits` is in how many bits at least an update goes; None: in 32.
    """

    protocol: Literal["none", "double-masking"] = "none"
    colluders: Annotated[int, Field(ge=0, le=10_000)] = 0
    threshold: Annotated[int, Field(ge=2, le=10_000)] | None = None
    update_bits: Annotated[int, Field(ge=2, le=8)] | None = None

    @model_validator(mode="after")
    def _limits_are_of_a_protocol(self) -> Self:
        if self.protocol == "none" and (self.colluders or self.threshold is not None):
            raise ValueError("colluders and threshold are for protocol = 'double-masking'; set it, or leave them out")
        if self.protocol == "none" and self.update_bits is not None:
            raise ValueError(
                f"update_bits {self.update_bits} is for protocol = 'double-masking', where updates are whole numbers; "
                "set it, or leave update_bits out"
            )
        return self

    @property
    def is_on(self) -> bool:
        """Whether vectors are masked."""
        return self.protocol != "none"


def thresholds(section: SecureAggregation, cohort: Cohort, roster: Sequence[str]) -> Thresholds:
    """What holds for every sum under these parts of an agreement.

    Raises:
        ValueError: they cannot hold together.
    """
    return secure_thresholds(len(roster), section.colluders, section.threshold, cohort.min_merchants)


def thresholds_of(agreement: Agreement) -> Thresholds:
    """What holds for every sum, or for that of the smallest group, under an agreement that has passed its checks.

    Where groups differ by one, a sum of the larger ones may become known of fewer: `smallest_sum_of` has the least.
    """
    smallest = agreement.roster[: len(agreement.roster) // (agreement.robustness.groups or 1)]
    return thresholds(agreement.secure_aggregation, agreement.cohort, smallest)


def smallest_sum_of(agreement: Agreement) -> int:
    """How many merchants are in any sum that can become known, of whichever group: not always the smallest one's."""
    section, num_groups = agreement.secure_aggregation, agreement.robustness.groups or 1
    num_merchants = len(agreement.roster)
    sizes = {num_merchants // num_groups, -(-num_merchants // num_groups)}
    limits = (thresholds(section, agreement.cohort, agreement.roster[:size]) for size in sizes)
    return min(limit.smallest_sum for limit in limits)


def honest_in_smallest_sum(agreement: Agreement) -> int:
    """How many merchants who do not collude are in any sum that can become known."""
    return smallest_sum_of(agreement) - agreement.secure_aggregation.colluders


def fixed_point_of(agreement: Agreement) -> FixedPoint:
    """How updates become whole numbers under an agreement that has passed its checks."""
    return _fixed_point(agreement.cohort, agreement.roster)


def most_in_sum(roster: Sequence[str], robustness: Robustness) -> int:
    """How many merchants the largest group has, or the roster without groups."""
    return -(-len(roster) // (robustness.groups or 1))


def identities_of(agreement: Agreement) -> Mapping[str, str]:
    """Whose keys for masked sums are believed, name -> public key: [trust]'s, or without it what names give."""
    from hansa_common.keys import public_key_of
    from hansa_common.secure_keys import development_identity

    if agreement.trust is not None:
        return agreement.trust.merchants
    return {name: public_key_of(development_identity(name)) for name in agreement.roster}


def mean_error(cohort: Cohort, roster: Sequence[str]) -> float:
    """By how much a coordinate of a masked mean update of the whole roster is off at most, where merchants have
    ROWS_OF_ERROR training rows on average.
    """
    return _fixed_point(cohort, roster).mean_error(len(roster), ROWS_OF_ERROR * len(roster))


def secure_words(agreement: Agreement) -> list[str]:
    """What the section means for this roster, one sentence a line; nothing where nothing is masked."""
    if not agreement.secure_aggregation.is_on:
        return []
    limits, groups = thresholds_of(agreement), agreement.robustness.groups
    of = "" if groups is None else f" of a group, {groups} of which are drawn anew for each sum"
    sums = (
        f"the coordinator sees sums over at least {smallest_sum_of(agreement)} of {limits.num_merchants} "
        f"merchants{of}, and no single merchant's vector, while no more than {limits.colluders} of them help it: "
        f"{limits.threshold} shares open a secret, and up to {limits.dropouts} may drop out of a sum"
    )
    return [sums, _rounding_words(agreement)]


def _rounding_words(agreement: Agreement) -> str:
    bits = agreement.secure_aggregation.update_bits
    if bits is None:
        error = mean_error(agreement.cohort, agreement.roster)
        off = f"at {ROWS_OF_ERROR:,} training rows a merchant, masking moves a mean update by {error:.1g} a coordinate"
        return f"{off} at most"
    num_merchants = most_in_sum(agreement.roster, agreement.robustness)
    per_element, error = _per_element(bits, num_merchants), _short_error(bits, num_merchants)
    return (
        f"an update goes in numbers of at least {bits} bits, {per_element} of them in 4 bytes, rounded by chance: that "
        f"moves a mean of {num_merchants} merchants by nothing on average, and by a deviation of at most {error:.2g} "
        "times max_update_norm where they have half of max_examples"
    )


def secure_json(agreement: Agreement) -> dict[str, Any]:
    """The part of a run's figures that tells what the coordinator could see: what was agreed on, and what follows."""
    agreed = agreement.secure_aggregation.model_dump(mode="json")
    if not agreement.secure_aggregation.is_on:
        return {"protocol": agreed["protocol"]}
    limits = thresholds_of(agreement)
    follows = {"threshold": limits.threshold, "least_in_sum": smallest_sum_of(agreement), "dropouts": limits.dropouts}
    bits = agreement.secure_aggregation.update_bits
    if bits is None:
        return {**agreed, **follows, "mean_error": mean_error(agreement.cohort, agreement.roster)}
    num_merchants = most_in_sum(agreement.roster, agreement.robustness)
    return {**agreed, **follows, "relative_error": _short_error(bits, num_merchants)}


def check_secure_aggregation_fits(
    section: SecureAggregation,
    cohort: Cohort,
    roster: Sequence[str],
    training: Training,
    privacy: Privacy,
    compression: Compression,
    robustness: Robustness,
) -> None:
    """Refuse what would tell of single merchants beside the sums, or cannot be summed.

    Raises:
        ValueError: with the first such thing.
    """
    if not section.is_on:
        return
    found = chain(
        _of_merchants(section, cohort, roster, robustness.groups or 1),
        _of_training(training, robustness),
        _of_releases(privacy, compression),
        _of_update_bits(section, cohort, most_in_sum(roster, robustness), training, privacy),
    )
    if problem := next(found, None):
        raise ValueError(f"[secure_aggregation] {problem}")


def _of_merchants(section: SecureAggregation, cohort: Cohort, roster: Sequence[str], num_groups: int) -> Iterator[str]:
    if len(roster) < MIN_MERCHANTS:
        yield f"needs a roster of {MIN_MERCHANTS} merchants at least, there are {len(roster)}; name them in roster"
        return
    if cohort.size is not None and cohort.size != len(roster):
        yield (
            f"refuses cohort.size {cohort.size} of {len(roster)} merchants: sums that differ in their merchants can be "
            "compared; leave size out"
        )
    if cohort.min_merchants < LEAST_IN_SUM:
        yield (
            f"needs cohort.min_merchants = {LEAST_IN_SUM} or more, it is {cohort.min_merchants}: in a sum of two each "
            "merchant finds the other's part"
        )
    smallest, largest = len(roster) // num_groups, -(-len(roster) // num_groups)
    for size in {smallest, largest}:
        try:
            thresholds(section, cohort, roster[:size])
        except ValueError as error:
            yield str(error)
    yield from _of_bounds(cohort, roster)


def _of_bounds(cohort: Cohort, roster: Sequence[str]) -> Iterator[str]:
    error = mean_error(cohort, roster)
    if error <= MAX_MEAN_ERROR:
        return
    norm = min(cohort.max_update_norm, _USUAL_NORM)
    most = int(cohort.max_examples * (cohort.max_update_norm / norm) * (MAX_MEAN_ERROR / error) * (1 - 1e-6))
    bounds = f"cohort.max_update_norm {cohort.max_update_norm:g} and max_examples {cohort.max_examples}"
    yield (
        f"rounds a mean by up to {error:.2g} a coordinate under {bounds}, allowed is {MAX_MEAN_ERROR:g}; agree on "
        f"max_update_norm = {norm:g} and on the largest merchant's training rows as max_examples, at most {most}"
    )


def _of_training(training: Training, robustness: Robustness) -> Iterator[str]:
    if any(plan.algorithm == "scaffold" and plan.local_steps is None for plan in training.plans):
        yield (
            "needs local_steps with algorithm 'scaffold': after other numbers of steps the variates need a second sum, "
            "and of two sums that are weighted otherwise single updates can be read; set local_steps"
        )
    if not robustness.is_mean and robustness.groups is None:
        yield (
            f"refuses robustness.rule {robustness.rule!r}, which looks at single updates; set robustness.groups, so "
            "that it looks at sums of groups, or rule = 'mean'"
        )


def _of_releases(privacy: Privacy, compression: Compression) -> Iterator[str]:
    if privacy.share_metrics:
        yield "refuses privacy.share_metrics: own figures would leave unmasked; set share_metrics = false"
    if compression.format != "none":
        yield (
            f"refuses compression.format {compression.format!r}: ranges and judgements leave merchant by merchant in "
            "this version; set format = 'none'"
        )


def _of_update_bits(
    section: SecureAggregation, cohort: Cohort, num_merchants: int, training: Training, privacy: Privacy
) -> Iterator[str]:
    if section.update_bits is None:
        return
    if any(plan.algorithm == "scaffold" for plan in training.plans):
        yield from _of_variates(section.update_bits, num_merchants, training.rounds)
    if privacy.dp is not None:
        yield (
            f"refuses update_bits {section.update_bits} under [privacy.dp]: noise is on every coordinate, and what few "
            "bits cut off and round of it nobody has accounted for; leave update_bits out"
        )
    if cohort.max_examples * num_merchants > _LARGEST_SUM:
        most = _LARGEST_SUM // num_merchants
        yield (
            f"packs counts of rows under update_bits, and {num_merchants} merchants of cohort.max_examples "
            f"{cohort.max_examples} have more than fit; agree on max_examples of at most {most}"
        )


def _of_variates(bits: int, num_merchants: int, num_rounds: int) -> Iterator[str]:
    """Of the mean variate, which is made of the sum alone and keeps what every round's mean was off."""
    allowed = [each for each in range(bits, 9) if _walked(each, num_merchants, num_rounds) <= MAX_VARIATE_ERROR]
    if bits in allowed:
        return
    more = f"agree on update_bits = {allowed[0]}, or another algorithm" if allowed else "agree on another algorithm"
    yield (
        f"refuses update_bits {bits} with algorithm 'scaffold', whose variate keeps what each round is rounded by: "
        f"in {num_rounds} rounds of {num_merchants} merchants {_walked(bits, num_merchants, num_rounds):.2g} times "
        f"max_update_norm, allowed is {MAX_VARIATE_ERROR:g}; {more}"
    )


def _walked(bits: int, num_merchants: int, num_rounds: int) -> float:
    """Errors that are independent add up by their squares."""
    return _short_error(bits, num_merchants) * math.sqrt(num_rounds)


def _per_element(bits: int, num_merchants: int) -> int:
    from hansa_common.packing import Packing
    from hansa_common.short_updates import top_level

    return Packing(1, 2 * top_level(bits, num_merchants), num_merchants).per_element


def _short_error(bits: int, num_merchants: int) -> float:
    from hansa_common.short_updates import relative_error, top_level

    return relative_error(top_level(bits, num_merchants), num_merchants, mean_share=0.5)


def _fixed_point(cohort: Cohort, roster: Sequence[str]) -> FixedPoint:
    from hansa_common.masking import FixedPoint

    return FixedPoint(cohort.max_update_norm, cohort.max_examples, len(roster))
