"""A bundle scores as the model that it was made of, one row or many, and without what trained it."""

from __future__ import annotations

import math
import subprocess
import sys
import textwrap

import numpy as np
import pytest

from hansa_client.data import feature_rows
from hansa_common.activations import forward
from hansa_common.bundle import FLOAT_NAME, INT8_NAME, open_bundle
from hansa_common.errors import BundleError, DataError, UsageError
from hansa_common.features import Inputs
from hansa_common.model import build_model, model_inputs, ordered_variables
from hansa_common.scorer import Scorer, scores_of
from hansa_common.single_row import RowTransform
from hansa_common.tflite import BLOCK_ROWS, TfliteNetwork
from hansa_common.vectors import unflatten

# --- what it scores ---------------------------------------------------------------------------------------------------


def columns_of(finished, frame):
    return feature_rows(frame, finished.parts.agreement.features, "the test").columns


def plain_row(columns, number: int) -> dict:
    """One row as a program hands it over: Python's own values, None where missing."""
    row = {name: values[number] for name, values in columns.items()}
    return {
        name: v if v is None or isinstance(v, str) else None if np.isnan(v) else float(v) for name, v in row.items()
    }


@pytest.fixture(scope="module")
def bundle(finished):
    return open_bundle(finished.files, finished.trusted)


@pytest.mark.system
def test_float_file_scores_as_the_keras_model_within_1e_5(finished, bundle):
    columns = columns_of(finished, finished.rows(3000, seed=3))
    model = build_model(bundle.spec)
    for variable, value in zip(
        ordered_variables(model, bundle.spec), unflatten(bundle.weights, bundle.spec.shapes), strict=True
    ):
        variable.assign(value)
    inputs = bundle.preprocessing.transform(columns, finished.hash_key)
    logits = np.asarray(model(model_inputs(bundle.spec, inputs.dense, inputs.ids)), np.float64)[:, 0]
    keras_scores = 1.0 / (1.0 + np.exp(-logits))
    assert keras_scores.std() > 0.05
    scorer = Scorer(bundle, finished.hash_key, FLOAT_NAME)
    assert np.abs(scorer.score(columns) - keras_scores).max() < 1e-5
    rows = [plain_row(columns, number) for number in range(300)]
    assert np.abs([scorer.score_row(row) for row in rows] - keras_scores[:300]).max() < 1e-5


@pytest.mark.system
def test_int8_file_is_the_one_that_scores_and_ranks_as_the_float_one(finished, bundle):
    columns = columns_of(finished, finished.rows(3000, seed=4))
    scores = {name: Scorer(bundle, finished.hash_key, name).score(columns) for name in (FLOAT_NAME, INT8_NAME)}
    np.testing.assert_array_equal(Scorer(bundle, finished.hash_key).score(columns), scores[INT8_NAME])
    assert np.corrcoef(scores[FLOAT_NAME], scores[INT8_NAME])[0, 1] > 0.99
    assert len(np.unique(scores[INT8_NAME])) > 0.95 * len(np.unique(scores[FLOAT_NAME]))


@pytest.mark.system
@pytest.mark.parametrize("num_rows", [0, 1, 2, BLOCK_ROWS - 1, BLOCK_ROWS, BLOCK_ROWS + 1, 3 * BLOCK_ROWS + 7])
def test_score_of_a_row_does_not_depend_on_the_rows_beside_it(finished, bundle, num_rows):
    columns = columns_of(finished, finished.rows(4 * BLOCK_ROWS, seed=5))
    scorer = Scorer(bundle, finished.hash_key)
    whole = scorer.score(columns)
    part = scorer.score({name: values[-num_rows:] if num_rows else values[:0] for name, values in columns.items()})
    np.testing.assert_array_equal(part, whole[-num_rows:] if num_rows else whole[:0])


@pytest.mark.system
def test_only_the_merchants_hash_key_scores(finished, bundle):
    with pytest.raises(UsageError, match="--hash-key"):
        Scorer(bundle)
    with pytest.raises(UsageError, match="not the merchants' key"):
        Scorer(bundle, b"k" * 32)


@pytest.mark.system
def test_network_for_other_inputs_is_refused(finished, bundle):
    spec = finished.parts.spec
    for num_dense, num_embedded in [(spec.num_dense + 1, 2), (spec.num_dense, 1), (spec.num_dense, 0), (0, 2)]:
        with pytest.raises(BundleError, match="the model takes"):
            TfliteNetwork(bundle.networks[FLOAT_NAME], num_dense, num_embedded)
    with pytest.raises(UsageError, match="no network 'x'"):
        Scorer(bundle, finished.hash_key, "x")


@pytest.mark.system
def test_first_score_needs_neither_tensorflow_nor_keras_nor_pandas(finished, tmp_path):
    for name, content in finished.files.items():
        (tmp_path / name).write_bytes(content)
    script = textwrap.dedent("""
        import sys
        from pathlib import Path
        from hansa_common.bundle import open_bundle
        from hansa_common.scorer import Scorer
        files = {path.name: path.read_bytes() for path in Path(sys.argv[1]).iterdir()}
        scorer = Scorer(open_bundle(files, sys.argv[2]), bytes.fromhex(sys.argv[3]))
        row = dict.fromkeys(["amount", "basket", "gift", "moment", "country", "device", "brand", "network"])
        print(scorer.score_row({**row, "age": 40, "clock": 0}))
        print(sorted({"tensorflow", "keras", "tf_keras", "pandas", "jax", "flwr"} & set(sys.modules)))
    """)
    words = [sys.executable, "-c", script, tmp_path, finished.trusted, finished.hash_key.hex()]
    score, modules = subprocess.run(words, check=True, capture_output=True, text=True).stdout.split("\n")[:2]
    assert 0.0 < float(score) < 1.0
    assert modules == "[]"


# --- one row ----------------------------------------------------------------------------------------------------------


def test_single_row_has_the_inputs_that_it_has_in_a_table(unfinished):
    preprocessing, columns = unfinished.parts.preprocessing, columns_of(unfinished, unfinished.rows(400, seed=6))
    transform = RowTransform(preprocessing, unfinished.hash_key)
    whole = preprocessing.transform(columns, unfinished.hash_key)
    for number in range(400):
        alone = transform(plain_row(columns, number))
        assert (alone.dense.dtype, alone.ids.dtype) == (np.float32, np.int32)
        np.testing.assert_allclose(alone.dense[0], whole.dense[number], rtol=1e-6, atol=1e-6)
        np.testing.assert_array_equal(alone.ids[0], whole.ids[number])


@pytest.mark.parametrize("value", [500, np.float64(3.25), np.float32(3.25), np.int64(7), True, 1e300, -1e300])
def test_any_finite_number_is_one_and_ends_at_its_domain(unfinished, value):
    columns = columns_of(unfinished, unfinished.rows(1, seed=7))
    alone = RowTransform(unfinished.parts.preprocessing, unfinished.hash_key)(
        {**plain_row(columns, 0), "amount": value}
    )
    expected = unfinished.parts.preprocessing.transform(
        {**columns, "amount": np.array([float(value)])}, unfinished.hash_key
    )
    np.testing.assert_allclose(alone.dense, expected.dense, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(
    ("column", "value", "reason"),
    [
        ("amount", "12", "is not a number"),
        ("amount", b"12", "is not a number"),
        ("amount", [1.0], "is not a number"),
        ("amount", math.inf, "not a finite number"),
        ("amount", -math.inf, "not a finite number"),
        ("amount", 10**400, "not a finite number"),
        ("clock", math.inf, "not a finite number"),
        ("clock", "0", "is not a number"),
        ("clock", None, "is missing"),
        ("age", None, "is missing"),
        ("age", math.nan, "is missing"),
        ("gift", 0.5, "neither true"),
        ("gift", "yes", "is not a number"),
        ("gift", 2, "neither true"),
        ("country", 3, "is not a text"),
        ("country", math.nan, "is not a text"),
        ("network", b"network 1", "is not a text"),
    ],
)
def test_value_that_is_none_of_its_feature_is_refused_by_the_columns_name(unfinished, column, value, reason):
    row = plain_row(columns_of(unfinished, unfinished.rows(1, seed=8)), 0)
    with pytest.raises(DataError, match=f"{column!r}.*{reason}"):
        RowTransform(unfinished.parts.preprocessing, unfinished.hash_key)({**row, column: value})


def test_column_that_is_not_there_is_told_by_name_and_others_are_not_looked_at(unfinished):
    row = plain_row(columns_of(unfinished, unfinished.rows(1, seed=8)), 0)
    transform = RowTransform(unfinished.parts.preprocessing, unfinished.hash_key)
    transform({**row, "is_fraud": object()})
    for name in row:
        rest = {other: value for other, value in row.items() if other != name}
        with pytest.raises(DataError, match=f"no column '{name}'"):
            transform(rest)


def test_scores_are_those_of_the_closed_form_at_any_logit():
    logits = np.array([0.0, 1.0, -1.0, 30.0, -30.0, 700.0, -700.0, 3e38, -3e38], np.float32)
    with np.errstate(over="ignore"):
        expected = [1 / (1 + math.exp(-x)) if x > -700 else math.exp(max(x, -800)) for x in logits.astype(float)]
    np.testing.assert_allclose(scores_of(logits), expected, rtol=1e-12)


@pytest.mark.system
def test_network_agrees_with_the_slow_forward_pass(finished):
    parts = finished.parts
    random = np.random.default_rng(9)
    dense = random.normal(size=(100, parts.spec.num_dense)).astype(np.float32)
    ids = np.stack([random.integers(0, e.num_ids, 100) for e in parts.spec.embeddings], axis=1).astype(np.int32)
    logits, _ = forward(parts.spec, parts.weights, Inputs(dense, ids))
    network = TfliteNetwork(parts.float_tflite, parts.spec.num_dense, 2)
    np.testing.assert_allclose(network.logits(Inputs(dense, ids)), np.asarray(logits).reshape(-1), atol=1e-5)


@pytest.mark.system
@pytest.mark.parametrize("name", [FLOAT_NAME, INT8_NAME])
def test_row_written_in_place_scores_as_in_a_table_while_tables_are_scored_between(finished, bundle, name):
    columns = columns_of(finished, finished.rows(2 * BLOCK_ROWS, seed=10))
    inputs = bundle.preprocessing.transform(columns, finished.hash_key)
    network = TfliteNetwork(bundle.networks[name], bundle.spec.num_dense, 2)
    expected, alone = network.logits(inputs), []
    for number in range(300):
        if number % 50 == 0:
            np.testing.assert_array_equal(network.logits(inputs), expected)
        network.row.dense[:], network.row.ids[:] = inputs.dense[number], inputs.ids[number]
        alone.append(network.row_logit())
        # Whatever computing does with its memory, what was written stays until it is written over.
        assert network.row_logit() == alone[-1]
    assert np.ptp(alone) > 0.5
    np.testing.assert_allclose(alone, expected[:300], atol=1e-5)
