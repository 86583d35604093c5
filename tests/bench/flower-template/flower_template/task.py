"""The network of both sides of the benchmark, and a merchant's rows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import keras
import numpy as np

NUM_INPUTS = 30
HIDDEN = (160, 128)


def load_model(learning_rate: float) -> Any:
    model = keras.Sequential(
        [
            keras.Input((NUM_INPUTS,)),
            *(keras.layers.Dense(width, activation="relu") for width in HIDDEN),
            keras.layers.Dense(1, activation="sigmoid"),
        ]
    )
    model.compile(keras.optimizers.Adam(learning_rate), loss="binary_crossentropy", metrics=["accuracy"])
    return model


def load_data(path: str) -> tuple[Any, Any, Any, Any]:
    """Training inputs and labels, validation inputs and labels."""
    with np.load(Path(path)) as rows:
        return rows["train_inputs"], rows["train_labels"], rows["validation_inputs"], rows["validation_labels"]
