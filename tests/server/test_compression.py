"""The finished files are the network that was asked for: zeros, ranges, ranks and bytes."""

from __future__ import annotations

import dataclasses
import gzip
import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache

import numpy as np
import pytest

from hansa_common.activations import (
    activation_histograms,
    activation_widths,
    forward,
    ranges_from_histograms,
)
from hansa_common.errors import CompressionError
from hansa_common.features import Inputs
from hansa_common.model import EmbeddingSpec, ModelSpec, initial_weights
from hansa_common.vectors import flatten, num_params, unflatten
from hansa_server import compression
from hansa_server.compression import Compressed, CompressionReport, compress
from hansa_server.compression_process import inspect, made_up_inputs
from hansa_server.tflite_files import TfliteFile, run_file

NUM_ROWS = 10_000
EMBEDDINGS = (EmbeddingSpec(feature="brand", num_ids=300, dim=8), EmbeddingSpec(feature="shop", num_ids=40, dim=4))
PRUNED = 0.8


def spec_with(**changes) -> ModelSpec:
    values = {"num_dense": 12, "embeddings": EMBEDDINGS, "hidden": (64, 32), "activation": "relu", "dropout": 0.2}
    return ModelSpec(**{**values, "l1": 0.0, "l2": 1e-4, "layer_norm": False, "output_bias": -1.0, **changes})


SPECS = {
    "pruned": spec_with(),
    "gelu, layer norm": spec_with(activation="gelu", layer_norm=True, embeddings=()),
    "gelu": spec_with(activation="gelu", hidden=(24,)),
    "tanh, ids only": spec_with(activation="tanh", num_dense=0, embeddings=EMBEDDINGS[:1]),
    "relu, layer norm": spec_with(layer_norm=True),
    "no hidden layer": spec_with(hidden=()),
    "one of everything": spec_with(num_dense=1, embeddings=(), hidden=(1,)),
    "wide": spec_with(num_dense=40, hidden=(512, 512, 256)),
    # In int8 steps its four numbers would leave a tenth of the rows with another row's score.
    "few units": spec_with(hidden=(64, 4)),
}
WITH_HIDDEN = [name for name, spec in SPECS.items() if spec.hidden]
IS_PRUNED = {"pruned", "wide", "relu, layer norm"}


def weights_of(name: str) -> np.ndarray:
    """Weights as after training: kernels wider than at first, no bias or table at its start, hidden kernels pruned."""
    spec, random = SPECS[name], np.random.default_rng(1)
    arrays = []
    for key, array in zip(spec.named_shapes, unflatten(initial_weights(spec, 1), spec.shapes), strict=True):
        if key.endswith(".kernel"):
            # The output's few numbers stay: without them most scores would be one another's.
            is_pruned = name in IS_PRUNED and key != "output.kernel"
            kept = np.abs(array) > np.quantile(np.abs(array), PRUNED) if is_pruned else True
            arrays.append(np.where(kept, 2.0 * array, 0.0))
        else:
            arrays.append(array + random.normal(0, 0.3, array.shape))
    return flatten(arrays)


def rows_of(spec: ModelSpec) -> Inputs:
    random = np.random.default_rng(2)
    ids = np.zeros((NUM_ROWS, len(spec.embeddings)), np.int32)
    for i, embedding in enumerate(spec.embeddings):
        ids[:, i] = random.integers(0, embedding.num_ids, NUM_ROWS)
    return Inputs(random.normal(size=(NUM_ROWS, spec.num_dense)).astype(np.float32), ids)


@lru_cache
def ranges_of(name: str):
    spec = SPECS[name]
    return ranges_from_histograms(spec, activation_histograms(spec, weights_of(name), rows_of(spec), 5), 0.9999)


@lru_cache
def compressed(name: str) -> Compressed:
    """Each takes a process of its own, so the tests of this module share them."""
    return compress(SPECS[name], weights_of(name), ranges_of(name))


@pytest.fixture(scope="module")
def files():
    """All of them, two at a time."""
    with ThreadPoolExecutor(2) as pool:
        return dict(zip(SPECS, pool.map(compressed, SPECS), strict=True))


def scores(logits) -> np.ndarray:
    return 1.0 / (1.0 + np.exp(-np.asarray(logits, np.float64)))


def spearman(a, b) -> float:
    ranks = [np.argsort(np.argsort(x, kind="stable"), kind="stable") for x in (a, b)]
    return float(np.corrcoef(ranks)[0, 1])


# --- what the files compute -------------------------------------------------------------------------------------------


@pytest.mark.system
@pytest.mark.parametrize("name", SPECS)
def test_float_file_computes_what_the_forward_pass_does(files, name):
    spec, rows = SPECS[name], rows_of(SPECS[name])
    logits = run_file(files[name].float_file, spec, rows)
    expected, _ = forward(spec, weights_of(name), rows)
    np.testing.assert_allclose(logits, expected, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(scores(logits), scores(expected), rtol=0, atol=1e-5)
    assert files[name].report.float_score_difference <= 1e-5


@pytest.mark.system
@pytest.mark.parametrize("name", WITH_HIDDEN)
def test_int8_file_keeps_the_order_of_scores_and_how_many_there_are(files, name):
    spec, rows = SPECS[name], rows_of(SPECS[name])
    small = run_file(files[name].int8_file, spec, rows)
    exact = run_file(files[name].float_file, spec, rows)
    assert spearman(small, exact) > 0.99
    # One input in int8 steps of its own can tell few rows apart, and ids alone no more than there are ids.
    if name not in {"one of everything", "tanh, ids only"}:
        assert np.unique(scores(small)).size >= 0.95 * np.unique(scores(exact)).size
    if name == "tanh, ids only":
        assert np.unique(small).size == np.unique(exact).size == EMBEDDINGS[0].num_ids


@pytest.mark.system
def test_without_hidden_layers_both_files_are_one(files):
    found = files["no hidden layer"]
    assert found.int8_file == found.float_file
    assert found.report.ranges == {}
    assert found.report.int8_score_difference == found.report.float_score_difference


@pytest.mark.system
def test_files_score_any_number_of_rows_and_each_row_by_itself(files):
    spec, rows = SPECS["pruned"], rows_of(SPECS["pruned"])
    for content in (files["pruned"].float_file, files["pruned"].int8_file):
        together = run_file(content, spec, rows.take(np.arange(7)))
        alone = [run_file(content, spec, rows.take(np.array([i])))[0] for i in range(7)]
        np.testing.assert_allclose(alone, together, atol=1e-5)


# --- what stands in them ----------------------------------------------------------------------------------------------


@pytest.mark.system
@pytest.mark.parametrize("name", sorted(IS_PRUNED))
def test_every_zero_of_every_kernel_is_zero_in_both_files(files, name):
    spec = SPECS[name]
    given = dict(zip(spec.named_shapes, unflatten(weights_of(name), spec.shapes), strict=True))
    stored = [TfliteFile(content, spec).arrays() for content in (files[name].float_file, files[name].int8_file)]
    counts = files[name].report.kernels
    assert set(counts) == {key for key in given if key.endswith(".kernel")}
    for key, count in counts.items():
        zeros = given[key] == 0.0
        assert zeros.mean() == (0 if key == "output.kernel" else pytest.approx(PRUNED, abs=0.02))
        assert np.array_equal(stored[0][key].values == 0.0, zeros)
        assert not stored[1][key].values[zeros].any()
        assert count == compression.KernelCount(zeros.size, zeros.sum(), np.sum(stored[1][key].values == 0.0))
    num_weights, num_zeros = (sum(getattr(c, key) for c in counts.values()) for key in ("num_weights", "float_zeros"))
    assert files[name].report.sparsity == pytest.approx(num_zeros / num_weights)


@pytest.mark.system
@pytest.mark.parametrize("name", WITH_HIDDEN)
def test_int8_kernels_are_the_nearest_of_255_steps(files, name):
    spec = SPECS[name]
    given = dict(zip(spec.named_shapes, unflatten(weights_of(name), spec.shapes), strict=True))
    stored = TfliteFile(files[name].int8_file, spec).arrays()
    for i in range(len(spec.hidden)):
        kernel = given[f"hidden_{i}.kernel"]
        step = np.abs(kernel).max() / 127
        assert stored[f"hidden_{i}.kernel"].step == pytest.approx(step, rel=1e-5)
        assert np.abs(stored[f"hidden_{i}.kernel"].values - kernel).max() <= 0.5001 * step
    # The head is float: its numbers are the network's.
    assert np.array_equal(stored["output.kernel"].values, given["output.kernel"])


@pytest.mark.system
@pytest.mark.parametrize("name", WITH_HIDDEN)
def test_every_activation_has_the_range_that_was_asked_for(files, name):
    found, asked = files[name].report.ranges, ranges_of(name)
    assert list(found) == (list(activation_widths(SPECS[name])) if len(SPECS[name].hidden) > 1 else [])
    for key, (low, high) in found.items():
        step = (high - low) / 255
        assert low < high
        assert low <= 0.0 <= high
        np.testing.assert_allclose([low, high], [min(asked[key][0], 0.0), max(asked[key][1], 0.0)], atol=step)


@pytest.mark.system
def test_report_says_how_large_the_files_are_and_survives_json(files):
    for name, found in files.items():
        report = found.report
        assert (report.bytes, report.float_file_bytes) == (len(found.int8_file), len(found.float_file))
        assert report.gzip_bytes == len(gzip.compress(found.int8_file, 9))
        assert report.float32_bytes == 4 * num_params(SPECS[name].shapes)
        assert CompressionReport.from_json(json.loads(json.dumps(report.to_json()))) == report


@pytest.mark.system
def test_wide_network_of_which_four_fifths_are_zero_is_eight_times_smaller(files):
    report = files["wide"].report
    assert report.float32_bytes > 4 * 400_000
    assert report.gzip_bytes * 8 <= report.float32_bytes


# --- always the same, and nothing else changed ------------------------------------------------------------------------


@pytest.mark.system
@pytest.mark.parametrize("name", ["pruned", "gelu, layer norm"])
def test_equal_input_gives_equal_bytes_and_leaves_this_process_as_it_was(files, name):
    before = dict(os.environ)
    again = compress(SPECS[name], weights_of(name).copy(), dict(reversed(ranges_of(name).items())))
    assert again == files[name]
    assert dict(os.environ) == before
    assert not {"tf_keras", "tensorflow_model_optimization"} & set(sys.modules)


def test_importing_these_modules_imports_no_tensorflow():
    heavy = {"tensorflow", "keras", "tf_keras", "tensorflow_model_optimization"}
    modules = "hansa_server.compression, hansa_server.compression_process, hansa_server.tflite_files, hansa_server.cli"
    program = f"import sys, os; before = dict(os.environ); import {modules}; print({heavy!r} & set(sys.modules)); "
    program += "assert dict(os.environ) == before"
    done = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True)
    assert done.stdout == "set()\n"


def test_the_parents_side_imports_no_interpreter_either():
    program = "import sys, hansa_server.compression; print('ai_edge_litert' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True)
    assert done.stdout == "False\n"


# --- what is refused --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"input": (0.0, 0.0)}, r"range of 'input' is 0\.0 to 0\.0"),
        ({"hidden_0": (3.0, 1.0)}, r"range of 'hidden_0' is 3\.0 to 1\.0"),
        ({"hidden_0": (0.0, float("inf"))}, "two finite ends"),
        ({"hidden_0": (float("nan"), 1.0)}, "two finite ends"),
        ({"hidden_1": (0.0, 1.0)}, "ranges of .*'hidden_1'.* the network's activations are .*'hidden_0'"),
    ],
)
def test_ranges_that_are_none_or_another_networks_are_refused_before_anything_is_started(change, reason):
    ranges = {"input": (-4.0, 4.0), "hidden_0": (0.0, 4.0), **change}
    with pytest.raises(CompressionError, match=reason):
        compress(SPECS["pruned"], weights_of("pruned"), ranges)


@pytest.mark.parametrize("spoil", [lambda w: w[:-1], lambda w: np.append(w[:-1], np.float32("nan"))])
def test_weights_that_are_not_the_networks_are_refused(spoil):
    with pytest.raises(CompressionError, match=rf"not {num_params(SPECS['pruned'].shapes)} finite numbers"):
        compress(SPECS["pruned"], spoil(weights_of("pruned")), ranges_of("pruned"))


def test_child_that_takes_too_long_is_ended_and_the_error_says_so():
    with pytest.raises(CompressionError, match="took longer than 0 s and was stopped"):
        compress(SPECS["pruned"], weights_of("pruned"), ranges_of("pruned"), max_seconds=0.01)


def test_child_that_fails_unexpectedly_is_told_in_one_line(tmp_path):
    with pytest.raises(CompressionError) as told:
        compression._run_child(tmp_path, 60.0)
    message = str(told.value)
    assert "ended with code 1; its last line: FileNotFoundError:" in message
    assert "\n" not in message


def test_child_that_was_killed_is_told_by_the_signal(tmp_path):
    (tmp_path / compression.OUTPUT).touch()
    assert compression._reason(tmp_path, -9) == "the process that compresses the model was ended by SIGKILL"


@pytest.mark.system
def test_child_says_itself_in_one_line_what_it_could_not_make():
    """Steps so small that a bias of 0.3 is more of them than 32 bits can count."""
    ranges = {**ranges_of("pruned"), "input": (0.0, 1e-12)}
    with pytest.raises(CompressionError) as told:
        compress(SPECS["pruned"], weights_of("pruned"), ranges)
    message = str(told.value)
    assert message.startswith("hidden_0.bias is up to 0.")
    assert "range may be far too narrow" in message
    assert "\n" not in message


@pytest.mark.system
def test_files_of_another_network_are_found_out(files):
    """Each file stands in for the one that a broken converter would have made."""
    spec, weights = SPECS["pruned"], weights_of("pruned")
    asked = {name: (min(low, 0.0), max(high, 0.0)) for name, (low, high) in ranges_of("pruned").items()}
    both = files["pruned"].float_file, files["pruned"].int8_file
    inspect(spec, weights, asked, *both)

    def refused(reason, *, spec=spec, weights=weights, asked=asked, both=both):
        with pytest.raises(CompressionError, match=reason):
            inspect(spec, weights, asked, *both)

    kernel = slice(num_params(spec.shapes[:2]), num_params(spec.shapes[:3]))
    nudged, emptied = weights.copy(), weights.copy()
    nudged[kernel] *= 1.001
    refused(r"hidden_0\.kernel is not the same in the float file", weights=nudged)
    # The float file of an emptier kernel beside the int8 file of the fuller one.
    largest = kernel.start + np.argmax(np.abs(weights[kernel]))
    emptied[largest] = 0.0
    other = patched(both[0], weights[largest], 0.0)
    refused(r"1 zeros of hidden_0\.kernel are no zeros in the int8 file", weights=emptied, both=(other, both[1]))
    refused("did not become int8", both=(both[0], both[0]))
    refused("'hidden_0' got the range", asked={**asked, "hidden_0": (0.0, 100.0)})
    refused("fully connected steps", spec=spec_with(hidden=(64,)))
    table = weights.copy()
    table[: num_params(spec.shapes[:1])] += 1.0
    refused("the float file's scores differ from the network's", weights=table)


def patched(content: bytes, old: float, new: float) -> bytes:
    """The file with one of its float32 numbers, which is in it once, written over."""
    before, after = np.float32(old).tobytes(), np.float32(new).tobytes()
    assert content.count(before) == 1
    return content.replace(before, after)


def test_made_up_rows_lie_in_the_range_and_reach_every_id():
    spec = SPECS["pruned"]
    rows = made_up_inputs(spec, (-1.0, 3.0))
    assert rows.dense.dtype == np.float32
    assert -1.0 <= rows.dense.min() < rows.dense.max() <= 3.0
    for i, embedding in enumerate(spec.embeddings):
        assert set(rows.ids[:, i]) == set(range(embedding.num_ids))
    assert all(
        np.array_equal(getattr(rows, field.name), getattr(made_up_inputs(spec, (-1.0, 3.0)), field.name))
        for field in dataclasses.fields(rows)
    )
