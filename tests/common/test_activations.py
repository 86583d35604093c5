"""Activations are what Keras computes, their histograms add up, and a range tells of no single row."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hansa_common.activations import (
    _EDGES,
    FINEST,
    MAX_VALUE,
    MIN_WIDTH,
    NUM_BINS,
    activation_histograms,
    activation_widths,
    check_activation_histograms,
    forward,
    histograms_length,
    ranges_from_histograms,
)
from hansa_common.errors import CompressionError
from hansa_common.features import Inputs
from hansa_common.model import EmbeddingSpec, ModelSpec, build_model, model_inputs, ordered_variables
from hansa_common.statistics import merge
from hansa_common.vectors import num_params, unflatten

EMBEDDINGS = (EmbeddingSpec(feature="brand", num_ids=7, dim=3), EmbeddingSpec(feature="shop", num_ids=4, dim=2))
NUM_ROWS = 50


def spec_with(**changes) -> ModelSpec:
    values = {"num_dense": 5, "embeddings": EMBEDDINGS, "hidden": (6, 4), "activation": "relu", "dropout": 0.0}
    return ModelSpec(**{**values, "l1": 0.0, "l2": 0.0, "layer_norm": False, "output_bias": 0.0, **changes})


SPEC = spec_with(hidden=(6, 4, 3))


def made_up(spec: ModelSpec, num_rows: int = NUM_ROWS, seed: int = 3):
    """Weights with no zero among them, and rows."""
    random = np.random.default_rng(seed)
    weights = random.normal(0, 0.5, num_params(spec.shapes)).astype(np.float32)
    dense = random.normal(size=(num_rows, spec.num_dense)).astype(np.float32)
    ids = np.zeros((num_rows, len(spec.embeddings)), np.int32)
    for i, embedding in enumerate(spec.embeddings):
        ids[:, i] = random.integers(0, embedding.num_ids, num_rows)
    return weights, Inputs(dense, ids)


def joined(*parts: Inputs) -> Inputs:
    return Inputs(np.concatenate([part.dense for part in parts]), np.concatenate([part.ids for part in parts]))


def by_name(spec: ModelSpec, histograms) -> dict[str, np.ndarray]:
    return dict(zip(activation_widths(spec), histograms.reshape(-1, NUM_BINS), strict=True))


# --- forward ----------------------------------------------------------------------------------------------------------


def keras_tensors(model, spec: ModelSpec):
    """Keras' own tensor for each name, found by what stands before and after it."""
    import keras

    yield "input", model.get_layer("hidden_0").input
    for i in range(len(spec.hidden) - 1):
        dense = model.get_layer(f"hidden_{i}")
        yield f"hidden_{i}", model.get_layer(f"hidden_{i + 1}").input
        if spec.layer_norm:
            yield f"linear_{i}", dense.output
        elif spec.activation != "relu":
            # One layer to Keras, which keeps what is in the middle of it to itself.
            yield f"linear_{i}", keras.ops.add(keras.ops.matmul(dense.input, dense.kernel), dense.bias)


@pytest.mark.parametrize(
    "spec",
    [
        spec_with(**inputs, activation=activation, layer_norm=layer_norm)
        for inputs, activation, layer_norm in product(
            [{"embeddings": ()}, {"num_dense": 0, "hidden": (6,)}, {"hidden": (6, 4, 3)}],
            ["relu", "tanh", "gelu"],
            [False, True],
        )
    ]
    + [spec_with(hidden=())],
    ids=str,
)
def test_forward_computes_what_keras_does_up_to_the_logit_and_at_every_name(spec):
    import keras

    weights, inputs = made_up(spec)
    model = build_model(spec)
    for variable, array in zip(ordered_variables(model, spec), unflatten(weights, spec.shapes), strict=True):
        variable.assign(array)
    logits, activations = forward(spec, weights, inputs)
    assert (logits.shape, logits.dtype) == ((NUM_ROWS,), np.float64)
    parts = model_inputs(spec, inputs.dense, inputs.ids)
    np.testing.assert_allclose(np.asarray(model(parts))[:, 0], logits, atol=2e-5)
    assert {name: x.shape for name, x in activations.items()} == {
        name: (NUM_ROWS, width) for name, width in activation_widths(spec).items()
    }
    expected = dict(keras_tensors(model, spec)) if spec.hidden else {}
    assert set(expected) == set(activations) if spec.hidden else set(activations) == {"input"}
    for name, tensor in expected.items():
        found = np.asarray(keras.Model(model.inputs, tensor)(parts))
        np.testing.assert_allclose(found, activations[name], atol=2e-5, err_msg=name)


def test_what_is_before_an_activation_has_a_name_only_where_it_is_a_tensor_of_its_own():
    assert list(activation_widths(SPEC).items()) == [("input", 10), ("hidden_0", 6), ("hidden_1", 4)]
    for change in ({"activation": "tanh"}, {"activation": "gelu"}, {"layer_norm": True}):
        names = list(activation_widths(spec_with(hidden=(6, 4, 3), **change)))
        assert names == ["input", "linear_0", "hidden_0", "linear_1", "hidden_1"]


def test_last_hidden_layer_and_its_output_are_nobodys_to_count():
    assert activation_widths(spec_with(hidden=(), num_dense=0)) == {"input": 5}
    assert list(activation_widths(spec_with(hidden=(6,), activation="gelu"))) == ["input"]
    assert list(activation_widths(spec_with(hidden=(6, 4)))) == ["input", "hidden_0"]


# --- histograms -------------------------------------------------------------------------------------------------------


def slow_histograms(spec: ModelSpec, weights, inputs: Inputs, min_count: int) -> dict[str, list[int]]:
    _, activations = forward(spec, weights, inputs)
    found = {}
    for name, rows in activations.items():
        counts, reached_by = [0] * NUM_BINS, [set() for _ in range(NUM_BINS)]
        for r, row in enumerate(rows.tolist()):
            for value in row:
                place = max(i for i in range(NUM_BINS) if i == 0 or _EDGES[i] <= value)
                counts[place] += 1
                reached_by[place].add(r)
        found[name] = [c if len(who) >= min_count else 0 for c, who in zip(counts, reached_by, strict=True)]
    return found


@pytest.mark.parametrize("min_count", [1, 3])
def test_histograms_count_what_a_slow_reference_counts(min_count):
    weights, inputs = made_up(SPEC, 25)
    found = by_name(SPEC, activation_histograms(SPEC, weights, inputs, min_count))
    expected = slow_histograms(SPEC, weights, inputs, min_count)
    assert {name: counts.tolist() for name, counts in found.items()} == expected


@pytest.mark.parametrize("spec", [SPEC, spec_with(activation="gelu", layer_norm=True), spec_with(hidden=())], ids=str)
def test_histograms_of_parts_add_up_to_that_of_the_whole_and_have_the_agreed_length(spec):
    # More rows than are computed at once.
    weights, inputs = made_up(spec, 1500)
    cut = [inputs.take(np.arange(*bounds)) for bounds in ((0, 1), (1, 700), (700, 1500))]
    parts = [activation_histograms(spec, weights, part, 1) for part in (*cut, inputs.take(np.arange(0)))]
    whole = activation_histograms(spec, weights, inputs, 1)
    assert {(part.dtype.str, part.shape) for part in (*parts, whole)} == {("<i8", (histograms_length(spec),))}
    assert np.array_equal(merge(parts), whole)
    for name, counts in by_name(spec, whole).items():
        assert counts.sum() == 1500 * activation_widths(spec)[name]


def test_edges_ascend_hold_zero_and_are_as_far_apart_as_is_said():
    assert _EDGES.shape == (NUM_BINS + 1,)
    assert (np.diff(_EDGES) > 0).all()
    assert _EDGES[NUM_BINS // 2] == 0.0
    assert np.array_equal(_EDGES, -_EDGES[::-1])
    assert _EDGES[-1] == pytest.approx(MAX_VALUE)
    assert _EDGES[NUM_BINS // 2 + 1] == pytest.approx(0.014 * FINEST, rel=0.02)
    assert _EDGES[-1] / _EDGES[-2] == pytest.approx(1.014, abs=5e-4)


def test_what_cannot_be_counted_is_refused_by_name():
    weights, inputs = made_up(SPEC)
    # A bias of the second hidden layer: only the last one's kernel and bias, and the output's, come after it.
    weights[-(4 * 3 + 3 + 3 + 1) - 1] = np.nan
    with pytest.raises(ValueError, match="hidden_1: 50 activations are NaN or infinite"):
        activation_histograms(SPEC, weights, inputs, 1)


# --- what one row can tell --------------------------------------------------------------------------------------------


def test_one_far_row_moves_no_range_however_many_units_it_drives():
    spec = spec_with(hidden=(64, 2), embeddings=())
    weights, inputs = made_up(spec, 400)
    far = Inputs(np.full((1, 5), 500.0, np.float32), np.zeros((1, 0), np.int32))
    assert np.sum(forward(spec, weights, far)[1]["hidden_0"] > 100) > 10
    without = activation_histograms(spec, weights, inputs, 3)
    with_it = activation_histograms(spec, weights, joined(inputs, far), 3)
    # Not even where everything is asked for that was released.
    for quantile in (0.99, 0.9999, 1.0):
        assert ranges_from_histograms(spec, with_it, quantile) == ranges_from_histograms(spec, without, quantile)
    # Enough such rows are not one row's secret: the far bins are released then.
    many = activation_histograms(spec, weights, joined(inputs, far, far, far), 3)
    assert ranges_from_histograms(spec, many, 1.0)["input"][1] >= 500.0


def test_a_bin_that_too_few_rows_reach_is_released_as_zero():
    weights, inputs = made_up(SPEC, 40)
    everything = activation_histograms(SPEC, weights, inputs, 1)
    released = activation_histograms(SPEC, weights, inputs, 5)
    kept = released > 0
    assert np.array_equal(released[kept], everything[kept])
    assert (everything[kept] >= 5).all()
    # Relu sends most rows to zero: that bin at least is there.
    assert by_name(SPEC, released)["hidden_0"][NUM_BINS // 2] > 0
    assert released.sum() < everything.sum()
    assert not activation_histograms(SPEC, weights, inputs, 41).any()


# --- ranges -----------------------------------------------------------------------------------------------------------

LOGISTIC = spec_with(hidden=(), embeddings=())
COUNTS = st.dictionaries(st.integers(0, NUM_BINS - 1), st.integers(1, 10**12), min_size=1, max_size=12)


def counted(places: dict[int, int]) -> np.ndarray:
    histogram = np.zeros(NUM_BINS, np.int64)
    for place, count in places.items():
        histogram[place] = count
    return histogram


@given(COUNTS, st.floats(0.501, 1.0))
def test_a_range_cuts_off_no_more_than_its_share_at_either_end_and_not_less_than_it_may(places, quantile):
    histogram = counted(places)
    low, high = ranges_from_histograms(LOGISTIC, histogram, quantile)["input"]
    total, allowed = sum(places.values()), (1.0 - quantile) * sum(places.values())
    first, last = int(np.flatnonzero(low == _EDGES)[0]), int(np.flatnonzero(_EDGES[1:] <= high)[-1])
    slack = 1e-9 * total + 1e-9
    assert histogram[:first].sum() <= allowed + slack
    assert histogram[last + 1 :].sum() <= allowed + slack
    # One bin tighter would cut off too much.
    assert histogram[: first + 1].sum() > allowed - slack - 1
    assert high - low <= MIN_WIDTH * (1 + 1e-9) or histogram[last:].sum() > allowed - slack - 1


@given(COUNTS, st.floats(0.501, 1.0))
def test_every_range_has_a_width(places, quantile):
    low, high = ranges_from_histograms(LOGISTIC, counted(places), quantile)["input"]
    assert high - low >= MIN_WIDTH * (1 - 1e-9)


def test_ranges_end_where_quantiles_of_the_pooled_values_do():
    weights, inputs = made_up(SPEC, 6000)
    parts = [inputs.take(np.arange(start, start + 2000)) for start in (0, 2000, 4000)]
    merged = merge([activation_histograms(SPEC, weights, part, 1) for part in parts])
    _, activations = forward(SPEC, weights, inputs)
    for name, (low, high) in ranges_from_histograms(SPEC, merged, 0.99).items():
        values = activations[name]
        expected = np.quantile(values, [0.01, 0.99])
        # A bin is 1.4 % of the value wide, or 0.014 * FINEST.
        np.testing.assert_allclose([low, high], expected, rtol=0.02, atol=0.03 * FINEST, err_msg=name)
        assert low <= expected[0]
        assert high >= expected[1]


def test_a_tensor_that_never_changes_gets_a_small_range_with_its_value_in_it():
    weights, inputs = made_up(LOGISTIC)
    constant = Inputs(np.full_like(inputs.dense, 0.25), inputs.ids)
    low, high = ranges_from_histograms(LOGISTIC, activation_histograms(LOGISTIC, weights, constant, 5), 0.999)["input"]
    assert low <= 0.25 <= high
    assert high - low == pytest.approx(MIN_WIDTH)


def test_nothing_counted_is_refused_with_the_name_and_what_to_do():
    weights, inputs = made_up(SPEC, 40)
    histograms = activation_histograms(SPEC, weights, inputs, 1)
    histograms[NUM_BINS : 2 * NUM_BINS] = 0
    with pytest.raises(CompressionError, match=r"activation of 'hidden_0'.*privacy\.min_count.*lower floor"):
        ranges_from_histograms(SPEC, histograms, 0.999)


@pytest.mark.parametrize("quantile", [0.5, 0.0, -1.0, 1.0001, float("nan")])
def test_quantiles_that_cut_off_everything_are_refused(quantile):
    with pytest.raises(ValueError, match=r"must be above 0\.5 and at most 1"):
        ranges_from_histograms(LOGISTIC, counted({7: 5}), quantile)


# --- what a coordinator believes --------------------------------------------------------------------------------------


def test_honest_histograms_are_believed():
    weights, inputs = made_up(SPEC)
    for min_count in (1, 5):
        check_activation_histograms(SPEC, activation_histograms(SPEC, weights, inputs, min_count), NUM_ROWS)


@pytest.mark.parametrize(
    ("forge", "reason"),
    [
        (lambda h: h[:-1], "of shape"),
        (lambda h: h.astype(np.float64), "are int64"),
        (lambda h: h - (np.arange(h.size) == 5), "negative count -1"),
        (lambda h: h + (np.arange(h.size) == 5), "input: more than the 500 activations that 50 rows have"),
        # Two counts whose sum wraps round to something small.
        (lambda h: h + np.where(np.isin(np.arange(h.size), [2 * NUM_BINS, 2 * NUM_BINS + 1]), 2**62, 0), "hidden_1"),
    ],
    ids=["short", "floats", "negative", "one too many", "overflow"],
)
def test_forged_histograms_are_refused(forge, reason):
    weights, inputs = made_up(SPEC)
    with pytest.raises(ValueError, match=reason):
        check_activation_histograms(SPEC, forge(activation_histograms(SPEC, weights, inputs, 1)), NUM_ROWS)
