"""The clipped sum against each row's own gradient, one row at a time, clipped and added up."""

import itertools

import numpy as np
import pytest
import tensorflow as tf

from hansa_client.clipped_gradients import clipped_sum, clipping_factors, row_norms, tap_widths, traced_logits
from hansa_client.training_program import StepSettings
from hansa_common.agreement_sections import Model, Plan
from hansa_common.model import EmbeddingSpec, ModelSpec, build_model, initial_weights, model_inputs, ordered_variables
from hansa_common.vectors import unflatten

ROWS = 24


def spec_of(*, hidden=(7, 5), activation="relu", layer_norm=False, num_dense=4, embeddings=((9, 3), (5, 2))):
    return ModelSpec(
        num_dense=num_dense,
        embeddings=tuple(
            EmbeddingSpec(feature=f"e{i}", num_ids=ids, dim=dim) for i, (ids, dim) in enumerate(embeddings)
        ),
        hidden=hidden,
        activation=activation,
        dropout=0.0,
        l1=0.0,
        l2=0.0,
        layer_norm=layer_norm,
        output_bias=-1.0,
    )


SPECS = {
    "plain": spec_of(),
    "tanh": spec_of(activation="tanh"),
    "gelu": spec_of(activation="gelu"),
    "norms": spec_of(layer_norm=True),
    "no tables": spec_of(embeddings=()),
    "tables only": spec_of(num_dense=0),
    "logistic regression": spec_of(hidden=()),
}


class Case:
    """Random rows and weights of a network, and the gradients of its rows in both ways."""

    def __init__(self, spec: ModelSpec, model: Model | None = None) -> None:
        rng = np.random.default_rng(3)
        self.spec = spec
        self.settings = StepSettings(spec, model or Model(), Plan())
        weights = initial_weights(spec, 0)
        weights = weights + rng.normal(0, 0.1, weights.size).astype(np.float32)
        self.weights = [tf.constant(array) for array in unflatten(weights, spec.shapes)]
        self.dense = tf.constant(rng.normal(size=(ROWS, spec.num_dense)).astype(np.float32))
        ids = [rng.integers(0, embedding.num_ids, ROWS) for embedding in spec.embeddings]
        self.ids = tf.constant(np.array(ids, np.int32).T.reshape(ROWS, len(ids)))
        self.labels = tf.constant((rng.random(ROWS) < 0.4).astype(np.float32))

    def traced(self):
        taps = [tf.zeros((ROWS, width)) for width in tap_widths(self.spec)]
        with tf.GradientTape() as tape:
            tape.watch(taps)
            logits, trace = traced_logits(self.spec, self.weights, taps, (self.dense, self.ids))
            loss = tf.reduce_sum(self.settings.row_losses(logits, self.labels))
        return trace, tape.gradient(loss, taps)

    def row_gradients(self) -> np.ndarray:
        """(rows, num_params): the slow way, through Keras' own model."""
        model = build_model(self.spec)
        variables = ordered_variables(model, self.spec)
        for variable, value in zip(variables, self.weights, strict=True):
            variable.assign(value)
        found = []
        for row in range(ROWS):
            part = slice(row, row + 1)
            with tf.GradientTape() as tape:
                logits = model(model_inputs(self.spec, self.dense[part], self.ids[part]), training=True)[:, 0]
                loss = tf.reduce_sum(self.settings.row_losses(logits, self.labels[part]))
            gradients = tape.gradient(loss, [v.value for v in variables])
            found.append(np.concatenate([tf.convert_to_tensor(g).numpy().ravel() for g in gradients]))
        return np.stack(found)


@pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS)
def test_the_traced_network_is_the_one_that_keras_builds(spec):
    case = Case(spec)
    model = build_model(spec)
    for variable, value in zip(ordered_variables(model, spec), case.weights, strict=True):
        variable.assign(value)
    taps = [tf.zeros((ROWS, width)) for width in tap_widths(spec)]
    logits, _ = traced_logits(spec, case.weights, taps, (case.dense, case.ids))
    expected = model(model_inputs(spec, case.dense, case.ids))[:, 0]
    np.testing.assert_allclose(logits, expected, rtol=2e-5, atol=2e-6)


@pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS)
def test_norms_are_those_of_each_rows_whole_gradient(spec):
    case = Case(spec)
    norms = row_norms(spec, *case.traced())
    np.testing.assert_allclose(norms, np.linalg.norm(case.row_gradients(), axis=1), rtol=1e-4)


@pytest.mark.parametrize(("spec", "part"), list(itertools.product(SPECS.values(), [0.3, 1.0, 3.0])))
def test_the_sum_is_that_of_the_clipped_gradients_of_each_row(spec, part):
    case = Case(spec)
    rows = case.row_gradients()
    norms = np.linalg.norm(rows, axis=1)
    max_norm = float(part * np.median(norms))
    trace, returned = case.traced()
    factors = clipping_factors(row_norms(spec, trace, returned), max_norm, tf.ones(ROWS))
    found = np.concatenate([np.ravel(gradient) for gradient in clipped_sum(spec, trace, returned, factors)])
    expected = (rows * np.minimum(1, max_norm / norms)[:, None]).sum(axis=0)
    np.testing.assert_allclose(found, expected, atol=2e-5 * max(1.0, np.abs(expected).max()))


@pytest.mark.parametrize("model", [Model(loss="focal"), Model(positive_weight=9.0)])
def test_every_loss_is_clipped_as_it_is(model):
    case = Case(SPECS["norms"], model)
    norms = row_norms(case.spec, *case.traced())
    np.testing.assert_allclose(norms, np.linalg.norm(case.row_gradients(), axis=1), rtol=1e-4)


def test_no_row_moves_the_sum_by_more_than_the_norm_even_if_it_is_extreme():
    case = Case(SPECS["norms"])
    dense = case.dense.numpy()
    dense[5] = 1e6
    case.dense = tf.constant(dense)
    trace, returned = case.traced()
    norms = row_norms(case.spec, trace, returned)
    without = np.ones(ROWS, np.float32)
    without[5] = 0

    def total(is_real):
        factors = clipping_factors(norms, 0.5, tf.constant(is_real))
        return np.concatenate([np.ravel(g) for g in clipped_sum(case.spec, trace, returned, factors)])

    moved = np.linalg.norm(total(np.ones(ROWS, np.float32)) - total(without))
    assert moved <= 0.5 * (1 + 1e-4)


@pytest.mark.parametrize("name", ["plain", "norms", "logistic regression"])
@pytest.mark.parametrize("value", [3e38, np.inf, np.nan])
def test_a_row_that_overflows_counts_for_nothing_and_takes_no_other_with_it(name, value):
    case = Case(SPECS[name])
    dense = case.dense.numpy()
    dense[5] = value
    case.dense = tf.constant(dense)
    trace, returned = case.traced()
    norms = row_norms(case.spec, trace, returned)
    assert not np.isfinite(norms[5])
    without = np.ones(ROWS, np.float32)
    without[5] = 0
    found, expected = (
        clipped_sum(case.spec, trace, returned, clipping_factors(norms, 0.5, tf.constant(is_real)))
        for is_real in (np.ones(ROWS, np.float32), without)
    )
    for gradient, other in zip(found, expected, strict=True):
        np.testing.assert_array_equal(gradient, other)
        assert np.isfinite(gradient).all()


def test_rows_that_only_fill_up_a_block_add_nothing():
    case = Case(SPECS["plain"])
    trace, returned = case.traced()
    factors = clipping_factors(row_norms(case.spec, trace, returned), 1.0, tf.zeros(ROWS))
    assert all(not np.any(gradient) for gradient in clipped_sum(case.spec, trace, returned, factors))


def test_a_row_without_gradient_has_a_finite_factor():
    factors = clipping_factors(tf.constant([0.0, 4.0]), 2.0, tf.ones(2))
    np.testing.assert_allclose(factors, [1.0, 0.5])
