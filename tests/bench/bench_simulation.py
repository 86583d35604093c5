"""How fast a warm simulated round is: Hansa's grid in one process against Flower's own Ray simulation.

Both sides: FedAvg of all silos, the same rows, the same network of 25,697 parameters, Adam, one local epoch in batches
of 64, and an evaluation on each silo's validation rows in every round. Flower's side keeps TensorFlow, the compiled
model and the rows in its actors, one actor a core; its figure is the median of the rounds after the first two.
Mark: at 20 silos at least ten times faster.

    python tests/bench/bench_simulation.py [--silos 5 20 100] [--rounds 6] [--json FILE]
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import median
from typing import Final

MARK_SILOS: Final = 20
MARK_RATIO: Final = 10.0
NUM_COLD_ROUNDS: Final = 2
ENGINES: Final = ("hansa", "flower")


def hansa_round_seconds(num_silos: int, num_rounds: int) -> list[float]:
    """Seconds of each round of the real ServerApp and ClientApps over the local grid."""
    import flower_simulation as workload
    import pandas as pd

    from hansa_client.data import merchant_table
    from hansa_common.agreement import validate_agreement
    from hansa_simulations.scenario import Scenario, run_scenario

    names = [f"silo {number:03d}" for number in range(num_silos)]
    plan = {"optimizer": "adam", "learning_rate": workload.LEARNING_RATE, "batch_size": workload.BATCH_SIZE}
    agreement = validate_agreement(
        {
            "task": "fraud",
            "roster": names,
            "label": {"column": "label"},
            "features": [
                {"kind": "numeric", "name": f"x{i}", "low": -8.0, "high": 8.0, "missing": "refuse"}
                for i in range(workload.NUM_INPUTS)
            ],
            "data": {"test_share": 0.1, "validation_share": 0.1},
            "model": {"hidden": workload.HIDDEN, "l2": 0.0, "output_bias": 0.0},
            "training": {"rounds": num_rounds, "patience": num_rounds, "plan": plan},
        },
        "the benchmark",
    )
    tables = {}
    for number, name in enumerate(names):
        inputs, labels = workload.silo_rows(number)
        frame = pd.DataFrame(inputs.astype(float), columns=[f"x{i}" for i in range(workload.NUM_INPUTS)])
        tables[name] = merchant_table(frame.assign(label=labels), agreement, name, name)
    with tempfile.TemporaryDirectory() as folder:
        metrics = run_scenario(Scenario(agreement, tables), Path(folder) / "run").metrics
    return [entry["seconds"] for entry in metrics["rounds"]]


def measured(engine: str, num_silos: int, num_rounds: int) -> list[float]:
    """Round times of one engine in a process of its own."""
    environment = {
        **os.environ,
        "TF_CPP_MIN_LOG_LEVEL": "2",
        "FLWR_TELEMETRY_ENABLED": "0",
        "FLWR_DISABLE_UPDATE_CHECK": "1",
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_DEDUP_LOGS": "0",
        # Ray's actors find the module by it.
        "PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")]),
    }
    with tempfile.NamedTemporaryFile(suffix=".json") as answer:
        words = [sys.executable, __file__, "--measure", engine, "--silos", str(num_silos)]
        finished = subprocess.run(
            [*words, "--rounds", str(num_rounds), "--json", answer.name],
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
        if finished.returncode != 0:
            said = finished.stdout[-4000:] + finished.stderr[-4000:]
            raise SystemExit(f"{engine} with {num_silos} silos failed:\n{said}")
        return list(json.loads(Path(answer.name).read_text()))


def measure_here(engine: str, num_silos: int, num_rounds: int) -> list[float]:
    """Round times of one engine in this process."""
    if engine == "hansa":
        return hansa_round_seconds(num_silos, num_rounds)
    import flower_simulation

    return flower_simulation.round_seconds(num_silos, num_rounds)


def main() -> int:
    """Print the table; exit code 1 where the mark is missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--silos", type=int, nargs="+", default=[5, 20, 100])
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--measure", choices=ENGINES, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        options.json.write_text(json.dumps(measure_here(options.measure, options.silos[0], options.rounds)))
        return 0
    print(f"{'silos':>6} {'Hansa s/round':>14} {'Flower s/round':>15} {'times faster':>13}")
    found = {}
    for num_silos in options.silos:
        hansa, flower = (median(measured(engine, num_silos, options.rounds)[NUM_COLD_ROUNDS:]) for engine in ENGINES)
        found[num_silos] = {"hansa": hansa, "flower": flower, "ratio": flower / hansa}
        print(f"{num_silos:>6} {hansa:>14.3f} {flower:>15.3f} {flower / hansa:>13.1f}", flush=True)
    if options.json:
        options.json.write_text(json.dumps(found, indent=2))
    ratio = found.get(MARK_SILOS, {}).get("ratio")
    if ratio is None:
        return 0
    is_met = ratio >= MARK_RATIO
    print(f"{MARK_SILOS} silos: {ratio:.1f} times, at least {MARK_RATIO:g} asked: {'met' if is_met else 'MISSED'}")
    return 0 if is_met else 1


if __name__ == "__main__":
    sys.exit(main())
