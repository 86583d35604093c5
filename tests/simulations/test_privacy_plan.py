"""`hansa privacy`: a plan that keeps its epsilon, chosen among what was tried, printed as sections of an agreement."""

from __future__ import annotations

import json
import tomllib
from dataclasses import replace

import pytest
from typer.testing import CliRunner

from hansa_common.agreement import validate_agreement
from hansa_common.errors import AgreementError, UsageError
from hansa_common.metrics import metrics_from_histogram, score_histogram
from hansa_common.privacy_costs import run_epsilon
from hansa_simulations import privacy_plan
from hansa_simulations.privacy_command import privacy
from hansa_simulations.privacy_plan import FULL_BATCH, SHARES, PrivacyPlan, find_plan, sections_of, toml_of
from hansa_simulations.privacy_proposals import Promise, without_privacy
from hansa_simulations.privacy_trials import Tried


@pytest.fixture(scope="module", autouse=True)
def _little_work():
    """Few steps and learning rates."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(privacy_plan, "LEARNING_RATES", {"adam": (0.03,), "sgd": (1.0, 3.0)})
        patched.setattr(privacy_plan, "FULL_BATCH", replace(FULL_BATCH, num_steps=20))
        patched.setattr(privacy_plan, "SHARES", replace(SHARES, num_steps=20))
        patched.setattr(privacy_plan, "OTHER_SHARES", ((0.5, 20),))
        yield


class Listening:
    def __init__(self) -> None:
        self.begun, self.shares, self.told = [], [], []

    def begin(self, agreement, share_done) -> None:
        self.begun.append(agreement)
        self.shares.append(share_done)

    def tried(self, tried) -> None:
        self.told.append(tried)


@pytest.fixture(scope="module")
def found(shops):
    agreement = shops.agreement(model={"hidden": [4], "dropout": 0.2})
    listening = Listening()
    plan = find_plan(agreement, shops.tables(agreement), 8.0, 1e-5, listening)
    return plan, listening


def test_everything_that_is_tried_keeps_the_epsilon_that_was_asked_for(found) -> None:
    plan, listening = found
    assert listening.told == [*plan.tried, plan.without]
    assert listening.begun == [one.agreement for one in listening.told]
    assert listening.shares == sorted(listening.shares)
    assert listening.shares[0] == 0.0
    assert listening.shares[-1] == 1.0
    assert {one.agreement.model.hidden for one in plan.tried} == {(), (4,)}
    for one in plan.tried:
        assert 7.5 < run_epsilon(one.agreement) <= 8.0
        assert one.agreement.model.dropout == 0.0
    assert plan.without.agreement.privacy.dp is None


def test_what_is_printed_is_the_agreement_that_was_tried(found) -> None:
    plan, _ = found
    agreement = plan.recommended.agreement
    values = plan.without.agreement.model_dump(mode="json")
    printed = tomllib.loads(toml_of(agreement))
    values["model"] |= printed["model"]
    values["training"] = printed["training"]
    values["privacy"] |= printed["privacy"]
    pasted = validate_agreement(values, "the printed sections")
    assert sections_of(pasted) == sections_of(agreement)
    assert run_epsilon(pasted) == run_epsilon(agreement)


def test_plan_as_json_tells_cost_loss_and_how_they_are_known(found) -> None:
    told = found[0].to_json()
    assert json.loads(json.dumps(told)) == told
    assert told["predicted"]["epsilon"] <= 8.0
    assert told["predicted"]["loss"] == found[0].loss
    assert "tried on the given table" in told["predicted"]["how"]


def test_full_batches_with_adam_and_scaling_by_domains_are_among_what_is_tried(found) -> None:
    kinds = {
        (plan.optimizer, dp.sampling_rate, dp.statistics)
        for one in found[0].tried
        if (plan := one.agreement.training.plan) and (dp := one.agreement.privacy.dp)
    }
    assert {("adam", 1.0, "domains"), ("adam", 1.0, "noised")} <= kinds
    assert {(optimizer, rate) for optimizer, rate, _ in kinds} == {("adam", 1.0), ("sgd", 0.3), ("sgd", 0.5)}


def test_small_network_is_tried_where_the_agreed_one_is_larger(shops) -> None:
    def networks(hidden):
        return Promise(shops.agreement(model={"hidden": hidden}), 8.0, 1e-5, 0.0).networks((16,))

    assert networks([]) == [()]
    assert networks([16]) == [(), (16,)]
    assert networks([4]) == [(), (4,)]
    assert networks([64, 32]) == [(), (16,), (64, 32)]


def test_statistics_are_no_choice_where_no_number_is_scaled(shops) -> None:
    member = {"kind": "boolean", "name": "member", "missing": "refuse"}
    assert Promise(shops.agreement(features=[member]), 8.0, 1e-5, 0.0).statistics == ("domains",)


def scored(shops, hidden, pr_auc: float, agreement=None) -> Tried:
    agreement = agreement or shops.agreement(model={"hidden": hidden, "dropout": 0.0})
    metrics = metrics_from_histogram(score_histogram([0.0, 1.0], [0, 1]))
    metrics = replace(metrics, pr_auc=pr_auc)
    return Tried(agreement, metrics, metrics)


@pytest.mark.parametrize(
    ("network", "hidden", "advice"),
    [
        (0.60, (), "the smaller model is the better one"),
        (0.701, (), "the smaller model is the better one"),
        (0.75, (8,), "worth its noise"),
    ],
)
def test_smaller_model_is_recommended_unless_the_network_is_worth_its_noise(shops, network, hidden, advice) -> None:
    tried = (scored(shops, [], 0.70), scored(shops, [8], network))
    plan = PrivacyPlan(8.0, 1e-5, tried, scored(shops, [8], 0.8))
    assert plan.recommended.agreement.model.hidden == hidden
    assert advice in plan.advice


@pytest.mark.parametrize("better", [FULL_BATCH, SHARES])
def test_setting_that_is_better_on_validation_rows_is_what_is_printed(shops, better) -> None:
    promise = Promise(shops.agreement(model={"hidden": [8]}), 8.0, 1e-5, -1.0)
    tried = tuple(
        scored(shops, [], 0.7 if setting == better else 0.6, promise.agreement((), setting))
        for setting in (FULL_BATCH, SHARES)
    )
    plan = PrivacyPlan(8.0, 1e-5, (*tried, scored(shops, [8], 0.65)), scored(shops, [8], 0.8))
    printed = tomllib.loads(toml_of(plan.recommended.agreement))
    assert printed["training"]["plan"]["optimizer"] == better.optimizer
    assert printed["privacy"]["dp"]["sampling_rate"] == better.sampling_rate
    assert printed["privacy"]["dp"]["statistics"] == "domains"
    assert "statistics_noise_multiplier" not in printed["privacy"]["dp"]
    assert "the smaller model is the better one" in plan.advice


def test_model_that_diverged_is_never_recommended(shops) -> None:
    lost = Tried(shops.agreement(model={"hidden": [8], "dropout": 0.0}), None, None)
    plan = PrivacyPlan(8.0, 1e-5, (lost, scored(shops, [], 0.1)), scored(shops, [8], 0.8))
    assert plan.recommended.validation is not None


RATES = {"adam": (0.01, 0.03, 0.1), "sgd": (0.03, 0.1, 0.3, 1.0, 3.0, 9.0)}


def searched(monkeypatch, score):
    """The settings that a network's search tries, in their order."""
    monkeypatch.setattr(privacy_plan, "LEARNING_RATES", RATES)
    tried = []

    def scored_setting(setting):
        tried.append(setting)
        return score(setting)

    privacy_plan.search(scored_setting, ("domains", "noised"))
    return tried


def test_learning_rates_are_tried_until_the_best_has_one_on_either_side(monkeypatch) -> None:
    of_rate = {0.03: 0.1, 0.1: 0.5, 0.3: 0.4, 1.0: 0.3, 3.0: 0.2, 9.0: 0.1}
    tried = searched(monkeypatch, lambda setting: of_rate.get(setting.learning_rate, 0.0))
    shares = [one for one in tried if one.optimizer == "sgd"]
    assert [one.learning_rate for one in shares] == [1.0, 0.3, 0.1, 0.03, 0.1]
    assert shares[-1].sampling_rate == 0.5


@pytest.mark.parametrize("better", ["domains", "noised"])
def test_better_scaling_is_what_the_rest_is_tried_with(monkeypatch, better) -> None:
    tried = searched(monkeypatch, lambda setting: float(setting.statistics == better))
    assert [one.statistics for one in tried[:2]] == ["domains", "noised"]
    assert {one.statistics for one in tried[2:]} == {better}


def test_epsilon_that_no_noise_keeps_is_refused_in_one_line(shops) -> None:
    agreement = shops.agreement()
    with pytest.raises(UsageError, match="epsilon 1e-09 at delta 1e-12"):
        find_plan(agreement, shops.tables(agreement), 1e-9, 1e-12, Listening())


def test_agreement_without_privacy_is_the_given_one_otherwise(shops) -> None:
    dp = {"epsilon": 8, "noise_multiplier": 3.0, "sampling_rate": 0.2}
    training = {"algorithm": "fedavg", "rounds": 3, "plan": {"local_steps": 5}}
    private = shops.agreement(training=training, privacy={"dp": dp})
    assert without_privacy(private) == shops.agreement(training=training, privacy={})


# --- the commands -----------------------------------------------------------------------------------------------------

AGREEMENT = """
task = "purchase"
roster = ["alder", "birch", "cedar"]
label = {column = "buys"}
model = {hidden = []}
features = [
  {kind = "numeric", name = "amount", low = 0, high = 100, missing = "refuse"},
  {kind = "boolean", name = "member", missing = "refuse"},
]
[training]
algorithm = "fedavg"
rounds = 2
[training.plan]
local_steps = 2
"""
PROMISE = "[privacy.dp]\nepsilon = {epsilon}\nnoise_multiplier = 2.0\nsampling_rate = 0.2\n"


@pytest.fixture
def agreement_file(tmp_path):
    def write(text: str):
        path = tmp_path / "agreement.toml"
        path.write_text(AGREEMENT + text)
        return str(path)

    return write


def test_statement_tells_what_is_promised(agreement_file) -> None:
    outcome = CliRunner().invoke(privacy, ["statement", agreement_file(PROMISE.format(epsilon=8))])
    assert outcome.exit_code == 0
    assert "the unit: one row" in outcome.stdout
    as_json = CliRunner().invoke(privacy, ["statement", agreement_file(PROMISE.format(epsilon=8)), "--json"])
    assert json.loads(as_json.stdout)["epsilon"] < 8


@pytest.mark.parametrize(
    ("text", "error", "problem"),
    [("", UsageError, "has no"), (PROMISE.format(epsilon=0.5), AgreementError, "promises epsilon 0.5")],
)
def test_statement_of_what_is_not_kept_or_not_promised_is_refused(agreement_file, text, error, problem) -> None:
    outcome = CliRunner().invoke(privacy, ["statement", agreement_file(text)])
    assert isinstance(outcome.exception, error)
    assert problem in str(outcome.exception)


def test_plan_prints_sections_and_what_they_are_worth(agreement_file, shops, tmp_path) -> None:
    import pandas as pd

    table = tmp_path / "rows.csv"
    pd.concat([shops.rows(name) for name in shops.num_rows]).to_csv(table, index=False)
    arguments = ["plan", agreement_file(""), str(table), "--silo", "shop", "--epsilon", "8"]
    outcome = CliRunner().invoke(privacy, arguments)
    assert outcome.exit_code == 0, outcome.exception
    assert tomllib.loads(outcome.stdout)["privacy"]["dp"]["epsilon"] == 8.0
    assert "# predicted: test PR-AUC" in outcome.stdout
    assert "outside of any accounting" in outcome.stdout
    assert "tried logistic regression, adam at 0.03" in outcome.stderr
