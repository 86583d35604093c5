"""What an agreement on masked sums refuses, in one line that says what to do; and what it means, in words."""

from __future__ import annotations

import pytest

from hansa_common.agreement import validate_agreement
from hansa_common.errors import AgreementError
from hansa_common.keys import public_key_of
from hansa_common.secure_agreement import (
    MAX_MEAN_ERROR,
    fixed_point_of,
    identities_of,
    secure_json,
    secure_words,
    smallest_sum_of,
    thresholds_of,
)
from hansa_common.secure_keys import development_identity
from hansa_common.short_updates import top_level

ROSTER = ("alder", "birch", "cedar", "dogwood")
COHORT = {"min_merchants": 3, "max_update_norm": 10, "max_examples": 100_000}
VALUES = {
    "task": "fraud",
    "label": {"column": "y"},
    "features": [{"kind": "boolean", "name": "gift"}],
    "roster": list(ROSTER),
    "cohort": COHORT,
    "secure_aggregation": {"protocol": "double-masking"},
}


def agreed(**changes):
    return validate_agreement({**VALUES, **changes}, "the test")


def section(**changes):
    return {"protocol": "double-masking", **changes}


def auto(**candidate):
    plans = [{"optimizer": "sgd", "local_steps": 5}, {"optimizer": "sgd", "algorithm": "scaffold", **candidate}]
    return {"algorithm": "auto", "rounds": 12, "candidates": plans}


PRIVATE = {
    "privacy": {
        "dp": {"epsilon": 90.0, "noise_multiplier": 0.5, "sampling_rate": 0.2, "statistics_noise_multiplier": 1.0}
    },
    "model": {"dropout": 0.0},
    "training": {"algorithm": "fedavg", "rounds": 2, "plan": {"optimizer": "sgd", "local_steps": 5}},
}
REFUSED = {
    "no roster": ({"roster": []}, ["a roster of 3 merchants at least, there are 0"]),
    "two merchants": ({"roster": list(ROSTER[:2]), "cohort": {**COHORT, "min_merchants": 2}}, ["there are 2"]),
    "a cohort drawn": ({"cohort": {**COHORT, "size": 3}}, ["cohort.size 3 of 4", "leave size out"]),
    "sums of two": ({"cohort": {**COHORT, "min_merchants": 2}}, ["cohort.min_merchants = 3 or more, it is 2"]),
    "threshold of half": ({"secure_aggregation": section(threshold=2)}, ["2 shares", "allowed are 3 to 4"]),
    "threshold of more": ({"secure_aggregation": section(threshold=5)}, ["5 shares", "allowed are 3 to 4"]),
    "colluders": ({"secure_aggregation": section(colluders=3)}, ["3 colluders among 4", "allowed are 0 to 2"]),
    "colluders beside a threshold": (
        {"secure_aggregation": section(colluders=2, threshold=3)},
        ["3 shares", "2 collude", "allowed are 4 to 4"],
    ),
    "bounds as they are by default": (
        {"cohort": {"min_merchants": 3}},
        ["max_update_norm 10000", "max_examples 1073741824", "max_update_norm = 10", "at most 10737407"],
    ),
    "scaffold in epochs": (
        {"training": {"algorithm": "scaffold", "plan": {"optimizer": "sgd"}}},
        ["local_steps with algorithm 'scaffold'", "two sums"],
    ),
    "scaffold in epochs among candidates": ({"training": auto(local_epochs=2)}, ["local_steps"]),
    "own figures": ({"privacy": {"share_metrics": True}}, ["share_metrics = false"]),
    "a small model": ({"compression": {"format": "int8"}}, ["format = 'none'"]),
    "colluders without a protocol": ({"secure_aggregation": {"colluders": 1}}, ["'double-masking'", "leave them out"]),
    "threshold without a protocol": ({"secure_aggregation": {"threshold": 3}}, ["'double-masking'"]),
    "few bits without a protocol": (
        {"secure_aggregation": {"update_bits": 8}},
        ["update_bits 8 is for protocol = 'double-masking'", "leave update_bits out"],
    ),
    "few bits under noise": (
        {"secure_aggregation": section(update_bits=4), **PRIVATE},
        ["refuses update_bits 4 under [privacy.dp]", "leave update_bits out"],
    ),
    "two bits with scaffold": (
        {"secure_aggregation": section(update_bits=2), "training": auto(local_steps=9)},
        ["update_bits 2 with algorithm 'scaffold'", "in 12 rounds of 4 merchants 5.2 times", "update_bits = 5, or"],
    ),
    "few bits with scaffold for long": (
        {"secure_aggregation": section(update_bits=8), "training": {**auto(local_steps=9), "rounds": 10_000}},
        ["update_bits 8 with algorithm 'scaffold'", "in 10000 rounds", "agree on another algorithm"],
    ),
    "counts that do not fit beside few bits": (
        {
            "secure_aggregation": section(update_bits=8),
            "cohort": {**COHORT, "max_update_norm": 1e-3, "max_examples": 2**30},
        },
        ["cohort.max_examples 1073741824", "max_examples of at most 1073741823"],
    ),
    "more bits than eight": (
        {"secure_aggregation": section(update_bits=9)},
        ["update_bits", "less than or equal to 8"],
    ),
    "a single bit": ({"secure_aggregation": section(update_bits=1)}, ["update_bits", "greater than or equal to 2"]),
}


@pytest.mark.parametrize("how", REFUSED)
def test_what_cannot_go_together_is_refused_in_one_line(how):
    changes, told = REFUSED[how]
    with pytest.raises(AgreementError) as refused:
        agreed(**changes)
    _, *lines = str(refused.value).splitlines()
    assert len(lines) == 1
    assert not lines[0].endswith("...")
    assert all(words in lines[0] for words in told), lines[0]


def test_bounds_that_a_refusal_tells_are_taken():
    agreement = agreed(cohort={"min_merchants": 3, "max_update_norm": 10, "max_examples": 10_737_407})
    fixed = fixed_point_of(agreement)
    assert 0.99 * MAX_MEAN_ERROR < fixed.mean_error(4, 4000) <= MAX_MEAN_ERROR
    with pytest.raises(AgreementError, match="at most"):
        agreed(cohort={"min_merchants": 3, "max_update_norm": 10, "max_examples": 10_840_000})


def test_scaffold_with_the_same_steps_for_everyone_is_taken():
    agreed(training={"algorithm": "scaffold", "plan": {"optimizer": "sgd", "local_steps": 40}})
    agreed(training=auto(local_steps=9))


@pytest.mark.parametrize(
    ("num_merchants", "colluders", "expected"),
    [(3, 0, (3, 2, 0)), (3, 1, (3, 3, 0)), (4, 0, (3, 3, 1)), (10, 0, (5, 6, 3)), (10, 3, (7, 7, 2))],
)
def test_words_tell_the_threshold_who_may_drop_out_and_who_may_collude(num_merchants, colluders, expected):
    roster = [f"merchant {place}" for place in range(num_merchants)]
    agreement = agreed(roster=roster, secure_aggregation=section(colluders=colluders))
    least, threshold, dropouts = expected
    limits = thresholds_of(agreement)
    assert (limits.smallest_sum, limits.threshold, limits.dropouts) == expected
    told = secure_words(agreement)[0]
    for words in (
        f"at least {least} of {num_merchants} merchants",
        f"no more than {colluders} of them help",
        f"{threshold} shares open a secret",
        f"up to {dropouts} may drop out",
    ):
        assert words in told


def test_smallest_sum_is_of_whichever_group_it_is_smaller_in():
    grouped = {"robustness": {"rule": "median", "num_dishonest": 1, "groups": 3}}
    agreement = agreed(roster=[f"merchant {place}" for place in range(25)], **grouped)
    sums = [thresholds_of(agreed(roster=[f"m{place}" for place in range(size)])).smallest_sum for size in (8, 9)]
    assert sums == [5, 4]
    assert (smallest_sum_of(agreement), secure_json(agreement)["least_in_sum"]) == (4, 4)
    assert "at least 4 of 8 merchants of a group" in secure_words(agreement)[0]


def test_words_tell_the_fixed_points_error_and_nothing_where_nothing_is_masked():
    assert "by 9e-07 a coordinate" in secure_words(agreed())[1]
    assert secure_words(agreed(secure_aggregation={})) == []


@pytest.mark.parametrize(("algorithm", "bits"), [("fedavg", 2), ("scaffold", 7), ("fedadam", 2), ("fedprox", 2)])
def test_few_bits_go_with_every_algorithm(algorithm, bits):
    plan = {"optimizer": "sgd", "local_steps": 40}
    agreed(training={"algorithm": algorithm, "rounds": 30, "plan": plan}, secure_aggregation=section(update_bits=bits))


def test_noise_without_few_bits_is_taken():
    agreed(secure_aggregation=section(), **PRIVATE)


@pytest.mark.parametrize(
    ("bits", "num_merchants", "groups", "most_in_sum", "told"),
    [
        (8, 4, None, 4, ["at least 8 bits, 3 of them in 4 bytes", "at most 0.0074 times max_update_norm"]),
        (4, 10, None, 10, ["at least 4 bits, 4 of them in 4 bytes", "at most 0.079 times max_update_norm"]),
        (8, 17, 3, 6, ["at least 8 bits, 3 of them in 4 bytes"]),
    ],
)
def test_words_tell_what_few_bits_save_and_by_how_much_they_move_a_mean(bits, num_merchants, groups, most_in_sum, told):
    robust = {} if groups is None else {"robustness": {"rule": "median", "num_dishonest": 1, "groups": groups}}
    agreement = agreed(
        roster=[f"merchant {place}" for place in range(num_merchants)],
        training={"algorithm": "fedavg"},
        secure_aggregation=section(update_bits=bits),
        **robust,
    )
    words = secure_words(agreement)[-1]
    assert all(each in words for each in (*told, f"a mean of {most_in_sum} merchants")), words
    figures = secure_json(agreement)
    assert figures["update_bits"] == bits
    assert figures["relative_error"] == pytest.approx(3 / top_level(bits, most_in_sum) / most_in_sum**0.5)


def test_keys_are_those_of_trust_or_such_as_everyone_can_derive_from_a_name():
    agreement = agreed()
    assert identities_of(agreement) == {name: public_key_of(development_identity(name)) for name in ROSTER}
    assert len(set(identities_of(agreement).values())) == len(ROSTER)
    keys = {name: f"{place:02x}" * 32 for place, name in enumerate(ROSTER)}
    trusted = agreed(trust={"coordinator": "c0" * 32, "merchants": keys})
    assert dict(identities_of(trusted)) == keys
