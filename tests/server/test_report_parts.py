"""The parts of the report that can be held to arithmetic: curves by round, intervals, settings, data quality."""

import pytest
from scipy.stats import binomtest

from hansa_server.report_figures import wilson_interval
from hansa_server.report_sections import trails
from hansa_server.report_tables import network_table, plan_table, quality_table


def entry(number, plan, pr_auc, *, aggregated=True):
    validation = None if pr_auc is None else {"pr_auc": pr_auc}
    return {"round": number, "plan": plan, "validation": validation, "aggregated": aggregated}


def points(run):
    return {trail.label: trail.points for trail in trails(run, "pr_auc")}


def test_figure_stands_at_the_round_that_made_the_model():
    run = {"rounds": [entry(1, 0, 0.1), entry(2, 0, 0.2), entry(3, 0, 0.3)]}
    assert points(run) == {"together": ((0, 0.1), (1, 0.2), (2, 0.3))}


def test_plan_gone_on_with_after_trials_starts_from_its_own_last_model():
    tried = [entry(1, 0, 0.1), entry(2, 0, 0.2), entry(3, 1, 0.1), entry(4, 1, 0.15)]
    run = {"rounds": [*tried, entry(5, 0, 0.25), entry(6, 0, 0.3)], "plan_index": 0}
    assert points(run) == {
        "plan 1": ((0, 0.1), (1, 0.2), (2, 0.25), (5, 0.3)),
        "plan 2, tried": ((0, 0.1), (3, 0.15)),
    }


def test_round_that_averaged_nothing_makes_no_model():
    run = {"rounds": [entry(1, 0, 0.1), entry(2, 0, None, aggregated=False), entry(3, 0, 0.2), entry(4, 0, 0.3)]}
    assert points(run) == {"together": ((0, 0.1), (1, 0.2), (3, 0.3))}


def test_last_model_is_on_the_curve_if_it_is_the_one_kept():
    run = {"rounds": [entry(1, 0, 0.1), entry(2, 0, 0.2)], "best_round": 2, "validation": {"pr_auc": 0.4}}
    assert points(run) == {"together": ((0, 0.1), (1, 0.2), (2, 0.4))}


def test_kept_plan_is_the_one_the_run_names_even_if_another_was_tried_last():
    run = {"rounds": [entry(1, 0, 0.1), entry(2, 0, 0.3), entry(3, 1, 0.1), entry(4, 1, 0.2)], "plan_index": 0}
    assert [trail.kept for trail in trails(run, "pr_auc")] == [True, False]


@pytest.mark.parametrize(("hits", "count"), [(0, 7), (3, 7), (7, 7), (41, 80), (26, 6522)])
def test_interval_of_a_share_is_wilsons(hits, count):
    expected = binomtest(hits, count).proportion_ci(confidence_level=0.95, method="wilson")
    assert wilson_interval(hits / count, count) == pytest.approx((expected.low, expected.high), abs=1e-12)


def test_no_rows_tell_nothing_of_a_share():
    assert wilson_interval(0.5, 0) == (0.0, 1.0)


PLAN = {
    "algorithm": "fedavg", "optimizer": "adam", "learning_rate": 0.1, "momentum": 0.9, "proximal_mu": 0.01,
    "server_learning_rate": 1.0, "server_momentum": 0.9, "server_beta2": 0.99, "server_tau": 0.001,
}  # fmt: skip
ALWAYS = {"Algorithm", "Optimizer", "Learning rate", "Server learning rate"}


@pytest.mark.parametrize(
    ("changed", "shown"),
    [
        ({}, set()),
        ({"optimizer": "momentum"}, {"Momentum"}),
        ({"algorithm": "fedprox"}, {"Proximal mu"}),
        ({"algorithm": "fedavgm"}, {"Server momentum"}),
        ({"algorithm": "fedyogi"}, {"Server momentum", "Server beta2", "Server tau"}),
    ],
)
def test_plan_shows_the_settings_that_had_an_effect_and_no_other(changed, shown):
    assert {row[0] for row in plan_table({"plan": {**PLAN, **changed}}).rows} == ALWAYS | shown


def test_network_without_hidden_layers_says_so_and_focal_gamma_stands_by_its_loss():
    model = {"hidden": [], "loss": "binary_crossentropy", "focal_gamma": 2.0, "layer_norm": False}
    assert dict(network_table({"model": model}).rows) == {
        "Hidden layers": "none", "Loss": "binary_crossentropy", "Layer norm": "no",
    }  # fmt: skip
    assert dict(network_table({"model": {**model, "loss": "focal"}}).rows)["Focal gamma"] == "2"


def quality_row(**quality):
    return quality_table({"merchants": {"shop": {"quality": quality}}}).rows[0]


def test_quality_tells_counts_with_their_share_and_what_became_of_duplicates():
    row = quality_row(
        num_rows=2000, num_positives=90, duplicates=3, duplicates_removed=False, missing={"age": 1, "price": 500},
        clipped={}, unseen_categories={}, constant=["browser"],
    )  # fmt: skip
    share = "500 (25\N{NO-BREAK SPACE}%), age: 1 (below 0.1\N{NO-BREAK SPACE}%)"
    assert row == (
        "shop", "2,000\n90 positive", "3\nkept", f"Missing values: price: {share}\nThe same in every row: browser",
    )  # fmt: skip


def test_quality_without_a_remark_says_nothing_stands_out():
    row = quality_row(num_rows=10, num_positives=2, duplicates=0, duplicates_removed=True, missing={}, constant=[])
    assert row == ("shop", "10\n2 positive", "0", "nothing")
