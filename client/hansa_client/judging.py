"""What a merchant tells of a finished model before it is shipped small: ranges of activations, and a judgement.

- Ranges are counts of bins over at most MAX_RANGE_ROWS training rows, none below the agreement's floor.
- The small network is the coordinator's file: it is read in a child process that has neither network, keys nor files
  (candidate.py), beside the weights that it was made from, on the same rows.
- Whether this merchant itself would lose too much is decided here, on figures that do not leave.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from hansa_client.candidate import DEFAULT_LIMITS, candidate_logits
from hansa_client.halting import Halt
from hansa_common.activations import Histograms, activation_histograms
from hansa_common.errors import MerchantError
from hansa_common.features import Inputs
from hansa_common.messages import MAX_RANGE_ROWS
from hansa_common.metrics import Histogram, metrics_from_histogram, score_histogram
from hansa_common.model import ModelSpec
from hansa_common.vectors import Vector


@dataclass(frozen=True)
class Comparison:
    """Score histograms of one merchant's rows by the weights and by the small network made from them."""

    original: Histogram
    candidate: Histogram

    @property
    def pr_auc_loss(self) -> float:
        """By how much the small network is worse; 0 where the rows hold one class only."""
        original, candidate = metrics_from_histogram(self.original), metrics_from_histogram(self.candidate)
        return 0.0 if original is None or candidate is None else original.pr_auc - candidate.pr_auc


def range_histograms(spec: ModelSpec, weights: Vector, train: Inputs, min_count: int) -> Histograms:
    """Histograms of what flows through the network, (histograms_length(spec),) int64."""
    rows = np.arange(min(len(train), MAX_RANGE_ROWS))
    return activation_histograms(spec, weights, train.take(rows), min_count)


def compared(
    logits: NDArray[np.float32], network: NDArray[np.uint8], inputs: Inputs, labels: NDArray[np.uint8], halt: Halt
) -> Comparison:
    """Score rows with a TFLite file, and count both.

    logits: (rows,) of the weights that it was made from.

    Raises:
        MerchantError: the file is no network for these inputs, or does not end in time.
        DeadlineError: the order's own time was over before.
    """
    halt.check()
    try:
        candidate = candidate_logits(
            network.tobytes(), inputs, limits=replace(DEFAULT_LIMITS, most_seconds=halt.seconds_left)
        )
    except MerchantError:
        halt.check()
        raise
    return Comparison(score_histogram(logits, labels), score_histogram(candidate, labels))
