"""Purchases, views and searches of the last month -> a purchase within a week: five shops together, and pooled.

Draws event logs, counts them into a table, trains with `hansa simulate` twice, and judges both models by the same test
customers: accuracy beside what it is without any model, PR-AUC beside what chance has, and a scatter of predicted
against actual.

    python examples/purchases/run.py [--out FOLDER] [--seed N]
"""

from __future__ import annotations

import argparse
import json
import shlex
import subprocess
import sys
from pathlib import Path

import matplotlib as mpl
import numpy as np
import pandas as pd
from tables import COUNTS, DAY, WEEK_DAYS, month_to_week, with_parts

from hansa_common.features import FittedPreprocessing
from hansa_simulations.merchants import EPOCH, FIVE_SHOPS, shop_events

mpl.use("agg")

HERE = Path(__file__).parent
HANSA = Path(sys.executable).with_name("hansa")
LOG_DAYS = 90
# As federated.toml and pooled.toml say.
TEST_FROM = 0.8
# A customer above it is taken for a buyer.
THRESHOLD = 0.5
RUNS = {"federated": "shop", "pooled": "everyone"}
BLUE, ORANGE, GREY = "#2a6f97", "#d1762b", "#8a8a8a"


def main() -> None:
    """Run the whole case."""
    parser = argparse.ArgumentParser(description="Five shops predict purchases, together and pooled.")
    parser.add_argument("--out", type=Path, default=Path("runs/purchases"), help="where table, runs and figure go")
    parser.add_argument("--seed", type=int, default=0, help="another seed draws other customers")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    table = make_table(options.out / "customers.csv", options.seed)
    for name, silo in RUNS.items():
        simulate(name, silo, options.out, options.seed)
    tested = table[table["draw"] >= TEST_FROM]
    actual = tested["buys"].to_numpy()
    predicted = {name: probabilities(options.out / name / "model", tested) for name in RUNS}
    tell(predicted, actual, options.out)
    draw_scatter(predicted, actual, options.out / "scatter.png")
    print(f"predicted against actual: {options.out / 'scatter.png'}")


def make_table(path: Path, seed: int) -> pd.DataFrame:
    """Draw three months of logs and the week after them, and write one row a customer."""
    random = np.random.default_rng(seed)
    events = shop_events(FIVE_SHOPS, LOG_DAYS + WEEK_DAYS, random)
    table = with_parts(month_to_week(events, EPOCH + LOG_DAYS * DAY), random)
    table.to_csv(path, index=False)
    print(f"{len(events):,} events of {len(table):,} customers at {table['shop'].nunique()} shops -> {path}")
    return table


def simulate(name: str, silo: str, out: Path, seed: int) -> None:
    """Train one model, as anyone would in a terminal."""
    words = ["simulate", HERE / f"{name}.toml", out / "customers.csv", "--silo", silo]
    words += ["--out", out / name, "--seed", seed, "--force"]
    line = [str(word) for word in words]
    print(f"\n$ hansa {shlex.join(line)}", flush=True)
    # What went wrong, it has said itself.
    if code := subprocess.run([HANSA, *line], check=False).returncode:
        sys.exit(code)


def probabilities(model: Path, rows: pd.DataFrame) -> np.ndarray:
    """(rows,) of a model's folder: the preprocessing is JSON, the network plain arrays."""
    fitted = FittedPreprocessing.from_json((model / "preprocessing.json").read_text(encoding="utf-8"))
    columns = {name: rows[name].to_numpy(np.float64) for name in COUNTS}
    inputs = fitted.transform(columns, hash_key=None).dense
    with np.load(model / "weights.npz") as weights:
        hidden = np.maximum(inputs @ weights["hidden_0.kernel"] + weights["hidden_0.bias"], 0.0)
        logits = hidden @ weights["output.kernel"] + weights["output.bias"]
    return 1.0 / (1.0 + np.exp(-logits[:, 0]))


def tell(predicted: dict[str, np.ndarray], actual: np.ndarray, out: Path) -> None:
    """Print the figures, each beside what it would be without a model."""
    bought = actual.mean()
    print(f"\n{len(actual)} test customers, {bought:.1%} of them bought within the week")
    print(f"{'':24}{'accuracy':>10}{'PR-AUC':>10}{'ROC-AUC':>10}")
    print(f"{'always the usual answer':24}{max(bought, 1 - bought):10.1%}{bought:10.3f}{0.5:10.3f}")
    for name, p in predicted.items():
        told = json.loads((out / name / "metrics.json").read_bytes())["federated"]
        accuracy = ((p >= THRESHOLD) == actual).mean()
        print(f"{name:24}{accuracy:10.1%}{told['pr_auc']:10.3f}{told['roc_auc']:10.3f}")


def draw_scatter(predicted: dict[str, np.ndarray], actual: np.ndarray, path: Path) -> None:
    """One point a test customer: the predicted probability over what happened, spread sideways so that all are seen."""
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(1, len(predicted), figsize=(9, 5), sharey=True, layout="constrained")
    sideways = np.random.default_rng(0).uniform(-0.3, 0.3, len(actual))
    for ax, (name, p) in zip(axes, predicted.items(), strict=True):
        is_right = (p >= THRESHOLD) == actual
        for chosen, colour, label in ((is_right, BLUE, "right"), (~is_right, ORANGE, "wrong")):
            ax.scatter((actual + sideways)[chosen], p[chosen], s=9, alpha=0.6, color=colour, lw=0, label=label)
        ax.axhline(THRESHOLD, color=GREY, lw=1, ls="--", zorder=0)
        ax.set(title=f"{name}: {is_right.mean():.1%} right", xlabel="actual", xlim=(-0.5, 1.5), ylim=(-0.02, 1.02))
        ax.set_xticks([0, 1], ["did not buy", "bought within a week"])
        ax.spines[["top", "right"]].set_visible(False)
    axes[0].set_ylabel("predicted probability of a purchase")
    figure.legend(
        *axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=2, frameon=False, markerscale=2
    )
    figure.savefig(path, dpi=150)
    plt.close(figure)


if __name__ == "__main__":
    main()
