"""Rows told from updates: in closed form where there is one, and no more than by guessing where a round is a real
one."""

from __future__ import annotations

import numpy as np
import pytest

from hansa_client.training_program import StepSettings
from hansa_common.agreement import validate_agreement
from hansa_common.model import ModelSpec, initial_weights
from hansa_common.vectors import flatten, unflatten
from hansa_server.run_folder import open_finished
from hansa_simulations.audit_gradients import GradientMatch, layout, read_off
from hansa_simulations.audit_inversion import TOLERANCE, Inverter, Marginals, one_plain_step

FEATURES = [
    {"kind": "numeric", "name": "amount", "low": 0, "high": 1},
    {"kind": "categorical", "name": "city", "vocabulary": ["a", "b"], "encoding": "embedding", "embedding_dim": 3},
    {"kind": "categorical", "name": "shelf", "vocabulary": ["a", "b", "c"]},
    {"kind": "boolean", "name": "member", "missing": "refuse"},
    {"kind": "timestamp", "name": "at", "missing": "refuse"},
]


def agreement_with(**model):
    values = {"task": "purchase", "label": {"column": "y"}, "features": FEATURES, "model": {"dropout": 0.0, **model}}
    return validate_agreement(values, "the test")


def gradient(spec, weights, rows, labels):
    """By differences in float64, so by nobody's rules of differentiation; rows are in a guess' layout."""

    def loss(vector):
        arrays = [np.asarray(a, np.float64) for a in unflatten(vector, spec.shapes)]
        tables, layers = arrays[: len(spec.embeddings)], arrays[len(spec.embeddings) :]
        parts, start = [rows[:, : spec.num_dense]], spec.num_dense
        for table in tables:
            parts.append(rows[:, start : start + len(table)] @ table)
            start += len(table)
        x = np.concatenate(parts, axis=1)
        for place in range(0, len(layers) - 2, 2):
            x = np.maximum(x @ layers[place] + layers[place + 1], 0.0)
        wrong = (x @ layers[-2] + layers[-1])[:, 0] * (1.0 - 2.0 * labels)
        return np.mean(np.logaddexp(0.0, wrong))

    found, step = np.zeros(len(weights)), 1e-5
    for place in range(len(weights)):
        moved = np.zeros(len(weights))
        moved[place] = step
        found[place] = (loss(weights + moved) - loss(weights - moved)) / (2 * step)
    return found


def test_layout_has_every_column_of_the_network_once():
    blocks, width = layout(agreement_with().features)
    columns = [column for block in blocks for column in range(block.start, block.start + block.width)]
    assert sorted(columns) == list(range(width))
    assert [(block.feature, block.kind, block.width) for block in blocks] == [
        ("amount", "free", 1),
        ("amount", "flag", 1),
        ("shelf", "one_hot", 5),
        ("member", "boolean", 1),
        ("at", "free", 4),
        ("city", "one_hot", 4),
    ]


def test_guess_gradient_is_that_of_the_network():
    """The distance between a guess and its own gradient is none, and that of another is some."""
    import tensorflow as tf

    agreement = agreement_with(hidden=[5], l2=0.0)
    spec = ModelSpec.from_agreement(agreement)
    match = GradientMatch(StepSettings(spec, agreement.model, agreement.training.plans[0]), agreement.features)
    weights = initial_weights(spec, 0)
    guess = np.random.default_rng(0).normal(size=(3, 16)).astype(np.float32)
    labels = np.array([1, 0, 1], np.uint8)
    rows = match._rows(tf.constant(guess)).numpy().astype(np.float64)
    own = gradient(spec, weights.astype(np.float64), rows, labels)
    arrays = [tf.constant(array) for array in unflatten(weights, spec.shapes)]
    wanted = tf.constant((own / np.linalg.norm(own)).astype(np.float32))
    distance, _ = match._distance(tf.constant(guess), arrays, wanted, tf.constant(labels, tf.float32))
    assert float(distance) == pytest.approx(0.0, abs=1e-4)
    other, _ = match._distance(tf.constant(guess + 1.0), arrays, wanted, tf.constant(labels, tf.float32))
    assert float(other) > 1e-3


@pytest.mark.parametrize("hidden", [[], [4], [4, 3]])
def test_one_row_stands_in_the_first_layers_gradient(hidden):
    spec = ModelSpec.from_agreement(agreement_with(hidden=hidden))
    random = np.random.default_rng(1)
    row = random.normal(size=spec.num_dense)
    arrays = [random.normal(size=shape) for shape in spec.shapes]
    first = len(spec.embeddings)
    came_back = random.normal(size=arrays[first + 1].shape)
    arrays[first] = np.outer(np.concatenate([row, random.normal(size=3)]), came_back)
    arrays[first + 1] = came_back
    (found,) = read_off(spec, flatten([a.astype(np.float32) for a in arrays]), 1)
    np.testing.assert_allclose(found, row, rtol=1e-4)


def test_update_of_nothing_gives_rows_of_finite_numbers():
    spec = ModelSpec.from_agreement(agreement_with(hidden=[4]))
    assert np.isfinite(read_off(spec, np.zeros(len(initial_weights(spec, 0)), np.float32), 9)).all()


def test_cell_is_told_by_its_category_its_sign_or_its_nearness():
    blocks, width = layout(agreement_with().features)
    rows = np.random.default_rng(0).normal(size=(500, width)).astype(np.float32)
    marginals = Marginals(rows, blocks)
    true = rows[:1]
    assert marginals.shares_right(true, true).tolist() == [1.0]
    for column, change in ((0, 1.01 * TOLERANCE * rows[:, 0].std()), (7, None), (9, 1.0)):
        guess = true.copy()
        guess[0, column] = -guess[0, column] if change is None else guess[0, column] + change
        assert marginals.shares_right(guess, true).tolist() == [pytest.approx(4 / 5)]
    flagged = true.copy()
    flagged[0, 1] += 9.0
    assert marginals.shares_right(flagged, true).tolist() == [1.0]


def test_guesses_are_paired_each_with_a_row_of_its_own():
    blocks, width = layout(agreement_with().features)
    rows = np.random.default_rng(0).normal(size=(500, width)).astype(np.float32)
    marginals = Marginals(rows, blocks)
    np.testing.assert_array_equal(marginals.shares_right(rows[[4, 2, 0]], rows[:5]), np.ones(3))
    twice = marginals.shares_right(rows[[1, 1]], rows[:2])
    assert max(twice) == 1.0
    assert min(twice) < 1.0


def test_baseline_draws_each_cell_for_itself_and_none_that_is_not_there():
    blocks, width = layout(agreement_with().features)
    rows = np.repeat(np.arange(2.0), width).reshape(2, width).astype(np.float32)
    drawn = Marginals(rows, blocks).drawn(400, np.random.default_rng(0))
    assert set(np.unique(drawn)) == {0.0, 1.0}
    shelf = drawn[:, 2:7]
    assert (shelf == shelf[:, :1]).all()
    assert 0.3 < np.mean(drawn[:, 0] == drawn[:, 7]) < 0.7


def test_control_is_one_plain_step_of_the_same_network(coins):
    plain = one_plain_step(coins.agreement())
    assert plain.training.plans[0].optimizer == "sgd"
    assert plain.training.plans[0].local_epochs == 1
    assert plain.model == coins.agreement().model


def test_one_row_is_told_whole_and_of_a_real_round_no_row_is(coin_run, coins):
    finished = open_finished(coin_run.folder)
    tables = coins.tables(coin_run.agreement)
    inverter = Inverter(coin_run.agreement, tables, finished.preprocessing)
    found = {(inversion.size, inversion.attack): inversion for inversion in inverter.inverted()}
    one = found["one row", "read off"]
    assert one.told.estimate == one.whole_rows == 1.0
    assert one.guessed.high < 0.6
    assert found["one row", "matched"].told.low > one.guessed.high
    for attack in ("read off", "matched"):
        whole = found["the run's round", attack]
        assert whole.num_rows == len(tables[inverter.merchant].train)
        assert whole.whole_rows == 0.0
        assert whole.told.estimate < whole.guessed.estimate + 0.1
