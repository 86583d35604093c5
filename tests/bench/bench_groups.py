"""What two liars of 25 merchants cost under masks: groups of five, a rule across their sums, with and without privacy.

Online Shoppers, ordered by source of traffic and cut into 25 merchants of equal size, so that each has customers of one
or two sources; every sum is masked within its group of five, drawn anew each time. attacks/groups.toml says who lies
and how: updates are as long as cohort.max_update_norm lets pass. The run is `hansa attack`, as a user would type it,
once under the accuracy benchmark's network and FedAvg, and once under the private agreement at epsilon 8, where each
merchant clips and noises its own steps. The undefended mean is of one masked sum over all 25. Mark, without privacy:

    at most .02 PR-AUC lost by each rule under each attack, against the same rule unattacked

With it the figures stand beside, without a mark.

    python tests/bench/bench_groups.py [--parts masked private] [--seed 0] [--json FILE]

Some ten minutes of computing. The data are read from the folder that HANSA_DATA names, or ../shared/data beside the
checkout.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any, Final

import numpy as np
import pandas as pd
from bench_accuracy import CASES, DATA

HERE: Final = Path(__file__).parent
HANSA: Final = (sys.executable, "-c", "from hansa_common.cli import main; main()")
MERCHANTS: Final = [f"shop {number:02}" for number in range(1, 26)]
MARKED: Final = "masked"
# The file that the agreement begins with, up to a line, what follows in the place of the rest, and the longest update.
PARTS: Final = {
    MARKED: ("shoppers", "# DECIDED: the best of all rounds", 10.0),
    # Loose: how long noise makes updates is hard to say beforehand. At 20 the attacks take .007 of the mean at most.
    "private": ("shoppers-private", "", 100.0),
}
TRAINING: Final = '[training]\nalgorithm = "fedavg"\nrounds = 30\npatience = 30\n'
MASKS: Final = """
[cohort]
min_merchants = 3
max_update_norm = {max_update_norm}
max_examples = 1000

[secure_aggregation]
protocol = "double-masking"
"""


def agreement_text(part: str) -> str:
    """The agreement of one part, as TOML."""
    name, ends_at, max_update_norm = PARTS[part]
    text = (HERE / "agreements" / f"{name}.toml").read_text()
    known = text.partition(ends_at)[0] + TRAINING if ends_at else text
    return f"roster = {json.dumps(MERCHANTS)}\n{known}{MASKS.format(max_update_norm=max_update_norm)}"


def write_table(path: Path) -> None:
    """The rows with one column more: whose they are."""
    frame = pd.read_csv(DATA / CASES["shoppers"].file, dtype=str, keep_default_na=False)
    frame = frame.sort_values("TrafficType", key=lambda column: column.astype(int), kind="stable")
    sizes = [len(part) for part in np.array_split(np.arange(len(frame)), len(MERCHANTS))]
    frame["merchant"] = np.repeat(MERCHANTS, sizes)
    frame.to_csv(path, index=False)


def attacked(part: str, seed: int, folder: Path) -> dict[str, Any]:
    """The results of `hansa attack` on one part; its table goes to this process' terminal."""
    table, agreement = folder / "visits.csv", folder / f"{part}.toml"
    write_table(table)
    agreement.write_text(agreement_text(part))
    out = folder / f"attacked-{part}"
    scenario = HERE / "attacks" / "groups.toml"
    command = [*HANSA, "attack", scenario, agreement, table, "--silo", "merchant", "--seed", seed, "-o", out]
    subprocess.run(list(map(str, command)), check=True)
    found: dict[str, Any] = json.loads((out / "results.json").read_text())
    return found


def main() -> int:
    """Print the tables; exit code 1 where a rule misses the mark without privacy."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", nargs="+", choices=list(PARTS), default=list(PARTS))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    if not DATA.is_dir():
        raise SystemExit(f"the public data sets are not in {DATA}; name their folder in HANSA_DATA")
    found = {}
    for part in options.parts:
        print(f"{part}, {len(MERCHANTS)} merchants in groups, seed {options.seed}", flush=True)
        with tempfile.TemporaryDirectory() as folder:
            found[part] = attacked(part, options.seed, Path(folder))
    if options.json:
        options.json.write_text(json.dumps(found, indent=2))
    marked = found.get(MARKED, {"cells": []})
    return 1 if any(cell["misses"] for cell in marked["cells"]) else 0


if __name__ == "__main__":
    sys.exit(main())
