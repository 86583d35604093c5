"""Scores of a bundle: columns or single rows in, probabilities of the label's positive value out.

- No TensorFlow, no pandas; first score well under a second after the import.
- A row scores the same in a table and alone, up to the last bits of a float32.
- A key that is not the one the merchants hashed with in training is refused: its scores would mean nothing.

Whether a score is high is a merchant's decision: see its threshold.
"""

from __future__ import annotations

import hashlib
import threading
from math import exp

import numpy as np
from numpy.typing import NDArray

from hansa_common.bundle import Bundle
from hansa_common.errors import UsageError
from hansa_common.metrics import scores_of
from hansa_common.single_row import Row, RowTransform
from hansa_common.statistics import Columns
from hansa_common.tflite import TfliteNetwork


class Scorer:
    """Scores with one network of a bundle; any number of threads may use it."""

    def __init__(self, bundle: Bundle, hash_key: bytes | None = None, network: str | None = None) -> None:
        """Prepare; `network` names the file to score with, `bundle.network_name` unless said otherwise.

        Raises:
            UsageError: the hash key is missing, or is not the merchants'; or there is no such network.
            BundleError: the network is none, or not one of this model.
        """
        check_hash_key(bundle, hash_key)
        name = network or bundle.network_name
        if name not in bundle.networks:
            raise UsageError(f"the bundle has no network {name!r}; it has {', '.join(bundle.networks)}")
        spec = bundle.spec
        self._preprocessing, self._hash_key = bundle.preprocessing, hash_key
        self._network = TfliteNetwork(bundle.networks[name], spec.num_dense, len(spec.embeddings), name)
        self._write_row = RowTransform(bundle.preprocessing, hash_key, self._network.row)
        self._lock = threading.Lock()

    def score(self, columns: Columns) -> NDArray[np.float64]:
        """Scores (rows,) of columns, feature name -> (rows,), as a merchant's table parses them.

        Raises:
            DataError: a column is not there.
            BundleError: the network gives something that is not finite.
        """
        inputs = self._preprocessing.transform(columns, self._hash_key)
        return scores_of(self._network.logits(inputs))

    def score_row(self, row: Row) -> float:
        """The score of one row, feature name -> value, as single_row.py tells them.

        Raises:
            DataError: the row lacks a column, or holds something that is not a value of its feature.
            BundleError: the network gives something that is not finite.
        """
        with self._lock:
            self._write_row(row)
            logit = self._network.row_logit()
        # Not numpy, which takes ten times as long for one.
        rest = exp(-abs(logit))
        return 1.0 / (1.0 + rest) if logit >= 0.0 else rest / (1.0 + rest)


def check_hash_key(bundle: Bundle, hash_key: bytes | None) -> None:
    """Refuse a key that is not the merchants'.

    Raises:
        UsageError: it is another, or there is none and the bundle needs one.
    """
    agreed = bundle.manifest.hash_key_id
    if agreed is None or (hash_key is not None and hashlib.sha256(hash_key).hexdigest() == agreed):
        return
    if hash_key is None:
        raise UsageError(f"the bundle hashes categories with the merchants' key {agreed}; give it with --hash-key")
    raise UsageError(f"the hash key given is not the merchants' key {agreed}")
