"""What a federation was worth: its model against each merchant's own and against the pooled one, on the same rows.

Pure functions on test scores, which only a simulation may look at: labels (rows,) of 0 and 1, logits (rows,) float32.
Figures come from the histograms that the federation itself uses, intervals from the scores. A figure over rows of one
class is None, and there is no interval for it. Intervals say how sure the test rows make us of these very models;
another seed would train others.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from hansa_common.bootstrap import paired_bootstrap
from hansa_common.metrics import Metrics, metrics_from_histogram, score_histogram
from hansa_common.randomness import generator

MEASURES: Final = ("roc_auc", "pr_auc")
Logits = NDArray[np.float32]


@dataclass(frozen=True)
class ScoredRows:
    """One merchant's test rows, scored by the federation's model, by the small one where it was released, and
    by those baselines that were trained.
    """

    labels: NDArray[np.uint8]
    federated: Logits
    local: Logits | None = None
    pooled: Logits | None = None
    compressed: Logits | None = None


def comparison(scores: Mapping[str, ScoredRows], seed: int) -> dict[str, Any]:
    """The parts of metrics.json that need everyone's scores; `scores` by merchant, all with the same baselines."""
    everyone = list(scores.values())
    labels = np.concatenate([rows.labels for rows in everyone])
    federated = np.concatenate([rows.federated for rows in everyone])
    merchants = {name: _merchant(rows, name, seed) for name, rows in scores.items()}
    found: dict[str, Any] = {"federated": _whole(federated, labels), "merchants": merchants}
    if everyone[0].local is not None:
        found["local"] = {measure: _mean_by_test_rows(merchants, "local", measure) for measure in MEASURES}
    compressed = [rows.compressed for rows in everyone if rows.compressed is not None]
    if compressed:
        found["compressed"] = _areas(np.concatenate(compressed), labels)
    pooled = [rows.pooled for rows in everyone if rows.pooled is not None]
    if pooled:
        found["pooled"] = _whole(np.concatenate(pooled), labels)
        intervals = _intervals(federated, np.concatenate(pooled), labels, seed, "pooled")
        found["intervals"] = {} if intervals is None else {"federated_minus_pooled": intervals}
    return found


def _merchant(rows: ScoredRows, name: str, seed: int) -> dict[str, Any]:
    found: dict[str, Any] = {
        "num_test_rows": len(rows.labels),
        "num_test_positives": int(rows.labels.sum()),
        "federated": _areas(rows.federated, rows.labels),
    }
    if rows.local is not None:
        found["local"] = _areas(rows.local, rows.labels)
        gain = _intervals(rows.federated, rows.local, rows.labels, seed, name)
        if gain is not None:
            found["gain"] = gain
    if rows.pooled is not None:
        found["pooled"] = _areas(rows.pooled, rows.labels)
    if rows.compressed is not None:
        found["compressed"] = _areas(rows.compressed, rows.labels)
    return found


def _metrics(logits: Logits, labels: NDArray[np.uint8]) -> Metrics | None:
    return metrics_from_histogram(score_histogram(logits, labels))


def _whole(logits: Logits, labels: NDArray[np.uint8]) -> dict[str, Any]:
    metrics = _metrics(logits, labels)
    return dict.fromkeys(MEASURES) if metrics is None else metrics.to_json()


def _areas(logits: Logits, labels: NDArray[np.uint8]) -> dict[str, float | None]:
    metrics = _metrics(logits, labels)
    return {measure: None if metrics is None else getattr(metrics, measure) for measure in MEASURES}


def _intervals(
    one: Logits, other: Logits, labels: NDArray[np.uint8], seed: int, purpose: str
) -> dict[str, dict[str, float]] | None:
    if labels.all() or not labels.any():
        return None
    intervals = paired_bootstrap(one, other, labels, rng=generator(seed, "bootstrap", purpose))
    return {measure: interval.to_json() for measure, interval in intervals.items()}


def _mean_by_test_rows(merchants: Mapping[str, Mapping[str, Any]], party: str, measure: str) -> float | None:
    known = [m for m in merchants.values() if m[party][measure] is not None]
    if not known:
        return None
    return float(np.average([m[party][measure] for m in known], weights=[m["num_test_rows"] for m in known]))
