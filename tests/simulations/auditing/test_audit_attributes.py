"""A column told from the others: imputation against least squares done by hand, and what learning by heart gives
away."""

from __future__ import annotations

import numpy as np
import pytest

from hansa_client.programs import Programs
from hansa_server.run_folder import open_finished
from hansa_simulations.audit_attributes import AttributeAttack, fitted_imputation, imputed, values_of
from hansa_simulations.scenario import simulated_hash_key


class Known:
    def __init__(self, others, truth):
        self.others, self.truth = others, truth


def test_imputation_is_ridge_regression_on_every_value():
    random = np.random.default_rng(0)
    others = np.column_stack([np.ones(200), random.normal(size=(200, 4))])
    truth = (others @ random.normal(size=(5, 3))).argmax(axis=1)
    weights = fitted_imputation(Known(others, truth), 3)
    # The same as least squares with a row of ones on the diagonal for each column.
    longer = np.vstack([others, np.eye(5)])
    for value in range(3):
        wanted = np.concatenate([(truth == value).astype(float), np.zeros(5)])
        np.testing.assert_allclose(weights[:, value], np.linalg.lstsq(longer, wanted, rcond=None)[0], atol=1e-9)
    assert np.mean(imputed(Known(others, truth), weights) == truth) > 0.8


def test_values_are_the_agreements(coins):
    agreement = coins.agreement()
    assert values_of(agreement, "shelf") == ("a", "b", "c", "d")
    assert values_of(agreement, "member") == (0.0, 1.0)


@pytest.fixture(scope="module")
def attacked(coin_run, coins):
    """The shelf and the membership, guessed with a model."""

    def guess(run, attribute):
        finished, tables = open_finished(run.folder), coins.tables(coin_run.agreement)
        programs = Programs.for_tables(coin_run.agreement, *tables.values())
        model = finished.weights, finished.preprocessing
        attack = AttributeAttack(tables, programs, simulated_hash_key(coin_run.agreement.seed), model)
        return attack.inferred(attribute, values_of(coin_run.agreement, attribute))

    return guess


def test_column_of_a_row_that_was_learned_by_heart_is_told_more_often_than_of_one_that_was_not(coin_run, attacked):
    found = attacked(coin_run, "member")
    assert found.attack.given_away.low > 0.0
    assert found.verdict.endswith("Training gave some of it away.")
    # A coin: who does not ask the model has half of them right.
    for way in (found.imputation, found.most_usual):
        assert way.given_away.low <= 0.0 <= way.given_away.high
        assert 0.4 < way.members.estimate < 0.6


def test_nothing_is_given_away_by_a_model_that_has_seen_none_of_the_rows(other_run, attacked):
    found = attacked(other_run, "member")
    assert found.attack.given_away.low <= 0.0 <= found.attack.given_away.high
    assert "gave some" not in found.verdict


def test_commonest_value_is_right_as_often_as_it_is_there(coin_run, coins, attacked):
    found = attacked(coin_run, "shelf")
    tables = coins.tables(coin_run.agreement)
    shelves = np.concatenate([table.columns["shelf"][table.test] for table in tables.values()])
    assert found.most_usual.non_members.estimate == pytest.approx(np.mean(shelves == "a"))
    assert (found.num_members, found.num_non_members) == (
        sum(len(table.train) for table in tables.values()),
        len(shelves),
    )
