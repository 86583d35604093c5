"""What sharing noise under masks is worth on public data: real simulated federations, with noise shared and own.

The agreements of bench_privacy.py, in masked rounds of one step each over every row: a merchant sends -1 times the mean
of its clipped gradients, and the coordinator's Adam steps by the sum of all. Once with all of the noise from every
merchant, once with a share from each; one merchant may collude, and no sum is of fewer than all. Each with the noise
that its own accounting asks for at the same epsilon, and delta 1e-5.

    python tests/bench/bench_shared_noise.py [--sets creditcard shoppers] [--epsilons 0.3] [--seeds 0 1 2]

The mark: on the mean over the seeds, PR-AUC is higher with shared noise. Figures are of the test rows of all merchants,
pooled, as only a simulation sees them. About 15 minutes of computing. The data are read from the folder that HANSA_DATA
names, or ../shared/data beside the checkout.
"""

from __future__ import annotations

import argparse
import sys
from typing import Final, Literal

import numpy as np
from bench_privacy import DATA, agreed, silos, trained

from hansa_common.agreement import Agreement, validate_agreement
from hansa_common.privacy import SampledDiscreteGaussian, SampledGaussian, noise_multiplier_for
from hansa_common.secure_agreement import honest_in_smallest_sum
from hansa_common.shared_noise import is_shared, noise_share_of

COLLUDERS: Final = 1
LEARNING_RATE: Final = 1.0
# Rounds, and the rate of the coordinator's Adam: the first that were tried.
STEPS: Final = {"creditcard": (200, 0.1), "shoppers": (200, 0.03), "coupon": (200, 0.03)}
# Of a small merchant's update, if all of the noise is in it, most is noise.
LONGEST: Final = {"own": 100.0, "shared": 2.0}
Noise = Literal["own", "shared"]
KINDS: Final[tuple[Noise, ...]] = ("own", "shared")


def one_step_a_round(agreement: Agreement, name: str, noise: Noise, epsilon: float, most_rows: int) -> Agreement:
    """The agreement in masked rounds of one step, with the least noise of a kind that keeps to epsilon. No merchant has
    more than most_rows, so that the grid of sums is as fine as it can be.
    """
    values = agreement.model_dump(mode="json")
    dp, (rounds, server_rate) = values["privacy"]["dp"], STEPS[name]
    kind = SampledDiscreteGaussian if noise == "shared" else SampledGaussian
    least = noise_multiplier_for(epsilon, dp["delta"], 1.0, rounds, (), kind)
    dp |= {"epsilon": epsilon, "noise": noise, "noise_multiplier": least, "sampling_rate": 1.0, "statistics": "domains"}
    plan = {"algorithm": "fedadam", "optimizer": "sgd", "learning_rate": LEARNING_RATE, "local_steps": 1}
    plan |= {"server_learning_rate": server_rate}
    values["training"] = {"algorithm": "fedadam", "rounds": rounds, "plan": plan}
    values["secure_aggregation"] = {"protocol": "double-masking", "colluders": COLLUDERS}
    values["cohort"] |= {"min_merchants": len(agreement.roster), "max_examples": most_rows}
    values["cohort"]["max_update_norm"] = LONGEST[noise] * LEARNING_RATE
    return validate_agreement(values, f"{name}, {noise} noise")


def measured(name: str, epsilon: float, seeds: list[int]) -> dict[Noise, float]:
    """PR-AUC with each kind of noise, the mean over the seeds; prints that and the rest."""
    frames = silos(name)
    most_rows, found = max(map(len, frames.values())), {}
    for noise in KINDS:
        runs = []
        for seed in seeds:
            agreement = one_step_a_round(agreed(f"{name}-private", frames, seed), name, noise, epsilon, most_rows)
            runs.append(trained(agreement, frames))
            print(f"{name} seed {seed}, {noise} noise: {runs[-1]}", flush=True)
        roc_auc, found[noise] = np.mean([(figures.roc_auc, figures.pr_auc) for figures in runs], axis=0)
        print(
            f"{name}, epsilon {epsilon:g}, {noise} noise, mean of {len(runs)}: {roc_auc:.4f}/{found[noise]:.4f}; "
            f"{in_words(agreement)}",
            flush=True,
        )
    return found


def in_words(agreement: Agreement) -> str:
    """How much noise there is in a step, and from whom."""
    dp = agreement.privacy.dp
    if not is_shared(agreement):
        return f"noise of {dp.noise_multiplier:g}, all of it from each merchant"
    share, honest = noise_share_of(agreement, LEARNING_RATE), honest_in_smallest_sum(agreement)
    return (
        f"noise of {dp.noise_multiplier:g}, 1/{honest} of its variance from each: {share.deviation} steps of the grid"
    )


def main() -> int:
    """Print the tables; exit code 1 where shared noise is no better."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sets", nargs="+", choices=list(STEPS), default=["creditcard", "shoppers"])
    parser.add_argument("--epsilons", nargs="+", type=float, default=[0.3])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    options = parser.parse_args()
    if not DATA.is_dir():
        raise SystemExit(f"the public data sets are not in {DATA}; name their folder in HANSA_DATA")
    missed = 0
    for name in options.sets:
        for epsilon in options.epsilons:
            found = measured(name, epsilon, options.seeds)
            is_better = found["shared"] >= found["own"]
            missed += not is_better
            print(f"    PR-AUC with shared noise is higher: {'met' if is_better else 'MISSED'}", flush=True)
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
