"""`[robustness]`: what holds is agreed on, and each combination under which a rule would promise nothing is refused
with its reason and what to do."""

from __future__ import annotations

import pytest

from hansa_common.agreement import validate_agreement
from hansa_common.agreement_sections import Cohort
from hansa_common.errors import AgreementError
from hansa_common.robust_agreement import Robustness, least_replies

ROSTER = [f"shop {i}" for i in range(25)]


def agreement(num_merchants=5, robustness=None, training=None, cohort=None):
    values = {
        "task": "fraud",
        "label": {"column": "fraud"},
        "features": [{"kind": "boolean", "name": "gift"}],
        "robustness": robustness or {},
        "cohort": cohort or {},
        "roster": ROSTER[:num_merchants],
    }
    return validate_agreement({**values, "training": training or {}}, "the test")


MEDIAN = {"rule": "median", "num_dishonest": 1}
AUTO = {"algorithm": "auto", "candidates": [{"learning_rate": 0.1}, {"learning_rate": 0.2}]}
REFUSED = {
    "a mean against somebody": (5, {"num_dishonest": 1}, {}, ["'mean' withstands nobody"]),
    "a mean of groups": (9, {"groups": 3}, {}, ["groups are for a rule"]),
    "a rule against nobody": (5, {"rule": "median"}, {}, ["num_dishonest = 0", "costs accuracy"]),
    "a length for a median": (5, {**MEDIAN, "max_norm": 1.0}, {}, ["max_norm is for rule 'clipped-mean'"]),
    "a median of two": (2, MEDIAN, {}, ["1 dishonest of 2 merchants", "2 f < n"]),
    "a trimmed mean of nothing": (
        5, {"rule": "trimmed-mean", "num_dishonest": 3}, {},
        ["3 dishonest of 5", "nothing is left", "at most 2"],
    ),
    "Krum of four": (4, {"rule": "krum", "num_dishonest": 1}, {}, ["2 f + 2 < n", "take another rule"]),
    "Krum of six against two": (6, {"rule": "krum", "num_dishonest": 2}, {}, ["2 f + 2 < n", "at most 1"]),
    "a small cohort of many": (
        25, {"rule": "krum", "num_dishonest": 1}, {"cohort": {"size": 4}}, ["of 4 merchants in a round"]
    ),
    "whoever comes": (0, MEDIAN, {}, ["needs a roster", "many names"]),
    "variates": (
        5, MEDIAN, {"training": {"algorithm": "scaffold", "plan": {"optimizer": "sgd"}}},
        ["'scaffold'", "steer everyone's training"],
    ),
    "plans on trial": (5, MEDIAN, {"training": AUTO}, ["algorithm = 'auto'", "one plan"]),
    "a length that cuts nothing": (
        5, {"rule": "clipped-mean", "num_dishonest": 1, "max_norm": 10}, {"cohort": {"max_update_norm": 10}},
        ["max_norm 10 cuts nothing"],
    ),
    "groups of one": (5, {**MEDIAN, "groups": 5}, {}, ["leave 1 in a group", "fewer groups"]),
    "groups below the least cohort": (
        25, {**MEDIAN, "groups": 5}, {"cohort": {"min_merchants": 6}}, ["leave 5 in a group", "at least 6"]
    ),
    "groups too few for the rule": (
        25, {"rule": "median", "num_dishonest": 3, "groups": 5}, {}, ["3 dishonest of 5 groups"]
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_combination_that_promises_nothing_is_refused_with_its_reason(case):
    num_merchants, robustness, others, told = REFUSED[case]
    with pytest.raises(AgreementError) as refused:
        agreement(num_merchants, robustness, **others)
    problem = str(refused.value).splitlines()
    assert len(problem) == 2, problem
    assert all(words in problem[1] for words in told), problem[1]


HELD = {
    "a median of three": (3, MEDIAN),
    "a trimmed mean of five against two": (5, {"rule": "trimmed-mean", "num_dishonest": 2}),
    "Krum of five": (5, {"rule": "krum", "num_dishonest": 1}),
    "lengths cut to the median one": (5, {"rule": "clipped-mean", "num_dishonest": 2}),
    "lengths cut to a given one": (5, {"rule": "clipped-mean", "num_dishonest": 2, "max_norm": 0.5}),
    "five groups of five": (25, {"rule": "geometric-median", "num_dishonest": 2, "groups": 5}),
}


@pytest.mark.parametrize("case", HELD)
def test_combination_that_holds_is_agreed_on_and_has_a_fingerprint_of_its_own(case):
    num_merchants, robustness = HELD[case]
    plain, robust = agreement(num_merchants), agreement(num_merchants, robustness)
    assert plain.robustness.is_mean
    assert plain.chooses_by_validation
    assert not robust.chooses_by_validation
    assert robust.fingerprint != plain.fingerprint
    assert validate_agreement(robust.model_dump(mode="json"), "again") == robust


@pytest.mark.parametrize(
    ("robustness", "min_merchants", "least"),
    [
        ({}, 2, 2),
        (MEDIAN, 2, 3),
        (MEDIAN, 4, 4),
        ({"rule": "krum", "num_dishonest": 2}, 2, 7),
        ({"rule": "multi-krum", "num_dishonest": 1}, 2, 5),
        ({**MEDIAN, "groups": 5}, 4, 12),
    ],
)
def test_round_needs_as_many_replies_as_the_rule_and_the_least_cohort_ask(robustness, min_merchants, least):
    assert least_replies(Robustness(**robustness), Cohort(min_merchants=min_merchants)) == least
