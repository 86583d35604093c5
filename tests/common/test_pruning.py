"""Which weights are pruned follows their magnitudes and the published schedule, and a choice survives its journey."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hansa_common.agreement import validate_agreement
from hansa_common.errors import AgreementError, MessageError, PolicyError
from hansa_common.model import EmbeddingSpec, ModelSpec, initial_weights
from hansa_common.pruning import (
    magnitude_mask,
    masked,
    num_pruned,
    pack_mask,
    permitted_mask,
    scheduled_sparsity,
    unpack_mask,
)
from hansa_common.vectors import num_params, unflatten

SPEC = ModelSpec(
    num_dense=3, embeddings=(EmbeddingSpec(feature="shop", num_ids=5, dim=2),), hidden=(7, 3), activation="relu",
    dropout=0.0, l1=0.0, l2=0.0, layer_norm=True, output_bias=-1.0,
)  # fmt: skip
LOGISTIC = SPEC.model_copy(update={"hidden": ()})
WEIGHTS = initial_weights(SPEC, 3)
PRUNABLE = ("hidden_0.kernel", "hidden_1.kernel")
NUM_BITS = 5 * 7 + 7 * 3


def parts(vector):
    return dict(zip(SPEC.named_shapes, unflatten(vector, SPEC.shapes), strict=True))


@pytest.mark.parametrize("sparsity", [0.0, 0.3, 0.5, 0.8, 0.95])
def test_each_hidden_kernel_loses_its_share_and_nothing_else_a_weight(sparsity):
    for name, part in parts(magnitude_mask(SPEC, WEIGHTS, sparsity)).items():
        expected = num_pruned(part.size, sparsity) if name in PRUNABLE else 0
        assert np.count_nonzero(part == 0) == expected, name


def test_every_pruned_weight_is_at_most_as_large_as_every_kept_one_of_its_kernel():
    mask = parts(magnitude_mask(SPEC, WEIGHTS, 0.6))
    for name in PRUNABLE:
        magnitudes = np.abs(parts(WEIGHTS)[name])
        assert magnitudes[mask[name] == 0].max() <= magnitudes[mask[name] == 1].min()


def test_of_equal_magnitudes_the_first_are_pruned():
    weights = np.where(np.arange(WEIGHTS.size) % 2, 0.5, -0.5).astype(np.float32)
    kernel = parts(magnitude_mask(SPEC, weights, 0.5))["hidden_1.kernel"].ravel()
    np.testing.assert_array_equal(kernel, [0] * 11 + [1] * 10)


@given(st.lists(st.floats(0, 0.95), min_size=2, max_size=5).map(sorted), st.integers(0, 2**32))
def test_what_was_pruned_once_stays_pruned_as_sparsity_grows(sparsities, seed):
    random, weights, before = np.random.default_rng(seed), WEIGHTS, np.ones_like(WEIGHTS)
    for sparsity in sparsities:
        mask = magnitude_mask(SPEC, weights, sparsity)
        assert np.all(mask[before == 0] == 0)
        # What a round does: kept weights move, pruned ones are held.
        weights = masked(weights + random.normal(size=weights.size).astype(np.float32), mask)
        before = mask


@given(st.integers(1, 10**6), st.floats(0, 0.95))
def test_count_is_within_half_a_weight_of_the_share(num_weights, sparsity):
    assert abs(num_pruned(num_weights, sparsity) - num_weights * sparsity) <= 0.5 + 1e-6


@given(st.integers(1, 100), st.floats(0.01, 0.95))
def test_schedule_only_grows_and_ends_at_the_agreed_sparsity_exactly(num_rounds, final):
    way = [scheduled_sparsity(final, place, num_rounds) for place in range(1, num_rounds + 1)]
    assert way[-1] == final
    assert way == sorted(way)
    assert way[0] > 0


@pytest.mark.system
def test_schedule_is_the_polynomial_decay_of_tfmot():
    program = (
        "import json\nfrom tensorflow_model_optimization.python.core.sparsity.keras import pruning_schedule as s\n"
        "decay = s.PolynomialDecay(initial_sparsity=0.0, final_sparsity=0.8, begin_step=0, end_step=6, power=3)\n"
        "print(json.dumps([float(decay(t)[1]) for t in range(1, 7)]))"
    )
    environment = {**os.environ, "TF_USE_LEGACY_KERAS": "1", "TF_CPP_MIN_LOG_LEVEL": "3"}
    words = [sys.executable, "-W", "ignore", "-c", program]
    finished = subprocess.run(words, env=environment, capture_output=True, text=True, check=False, timeout=240)
    assert finished.returncode == 0, finished.stderr[-2000:]
    theirs = json.loads(finished.stdout.splitlines()[-1])
    np.testing.assert_allclose([scheduled_sparsity(0.8, t, 6) for t in range(1, 7)], theirs, atol=1e-6)


def test_masked_weights_are_kept_ones_to_the_bit_and_plain_zeros():
    mask = magnitude_mask(SPEC, -np.abs(WEIGHTS) - 1, 0.5)
    held = masked(-np.abs(WEIGHTS) - 1, mask)
    assert held[mask == 1].tobytes() == (-np.abs(WEIGHTS) - 1)[mask == 1].tobytes()
    assert held[mask == 0].tobytes() == bytes(4 * np.count_nonzero(mask == 0))


@given(st.integers(0, 2**NUM_BITS - 1))
def test_mask_comes_out_of_its_bits_as_it_went_in(number):
    mask, bits = np.ones(num_params(SPEC.shapes), np.float32), f"{number:0{NUM_BITS}b}"
    where = parts(mask)
    where["hidden_0.kernel"].reshape(-1)[:] = [float(bit) for bit in bits[:35]]
    where["hidden_1.kernel"].reshape(-1)[:] = [float(bit) for bit in bits[35:]]
    packed = pack_mask(SPEC, mask)
    assert packed.tobytes() == (number << -NUM_BITS % 8).to_bytes(NUM_BITS // 8 + (NUM_BITS % 8 > 0), "big")
    np.testing.assert_array_equal(unpack_mask(SPEC, packed), mask)


def test_network_without_hidden_layers_has_nothing_to_prune():
    weights = initial_weights(LOGISTIC, 0)
    mask = magnitude_mask(LOGISTIC, weights, 0.9)
    assert mask.all()
    assert pack_mask(LOGISTIC, mask).size == 0
    assert unpack_mask(LOGISTIC, np.zeros(0, np.uint8)).all()


@pytest.mark.parametrize("change", [lambda p: p[:-1], lambda p: np.append(p, p[:1]), lambda p: p[:0]])
def test_mask_of_another_length_is_refused(change):
    packed = change(pack_mask(SPEC, np.ones_like(WEIGHTS)))
    with pytest.raises(MessageError, match="the 56 prunable weights take 7"):
        unpack_mask(SPEC, packed)


def test_bits_behind_the_last_weight_are_refused():
    spec = SPEC.model_copy(update={"hidden": (7, 2)})
    packed = pack_mask(spec, np.ones(num_params(spec.shapes), np.float32)) | np.uint8(1)
    with pytest.raises(MessageError, match="behind the last of 49"):
        unpack_mask(spec, packed)


def test_mask_is_permitted_up_to_the_agreed_sparsity_and_not_one_weight_beyond_in_any_kernel():
    mask = magnitude_mask(SPEC, WEIGHTS, 0.5)
    held = masked(WEIGHTS, mask)
    np.testing.assert_array_equal(permitted_mask(SPEC, pack_mask(SPEC, mask), held, 0.5), mask)
    beyond = mask.copy()
    kernel = parts(beyond)["hidden_1.kernel"].reshape(-1)
    kernel[np.flatnonzero(kernel)[0]] = 0
    with pytest.raises(PolicyError, match=r"prunes 12 of the 21 weights of hidden_1.kernel.* at most 11"):
        permitted_mask(SPEC, pack_mask(SPEC, beyond), masked(WEIGHTS, beyond), 0.5)


def test_weights_that_are_not_zero_where_they_are_pruned_are_refused():
    mask = magnitude_mask(SPEC, WEIGHTS, 0.5)
    with pytest.raises(MessageError, match="other numbers than zero"):
        permitted_mask(SPEC, pack_mask(SPEC, mask), WEIGHTS, 0.5)


@pytest.mark.parametrize(
    ("compression", "hidden", "told"),
    [
        ({"sparsity": 0.5}, [8], "set format = 'int8', or sparsity = 0"),
        ({"format": "int8", "sparsity": 0.5}, [], "add a hidden layer, or set sparsity = 0"),
        ({"format": "int8", "sparsity": 0.96}, [8], "compression.sparsity"),
        ({"format": "int8", "sparsity": 0.5, "pruning_rounds": 0}, [8], "compression.pruning_rounds"),
    ],
)
def test_agreement_that_cannot_prune_as_it_says_is_refused(compression, hidden, told):
    values = {
        "task": "fraud",
        "label": {"column": "fraud"},
        "features": [{"kind": "numeric", "name": "amount", "low": 0, "high": 1}],
        "model": {"hidden": hidden},
        "compression": compression,
    }
    with pytest.raises(AgreementError, match=told):
        validate_agreement(values, "the test")
