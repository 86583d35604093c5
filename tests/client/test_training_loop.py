"""The compiled loop does what Keras does batch by batch, corrects as its algorithms say, and depends on nothing else.

Oracles: Keras' own `train_on_batch` over the same batches, with one-hot inputs and a bias-free layer for every
embedding table, by which each row of a table has a gradient in each step; and logistic regression in numpy.
"""

from __future__ import annotations

import numpy as np
import pytest

from hansa_client.training_loop import SCORING_BLOCKS, LocalTraining
from hansa_client.training_program import StepSettings
from hansa_common.agreement_sections import Model, Plan
from hansa_common.errors import DeadlineError
from hansa_common.features import Inputs
from hansa_common.model import EmbeddingSpec, ModelSpec, initial_weights
from hansa_common.vectors import flatten, num_params, unflatten

TABLES = (EmbeddingSpec(feature="brand", num_ids=9, dim=3), EmbeddingSpec(feature="shop", num_ids=5, dim=2))
# Ten batches, the last of them not full: 2 epochs are 20 steps, 20 are 200.
NUM_ROWS, BATCH_SIZE = 150, 16
NUM_DENSE = 6


def spec_of(model: Model, tables=()) -> ModelSpec:
    structure = {name: getattr(model, name) for name in ("hidden", "activation", "dropout", "l1", "l2", "layer_norm")}
    return ModelSpec(num_dense=NUM_DENSE, embeddings=tables, output_bias=0.0, **structure)


def made_up(num_rows: int, tables=(), seed: int = 0) -> tuple[Inputs, np.ndarray]:
    values = np.random.default_rng(seed)
    dense = values.normal(size=(num_rows, NUM_DENSE)).astype(np.float32)
    ids = np.zeros((num_rows, len(tables)), np.int32)
    for place, table in enumerate(tables):
        # Half of a table's rows are rare, and in few batches.
        ids[:, place] = np.minimum(values.geometric(0.4, num_rows) - 1, table.num_ids - 1)
    score = dense[:, 0] - dense[:, 1] * dense[:, 2] + values.normal(0, 0.5, num_rows)
    return Inputs(dense, ids), (score > 0.5).astype(np.uint8)


def orders_of(num_rows: int, num_epochs: int, seed: int = 1) -> np.ndarray:
    values = np.random.default_rng(seed)
    return np.stack([values.permutation(num_rows) for _ in range(num_epochs)])


def trained(training: LocalTraining, weights, rows, epochs, **changes):
    inputs, labels = rows
    settings = {"correction": None, "dropout_seed": 0, "should_stop": lambda: False, **changes}
    return training.train(weights, inputs, labels, epochs, **settings)


# --- Keras ------------------------------------------------------------------------------------------------------------


def keras_oracle(spec: ModelSpec, model: Model, plan: Plan):
    """An ordinary compiled Keras model of the same network, and its variables in the agreed order."""
    import keras

    layers = keras.layers
    penalty = keras.regularizers.L1L2(model.l1, model.l2)
    inputs = [keras.Input((NUM_DENSE,))]
    parts, tables, others = [inputs[0]], [], []
    for table in spec.embeddings:
        inputs.append(keras.Input((table.num_ids,)))
        tables.append(layers.Dense(table.dim, use_bias=False))
        parts.append(tables[-1](inputs[-1]))
    x = layers.Concatenate()(parts) if len(parts) > 1 else parts[0]
    for num_units in model.hidden:
        others.append(layers.Dense(num_units, kernel_regularizer=penalty))
        x = others[-1](x)
        if model.layer_norm:
            others.append(layers.LayerNormalization())
            x = others[-1](x)
        x = layers.Activation(model.activation)(x)
    others.append(layers.Dense(1, kernel_regularizer=penalty))
    network = keras.Model(inputs, others[-1](x))
    optimizers = {
        "sgd": lambda: keras.optimizers.SGD(plan.learning_rate),
        "momentum": lambda: keras.optimizers.SGD(plan.learning_rate, momentum=plan.momentum),
        "adam": lambda: keras.optimizers.Adam(plan.learning_rate),
    }
    losses = {
        "binary_crossentropy": lambda: keras.losses.BinaryCrossentropy(from_logits=True),
        "focal": lambda: keras.losses.BinaryFocalCrossentropy(gamma=model.focal_gamma, from_logits=True),
    }
    network.compile(optimizers[plan.optimizer](), losses[model.loss](), jit_compile=False)
    return network, [variable for layer in [*tables, *others] for variable in layer.trainable_variables]


def keras_trained(spec, model, plan, weights, rows, epochs):
    """Trained by `train_on_batch` for every batch: (num_params,) weights after each epoch."""
    network, variables = keras_oracle(spec, model, plan)
    for variable, array in zip(variables, unflatten(weights, spec.shapes), strict=True):
        variable.assign(array)
    inputs, labels = rows
    one_hot = [np.eye(table.num_ids, dtype=np.float32)[inputs.ids[:, i]] for i, table in enumerate(spec.embeddings)]
    class_weight = None if model.positive_weight == 1 else {0: 1.0, 1: model.positive_weight}
    for order in epochs:
        for first in range(0, len(order), plan.batch_size):
            batch = order[first : first + plan.batch_size]
            parts = [part[batch] for part in (inputs.dense, *one_hot)]
            network.train_on_batch(parts, labels[batch, None].astype(np.float32), class_weight=class_weight)
        yield flatten([np.asarray(variable) for variable in variables])


CASES = {
    "sgd, focal loss, LayerNorm, embeddings": (
        Model(hidden=(8, 4), loss="focal", layer_norm=True, activation="gelu"),
        Plan(optimizer="sgd", learning_rate=0.1),
        TABLES,
    ),
    "momentum, L1 and L2, class weight": (
        Model(hidden=(8,), l1=1e-3, l2=1e-2, positive_weight=5.0, activation="tanh"),
        Plan(optimizer="momentum", learning_rate=0.02),
        (),
    ),
    "adam, embeddings": (Model(hidden=(8,)), Plan(optimizer="adam", learning_rate=0.001), TABLES),
}


@pytest.mark.parametrize("case", CASES)
def test_20_and_200_steps_are_those_of_keras_train_on_batch_within_a_hundred_thousandth(case):
    model, plan, tables = CASES[case]
    plan = plan.model_copy(update={"batch_size": BATCH_SIZE})
    spec = spec_of(model, tables)
    training = LocalTraining(spec, model, plan, capacity_rows=NUM_ROWS)
    weights, rows = initial_weights(spec, 3), made_up(NUM_ROWS, tables)
    epochs = orders_of(NUM_ROWS, 20)
    after_epoch = list(keras_trained(spec, model, plan, weights, rows, epochs))
    for num_epochs in (2, 20):
        outcome, expected = trained(training, weights, rows, epochs[:num_epochs]), after_epoch[num_epochs - 1]
        assert outcome.num_steps == 10 * num_epochs
        # It has gone a way that is a thousand times as long as what it may be off.
        assert np.abs(expected - weights).max() > 1e-2
        np.testing.assert_allclose(outcome.weights, expected, rtol=0, atol=1e-5)


def test_losses_of_rows_follow_their_formula_and_their_gradients_are_finite_however_wrong_the_logit():
    import tensorflow as tf

    logits = np.float32([-200, -104, -30, -2, 0, 1e-3, 3, 30, 104, 200])
    for gamma in (0.0, 0.5, 2.0):
        model = Model(loss="focal", focal_gamma=gamma, positive_weight=3.0)
        settings = StepSettings(spec_of(model), model, Plan())
        for label in (0.0, 1.0):
            labels = np.full_like(logits, label)
            with tf.GradientTape() as tape:
                given = tf.Variable(logits)
                losses = settings.row_losses(given, labels)
            wrong = (1 - 2 * label) * logits.astype(np.float64)
            expected = np.logaddexp(0, wrong) * np.exp(-gamma * np.logaddexp(0, -wrong)) * (3.0 if label else 1.0)
            np.testing.assert_allclose(losses, expected, rtol=1e-5, atol=1e-30)
            gradient = tape.gradient(losses, given).numpy()
            assert np.isfinite(gradient).all()
            if gamma == 0:
                error = 1 / (1 + np.exp(-logits.astype(np.float64))) - label
                np.testing.assert_allclose(gradient, error * (3.0 if label else 1.0), atol=1e-6)


# --- algorithms, by logistic regression in numpy ----------------------------------------------------------------------

RATE, MU = 0.3, 0.4
LOGISTIC = Model(hidden=())
LOGISTIC_PLAN = Plan(algorithm="fedprox", proximal_mu=MU, learning_rate=RATE, batch_size=BATCH_SIZE)


@pytest.fixture(scope="module")
def logistic() -> LocalTraining:
    """Logistic regression with FedProx's pull."""
    return LocalTraining(spec_of(LOGISTIC), LOGISTIC, LOGISTIC_PLAN, capacity_rows=NUM_ROWS)


def numpy_logistic(weights, rows, epochs, correction, mu):
    """(NUM_DENSE + 1,) weights, and the mean loss: w - RATE * (g + correction + mu * (w - start)), batch by batch."""
    w, losses = weights, 0.0
    for order in epochs:
        w, loss = numpy_logistic_from(weights, w, rows, order, correction, mu)
        losses += loss
    return w, losses / epochs.size


def numpy_logistic_from(start, w, rows, order, correction=0.0, mu=MU):
    """One order further: weights, and the sum of losses."""
    inputs, labels = rows
    dense = np.concatenate([inputs.dense, np.ones((len(inputs), 1))], axis=1).astype(np.float64)
    start, w, losses = start.astype(np.float64), w.astype(np.float64), 0.0
    for first in range(0, len(order), BATCH_SIZE):
        batch = order[first : first + BATCH_SIZE]
        logits, truth = dense[batch] @ w, labels[batch]
        losses += (np.logaddexp(0, logits) - truth * logits).sum()
        gradient = dense[batch].T @ (1 / (1 + np.exp(-logits)) - truth) / len(batch)
        w = w - RATE * (gradient + correction + mu * (w - start))
    return w, losses


def test_fedprox_pull_and_scaffold_correction_are_those_of_the_slow_reference(logistic):
    weights = initial_weights(spec_of(LOGISTIC), 0)
    correction = np.linspace(-0.3, 0.4, len(weights)).astype(np.float32)
    rows, epochs = made_up(NUM_ROWS), orders_of(NUM_ROWS, 3)
    outcome = trained(logistic, weights, rows, epochs, correction=correction)
    expected, mean_loss = numpy_logistic(weights, rows, epochs, correction, MU)
    np.testing.assert_allclose(outcome.weights, expected, atol=1e-5)
    assert outcome.mean_loss == pytest.approx(mean_loss, rel=1e-5)
    unpulled, _ = numpy_logistic(weights, rows, epochs, correction, 0.0)
    assert np.abs(expected - unpulled).max() > 1e-2


def test_steps_end_within_an_epoch_and_the_loss_is_of_the_rows_that_were_seen(logistic):
    weights, rows, epochs = initial_weights(spec_of(LOGISTIC), 0), made_up(NUM_ROWS), orders_of(NUM_ROWS, 2)
    # Ten steps and then three: the last order is cut where they end.
    seen = [epochs[0], epochs[1][: 3 * BATCH_SIZE]]
    expected, losses = weights, []
    for order in seen:
        expected, loss = numpy_logistic_from(weights, expected, rows, order)
        losses.append(loss)
    outcome = trained(logistic, weights, rows, iter(epochs), max_steps=13)
    np.testing.assert_allclose(outcome.weights, expected, atol=1e-5)
    assert (outcome.num_steps, outcome.mean_loss) == (13, pytest.approx(sum(losses) / sum(map(len, seen)), rel=1e-5))
    assert trained(logistic, weights, rows, iter(epochs), max_steps=20).num_steps == 20


def test_step_from_all_zero_weights_goes_down_the_true_gradient(logistic):
    """At a logit of exactly zero a loss with a corner there would have another gradient."""
    weights = np.zeros(NUM_DENSE + 1, np.float32)
    rows, epochs = made_up(BATCH_SIZE), orders_of(BATCH_SIZE, 1)
    expected, _ = numpy_logistic(weights, rows, epochs, 0.0, MU)
    np.testing.assert_allclose(trained(logistic, weights, rows, epochs).weights, expected, atol=1e-7)


def test_proximal_pull_is_fedproxs_alone():
    for algorithm in ("fedavg", "scaffold", "fedavgm", "fedadam", "fedyogi"):
        assert StepSettings(spec_of(LOGISTIC), LOGISTIC, Plan(algorithm=algorithm, proximal_mu=MU)).proximal_mu == 0
    assert StepSettings(spec_of(LOGISTIC), LOGISTIC, LOGISTIC_PLAN).proximal_mu == MU


# --- bytes ------------------------------------------------------------------------------------------------------------

RICH = Model(hidden=(8,), dropout=0.3, l2=1e-3, layer_norm=True)
RICH_PLAN = Plan(optimizer="adam", learning_rate=0.01, batch_size=BATCH_SIZE)
RICH_SPEC = spec_of(RICH, TABLES)


@pytest.fixture(scope="module")
def rich() -> LocalTraining:
    """Adam, dropout, LayerNorm, L2 and embeddings in one program."""
    return LocalTraining(RICH_SPEC, RICH, RICH_PLAN, capacity_rows=NUM_ROWS)


def rich_outcome(training: LocalTraining, num_rows=NUM_ROWS, seed=0, **changes):
    rows, epochs = made_up(num_rows, TABLES, seed), orders_of(num_rows, 3, seed)
    return trained(training, initial_weights(RICH_SPEC, 0), rows, epochs, **changes)


def same_bytes(first, second) -> bool:
    return first.weights.tobytes() == second.weights.tobytes() and first.mean_loss == second.mean_loss


def test_earlier_calls_change_no_byte(rich):
    first = rich_outcome(rich)
    rich_outcome(rich, num_rows=97, seed=5, dropout_seed=8)
    rich.logits(initial_weights(RICH_SPEC, 9), made_up(200, TABLES)[0])
    assert same_bytes(rich_outcome(rich), first)
    short = rich_outcome(rich, num_rows=20, seed=6)
    rich_outcome(rich)
    assert same_bytes(rich_outcome(rich, num_rows=20, seed=6), short)


def test_where_epochs_are_cut_into_chunks_changes_no_byte(rich):
    outcomes = []
    for chunk_steps in (1, 3, 10, 1000):
        rich._chunk_steps = chunk_steps
        outcomes.append(rich_outcome(rich, dropout_seed=4))
    assert all(same_bytes(outcome, outcomes[0]) for outcome in outcomes)


def test_capacity_for_larger_merchants_changes_no_byte(rich):
    roomy = LocalTraining(RICH_SPEC, RICH, RICH_PLAN, capacity_rows=3000)
    assert same_bytes(rich_outcome(roomy), rich_outcome(rich))


def test_correction_of_zero_changes_no_byte(rich):
    zero = np.zeros(num_params(RICH_SPEC.shapes), np.float32)
    assert same_bytes(rich_outcome(rich, correction=zero), rich_outcome(rich))
    assert not same_bytes(rich_outcome(rich, correction=zero + 0.01), rich_outcome(rich))


def test_dropout_follows_its_seed(rich):
    assert same_bytes(rich_outcome(rich, dropout_seed=1), rich_outcome(rich, dropout_seed=1))
    assert not same_bytes(rich_outcome(rich, dropout_seed=1), rich_outcome(rich, dropout_seed=2))


def test_rows_that_overflow_do_not_reach_the_next_merchants_batches(logistic):
    """Both share one program; the second merchant's last batch has room for rows of the first."""
    weights = np.full(NUM_DENSE + 1, 4.0, np.float32)
    rows, epochs = made_up(20), orders_of(20, 2)
    before = trained(logistic, weights, rows, epochs)
    inputs, labels = made_up(NUM_ROWS)
    huge = Inputs(np.full_like(inputs.dense, 3e38), inputs.ids)
    trained(logistic, weights, (huge, labels), orders_of(NUM_ROWS, 1))
    assert same_bytes(trained(logistic, weights, rows, epochs), before)


def test_one_compilation_serves_every_number_of_rows_and_scoring_has_one_a_block(logistic):
    weights = initial_weights(spec_of(Model(hidden=())), 0)
    for num_rows in (1, BATCH_SIZE, BATCH_SIZE + 1, NUM_ROWS):
        inputs, labels = made_up(num_rows)
        for correction in (None, np.ones_like(weights)):
            trained(logistic, weights, (inputs, labels), orders_of(num_rows, 2), correction=correction)
        logistic.logits(weights, inputs)
    assert logistic._program._run.experimental_get_tracing_count() == 1
    assert logistic._program._score.experimental_get_tracing_count() <= len(SCORING_BLOCKS)


# --- stopping ---------------------------------------------------------------------------------------------------------


def test_deadline_stops_between_chunks_and_leaves_nothing_behind(rich):
    before = rich_outcome(rich)
    rich._chunk_steps = 2
    asked = []

    def stop_at_the_fourth() -> bool:
        asked.append(len(asked))
        return len(asked) == 4

    with pytest.raises(DeadlineError, match="between two chunks"):
        rich_outcome(rich, should_stop=stop_at_the_fourth)
    assert len(asked) == 4
    assert same_bytes(rich_outcome(rich), before)


def test_deadline_already_over_is_noticed_before_the_first_step(rich):
    with pytest.raises(DeadlineError):
        rich_outcome(rich, should_stop=lambda: True)


# --- scoring ----------------------------------------------------------------------------------------------------------


def test_scores_of_any_number_of_rows_are_those_of_each_row(logistic):
    weights = np.random.default_rng(0).normal(size=NUM_DENSE + 1).astype(np.float32)
    inputs, _ = made_up(SCORING_BLOCKS[0] + SCORING_BLOCKS[1] + 2 * SCORING_BLOCKS[2] + 7)
    expected = inputs.dense.astype(np.float64) @ weights[:-1] + weights[-1]
    for num_rows in (0, 1, SCORING_BLOCKS[2], SCORING_BLOCKS[1] + 1, len(inputs)):
        found = logistic.logits(weights, inputs.take(np.arange(num_rows)))
        assert (found.dtype, found.shape) == (np.float32, (num_rows,))
        np.testing.assert_allclose(found, expected[:num_rows], atol=1e-5)


# --- precision --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def in_float32():
    return outcome_in("float32")


def outcome_in(precision: str):
    model, plan = Model(hidden=(8,), precision=precision), Plan(learning_rate=0.3, batch_size=BATCH_SIZE)
    training = LocalTraining(spec_of(model), model, plan, capacity_rows=NUM_ROWS)
    return trained(training, initial_weights(spec_of(model), 0), made_up(NUM_ROWS), orders_of(NUM_ROWS, 5))


@pytest.mark.parametrize("precision", ["mixed_bfloat16", "mixed_float16"])
def test_mixed_precision_trains_within_a_twentieth_of_the_way_of_float32(in_float32, precision):
    mixed = outcome_in(precision)
    way = np.linalg.norm(in_float32.weights - initial_weights(spec_of(Model(hidden=(8,))), 0))
    assert np.isfinite(mixed.weights).all()
    assert 0 < np.linalg.norm(mixed.weights - in_float32.weights) < 0.05 * way
    assert mixed.mean_loss == pytest.approx(in_float32.mean_loss, rel=0.01)


def test_small_gradients_do_not_vanish_in_float16():
    """A batch of a thousand rows divides each row's gradient by a thousand, below what float16 can hold."""
    model = Model(hidden=(16,), precision="mixed_float16")
    assert StepSettings(spec_of(model), model, Plan()).loss_scale == 1024.0
    assert StepSettings(spec_of(model), Model(hidden=(16,)), Plan()).loss_scale == 1.0
