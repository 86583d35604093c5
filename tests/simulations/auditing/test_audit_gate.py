"""The gate: what opens it, what does not, and what an audit leaves; attacks made up, where they need not be run."""

from __future__ import annotations

import io
import json
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
from rich.console import Console

from hansa_common.agreement import validate_agreement
from hansa_common.errors import AgreementError, UsageError
from hansa_server import run_folder
from hansa_server.audit_gate import check_audited, unaudited
from hansa_server.run_folder import FinishedRun
from hansa_simulations.audit import Audit, dp_bound, judged
from hansa_simulations.audit_attacks import federation_rates, membership_attacks
from hansa_simulations.audit_display import AuditDisplay, print_audit
from hansa_simulations.audit_figure import roc_png
from hansa_simulations.audit_files import AUDIT, FIGURE, leave
from hansa_simulations.audit_membership import Shadows, memberships
from hansa_simulations.audit_run import Auditor, Settings

METRICS = {"run_id": "r", "agreement_fingerprint": "f", "merchants": {}}


def agreement_with(**audit):
    values = {"task": "fraud", "label": {"column": "y"}, "features": [{"kind": "boolean", "name": "x"}]}
    return validate_agreement({**values, "audit": audit}, "the test")


def made_up(gap, num_shadows=8, num_rows=4000):
    random = np.random.default_rng(0)
    is_in, is_member = memberships(num_shadows, num_rows, random), random.random(num_rows) < 0.6
    sure = gap * np.vstack([is_in, is_member]) + random.normal(size=(num_shadows + 1, num_rows))
    shadows = Shadows(sure[:-1], is_in)
    attacks = membership_attacks({"model": sure[-1], "small model": sure[-1] + 0.1}, is_member, shadows, 0)
    return attacks, federation_rates(shadows, 0)


LEAKING, TIGHT = made_up(2.0), made_up(0.0)


def run_with(**audit):
    return FinishedRun(agreement_with(**audit), METRICS, None, np.zeros(3, np.float32), None)


def audit_of(made, run, num_shadows=8):
    attacks, federation = made
    return Audit(run, num_shadows, attacks, federation, judged(run, attacks, federation, num_shadows))


def test_no_gate_is_asked_for_by_default():
    assert judged(run_with(), *LEAKING, 8) is None
    assert agreement_with() == validate_agreement({**agreement_with().model_dump(mode="json")}, "it")
    assert unaudited(agreement_with()) == {}
    check_audited(agreement_with(), METRICS)


def test_gate_opens_below_the_threshold_and_stays_shut_above_it():
    asked = {"max_true_positive_rate": 0.05, "shadows": 8}
    assert judged(run_with(**asked), *TIGHT, 8).passed
    shut = judged(run_with(**asked), *LEAKING, 8)
    assert not shut.passed
    assert "agreed is at most 5.00%" in shut.reason


def test_gate_goes_by_the_upper_end_of_the_interval_of_the_worst_model():
    found = max(a.rates.at(0.01).true_positives.high for a in TIGHT[0] if a.attack == "lira")
    assert judged(run_with(max_true_positive_rate=found, shadows=8), *TIGHT, 8).passed
    assert not judged(run_with(max_true_positive_rate=found - 1e-9, shadows=8), *TIGHT, 8).passed


def test_gate_stays_shut_for_fewer_shadows_than_agreed_and_for_another_attack():
    asked = run_with(max_true_positive_rate=0.9)
    few = judged(asked, *TIGHT, 8)
    assert (few.passed, few.reason) == (False, "the agreement asks for 32 shadow federations, there were 8")
    loss_only = tuple(attack for attack in TIGHT[0] if attack.attack == "loss")
    other = judged(asked, loss_only, None, 0)
    assert not other.passed
    assert "'lira', which was not run" in other.reason
    assert judged(run_with(max_true_positive_rate=0.9, attack="loss"), loss_only, None, 0).passed


@pytest.mark.parametrize("rate", [0.0, 0.01, 1.5])
def test_threshold_that_no_model_could_meet_or_miss_is_refused(rate):
    with pytest.raises(AgreementError, match="max_true_positive_rate"):
        agreement_with(max_true_positive_rate=rate)


def test_odd_number_of_shadows_is_refused():
    with pytest.raises(AgreementError, match="shadows"):
        agreement_with(shadows=31)


def test_gate_in_an_agreement_of_real_merchants_is_refused():
    values = agreement_with(max_true_positive_rate=0.05).model_dump(mode="json")
    trust = {"coordinator": "c0" * 32, "merchants": {"north": "a1" * 32, "south": "a2" * 32}}
    with pytest.raises(AgreementError, match="rows in one place"):
        validate_agreement({**values, "roster": ["north", "south"], "trust": trust}, "it")


def test_release_waits_for_an_audit_of_this_very_run():
    agreement = agreement_with(max_true_positive_rate=0.05)
    passed = {"passed": True, "run_id": "r", "agreement_fingerprint": "f"}
    check_audited(agreement, {**METRICS, "audit": passed})
    for audit in (None, unaudited(agreement)["audit"], {**passed, "passed": False}, {**passed, "run_id": "another"}):
        with pytest.raises(UsageError, match="before an audit passes"):
            check_audited(agreement, {**METRICS, "audit": audit})


def private_agreement():
    values = agreement_with().model_dump(mode="json")
    values["features"] = [{"kind": "boolean", "name": "x"}]
    values["training"] |= {"rounds": 2}
    values["training"]["plan"] |= {"local_steps": 5, "local_epochs": 1}
    values["privacy"]["dp"] = {"epsilon": 8.0, "noise_multiplier": 2.0, "sampling_rate": 0.1}
    return validate_agreement(values, "it")


def test_attack_above_the_bound_of_the_runs_epsilon_is_named_and_one_below_is_not():
    agreement = private_agreement()
    broken, kept = dp_bound(agreement, *LEAKING), dp_bound(agreement, *TIGHT)
    assert broken.broken_by.startswith("LiRA, online")
    assert broken.least_epsilon > broken.epsilon
    assert (kept.broken_by, kept.epsilon) == ("", broken.epsilon)
    assert kept.least_epsilon < kept.epsilon < 2.0
    assert dp_bound(agreement_with(), *LEAKING) is None
    audit = Audit(run_with(), 8, LEAKING[0], None, None, broken)
    assert "NOT as private as it says" in audit.verdict


def test_strongest_attack_and_its_share_are_in_the_verdict():
    audit = audit_of(LEAKING, run_with(max_true_positive_rate=0.05, shadows=8))
    best = audit.strongest.rates.at(0.01).true_positives.estimate
    assert all(best >= attack.rates.at(0.01).true_positives.estimate for attack in LEAKING[0])
    assert f"finds {best:.2%} of the training rows" in audit.verdict
    assert "NOT released" in audit.verdict
    assert "NOT" not in audit_of(TIGHT, run_with(max_true_positive_rate=0.05, shadows=8)).verdict


def test_table_tells_every_attack_and_what_cannot_be_told():
    out = io.StringIO()
    audit = audit_of(LEAKING, run_with())
    print_audit(audit, Console(file=out, width=200))
    told = out.getvalue()
    for words in ("LiRA, online", "LiRA, offline", "loss threshold", "small model", "each shadow"):
        assert words in told
    assert "At 0.1% it takes 10,000 non-members to tell." in told
    assert audit.verdict in told


def test_progress_in_a_pipe_is_one_line():
    out = io.StringIO()
    with AuditDisplay(2, Console(file=out, width=100), now=iter([0.0, 30.0, 61.0]).__next__) as display:
        display.trained()
        display.trained()
    assert out.getvalue().splitlines() == ["2 shadow federations trained in 1 min 1 s"]


def test_picture_is_the_same_for_the_same_audit():
    audit = audit_of(LEAKING, run_with(max_true_positive_rate=0.05))
    assert roc_png(audit).startswith(b"\x89PNG")
    assert roc_png(audit) == roc_png(audit)


@pytest.fixture(scope="module")
def left(coins, tmp_path_factory):
    """A run with a gate that its model cannot pass, audited."""
    audit = {"attack": "loss", "max_true_positive_rate": 0.011}
    plan = {"optimizer": "adam", "learning_rate": 0.01, "local_epochs": 2}
    quick = {"algorithm": "fedavg", "rounds": 2, "plan": plan}
    run = coins.run(tmp_path_factory.mktemp("gate"), coins.agreement(audit=audit, training=quick))
    before = json.loads((run.folder / run_folder.METRICS).read_bytes())
    found = Auditor(run.folder, run.data, Settings(inversion=False, attribute="shelf")).audited()
    leave(found, run.folder)
    return SimpleNamespace(run=run, before=before, found=found)


def test_run_with_a_gate_says_that_it_waits_and_after_the_audit_what_was_found(left):
    assert left.before["audit"]["passed"] is False
    after = json.loads((left.run.folder / run_folder.METRICS).read_bytes())
    assert {**after, "audit": None} == {**left.before, "audit": None}
    assert after["audit"] == left.found.summary()
    assert after["audit"]["passed"] is False
    assert after["audit"]["verdict"] in (left.run.folder / run_folder.REPORT).read_text().replace("&#39;", "'")


def test_audit_is_in_its_own_folder_whole(left):
    folder = left.run.folder / run_folder.AUDIT
    assert sorted(path.name for path in folder.iterdir()) == sorted([AUDIT, FIGURE])
    told = json.loads((folder / AUDIT).read_bytes())
    assert told == json.loads(json.dumps(left.found.to_json()))
    assert [attack["attack"] for attack in told["attacks"]] == ["loss"]
    assert told["attribute"]["attribute"] == "shelf"


def test_same_run_gives_the_same_audit(left):
    again = Auditor(left.run.folder, left.run.data, Settings(inversion=False, attribute="shelf")).audited()
    assert again.to_json() == left.found.to_json()


def test_new_run_in_the_folder_takes_the_audit_with_it(left, tmp_path):
    folder = shutil.copytree(left.run.folder, tmp_path / "run")
    assert (folder / run_folder.AUDIT).exists()
    run_folder.create(folder, left.run.agreement, overwrite=True)
    assert not (folder / run_folder.AUDIT).exists()
