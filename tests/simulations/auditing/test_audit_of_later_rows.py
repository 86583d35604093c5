"""Test rows of a later time can be told from training rows by their time: neither the gate nor the bound takes that for
membership, nor lets time hide it; attacks made up, with time and membership as they please."""

from __future__ import annotations

import re

import numpy as np
import pytest

from hansa_common.agreement import validate_agreement
from hansa_common.errors import AgreementError
from hansa_server.run_folder import FinishedRun
from hansa_simulations.audit import Audit, dp_bound, judged
from hansa_simulations.audit_attacks import evidence, federation_rates, membership_attacks
from hansa_simulations.audit_membership import Shadows, memberships

METRICS = {"run_id": "r", "agreement_fingerprint": "f", "merchants": {}}
NUM_SHADOWS = 8


def made_up(*, drift: float, leak: float, num_rows: int = 6000):
    """Attacks on a model that is surer by `leak` of rows that it was trained on, and by `drift` of rows of its own
    time; shadows were trained on both times."""
    random = np.random.default_rng(3)
    is_in, is_member = memberships(NUM_SHADOWS, num_rows, random), random.random(num_rows) < 0.6
    sure = leak * np.vstack([is_in, is_member]) + random.normal(size=(NUM_SHADOWS + 1, num_rows))
    sure[-1] += drift * is_member
    shadows = Shadows(sure[:-1], is_in)
    return membership_attacks({"model": sure[-1]}, is_member, shadows, 0), federation_rates(shadows, 0)


DRIFTING, LEAKING = made_up(drift=2.0, leak=0.0), made_up(drift=0.0, leak=2.0)


def run_with(split="time", **audit) -> FinishedRun:
    values = {
        "task": "fraud",
        "label": {"column": "y"},
        "features": [{"kind": "boolean", "name": "x"}],
        "data": {"split": split, **({"time_column": "day"} if split == "time" else {})},
        "audit": {"shadows": NUM_SHADOWS, **audit},
    }
    return FinishedRun(validate_agreement(values, "the test"), METRICS, None, np.zeros(3, np.float32), None)


def found_at(attacks) -> list[float]:
    return [attack.rates.at(0.01).true_positives.estimate for attack in attacks]


def test_time_alone_looks_like_membership_to_every_attack_on_the_model():
    attacks, federation = DRIFTING
    assert min(found_at(attacks)) > 0.05
    assert federation.true_positives[0.01].high < 0.015


def test_gate_over_later_rows_is_not_shut_by_time_and_says_what_it_goes_by():
    asked = {"max_true_positive_rate": 0.05}
    gate = judged(run_with(**asked), *DRIFTING, NUM_SHADOWS)
    assert gate.passed, gate.reason
    assert re.match(r"LiRA, online, on each shadow by the others finds [01]\.\d\d%", gate.reason)
    # The same figures, where chance divided the rows, would be membership.
    assert not judged(run_with("stratified", **asked), *DRIFTING, NUM_SHADOWS).passed


def test_gate_over_later_rows_is_shut_by_membership():
    gate = judged(run_with(max_true_positive_rate=0.05), *LEAKING, NUM_SHADOWS)
    assert not gate.passed
    assert "agreed is at most 5.00%" in gate.reason


def test_gate_over_later_rows_goes_by_an_interval_that_is_no_narrower_than_one_shadows():
    attacks, federation = DRIFTING
    (finding, *_) = evidence(run_with().agreement, attacks, federation)
    mean = federation.true_positives[0.01]
    assert finding.rate.true_positives.high > mean.high
    assert finding.rate.true_positives.estimate == mean.estimate
    assert (finding.num_members, finding.num_non_members) == (federation.num_members, federation.num_non_members)
    most = finding.rate.true_positives.high
    assert judged(run_with(max_true_positive_rate=most), attacks, federation, NUM_SHADOWS).passed
    assert not judged(run_with(max_true_positive_rate=most - 1e-9), attacks, federation, NUM_SHADOWS).passed


def test_gate_over_later_rows_stays_shut_where_shadows_have_too_few_rows_or_were_not_trained():
    attacks, few = made_up(drift=0.0, leak=0.0, num_rows=1990)
    assert few.num_non_members < 1000
    for federation, num_shadows in ((few, NUM_SHADOWS), (None, 0)):
        gate = judged(run_with(max_true_positive_rate=0.9), attacks, federation, num_shadows)
        assert not gate.passed
    assert (
        "has not the 1,000 rows outside it"
        in judged(run_with(max_true_positive_rate=0.9), attacks, few, NUM_SHADOWS).reason
    )


def test_gate_by_the_loss_over_later_rows_is_refused():
    asked = {"attack": "loss", "max_true_positive_rate": 0.05}
    with pytest.raises(AgreementError, match=r'audit\.attack "loss".*data\.split "time".*attack = "lira"'):
        run_with(**asked)
    run_with("stratified", **asked)
    # Without a gate nothing hangs on it.
    run_with(attack="loss")


def private_run(split="time"):
    values = run_with(split).agreement.model_dump(mode="json")
    values["training"] |= {"rounds": 2}
    values["training"]["plan"] |= {"local_steps": 5, "local_epochs": 1}
    values["privacy"]["dp"] = {"epsilon": 8.0, "noise_multiplier": 2.0, "sampling_rate": 0.1}
    return validate_agreement(values, "it")


def test_private_training_is_not_accused_by_time_and_is_by_membership():
    assert dp_bound(private_run("stratified"), *DRIFTING).broken_by
    kept = dp_bound(private_run(), *DRIFTING)
    assert (kept.broken_by, kept.least_epsilon) == ("", 0.0)
    broken = dp_bound(private_run(), *LEAKING)
    assert broken.broken_by == "LiRA, online, on each shadow by the others"
    assert broken.least_epsilon > broken.epsilon
    assert dp_bound(private_run(), DRIFTING[0], None).broken_by == ""


def test_verdict_tells_what_is_times_doing_and_what_is_not():
    attacks, federation = DRIFTING
    told = Audit(run_with(), NUM_SHADOWS, attacks, federation, None).verdict
    assert re.search(
        r"part of this can be time's doing; what each shadow gives away .* is free of that: [01]\.\d\d%", told
    )
    alone = Audit(run_with(), 0, attacks[-1:], None, None).verdict
    assert alone.endswith("part of this can be time's doing; how much is not known without shadow federations.")
    assert "time" not in Audit(run_with("stratified"), NUM_SHADOWS, attacks, federation, None).verdict
