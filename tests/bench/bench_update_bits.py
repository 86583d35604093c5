"""What updates in few bits save and cost: bytes and CPU time of one masked sum, and the model on public data.

A sum: one merchant encodes an update of a million parameters and masks it; the coordinator adds the vectors of a
cohort, removes the merchants' own masks and decodes. Keys and shares are the same however many bits there are, and are
bench_masking.py's. A figure is the median of the repetitions.

A model: online shoppers as in bench_accuracy.py, with FedAvg and with SCAFFOLD, its norm bound near what updates are.
Runs differ in `update_bits` alone. The marks:

    at 10 merchants a vector in 8 bits has at most .505 of the bytes that it has in 32, in 4 bits .26; merchant and
    coordinator take at most 2 times the CPU time, and at 50 merchants no more
    PR-AUC on test rows is on the mean over seeds at most .005 below that in 32 bits: with FedAvg in 8 and 4 bits (2 are
    shown), with SCAFFOLD, which refuses fewer, in 8 and 6

    python tests/bench/bench_update_bits.py [--params 1000000] [--seeds 0 1 2] [--json FILE]
"""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import mean, median
from typing import Any, Final

import numpy as np
from bench_accuracy import scenario

from hansa_common.agreement import Agreement, validate_agreement
from hansa_common.masking import FixedPoint, Ring, mask, subtract_stream
from hansa_common.metrics import HISTOGRAM_LENGTH
from hansa_common.rotation import Rotation
from hansa_common.round_vector import RoundVector
from hansa_common.short_round import ShortRoundVector
from hansa_common.short_updates import ShortUpdates
from hansa_simulations.scenario import Scenario, run_scenario

BITS: Final = (None, 8, 4, 2)
BITS_BY_ALGORITHM: Final = {"fedavg": BITS, "scaffold": (None, 8, 6)}
# Two bits are for models that learn from noise.
UNMARKED: Final = 2
COHORTS: Final = (10, 50)
MAX_EXAMPLES: Final = 1000
MAX_SHARE_OF_BYTES: Final = {8: 0.505, 4: 0.26}
# By the merchants in a sum.
MAX_TIMES_CPU: Final = {10: 2.0, 50: 1.0}
MAX_PR_AUC_LOSS: Final = 0.005
# The longest update of any seed is 3.3 long, most are below 1.
MAX_UPDATE_NORM: Final = {"fedavg": 5.0, "scaffold": 5.0}
LOCAL_STEPS: Final = 120


def layout_of(bits: int | None, num_merchants: int, num_params: int) -> RoundVector | ShortRoundVector:
    """A round's vector, its histogram included."""
    if bits is None:
        return RoundVector(FixedPoint(1.0, MAX_EXAMPLES, num_merchants), num_params, HISTOGRAM_LENGTH, MAX_EXAMPLES)
    updates = ShortUpdates(Rotation(num_params, 1), bits, 1.0, MAX_EXAMPLES, num_merchants)
    return ShortRoundVector(updates, HISTOGRAM_LENGTH, MAX_EXAMPLES)


def keys_of(num: int) -> list[bytes]:
    return [number.to_bytes(32, "big") for number in range(num)]


def cpu_ms(action: Callable[[], object], repetitions: int) -> float:
    """The median of the repetitions."""
    taken = []
    for _ in range(repetitions):
        began = time.process_time()
        action()
        taken.append(1e3 * (time.process_time() - began))
    return median(taken)


def sum_of(bits: int | None, num_merchants: int, num_params: int, repetitions: int) -> dict[str, Any]:
    """One masked sum's bytes and CPU time."""
    layout = layout_of(bits, num_merchants, num_params)
    update = np.random.default_rng(0).normal(size=num_params).astype(np.float32)
    update *= np.float32(0.5 / np.sqrt(num_params))
    counts, keys = np.zeros(HISTOGRAM_LENGTH, np.int64), keys_of(num_merchants)

    def encoded() -> Ring:
        told = (update, 0.5, MAX_EXAMPLES // 2, counts)
        if isinstance(layout, RoundVector):
            return layout.encode(*told)
        return layout.encode(*told, np.random.default_rng(2))

    def masked() -> Ring:
        vector = encoded()
        mask(vector, 0, keys[0], dict(enumerate(keys[1:], start=1)))
        return vector

    vector, plain = masked(), encoded()

    def summed() -> object:
        total = np.zeros_like(vector)
        for _ in range(num_merchants):
            np.add(total, vector, out=total)
        for key in keys:
            subtract_stream(total, key)
        # The same work as on a sum, of which this one is none.
        return layout.decode(plain, 1)

    return {
        "merchants": num_merchants,
        "bits": bits,
        "vector_bytes": vector.nbytes,
        "encode_ms": cpu_ms(encoded, repetitions),
        "merchant_ms": cpu_ms(masked, repetitions),
        "coordinator_ms": cpu_ms(summed, repetitions),
    }


def agreement_of(asked: Scenario, algorithm: str, bits: int | None) -> Agreement:
    """The set's agreement, masked, with this algorithm."""
    values = asked.agreement.model_dump(mode="json")
    largest = max(len(table.train) for table in asked.tables.values())
    norm = MAX_UPDATE_NORM[algorithm]
    values["cohort"] |= {"min_merchants": 3, "max_update_norm": norm, "max_examples": largest, "size": None}
    values["privacy"]["share_metrics"] = False
    values["training"]["algorithm"] = values["training"]["plan"]["algorithm"] = algorithm
    if algorithm == "scaffold":
        values["training"]["plan"] |= {"local_steps": LOCAL_STEPS, "local_epochs": 1}
    values["secure_aggregation"] |= {"protocol": "double-masking", "update_bits": bits}
    return validate_agreement(values, "shoppers")


def model_of(algorithm: str, bits: int | None, seed: int) -> dict[str, Any]:
    """Figures of one run on online shoppers."""
    asked = scenario("shoppers", seed)
    agreement = agreement_of(asked, algorithm, bits)
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(sys.stderr):
        metrics = run_scenario(Scenario(agreement, asked.tables), Path(folder) / "run").metrics
    entries = metrics["rounds"]
    if not all(entry["aggregated"] and not entry["dropped"] for entry in entries):
        raise SystemExit(f"{algorithm} left a merchant out: {entries[0]['dropped']}; is an update longer than agreed?")
    answers = len(entries) * len(agreement.roster)
    return {
        "algorithm": algorithm,
        "bits": bits,
        "seed": seed,
        "pr_auc": metrics["federated"]["pr_auc"],
        "roc_auc": metrics["federated"]["roc_auc"],
        "bytes_up": sum(entry["bytes_received"] for entry in entries) // answers,
        "rounds": len(entries),
    }


def main() -> int:
    """Print both tables; exit code 1 where a mark is missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--params", type=int, default=1_000_000)
    parser.add_argument("--repetitions", type=int, default=7)
    parser.add_argument("--seeds", nargs="*", type=int, default=[0, 1, 2])
    parser.add_argument("--algorithms", nargs="+", choices=list(MAX_UPDATE_NORM), default=list(MAX_UPDATE_NORM))
    parser.add_argument("--json", type=Path)
    asked = parser.parse_args()
    sums = [sum_of(bits, cohort, asked.params, asked.repetitions) for cohort in COHORTS for bits in BITS]
    show_sums(sums)
    models = []
    for algorithm in asked.algorithms:
        for seed in asked.seeds:
            for bits in BITS_BY_ALGORITHM[algorithm]:
                models.append(model_of(algorithm, bits, seed))
                show_model(models[-1])
    if asked.json:
        asked.json.write_text(json.dumps({"sums": sums, "models": models}, indent=2))
    return 1 if any_missed(sums, models) else 0


def show_sums(sums: list[dict[str, Any]]) -> None:
    """The table of bytes and CPU time."""
    columns = ("cohort", "bits", "vector B", "of 32", "encode ms", "merchant ms", "server ms")
    print(" ".join(f"{column:>11}" for column in columns))
    for row in sums:
        figures = [row["encode_ms"], row["merchant_ms"], row["coordinator_ms"]]
        share = row["vector_bytes"] / in_32(sums, row)["vector_bytes"]
        print(
            f"{row['merchants']:>11} {row['bits'] or 32:>11} {row['vector_bytes']:>11} {share:>11.3f}",
            *(f"{figure:>11.1f}" for figure in figures),
            flush=True,
        )


def show_model(run: dict[str, Any]) -> None:
    """One run's line."""
    print(
        f"shoppers, {run['algorithm']}, seed {run['seed']}, {run['bits'] or 32:2} bits: "
        f"PR-AUC {run['pr_auc']:.4f}, ROC-AUC {run['roc_auc']:.4f}, {run['rounds']} rounds, "
        f"{run['bytes_up']:,} B up a merchant and round",
        flush=True,
    )


def in_32(rows: list[dict[str, Any]], row: dict[str, Any]) -> dict[str, Any]:
    """The same without few bits."""
    alike = [key for key in ("merchants", "algorithm", "seed") if key in row]
    return next(other for other in rows if other["bits"] is None and all(other[key] == row[key] for key in alike))


def any_missed(sums: list[dict[str, Any]], models: list[dict[str, Any]]) -> bool:
    """Say of each mark whether it is met."""
    found = []
    for row in (row for row in sums if row["bits"] not in {None, UNMARKED}):
        other, cohort, what = in_32(sums, row), row["merchants"], f"{row['bits']} bits, {row['merchants']} merchants"
        if cohort == COHORTS[0]:
            most = MAX_SHARE_OF_BYTES[row["bits"]]
            found.append((f"{what}: bytes", row["vector_bytes"] <= most * other["vector_bytes"]))
        found += [
            (f"{what}: CPU time of the {party}", row[f"{party}_ms"] <= MAX_TIMES_CPU[cohort] * other[f"{party}_ms"])
            for party in ("merchant", "coordinator")
        ]
    for algorithm in {run["algorithm"] for run in models}:
        for bits in set(BITS_BY_ALGORITHM[algorithm]) - {None, UNMARKED}:
            runs = [run for run in models if (run["algorithm"], run["bits"]) == (algorithm, bits)]
            lost = mean(in_32(models, run)["pr_auc"] - run["pr_auc"] for run in runs)
            found.append((f"shoppers, {algorithm}, {bits} bits: PR-AUC {-lost:+.4f}", lost <= MAX_PR_AUC_LOSS))
    for what, is_met in found:
        print(f"mark: {what}: {'met' if is_met else 'MISSED'}")
    return not all(is_met for _, is_met in found)


if __name__ == "__main__":
    sys.exit(main())
