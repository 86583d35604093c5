"""What a finished model costs where it is used: one row, many rows, and the first score of a fresh process.

- One row of 30 numbers, preprocessing included (int8 file, 64-32 network), against LightGBM's `Booster.predict` on an
  array that is ready for it: at most 500 trees at .05 with early stopping, as bench_accuracy.py trains it, one thread.
  That is the fastest way into LightGBM from Python; its scikit-learn `predict` takes some twenty times as long. The two
  take turns, so that a busy machine slows both. Mark: at least 3 times faster at the median.
- One row of 24 columns of every kind, texts among them, against LightGBM on an array of codes, which somebody else has
  looked up for it. Mark: the same.
- Batches of the int8 file against the float32 file on a network of 400,000 parameters, one thread, also taking turns.
  Mark: at least 2 times the rows a second.
- From the start of the interpreter's first import to the first score, reading and verifying the files included, in
  fresh processes. Mark: the median below one second.

    python tests/bench/bench_scoring.py [--rows 20000] [--json FILE]
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any, Final

import numpy as np
import pandas as pd

from hansa_common import statistics
from hansa_common.activations import activation_histograms, ranges_from_histograms
from hansa_common.agreement import Agreement, validate_agreement
from hansa_common.bundle import FLOAT_NAME, INT8_NAME, Bundle, BundleParts, make_bundle, open_bundle
from hansa_common.features import FittedPreprocessing
from hansa_common.keys import public_key_of
from hansa_common.model import ModelSpec, initial_weights
from hansa_common.scorer import Scorer
from hansa_common.tflite import TfliteNetwork
from hansa_server.compression import compress

MARK_ROW: Final = 3.0
MARK_BATCH: Final = 2.0
MARK_FIRST_SECONDS: Final = 1.0
NUM_TURNS: Final = 2000
NUM_BATCH_TURNS: Final = 7
NUM_PROCESSES: Final = 5
KEY: Final = bytes(32)
WIDE: Final = (512, 512, 256)
FIRST_SCORE: Final = """
import time
began = time.perf_counter()
import json, sys
from pathlib import Path
from hansa_common.bundle import open_bundle
from hansa_common.scorer import Scorer
files = {path.name: path.read_bytes() for path in Path(sys.argv[1]).iterdir()}
Scorer(open_bundle(files, sys.argv[2])).score_row(json.loads(sys.argv[3]))
print(time.perf_counter() - began)
"""


def numbers(num_columns: int, scalings: list[str]) -> list[dict[str, Any]]:
    return [
        {"kind": "numeric", "name": f"x{i}", "low": 0, "high": 50 + i, "scaling": scalings[i % len(scalings)]}
        for i in range(num_columns)
    ]


def every_kind() -> list[dict[str, Any]]:
    """14 numbers scaled three ways, 2 booleans, a timestamp, 7 categories, two of them embedded."""
    vocabulary = [f"entry {i}" for i in range(20)]
    categories = [{"kind": "categorical", "name": f"c{i}", "vocabulary": vocabulary} for i in range(7)]
    embedded = [{**category, "encoding": "embedding"} for category in categories[:2]]
    booleans = [{"kind": "boolean", "name": f"b{i}"} for i in range(2)]
    moment = {"kind": "timestamp", "name": "moment", "unit": "seconds"}
    return [*numbers(14, ["standard", "log", "quantile"]), *booleans, moment, *embedded, *categories[2:]]


def agreement_with(features: list[dict[str, Any]], hidden: tuple[int, ...]) -> Agreement:
    values = {"task": "fraud", "label": {"column": "y"}, "features": features, "model": {"hidden": hidden}}
    return validate_agreement(values, "the benchmark")


def columns_of(agreement: Agreement, num_rows: int) -> dict[str, Any]:
    """Columns as a merchant's table parses them, nothing missing."""
    random = np.random.default_rng(0)
    made = {
        "numeric": lambda: random.exponential(20.0, num_rows),
        "boolean": lambda: random.integers(0, 2, num_rows).astype(float),
        "timestamp": lambda: random.uniform(0, 2e9, num_rows),
        "categorical": lambda: np.array([f"entry {i}" for i in random.integers(0, 22, num_rows)], object),
    }
    return {feature.name: made[feature.kind]() for feature in agreement.features}


def finished(agreement: Agreement, num_rows: int) -> tuple[dict[str, bytes], Bundle, dict[str, Any]]:
    """A bundle's files, the bundle, and columns to score; weights are first ones, which cost what trained ones do."""
    columns = columns_of(agreement, num_rows)
    sample = {name: values[:5000] for name, values in columns.items()}
    labels = np.arange(len(sample["x0"])).astype(np.uint8) % 2
    preprocessing = FittedPreprocessing.fit(agreement, statistics.measure(agreement, sample, labels))
    spec = ModelSpec.from_agreement(agreement)
    weights = initial_weights(spec, 0)
    histograms = activation_histograms(spec, weights, preprocessing.transform(sample, None), 5)
    made = compress(spec, weights, ranges_from_histograms(spec, histograms, 0.9999))
    files = make_bundle(
        BundleParts(
            agreement, "the benchmark", spec, weights, preprocessing, made.float_file, made.int8_file, {}, {}, {}
        ),
        KEY,
    )
    return files, open_bundle(files, public_key_of(KEY)), columns


def microseconds(calls: dict[str, Callable[[], object]], num_turns: int) -> dict[str, float]:
    """The median of each, taking turns; each is called once before it is timed, as it would be in a busy service."""
    found: dict[str, list[int]] = {name: [] for name in calls}
    for _ in range(num_turns):
        for name, call in calls.items():
            call()
            began = time.perf_counter_ns()
            call()
            found[name].append(time.perf_counter_ns() - began)
    return {name: median(times) / 1e3 for name, times in found.items()}


def first_row(columns: dict[str, Any]) -> dict[str, Any]:
    """As a program hands it over."""
    return {name: values[0] if isinstance(values[0], str) else float(values[0]) for name, values in columns.items()}


def grown(table: Any) -> Any:
    """LightGBM's trees on the table, the last quarter of the rows to stop by."""
    import lightgbm

    random = np.random.default_rng(1)
    x0, x1, x2 = (table["x0"], table["x1"], table["x2"])
    labels = (x0 + np.abs(x1 - 20) + np.sin(x2) * 9 + random.normal(0, 20, len(table)) > 45).astype(int)
    cut = 3 * len(table) // 4
    parameters = {"objective": "binary", "learning_rate": 0.05, "verbose": -1, "num_threads": 1, "seed": 0}
    held_out = lightgbm.Dataset(table[cut:], labels[cut:])
    stop = [lightgbm.early_stopping(50, verbose=False)]
    return lightgbm.train(parameters, lightgbm.Dataset(table[:cut], labels[:cut]), 500, [held_out], callbacks=stop)


def measure_row(bundle: Bundle, columns: dict[str, Any]) -> dict[str, float]:
    """Microseconds of one row: as it comes for Hansa, as an array of numbers for LightGBM."""
    coded = {n: np.unique(v, return_inverse=True)[1] if v.dtype == object else v for n, v in columns.items()}
    trees = grown(pd.DataFrame(coded))
    ready = np.array([[float(values[0]) for values in coded.values()]])
    row, scorer = first_row(columns), Scorer(bundle)
    with_gaps = {**row, **dict.fromkeys(list(row)[::8])}
    print(f"LightGBM grew {trees.best_iteration} trees on {len(columns)} columns")
    calls = {
        "hansa": lambda: scorer.score_row(row),
        "lightgbm": lambda: trees.predict(ready),
        "hansa, with values missing": lambda: scorer.score_row(with_gaps),
    }
    return microseconds(calls, NUM_TURNS)


def measure_batches(bundle: Bundle, columns: dict[str, Any]) -> dict[str, float]:
    """Rows a second of both files, inputs ready; and of the int8 one with its preprocessing."""
    inputs = bundle.preprocessing.transform(columns, None)
    spec = bundle.spec
    networks = {
        name: TfliteNetwork(content, spec.num_dense, len(spec.embeddings)) for name, content in bundle.networks.items()
    }
    scorer = Scorer(bundle)
    times = microseconds(
        {
            "int8": lambda: networks[INT8_NAME].logits(inputs),
            "float32": lambda: networks[FLOAT_NAME].logits(inputs),
            "int8 with preprocessing": lambda: scorer.score(columns),
        },
        NUM_BATCH_TURNS,
    )
    return {name: 1e6 * len(inputs) / took for name, took in times.items()}


def measure_first_score(files: dict[str, bytes], columns: dict[str, Any]) -> float:
    """Seconds, the median of fresh processes; the first one, which fills the disk's cache, does not count."""
    with tempfile.TemporaryDirectory() as folder:
        for name, content in files.items():
            (Path(folder) / name).write_bytes(content)
        words = [sys.executable, "-c", FIRST_SCORE, folder, public_key_of(KEY), json.dumps(first_row(columns))]
        times = [
            float(subprocess.run(words, check=True, capture_output=True, text=True).stdout)
            for _ in range(1 + NUM_PROCESSES)
        ]
    return median(times[1:])


def main() -> int:
    """Print the table; exit code 1 where a mark is missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=20_000, help="rows of a batch")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    _, bundle, columns = finished(agreement_with(numbers(30, ["standard"]), (64, 32)), options.rows)
    of_numbers = measure_row(bundle, columns)
    files, bundle, columns = finished(agreement_with(every_kind(), (64, 32)), options.rows)
    of_every_kind = measure_row(bundle, columns)
    narrow = measure_batches(bundle, columns)
    first_seconds = measure_first_score(files, columns)
    _, bundle, columns = finished(agreement_with(every_kind(), WIDE), options.rows)
    wide = measure_batches(bundle, columns)
    for told, times in (("30 numbers", of_numbers), ("24 columns of every kind", of_every_kind)):
        print(f"one row of {told}, p50 in us: " + ", ".join(f"{name} {took:,.1f}" for name, took in times.items()))
    for told, rates in (("64-32", narrow), ("-".join(map(str, WIDE)), wide)):
        print(f"rows a second, {told}: " + ", ".join(f"{name} {rate:,.0f}" for name, rate in rates.items()))
    marks = [
        ("one row of numbers, times faster than LightGBM", _times_faster(of_numbers), MARK_ROW, "at least"),
        ("one row of every kind, times faster than LightGBM", _times_faster(of_every_kind), MARK_ROW, "at least"),
        ("wide batches, int8 times float32", wide["int8"] / wide["float32"], MARK_BATCH, "at least"),
        ("import to first score, seconds", first_seconds, MARK_FIRST_SECONDS, "below"),
    ]
    missed = False
    for name, found, mark, kind in marks:
        is_met = found >= mark if kind == "at least" else found < mark
        missed = missed or not is_met
        print(f"{name}: {found:.2f}, {kind} {mark:g} asked: {'met' if is_met else 'MISSED'}")
    if options.json:
        measured = {
            "row_of_numbers_us": of_numbers,
            "row_of_every_kind_us": of_every_kind,
            "rows_per_second": narrow,
            "wide_rows_per_second": wide,
            "first_score_seconds": first_seconds,
        }
        options.json.write_text(json.dumps(measured, indent=2))
    return int(missed)


def _times_faster(times: dict[str, float]) -> float:
    return times["lightgbm"] / times["hansa"]


if __name__ == "__main__":
    sys.exit(main())
