"""What a finished model does for this merchant: figures of its own rows, kept here, and shared only as agreed.

- Measured on all of its test rows; nothing is withheld from the merchant itself.
- What others may see is a selection, and only with `share_metrics` and enough positives.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Self

from hansa_common import durable_files
from hansa_common.agreement_sections import Privacy
from hansa_common.messages import SharedMetrics
from hansa_common.metrics import Histogram, Metrics, decision_threshold, metrics_from_histogram

OWN_METRICS_NAME: Final = "own_metrics.json"


@dataclass(frozen=True)
class OwnFigures:
    """What the finished model does for this merchant: its test rows, and the threshold of its validation rows."""

    run_id: str
    num_test_rows: int
    threshold: float | None
    test: Metrics | None

    @classmethod
    def measure(cls, run_id: str, validation: Histogram, test: Histogram) -> Self:
        """The figures of two parts' score histograms; None where a part's rows hold one class only."""
        return cls(
            run_id=run_id,
            num_test_rows=int(test.sum()),
            threshold=decision_threshold(validation),
            test=metrics_from_histogram(test),
        )

    def to_json(self) -> dict[str, Any]:
        """Plain values; `threshold` and `test` are None where the rows hold one class only."""
        return {
            "run_id": self.run_id,
            "num_test_rows": self.num_test_rows,
            "threshold": self.threshold,
            "test": None if self.test is None else self.test.to_json(),
        }

    def keep(self, folder: Path, merchant: str, fingerprint: str) -> None:
        """Leave the figures in a folder of this merchant's, in place of an earlier run's."""
        content = {"merchant": merchant, "agreement_fingerprint": fingerprint, **self.to_json()}
        durable_files.write(folder / OWN_METRICS_NAME, json.dumps(content, indent=2).encode())

    def shared(self, privacy: Privacy) -> SharedMetrics | None:
        """What of them leaves, which is nothing unless the agreement's share_metrics says so."""
        # Ranks of a handful of positives say as much as their scores would: the floor holds for them too.
        if not privacy.share_metrics or self.test is None or self.test.num_positives < privacy.min_positives:
            return None
        return SharedMetrics(num_test_rows=self.num_test_rows, roc_auc=self.test.roc_auc, pr_auc=self.test.pr_auc)
