"""What a task fills in, and that it never overrules what the agreement says."""

from __future__ import annotations

import copy
import json

import pytest

from hansa_common.agreement import validate_agreement
from hansa_common.task_defaults import _DEFAULTS, with_task_defaults

LEAST = {"label": {"column": "y"}, "features": [{"kind": "boolean", "name": "gift"}]}


def agreed(**values):
    return validate_agreement({**LEAST, **values}, "the test")


def written(agreement):
    return json.loads(agreement.canonical_json())


@pytest.mark.parametrize("task", ["fraud", "purchase"])
def test_agreement_that_is_silent_gets_the_defaults_of_its_task(places, task):
    values = written(agreed(task=task))
    defaults = [(place, value) for place, value in places.leaves(_DEFAULTS[task]) if "hidden" not in place]
    assert len(defaults) >= 5
    for place, value in defaults:
        assert places.held(values, place) == value
    assert values["model"]["hidden"] == _DEFAULTS[task]["model"]["hidden"]


def test_tasks_differ_in_what_they_are_about():
    fraud, purchase = agreed(task="fraud"), agreed(task="purchase")
    # A rare class: no output of one half at the start, weights held back, enough rows for a positive in a batch.
    assert fraud.model.output_bias < purchase.model.output_bias == 0
    assert fraud.model.l2 > purchase.model.l2 == 0
    assert fraud.training.plan.batch_size > purchase.training.plan.batch_size
    assert (fraud.training.algorithm, purchase.training.algorithm) == ("fedavg", "scaffold")
    assert purchase.training.plan.optimizer == "sgd"


EXPLICIT = {
    "fraud": {
        "model": {"hidden": [], "l2": 0.0, "output_bias": 0.0},
        "training": {"plan": {"optimizer": "sgd", "learning_rate": 0.5, "batch_size": 7}},
        "privacy": {"min_positives": 9},
    },
    "purchase": {
        "model": {"hidden": [], "dropout": 0.0},
        "training": {
            "algorithm": "fedavg",
            "plan": {"optimizer": "adam", "learning_rate": 0.5, "batch_size": 7, "local_epochs": 1},
        },
    },
}


@pytest.mark.parametrize("task", EXPLICIT)
def test_explicit_value_wins_over_every_default_and_leaves_the_others(places, task):
    silent = written(agreed(task=task))
    for place, value in [*places.leaves(EXPLICIT[task]), (("model", "hidden"), [])]:
        expected = places.changed(silent, place, value)
        if place == ("training", "algorithm"):
            expected = places.changed(expected, ("training", "plan", "algorithm"), value)
        if place[-1] == "optimizer" and task == "purchase":
            continue  # alone it contradicts the task's algorithm; below it comes with another one
        assert written(agreed(task=task, **places.changed({}, place, value))) == expected
    values = written(agreed(task=task, **EXPLICIT[task]))
    for place, value in places.leaves(EXPLICIT[task]):
        assert places.held(values, place) == value


def test_every_default_is_tried_against_an_explicit_value(places):
    for task, defaults in _DEFAULTS.items():
        explicit = {place for place, _ in places.leaves({**EXPLICIT[task]})}
        assert {place for place, _ in places.leaves(defaults) if "hidden" not in place} == explicit


def test_canonical_json_keeps_what_was_filled_in_when_defaults_change(monkeypatch):
    agreement = agreed(task="fraud")
    monkeypatch.setitem(_DEFAULTS, "fraud", {"model": {"l2": 5.0}, "training": {"plan": {"batch_size": 1}}})
    assert validate_agreement(written(agreement), "later") == agreement
    assert agreed(task="fraud") != agreement


def test_filling_in_changes_neither_the_values_nor_the_defaults():
    values = {**LEAST, "task": "fraud", "training": {"plan": {"momentum": 0.5}}}
    before, defaults = copy.deepcopy(values), copy.deepcopy(_DEFAULTS)
    filled = with_task_defaults(values)
    assert filled["training"]["plan"] == {**defaults["fraud"]["training"]["plan"], "momentum": 0.5}
    assert (values, _DEFAULTS) == (before, defaults)


@pytest.mark.parametrize("values", [{}, {"task": "churn"}, {"task": ["fraud"]}, {"task": None}])
def test_unknown_task_is_left_for_validation_to_refuse(values):
    assert with_task_defaults(values) == values


@pytest.mark.parametrize("section", ["model", "training", "privacy"])
def test_section_that_is_no_table_is_left_for_validation_to_refuse(section):
    assert with_task_defaults({"task": "fraud", section: 3})[section] == 3


def test_candidates_share_the_plan_and_the_tasks_defaults_and_their_own_values_win():
    candidates = [{"algorithm": "fedavg"}, {"algorithm": "scaffold", "learning_rate": 0.2}]
    training = {"algorithm": "auto", "rounds": 12, "plan": {"learning_rate": 0.05}, "candidates": candidates}
    values = {"task": "purchase", "label": {"column": "buys"}, "features": [{"kind": "boolean", "name": "member"}]}
    agreement = validate_agreement({**values, "training": training}, "the test")
    first, second = agreement.training.plans
    assert (first.learning_rate, second.learning_rate) == (0.05, 0.2)
    assert first.local_epochs == second.local_epochs == 5
    assert validate_agreement(agreement.model_dump(mode="json"), "the test") == agreement


def test_local_steps_take_the_place_of_a_task_s_local_epochs():
    counted = agreed(task="purchase", training={"plan": {"local_steps": 70}})
    assert (counted.training.plan.local_steps, counted.training.plan.local_epochs) == (70, 1)
    assert validate_agreement(counted.model_dump(mode="json"), "it") == counted


def test_candidate_s_own_unit_of_work_takes_the_place_of_what_candidates_share():
    def work(shared, *candidates):
        training = {"algorithm": "auto", "plan": shared, "candidates": list(candidates)}
        plans = agreed(task="purchase", training=training).training.plans
        return [(plan.local_steps, plan.local_epochs) for plan in plans]

    assert work({}, {}, {"local_steps": 70}) == [(None, 5), (70, 1)]
    assert work({"local_steps": 9}, {}, {"local_epochs": 4}) == [(9, 1), (None, 4)]
