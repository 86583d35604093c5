"""What masking costs on public data: the same federation with and without secure aggregation.

The three sets of bench_accuracy.py, with its agreements but for what masked sums ask of them: bounds near what updates
and tables are, at least three merchants in a sum, and local steps where the algorithm is SCAFFOLD. Both runs have the
same agreement but for `[secure_aggregation]`, so their figures differ by the rounding of masked means alone. The mark:

    PR-AUC on test rows within .001 of the run without masks, on each set and seed

Beside it: the seconds of either run, and the bytes of its rounds, up and down, per merchant and round.

    python tests/bench/bench_secure_accuracy.py [--sets shoppers coupon creditcard] [--seeds 0] [--json FILE]
"""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, Final

from bench_accuracy import CASES, scenario

from hansa_common.agreement import Agreement, validate_agreement
from hansa_simulations.scenario import Scenario, run_scenario

MAX_PR_AUC_DIFFERENCE: Final = 0.001
MAX_UPDATE_NORM: Final = 10.0
# About as many as an epoch of the mean merchant has in batches of the agreement's size.
LOCAL_STEPS: Final = {"shoppers": 120, "coupon": 200, "creditcard": 200}


def agreements(asked: Scenario, name: str, algorithm: str) -> tuple[Agreement, Agreement]:
    """The set's agreement with and without masks."""
    values = asked.agreement.model_dump(mode="json")
    largest = max(len(table.train) for table in asked.tables.values())
    values["cohort"] |= {"min_merchants": 3, "max_update_norm": MAX_UPDATE_NORM, "max_examples": largest, "size": None}
    values["privacy"]["share_metrics"] = False
    training = values["training"]
    training["algorithm"] = algorithm
    training["plan"]["algorithm"] = algorithm
    if algorithm == "scaffold":
        training["plan"] |= {"local_steps": LOCAL_STEPS[name], "local_epochs": 1}
    plain = validate_agreement(values, name)
    return plain, validate_agreement({**values, "secure_aggregation": {"protocol": "double-masking"}}, name)


def measured(name: str, seed: int, algorithm: str) -> dict[str, Any]:
    """Figures of one set and seed, of both runs."""
    asked, found = scenario(name, seed), {}
    for way, agreement in zip(("plain", "masked"), agreements(asked, name, algorithm), strict=True):
        began = time.monotonic()
        with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(sys.stderr):
            metrics = run_scenario(Scenario(agreement, asked.tables), Path(folder) / "run").metrics
        rounds = metrics["rounds"]
        answers = len(rounds) * len(agreement.roster)
        found[way] = {
            "pr_auc": metrics["federated"]["pr_auc"],
            "roc_auc": metrics["federated"]["roc_auc"],
            "rounds": len(rounds),
            "seconds": time.monotonic() - began,
            "bytes_up": sum(entry["bytes_received"] for entry in rounds) // answers,
            "bytes_down": sum(entry["bytes_sent"] for entry in rounds) // answers,
        }
    return {"set": name, "seed": seed, **found}


def main() -> None:
    """Print each run's figures, and fail where masking moved one by more than the mark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sets", nargs="+", choices=list(CASES), default=list(CASES))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--algorithm", choices=["fedavg", "scaffold"], default="fedavg")
    parser.add_argument("--json", type=Path)
    asked = parser.parse_args()
    results = []
    for name in asked.sets:
        for seed in asked.seeds:
            results.append(measured(name, seed, asked.algorithm))
            _show(results[-1])
    if asked.json:
        asked.json.write_text(json.dumps(results, indent=2))
    if missed := [result for result in results if _difference(result) > MAX_PR_AUC_DIFFERENCE]:
        raise SystemExit(f"PR-AUC moved by more than {MAX_PR_AUC_DIFFERENCE} in {len(missed)} of {len(results)} runs")


def _difference(result: dict[str, Any]) -> float:
    return abs(result["masked"]["pr_auc"] - result["plain"]["pr_auc"])


def _show(result: dict[str, Any]) -> None:
    print(f"{result['set']}, seed {result['seed']}: PR-AUC moved by {_difference(result):.6f}")
    for way in ("plain", "masked"):
        run = result[way]
        print(
            f"  {way:6}  ROC-AUC {run['roc_auc']:.4f}  PR-AUC {run['pr_auc']:.4f}  {run['rounds']:3} rounds  "
            f"{run['seconds']:6.1f} s  {run['bytes_up']:,} B up, {run['bytes_down']:,} B down a merchant and round"
        )


if __name__ == "__main__":
    main()
