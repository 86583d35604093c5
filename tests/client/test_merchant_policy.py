"""Each key of merchant.toml holds orders to it: at the bound they pass, beyond it they are refused, and both told."""

from __future__ import annotations

from datetime import time

import numpy as np
import pytest

from hansa_client.merchant_policy import MAX_POLICY_BYTES, MerchantPolicy, PolicyFile, parse_policy
from hansa_common.agreement import Agreement, validate_agreement
from hansa_common.errors import NotNowError, PolicyError, UsageError
from hansa_common.messages import (
    CandidateOrder,
    EvaluateOrder,
    IntroduceOrder,
    RangesOrder,
    RoundOrder,
    RoundReply,
    StatisticsOrder,
)
from hansa_common.record_types import Order
from hansa_common.secure_messages import Masking

NOON = time(12)
FLOATS, OCTETS = np.zeros(0, np.float32), np.zeros(0, np.uint8)
SCORED = {"split": "test", "preprocessing": "", "weights": FLOATS}
FIELDS = {
    IntroduceOrder: {"sequence": 0},
    StatisticsOrder: {},
    RoundOrder: {
        "round": 20, "plan": 1, "cohort": ("a", "b", "c"), "preprocessing": "", "weights": FLOATS, "control": FLOATS,
        "included": "",
    },
    EvaluateOrder: SCORED,
    RangesOrder: {"preprocessing": "", "weights": FLOATS},
    CandidateOrder: {**SCORED, "network": OCTETS},
}  # fmt: skip
COUNTING, SCORING = {StatisticsOrder, RangesOrder}, {RoundOrder, EvaluateOrder, CandidateOrder}


def agreement(**changes) -> Agreement:
    plan = {"optimizer": "sgd"}
    values = {
        "task": "fraud",
        "label": {"column": "fraud"},
        "features": [{"kind": "numeric", "name": "amount", "low": 0, "high": 1}],
        "training": {
            "algorithm": "auto",
            "rounds": 20,
            "candidates": [
                {"algorithm": "fedavg", **plan, "local_epochs": 1},
                {"algorithm": "scaffold", **plan, "local_epochs": 4},
            ],
        },
        "cohort": {"min_merchants": 3},
        "privacy": {"min_count": 5, "min_positives": 7},
    }
    return validate_agreement({**values, **changes}, "the test")


AGREED = agreement()


def order(kind: type[Order], **changes) -> Order:
    header = {"run_id": "r", "sequence": 1, "recipient": "a", "fingerprint": "0" * 64, "deadline_seconds": 5}
    return kind.model_validate({**header, **FIELDS[kind], **changes})


def refused_kinds(toml: str, now: time = NOON) -> set[type[Order]]:
    """Which kinds of order a policy refuses; every refusal says asked and allowed."""
    policy, refused = parse_policy(toml.encode(), "the test"), {}
    for kind in FIELDS:
        try:
            policy.verify(order(kind), AGREED, now)
        except PolicyError as error:
            refused[kind] = str(error)
    assert all(text.startswith("the order ") and f"merchant.toml has {toml}" in text for text in refused.values())
    return set(refused)


def test_no_policy_allows_what_the_agreement_allows():
    assert refused_kinds("") == set()


@pytest.mark.parametrize(("bound", "refused"), [(20, set()), (19, {RoundOrder}), (0, {RoundOrder})])
def test_max_rounds_is_the_last_round_in_every_stage(bound, refused):
    assert refused_kinds(f"max_rounds = {bound}") == refused
    policy = MerchantPolicy(max_rounds=19)
    for stage in ("train", "prune", "control"):
        policy.verify(order(RoundOrder, round=19, stage=stage), AGREED, NOON)
        with pytest.raises(PolicyError, match="round 20"):
            policy.verify(order(RoundOrder, round=20, stage=stage), AGREED, NOON)


@pytest.mark.parametrize(("bound", "refused"), [(4, set()), (3, {RoundOrder})])
def test_max_local_epochs_is_of_the_plan_that_the_order_names(bound, refused):
    assert refused_kinds(f"max_local_epochs = {bound}") == refused
    MerchantPolicy(max_local_epochs=1).verify(order(RoundOrder, plan=0), AGREED, NOON)


@pytest.mark.parametrize(
    ("toml", "refused"),
    [
        ("", None),
        ("max_local_steps = 40", None),
        ("max_local_steps = 39", "max_local_steps = 39"),
        ("max_local_epochs = 9", "max_local_epochs = 9"),
        ("max_local_epochs = 1\nmax_local_steps = 40", None),
    ],
)
def test_plan_in_steps_is_refused_beyond_max_local_steps_and_wherever_epochs_alone_are_limited(toml, refused):
    counted = agreement(training={"plan": {"optimizer": "sgd", "local_steps": 40}})
    policy = parse_policy(toml.encode(), "it")
    told = policy.conflicts(counted)
    if refused is None:
        policy.verify(order(RoundOrder, plan=0), counted, NOON)
        assert told == []
    else:
        with pytest.raises(PolicyError, match=f"local steps: 40.*{refused}"):
            policy.verify(order(RoundOrder, plan=0), counted, NOON)
        assert told == [f"the agreement asks for 40 local steps, merchant.toml has {refused}"]


@pytest.mark.parametrize(("bound", "refused"), [(3, set()), (4, {RoundOrder})])
def test_min_cohort_is_of_the_cohort_that_the_order_names(bound, refused):
    assert refused_kinds(f"min_cohort = {bound}") == refused


MASKED = {
    "roster": ["a", "b", "c"], "secure_aggregation": {"protocol": "double-masking"},
    "cohort": {"min_merchants": 3, "max_update_norm": 10, "max_examples": 10_000},
    "training": {"algorithm": "fedavg", "plan": {"optimizer": "sgd"}},
}  # fmt: skip


def test_secure_aggregation_required_refuses_whatever_leaves_in_the_clear_and_nothing_that_is_masked():
    in_the_clear = {StatisticsOrder, RoundOrder, EvaluateOrder, RangesOrder, CandidateOrder}
    assert refused_kinds("secure_aggregation_required = true") == in_the_clear
    assert refused_kinds("secure_aggregation_required = false") == set()
    policy, masked = MerchantPolicy(secure_aggregation_required=True), agreement(**MASKED)
    assert policy.conflicts(masked) == []
    for kind in (StatisticsOrder, RoundOrder, EvaluateOrder):
        changes = {"plan": 0} if kind is RoundOrder else {}
        policy.verify(order(kind, masking=Masking(sum=1, next_sum=2), **changes), masked, NOON)


def test_min_cohort_of_a_masked_round_is_of_the_smallest_sum_that_can_come_of_it():
    roster = [*"abcdefgh"]
    masked = agreement(**{**MASKED, "roster": roster})
    asked = order(RoundOrder, plan=0, cohort=tuple(roster), masking=Masking(sum=1, next_sum=2))
    MerchantPolicy(min_cohort=5).verify(asked, masked, NOON)
    with pytest.raises(PolicyError, match=r"a cohort of 5, merchant\.toml has min_cohort = 6"):
        MerchantPolicy(min_cohort=6).verify(asked, masked, NOON)
    assert MerchantPolicy(min_cohort=6).conflicts(masked) == [
        "the agreement asks for cohorts of 5, merchant.toml has min_cohort = 6"
    ]


def test_own_bound_of_updates_refuses_masked_rounds_whose_updates_may_be_longer():
    masked, asked = agreement(**MASKED), order(RoundOrder, plan=0, masking=Masking(sum=1, next_sum=2))
    MerchantPolicy(max_update_norm=10).verify(asked, masked, NOON)
    policy = MerchantPolicy(max_update_norm=9.5)
    with pytest.raises(PolicyError, match=r"masked update of a norm up to 10, merchant\.toml has max_update_norm = 9"):
        policy.verify(asked, masked, NOON)
    assert policy.conflicts(masked) == [
        "the agreement asks for masked updates up to 10, merchant.toml has max_update_norm = 9.5"
    ]


@pytest.mark.parametrize(("bound", "refused"), [(5, set()), (6, COUNTING)])
def test_min_count_refuses_whatever_counts_where_the_agreement_releases_lower_counts(bound, refused):
    assert refused_kinds(f"min_count = {bound}") == refused


@pytest.mark.parametrize(("bound", "refused"), [(7, set()), (8, SCORING)])
def test_min_positives_refuses_whatever_scores_where_the_agreement_releases_lower_ones(bound, refused):
    assert refused_kinds(f"min_positives = {bound}") == refused


@pytest.mark.parametrize(("bound", "is_sent"), [(5.0, True), (4.99, False)])
def test_max_update_norm_holds_back_a_longer_update_alone(bound, is_sent):
    policy = MerchantPolicy(max_update_norm=bound)
    reply = RoundReply(
        merchant="a", order_hash="0" * 64, round=1, num_examples=9, update=np.array([3, -4], np.float32),
        control_delta=FLOATS, validation=np.zeros(0, np.int64), train_loss=0.1,
    )  # fmt: skip
    if is_sent:
        policy.verify_reply(reply)
    else:
        with pytest.raises(PolicyError, match=r"update has norm 5, merchant\.toml has max_update_norm = 4\.99"):
            policy.verify_reply(reply)
    policy.verify_reply(reply.model_copy(update={"update": FLOATS}))


@pytest.mark.parametrize(
    ("hours", "allowed", "refused"),
    [
        ("22:00-06:00", ["22:00", "23:59", "00:00", "05:59"], ["06:00", "12:00", "21:59"]),
        ("08:30-17:00", ["08:30", "16:59"], ["08:29", "17:00", "00:00"]),
        ("00:00-12:00", ["00:00", "11:59"], ["12:00", "23:59"]),
    ],
)
def test_allowed_hours_are_the_merchants_own_and_may_go_over_midnight(hours, allowed, refused):
    toml = f'allowed_hours = "{hours}"'
    for now in allowed:
        assert refused_kinds(toml, time.fromisoformat(now)) == set()
    for now in refused:
        assert refused_kinds(toml, time.fromisoformat(now)) == set(FIELDS)
        with pytest.raises(NotNowError, match=f"at {now}"):
            parse_policy(toml.encode(), "it").verify(order(IntroduceOrder), AGREED, time.fromisoformat(now))


def test_paused_refuses_everything_for_now():
    assert refused_kinds("paused = true") == set(FIELDS)
    assert refused_kinds("paused = false") == set()
    with pytest.raises(NotNowError):
        MerchantPolicy(paused=True).verify(order(IntroduceOrder), AGREED, NOON)


# What a merchant writes


@pytest.mark.parametrize(
    ("written", "words"),
    [
        ("max_round = 3", ["'max_round'", "did you mean 'max_rounds'"]),
        ("pause = true", ["'pause'", "did you mean 'paused'"]),
        ("[policy]\npaused = true", ["'policy'", "allowed: allowed_hours"]),
        ("max_rounds = -1", ["max_rounds", "greater than or equal to 0"]),
        ("max_rounds = '3'", ["max_rounds", "integer"]),
        ("paused = 1", ["paused", "boolean"]),
        ("min_count = 0", ["min_count"]),
        ("max_update_norm = inf", ["max_update_norm", "finite"]),
        ("max_update_norm = 0.0", ["max_update_norm"]),
        ("allowed_hours = '22-6'", ["allowed_hours", "'22-6'", "22:00-06:00"]),
        ("allowed_hours = '24:00-06:00'", ["24:00-06:00"]),
        ("allowed_hours = '06:00-06:00'", ["begins where it ends"]),
        ("paused", ["not TOML"]),
        ("max_rounds = 1\nmax_rounds = 2", ["not TOML"]),
    ],
)
def test_policy_that_does_not_hold_is_refused_with_what_would(written, words):
    with pytest.raises(UsageError) as refused:
        parse_policy(written.encode(), "merchant.toml")
    assert "\n" not in str(refused.value)
    assert str(refused.value).startswith("merchant.toml ")
    for word in words:
        assert word in str(refused.value)


def test_whole_number_may_stand_for_a_norm():
    assert parse_policy(b"max_update_norm = 3", "it").max_update_norm == 3.0


@pytest.mark.parametrize("content", [b"\xff\xfe", b"a = " + b"[" * 10_000, b"max_rounds = " + b"9" * 5000])
def test_bytes_that_are_no_policy_are_refused(content):
    with pytest.raises(UsageError):
        parse_policy(content, "it")


def test_file_is_read_anew_for_each_order(tmp_path):
    file = PolicyFile(tmp_path / "merchant.toml")
    assert file.current() == MerchantPolicy()
    file.path.write_text("paused = true")
    assert file.current().paused
    file.path.write_text("paused = maybe")
    with pytest.raises(UsageError, match="not TOML"):
        file.current()
    file.path.write_text("max_rounds = 3")
    assert file.current() == MerchantPolicy(max_rounds=3)


def test_file_that_goes_while_it_is_in_use_allows_nothing(tmp_path):
    file = PolicyFile(tmp_path / "merchant.toml")
    file.path.write_text("max_rounds = 3")
    file.current()
    file.path.unlink()
    with pytest.raises(UsageError, match="is gone"):
        file.current()


def test_file_without_end_is_not_read_to_its_end(tmp_path):
    file = PolicyFile(tmp_path / "merchant.toml")
    file.path.write_bytes(b"#" * (MAX_POLICY_BYTES + 1))
    with pytest.raises(UsageError, match="more than"):
        file.current()


# What of an agreement would be refused


def test_conflicts_with_an_agreement_are_told_before_the_first_order():
    fitting = "max_rounds = 20\nmax_local_epochs = 4\nmin_cohort = 3\nmin_count = 5\nmin_positives = 7"
    assert parse_policy(fitting.encode(), "it").conflicts(AGREED) == []
    beyond = "max_rounds = 19\nmax_local_epochs = 3\nmin_cohort = 4\nmin_count = 6\nmin_positives = 8"
    told = parse_policy(f"{beyond}\nsecure_aggregation_required = true".encode(), "it").conflicts(AGREED)
    asked = ["rounds up to 20", "4 local epochs", "cohorts of 3", "in the clear", "counts from 5", "from 7 positives"]
    assert len(told) == len(asked)
    for words, line in zip(asked, told, strict=True):
        assert words in line
        assert line.partition("merchant.toml has ")[2] in f"{beyond}\nsecure_aggregation_required = true".splitlines()


def test_rounds_of_pruning_count_among_the_conflicts():
    pruned = agreement(compression={"format": "int8", "sparsity": 0.5, "pruning_rounds": 4})
    assert MerchantPolicy(max_rounds=23).conflicts(pruned)
    assert not MerchantPolicy(max_rounds=24).conflicts(pruned)
