"""The network is what its specification says, from the first weights to the files: never code that somebody sent."""

from __future__ import annotations

import io
import json
import math
import pickle
from itertools import product

import numpy as np
import pytest

from hansa_common.agreement import validate_agreement
from hansa_common.errors import MessageError, UsageError
from hansa_common.features import FittedPreprocessing
from hansa_common.model import (
    PREPROCESSING_NAME,
    SPEC_NAME,
    WEIGHTS_NAME,
    EmbeddingSpec,
    ModelSpec,
    build_model,
    initial_weights,
    load_model_parts,
    model_inputs,
    ordered_variables,
    save_model,
)
from hansa_common.statistics import statistics_length
from hansa_common.vectors import num_params, unflatten

EMBEDDINGS = (EmbeddingSpec(feature="brand", num_ids=7, dim=3), EmbeddingSpec(feature="shop", num_ids=4, dim=2))
NUM_ROWS = 11


def spec_with(**changes) -> ModelSpec:
    values = {"num_dense": 5, "embeddings": EMBEDDINGS, "hidden": (6, 4), "activation": "relu", "dropout": 0.0}
    return ModelSpec(**{**values, "l1": 0.0, "l2": 0.0, "layer_norm": False, "output_bias": 0.0, **changes})


COMBINATIONS = [
    spec_with(**inputs, hidden=hidden, layer_norm=layer_norm, **rest)
    for inputs, hidden, layer_norm, rest in product(
        [{"embeddings": ()}, {"num_dense": 0}, {}],
        [(), (6,), (6, 4)],
        [False, True],
        [{}, {"dropout": 0.4, "activation": "gelu"}, {"dropout": 0.4, "activation": "tanh"}],
    )
]


def made_up(spec: ModelSpec):
    """Weights with no zero among them, and rows."""
    values = np.random.default_rng(3)
    weights = values.normal(0, 0.5, num_params(spec.shapes)).astype(np.float32)
    dense = values.normal(size=(NUM_ROWS, spec.num_dense)).astype(np.float32)
    ids = np.stack([values.integers(0, e.num_ids, NUM_ROWS) for e in spec.embeddings], axis=1) if spec.embeddings else 0
    return weights, dense, np.zeros((NUM_ROWS, 0), np.int32) if isinstance(ids, int) else ids.astype(np.int32)


def with_weights(spec: ModelSpec, weights, precision="float32"):
    model = build_model(spec, precision)
    for variable, array in zip(ordered_variables(model, spec), unflatten(weights, spec.shapes), strict=True):
        variable.assign(array)
    return model


ACTIVATIONS = {
    "relu": lambda x: np.maximum(x, 0),
    "tanh": np.tanh,
    "gelu": lambda x: x * (1 + np.vectorize(math.erf)(x / np.sqrt(2))) / 2,
}


def slow_logits(spec: ModelSpec, weights, dense, ids):
    """The forward pass as the documentation says it, in float64."""
    arrays = {
        name: array.astype(np.float64)
        for name, array in zip(spec.named_shapes, unflatten(weights, spec.shapes), strict=True)
    }
    tables = [arrays[f"embedding_{i}.table"][ids[:, i]] for i in range(len(spec.embeddings))]
    x = np.concatenate([dense.astype(np.float64), *tables], axis=1)
    for i in range(len(spec.hidden)):
        x = x @ arrays[f"hidden_{i}.kernel"] + arrays[f"hidden_{i}.bias"]
        if spec.layer_norm:
            x = (x - x.mean(axis=1, keepdims=True)) / np.sqrt(x.var(axis=1, keepdims=True) + 1e-3)
            x = x * arrays[f"norm_{i}.gain"] + arrays[f"norm_{i}.offset"]
        x = ACTIVATIONS[spec.activation](x)
    return (x @ arrays["output.kernel"] + arrays["output.bias"])[:, 0]


@pytest.mark.parametrize("spec", COMBINATIONS, ids=str)
def test_every_network_computes_what_the_slow_reference_does_with_weights_in_the_named_order(spec):
    weights, dense, ids = made_up(spec)
    model = with_weights(spec, weights)
    variables = ordered_variables(model, spec)
    assert tuple(tuple(variable.shape) for variable in variables) == spec.shapes
    assert {id(v) for v in variables} == {id(v) for v in model.trainable_variables}
    logits = np.asarray(model(model_inputs(spec, dense, ids)))
    assert (logits.dtype, logits.shape) == (np.float32, (NUM_ROWS, 1))
    np.testing.assert_allclose(logits[:, 0], slow_logits(spec, weights, dense, ids), atol=2e-5)


@pytest.mark.parametrize("precision", ["mixed_bfloat16", "mixed_float16"])
def test_mixed_precision_keeps_weights_and_logits_in_float32_and_stays_near(precision):
    spec = spec_with(layer_norm=True)
    weights, dense, ids = made_up(spec)
    model = with_weights(spec, weights, precision)
    assert {str(variable.dtype) for variable in ordered_variables(model, spec)} == {"float32"}
    logits = np.asarray(model(model_inputs(spec, dense, ids)))
    assert logits.dtype == np.float32
    np.testing.assert_allclose(logits[:, 0], slow_logits(spec, weights, dense, ids), atol=0.05)


def test_penalty_is_of_the_kernels_alone():
    spec = spec_with(l1=0.01, l2=0.1, layer_norm=True)
    weights, _, _ = made_up(spec)
    arrays = dict(zip(spec.named_shapes, unflatten(weights.astype(np.float64), spec.shapes), strict=True))
    kernels = [array for name, array in arrays.items() if name.endswith(".kernel")]
    assert len(kernels) == 3
    expected = sum(0.01 * np.abs(kernel).sum() + 0.1 * (kernel**2).sum() for kernel in kernels)
    found = sum(float(loss) for loss in with_weights(spec, weights).losses)
    assert found == pytest.approx(expected, rel=1e-5)


# --- initial weights --------------------------------------------------------------------------------------------------


def initial(spec: ModelSpec, seed: int = 0) -> dict[str, np.ndarray]:
    return dict(zip(spec.named_shapes, unflatten(initial_weights(spec, seed), spec.shapes), strict=True))


def test_initial_weights_are_a_function_of_the_seed():
    spec = spec_with()
    assert initial_weights(spec, 5).tobytes() == initial_weights(spec, 5).tobytes()
    first, second = initial(spec, 5), initial(spec, 6)
    for name, array in first.items():
        is_drawn = name.endswith((".kernel", ".table"))
        assert np.array_equal(array, second[name]) != is_drawn, name


def test_each_tensor_has_a_stream_of_its_own():
    """Another layer or table changes no tensor that keeps its shape, and no two tensors repeat each other."""
    small = initial(spec_with(hidden=(6, 6), embeddings=EMBEDDINGS[:1]))
    deeper = initial(spec_with(hidden=(6, 6, 6), embeddings=EMBEDDINGS[:1]))
    wider = initial(spec_with(hidden=(6, 6), embeddings=EMBEDDINGS))
    for name in ("embedding_0.table", "hidden_0.kernel", "hidden_1.kernel", "output.kernel"):
        np.testing.assert_array_equal(small[name], deeper[name])
    np.testing.assert_array_equal(small["embedding_0.table"], wider["embedding_0.table"])
    np.testing.assert_array_equal(small["hidden_1.kernel"], wider["hidden_1.kernel"])
    assert not np.array_equal(small["hidden_1.kernel"], deeper["hidden_2.kernel"])


def test_initial_kernels_are_glorot_uniform_and_all_else_constant():
    spec = spec_with(num_dense=200, hidden=(100,), embeddings=(), layer_norm=True, output_bias=-4.0)
    weights = initial(spec)
    reach = np.sqrt(6 / 300)
    kernel = weights["hidden_0.kernel"]
    assert np.abs(kernel).max() <= reach
    # Of 20,000 uniform numbers: mean and variance within five standard errors.
    assert abs(kernel.mean()) < 5 * reach / np.sqrt(3 * kernel.size)
    assert kernel.var() == pytest.approx(reach**2 / 3, rel=5 * np.sqrt(4 / 5 / kernel.size))
    constants = {"hidden_0.bias": 0.0, "norm_0.gain": 1.0, "norm_0.offset": 0.0, "output.bias": -4.0}
    for name, value in constants.items():
        assert (weights[name] == value).all(), name


def test_agreement_with_every_kind_of_feature_has_a_network_of_its_inputs():
    agreement = validate_agreement(
        {
            "task": "purchase",
            "label": {"column": "buys"},
            "features": [
                {"kind": "numeric", "name": "amount", "low": 0, "high": 1},
                {
                    "kind": "categorical",
                    "name": "brand",
                    "hash_buckets": 10,
                    "embedding_dim": 4,
                    "encoding": "embedding",
                },
                {"kind": "categorical", "name": "channel", "vocabulary": ["web", "shop"]},
                {"kind": "timestamp", "name": "when", "missing": "refuse"},
            ],
            "model": {"hidden": [8], "layer_norm": True, "dropout": 0.5, "output_bias": -1},
        },
        "the test",
    )
    spec = ModelSpec.from_agreement(agreement)
    assert spec.named_shapes == {
        "embedding_0.table": (12, 4),
        "hidden_0.kernel": (2 + 4 + 4 + 4, 8),
        "hidden_0.bias": (8,),
        "norm_0.gain": (8,),
        "norm_0.offset": (8,),
        "output.kernel": (8, 1),
        "output.bias": (1,),
    }
    assert (spec.dropout, spec.output_bias, spec.embeddings[0].feature) == (0.5, -1.0, "brand")


# --- files ------------------------------------------------------------------------------------------------------------

AGREEMENT = validate_agreement(
    {
        "task": "fraud",
        "label": {"column": "label"},
        "features": [
            {"kind": "numeric", "name": "amount", "low": 0, "high": 1},
            {"kind": "categorical", "name": "brand", "vocabulary": ["a", "b"], "encoding": "embedding"},
        ],
        "model": {"hidden": [3]},
    },
    "the test",
)
SPEC = ModelSpec.from_agreement(AGREEMENT)
WEIGHTS = np.linspace(-1, 1, num_params(SPEC.shapes)).astype(np.float32)
PREPROCESSING = FittedPreprocessing.fit(AGREEMENT, np.zeros(statistics_length(AGREEMENT), np.int64))
ARRAYS = dict(zip(SPEC.named_shapes, unflatten(WEIGHTS, SPEC.shapes), strict=True))


@pytest.fixture
def folder(tmp_path):
    save_model(tmp_path, SPEC, WEIGHTS, PREPROCESSING)
    return tmp_path


def test_model_comes_back_as_it_was_saved(folder):
    spec, weights, preprocessing = load_model_parts(folder)
    assert spec == SPEC
    assert weights.tobytes() == WEIGHTS.tobytes()
    assert weights.dtype == np.float32
    assert preprocessing == PREPROCESSING


def test_equal_models_are_equal_bytes(folder, tmp_path_factory):
    other = tmp_path_factory.mktemp("other")
    save_model(other, *load_model_parts(folder))
    names = (SPEC_NAME, WEIGHTS_NAME, PREPROCESSING_NAME)
    assert sorted(path.name for path in folder.iterdir()) == sorted(names)
    for name in names:
        assert (folder / name).read_bytes() == (other / name).read_bytes()


def refused(folder):
    with pytest.raises(UsageError, match="does not hold a model") as told:
        load_model_parts(folder)
    assert str(folder) in str(told.value)


@pytest.mark.parametrize("name", [SPEC_NAME, WEIGHTS_NAME, PREPROCESSING_NAME])
def test_file_that_is_not_there_is_refused(folder, name):
    (folder / name).unlink()
    refused(folder)


def without_last(arrays):
    return dict(list(arrays.items())[:-1])


@pytest.mark.parametrize(
    "arrays",
    [
        without_last(ARRAYS),
        {**ARRAYS, "hidden_1.kernel": ARRAYS["hidden_0.kernel"]},
        {**ARRAYS, "output.bias": ARRAYS["output.bias"].astype(np.float64)},
        {**ARRAYS, "output.bias": ARRAYS["output.bias"].astype(">f4")},
        {**ARRAYS, "output.bias": np.zeros((1, 1), np.float32)},
        {**ARRAYS, "output.kernel": ARRAYS["output.kernel"].T},
        {**ARRAYS, "output.bias": np.array([np.nan], np.float32)},
        {**ARRAYS, "output.kernel": np.array([[np.inf]] * 3, np.float32)},
    ],
)
def test_foreign_arrays_are_refused(folder, arrays):
    np.savez(folder / WEIGHTS_NAME, **arrays)
    refused(folder)


class Payload:
    """Unpickling this leaves a file: nothing here may unpickle it."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


def test_pickled_arrays_are_refused_and_their_code_is_not_run(folder):
    trace = folder / "was-here"
    payload = np.array([Payload(trace)], object)
    for arrays in ({**ARRAYS, "output.bias": payload}, {**ARRAYS, "another": payload}):
        np.savez(folder / WEIGHTS_NAME, allow_pickle=True, **arrays)
        refused(folder)
    (folder / WEIGHTS_NAME).write_bytes(pickle.dumps(Payload(trace)))
    refused(folder)
    assert not trace.exists()


def single_array() -> bytes:
    file = io.BytesIO()
    np.save(file, WEIGHTS)
    return file.getvalue()


@pytest.mark.parametrize("content", [b"", b"PK", b"not a zip", single_array()])
def test_file_of_another_format_is_refused(folder, content):
    (folder / WEIGHTS_NAME).write_bytes(content)
    refused(folder)


def test_damaged_weights_are_refused_or_the_same(folder):
    """Cut anywhere, or with any bit turned: an error that says so, or what does not matter was hit."""
    whole = (folder / WEIGHTS_NAME).read_bytes()
    values = np.random.default_rng(0)
    cut = [whole[: int(stop)] for stop in values.integers(0, len(whole), 60)]
    turned = [bytearray(whole) for _ in range(400)]
    for content in turned:
        content[values.integers(len(whole))] ^= 1 << int(values.integers(8))
    num_refused = 0
    for content in [*cut, *map(bytes, turned)]:
        (folder / WEIGHTS_NAME).write_bytes(content)
        try:
            _, weights, _ = load_model_parts(folder)
        except UsageError:
            num_refused += 1
        else:
            assert weights.tobytes() == WEIGHTS.tobytes()
    assert num_refused > len(cut)


@pytest.mark.parametrize(
    "changes",
    [
        {"dropout": 1.0},
        {"dropout": -0.1},
        {"l2": -1.0},
        {"hidden": [0]},
        {"hidden": [100_000]},
        {"hidden": [4]},
        {"activation": "exec"},
        {"num_dense": 0, "embeddings": []},
        {"output_bias": None},
        {"code": "import os"},
    ],
)
def test_specification_out_of_bounds_or_for_other_weights_is_refused(folder, changes):
    values = json.loads((folder / SPEC_NAME).read_text())
    (folder / SPEC_NAME).write_text(json.dumps({**values, **changes}))
    refused(folder)


def test_preprocessing_that_does_not_hold_is_refused(folder):
    (folder / PREPROCESSING_NAME).write_text(PREPROCESSING.to_json().replace("0.5", "1.5", 1))
    with pytest.raises(MessageError):
        load_model_parts(folder)


def test_preprocessing_for_another_network_is_refused(folder):
    agreement = validate_agreement(
        {
            "task": "fraud",
            "label": {"column": "label"},
            "features": [{"kind": "numeric", "name": "amount", "low": 0, "high": 1}],
        },
        "the test",
    )
    other = FittedPreprocessing.fit(agreement, np.zeros(statistics_length(agreement), np.int64))
    (folder / PREPROCESSING_NAME).write_text(other.to_json())
    refused(folder)
