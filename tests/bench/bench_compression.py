"""What the small model costs and saves on public data: int8 alone, and a network of 400,000 parameters pruned to 80 %.

The sets, their silos, splits and agreements are bench_accuracy.py's, the small models those of `hansa compress`: ranges
from the merchants' histograms, masks in the merchants' own training. Differences are on all merchants' test rows
together, with their paired 95 % bootstrap interval. Seeds 0, 1 and 2; marks, losses on the mean over the seeds and the
rest for each of them:

    int8 alone    PR-AUC lost against the float model at most .003; on creditcard, whose test rows hold 75 positives,
                  the whole interval of each seed is to lie there
    pruned        80 % zeros in the hidden kernels (of all dense weights a little less: the output's stay); gzip at
                  least 8 times below raw float32; at most .002 ROC-AUC lost by the int8 file against the control,
                  which had the same rounds without masks and is float; where that is missed, `hansa compress` finds
                  what the data can carry
    both          at least 95 % as many distinct scores as the float model on 10,000 rows of the set, drawn without
                  putting back; equal rows count once on either side

Whether the merchants' own judgement on validation rows would have released the model is told beside, without a mark.

    python tests/bench/bench_compression.py [--sets shoppers coupon creditcard] [--wide-sets shoppers coupon]
                                            [--seeds 0 1 2] [--json FILE]

A run is trained once for each set, network and seed, two at a time in processes of their own: 16 minutes of computing,
nine on two idle cores.
The data are read from the folder that HANSA_DATA names, or ../shared/data beside the checkout.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean
from typing import Any, Final

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import numpy as np
from bench_accuracy import CASES, DATA, scenario
from numpy.typing import NDArray

MARK_PR_AUC: Final = 0.003
MARK_ROC_AUC: Final = 0.002
MARK_GZIP: Final = 8.0
MARK_DISTINCT: Final = 0.95
SPARSITY: Final = 0.8
MARK_ZEROS: Final = 0.799
PRUNING_ROUNDS: Final = 4
NUM_ROWS: Final = 10_000
BY_INTERVAL: Final = ("creditcard",)
# Each brings its set's network to 400,000 parameters, within 2 %.
WIDE: Final = {"shoppers": (512, 512, 192), "coupon": (512, 512, 128)}
NARROW: Final = "agreed"
PRUNED: Final = "wide"


@dataclass(frozen=True)
class Job:
    """One training: a set, a seed, and whether the network is the agreed one or the wide one."""

    name: str
    network: str
    seed: int


@dataclass(frozen=True)
class Found:
    """Figures of one small model; `loss` is estimate, low and high of the original's area minus the small model's:
    PR-AUC of the kept model for int8 alone, ROC-AUC of the control for the pruned one.
    """

    job: Job
    num_params: int
    kept: tuple[float, float]
    small: tuple[float, float]
    loss: tuple[float, float, float]
    distinct: float
    times_smaller: float
    sparsity: float
    refusal: str
    seconds: float
    control: tuple[float, float] | None = None


# --- one job, in a process of its own ---------------------------------------------------------------------------------


def measure(job: Job) -> Found:
    """Train, make small, and compare."""
    from hansa_client.data import MerchantTable
    from hansa_common.activations import forward
    from hansa_common.agreement import validate_agreement
    from hansa_common.features import Inputs
    from hansa_common.tflite import TfliteNetwork
    from hansa_server.run_folder import open_finished
    from hansa_simulations.baselines import pooled_table
    from hansa_simulations.choices import Limits, Trial
    from hansa_simulations.scenario import Scenario, run_scenario, simulated_hash_key

    began = time.monotonic()
    asked = scenario(job.name, job.seed)
    values = asked.agreement.model_dump(mode="json")
    if job.network == PRUNED:
        values["model"]["hidden"] = WIDE[job.name]
    agreement = validate_agreement(values, "the benchmark")
    with tempfile.TemporaryDirectory() as folder:
        run_scenario(Scenario(agreement, asked.tables), Path(folder) / "run")
        run = open_finished(Path(folder) / "run")
    trial = Trial(run, asked.tables, Limits(MARK_PR_AUC, PRUNING_ROUNDS))
    plain = trial.made(0.0, True)
    choice = trial.made(SPARSITY, True) if job.network == PRUNED else plain
    pool: MerchantTable = pooled_table(list(asked.tables.values()), agreement)
    inputs = run.preprocessing.transform(pool.columns, simulated_hash_key(agreement.seed))
    test, labels = inputs.take(pool.test), pool.labels[pool.test]

    def logits(content: bytes, rows: Inputs) -> NDArray[np.float32]:
        return TfliteNetwork(content, run.spec.num_dense, len(run.spec.embeddings)).logits(rows)

    if plain.finished.compressed is None or choice.finished.compressed is None:
        raise SystemExit(f"{job}: no small model was made: {plain.finished.refusal or choice.finished.refusal}")
    original, small_file = plain.finished.compressed.float_file, choice.finished.compressed.int8_file
    kept, small = logits(original, test), logits(small_file, test)
    control = None
    if choice.finished.pruning is not None and choice.finished.pruning.control is not None:
        control = forward(run.spec, choice.finished.pruning.control.weights, test)[0]
    rows = inputs.take(np.random.default_rng(job.seed).choice(len(inputs), NUM_ROWS, replace=False))
    report = choice.finished.compressed.report
    return Found(
        job=job,
        num_params=report.float32_bytes // 4,
        kept=areas(kept, labels),
        small=areas(small, labels),
        loss=loss(kept, small, labels, job.seed, "pr_auc")
        if control is None
        else loss(control, small, labels, job.seed, "roc_auc"),
        distinct=num_scores(logits(small_file, rows)) / num_scores(logits(original, rows)),
        times_smaller=report.float32_bytes / report.gzip_bytes,
        sparsity=report.sparsity,
        refusal=choice.finished.refusal,
        seconds=time.monotonic() - began,
        control=None if control is None else areas(control, labels),
    )


def areas(logits: NDArray[Any], labels: NDArray[np.uint8]) -> tuple[float, float]:
    """ROC-AUC and PR-AUC, of the scores themselves."""
    from sklearn.metrics import average_precision_score, roc_auc_score

    return float(roc_auc_score(labels, logits)), float(average_precision_score(labels, logits))


def loss(
    original: NDArray[Any], small: NDArray[Any], labels: NDArray[np.uint8], seed: int, area: str
) -> tuple[float, float, float]:
    """By how much the small model is worse: estimate, low, high."""
    from hansa_common.bootstrap import paired_bootstrap

    found = paired_bootstrap(original, small, labels, rng=np.random.default_rng(seed))[area]
    return found.estimate, found.low, found.high


def num_scores(logits: NDArray[np.float32]) -> int:
    from hansa_common.scorer import scores_of

    return len(np.unique(scores_of(logits)))


# --- all jobs ---------------------------------------------------------------------------------------------------------


def measured(job: Job) -> Found:
    """The same in a process of its own."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "found.json"
        words = [sys.executable, __file__, "--job", job.name, job.network, str(job.seed), "--json", str(file)]
        told = subprocess.run(words, check=False, capture_output=True, text=True)
        if told.returncode:
            raise SystemExit(f"{job} failed:\n{told.stderr}")
        values = json.loads(file.read_text())
    return Found(**{**values, "job": Job(**values["job"])})


def all_measured(jobs: list[Job]) -> Iterator[Found]:
    """Figures in the order of the jobs, each as soon as it is known."""
    with ThreadPoolExecutor(min(2, os.cpu_count() or 1)) as workers:
        yield from workers.map(measured, jobs)


def marks(name: str, network: str, found: list[Found]) -> Iterator[tuple[str, float, str, float]]:
    """What is asked of one set's seeds: mark, figure, whether at least or at most, how much."""
    lost = fmean(f.loss[0] for f in found)
    if network == PRUNED:
        yield "ROC-AUC lost against the control", lost, "at most", MARK_ROC_AUC
        yield "gzip, times below raw float32", min(f.times_smaller for f in found), "at least", MARK_GZIP
        yield "zeros in dense kernels", min(f.sparsity for f in found), "at least", MARK_ZEROS
    elif name in BY_INTERVAL:
        yield "PR-AUC lost at the interval's far end", max(f.loss[2] for f in found), "at most", MARK_PR_AUC
    else:
        yield "PR-AUC lost against float", lost, "at most", MARK_PR_AUC
    yield "distinct scores, share of the float model's", min(f.distinct for f in found), "at least", MARK_DISTINCT


def print_found(found: Found) -> None:
    estimate, low, high = found.loss
    control = "" if found.control is None else f"control {_text(found.control)}  "
    gate = f"not released: {found.refusal}" if found.refusal else "released"
    print(
        f"{found.job.name} {found.job.network} seed {found.job.seed}: float {_text(found.kept)}  {control}"
        f"small {_text(found.small)}  lost {estimate:+.4f} [{low:+.4f}, {high:+.4f}]  "
        f"distinct {found.distinct:.3f}  gzip 1/{found.times_smaller:.1f}  zeros {found.sparsity:.1%}  "
        f"{found.num_params:,} parameters, {found.seconds:.0f} s; {gate}",
        flush=True,
    )


def _text(both: Iterable[float]) -> str:
    return "/".join(f"{area:.4f}" for area in both)


def is_met(figure: float, kind: str, mark: float) -> bool:
    return figure >= mark if kind == "at least" else figure <= mark


def main() -> int:
    """Print the tables; exit code 1 where a mark is missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sets", nargs="*", choices=list(CASES), default=list(CASES))
    parser.add_argument("--wide-sets", nargs="*", choices=list(WIDE), default=list(WIDE))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--json", type=Path)
    parser.add_argument("--job", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if not DATA.is_dir():
        raise SystemExit(f"the public data sets are not in {DATA}; name their folder in HANSA_DATA")
    if options.job:
        name, network, seed = options.job
        with contextlib.redirect_stdout(sys.stderr):
            options.json.write_text(json.dumps(asdict(measure(Job(name, network, int(seed))))))
        return 0
    kinds = [(name, PRUNED) for name in options.wide_sets] + [(name, NARROW) for name in options.sets]
    # The long ones first, so that no process ends up alone with one.
    everything, missed = [], 0
    for found in all_measured([Job(*kind, seed) for kind in kinds for seed in options.seeds]):
        print_found(found)
        everything.append(found)
    for name, network in kinds:
        of_kind = [found for found in everything if (found.job.name, found.job.network) == (name, network)]
        print(f"{name} {network}, seeds {options.seeds}:")
        for mark, figure, kind, asked in marks(name, network, of_kind):
            missed += not is_met(figure, kind, asked)
            verdict = "met" if is_met(figure, kind, asked) else "MISSED"
            print(f"    {mark}: {figure:.4f}, {kind} {asked:g} asked: {verdict}")
    if options.json:
        options.json.write_text(json.dumps([asdict(found) for found in everything], indent=2))
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
