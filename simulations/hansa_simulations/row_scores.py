"""Merchants' rows scored by any model, whole or small: what only a simulation may do, since it holds every table."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from hansa_client import native_output
from hansa_client.data import MerchantTable
from hansa_client.programs import Programs
from hansa_client.splits import Rows
from hansa_common.bundle import INT8_NAME
from hansa_common.features import FittedPreprocessing, Inputs
from hansa_common.tflite import TfliteNetwork
from hansa_common.vectors import Vector
from hansa_simulations.comparison import Logits

Part = Literal["validation", "test"]


class RowScorer:
    """Scores rows of tables with models that share one preprocessing's features and one network."""

    def __init__(self, tables: Mapping[str, MerchantTable], programs: Programs, hash_key: bytes) -> None:
        self.programs = programs
        self.hash_key = hash_key
        self._tables = tables

    def labels(self, merchant: str, part: Part) -> NDArray[np.uint8]:
        """(rows,) labels of one part of a merchant's rows."""
        return self._tables[merchant].labels[self._rows(merchant, part)]

    def logits(self, merchant: str, part: Part, weights: Vector, preprocessing: FittedPreprocessing) -> Logits:
        """(rows,) logits of a model with the agreed network."""
        return self.programs.scoring().logits(weights, self._inputs(merchant, part, preprocessing))

    def small_logits(self, merchant: str, part: Part, network: bytes, preprocessing: FittedPreprocessing) -> Logits:
        """(rows,) logits of a small model, a TFLite file that this process has just made."""
        spec = self.programs.spec
        inputs = self._inputs(merchant, part, preprocessing)
        # The library greets.
        with native_output.kept_back():
            return TfliteNetwork(network, spec.num_dense, len(spec.embeddings), INT8_NAME).logits(inputs)

    def _inputs(self, merchant: str, part: Part, preprocessing: FittedPreprocessing) -> Inputs:
        rows = self._rows(merchant, part)
        columns = {name: values[rows] for name, values in self._tables[merchant].columns.items()}
        return preprocessing.transform(columns, self.hash_key)

    def _rows(self, merchant: str, part: Part) -> Rows:
        table = self._tables[merchant]
        return table.test if part == "test" else table.validation
