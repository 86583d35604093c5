"""A column that tells the label is found whatever its shape; chance and rare values are not taken for one."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score

from hansa_client.profiles import profile
from hansa_client.suspicions import leakage, roc_auc


@given(st.lists(st.tuples(st.integers(0, 5), st.booleans()), min_size=2, max_size=60))
def test_roc_auc_of_groups_is_that_of_their_rows(rows):
    scores, labels = (np.array(column) for column in zip(*rows, strict=True))
    if labels.all() or not labels.any():
        return
    groups = np.bincount(scores[labels], minlength=6), np.bincount(scores[~labels], minlength=6)
    expected = roc_auc_score(labels, scores)
    assert roc_auc(np.arange(6.0), *groups) == pytest.approx(expected, abs=1e-12)


def leakage_of(values, labels) -> float:
    return leakage(profile("x", pd.Series(values, dtype=object)), np.asarray(labels, np.uint8))


@pytest.mark.parametrize("shape", ["rising", "falling", "middle", "category", "gap", "boolean"])
def test_column_that_tells_the_label_is_found_whatever_its_shape(shape):
    labels = np.random.default_rng(7).permutation(np.arange(400) % 5 == 0)
    noise = np.random.default_rng(7).uniform(size=400)
    values = {
        "rising": noise + 2 * labels,
        "falling": -noise - 2 * labels,
        "middle": np.where(labels, noise / 100, np.sign(noise - 0.5) * (1 + noise)),
        "category": [f"{'paid' if label else 'open'} {i % 4}" for i, label in enumerate(labels)],
        "gap": [None if label else str(value) for label, value in zip(labels, noise, strict=True)],
        "boolean": [str(bool(label)) for label in labels],
    }[shape]
    assert leakage_of([value if value is None else str(value) for value in values], labels) >= 0.98


@pytest.mark.parametrize("seed", range(5))
def test_many_rare_categories_of_pure_chance_are_no_leakage(seed):
    draw = np.random.default_rng(seed)
    labels = draw.permutation(np.arange(300) % 10 == 0)
    # Each category is pure or nearly so, and would look like a perfect predictor on its own rows.
    assert leakage_of([f"c{draw.integers(150)}" for _ in range(300)], labels) < 0.8


def test_too_few_positives_tell_nothing():
    labels = np.arange(200) < 6
    assert leakage(profile("x", pd.Series([str(label) for label in labels])), labels.astype(np.uint8)) is None
