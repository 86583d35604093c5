"""Shared noise: how far a unit moves a sum, how much honest noise is in any sum that can become known, and what is
refused."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest

from hansa_common.agreement import validate_agreement
from hansa_common.errors import AgreementError
from hansa_common.model import ModelSpec
from hansa_common.privacy import SampledDiscreteGaussian
from hansa_common.privacy_costs import check_affordable, run_cost
from hansa_common.privacy_noise import PrivacyRandom
from hansa_common.privacy_statement import privacy_json, statement
from hansa_common.secure_agreement import fixed_point_of, honest_in_smallest_sum, thresholds_of
from hansa_common.secure_layouts import round_layout
from hansa_common.shared_noise import MIN_DEVIATION, add_noise, longest_mean, noise_share_of
from hansa_common.vectors import l2_norm, num_params

DP = {"epsilon": 100, "noise": "shared", "noise_multiplier": 2.0, "sampling_rate": 0.5, "max_norm": 0.7}
PLAN = {"optimizer": "sgd", "learning_rate": 0.5, "local_steps": 1}
ROSTER = [f"shop {number}" for number in range(8)]
MAX_EXAMPLES = 1000


def agreement_with(dp=DP, plan=PLAN, **changes):
    values = {
        "task": "purchase",
        "label": {"column": "buys"},
        "features": [{"kind": "numeric", "name": f"x{n}", "low": 0, "high": 1} for n in range(6)],
        "model": {"hidden": [12], "l2": 0.0},
        "training": {"algorithm": "fedavg", "rounds": 5, "plan": plan},
        "cohort": {"min_merchants": 5, "max_update_norm": 1.5, "max_examples": MAX_EXAMPLES},
        "privacy": {"dp": dp},
        "secure_aggregation": {"protocol": "double-masking", "colluders": 2},
        "roster": ROSTER,
    }
    return validate_agreement({**values, **changes}, "the test")


def size_of(agreement) -> int:
    return num_params(ModelSpec.from_agreement(agreement).shapes)


def share_of(agreement):
    return noise_share_of(agreement, agreement.training.plan.learning_rate)


def full_deviation(agreement) -> float:
    return agreement.privacy.dp.noise_multiplier * share_of(agreement).sensitivity


def encoded(agreement, update, num_rows: int) -> np.ndarray:
    layout = round_layout(agreement, update.size, 1)
    nothing = np.zeros(layout.num_counts, np.int64)
    return layout.encode(update.astype(np.float32), 0.0, num_rows, nothing)[: update.size].view(np.int32)


@pytest.mark.parametrize("num_rows", [1, 37, MAX_EXAMPLES])
def test_row_moves_the_sum_by_no_more_than_the_noise_is_for(num_rows: int) -> None:
    agreement, random = agreement_with(), np.random.default_rng(num_rows)
    dp, rate, size = agreement.privacy.dp, agreement.training.plan.learning_rate, size_of(agreement)
    found = []
    for _ in range(50):
        others, own = random.normal(size=(2, size))
        others *= random.uniform(0, 1.2) / np.linalg.norm(others)
        factor = -rate / (dp.sampling_rate * num_rows)
        without = others
        with_it = others + factor * dp.max_norm * own / np.linalg.norm(own)
        if max(map(np.linalg.norm, (without, with_it))) > share_of(agreement).most_norm:
            continue
        moved = encoded(agreement, with_it, num_rows) - encoded(agreement, without, num_rows).astype(np.int64)
        found.append(l2_norm(moved.astype(np.float64)))
    assert max(found) <= share_of(agreement).sensitivity
    # The bound is no looser than rounding makes it.
    assert max(found) > 0.97 * share_of(agreement).sensitivity


def test_rounding_is_paid_for_where_the_grid_is_coarse() -> None:
    coarse = agreement_with(cohort={"min_merchants": 5, "max_update_norm": 1.5, "max_examples": 2_000_000})
    agreement, size = coarse, size_of(coarse)
    of_a_row = fixed_point_of(agreement).scale * 0.5 * 0.7 / 0.5 / 2_000_000
    half = np.full(size, 0.5 / fixed_point_of(agreement).scale)
    # Every coordinate just below and just above the middle between two steps.
    moved = encoded(agreement, half * 1.01, 2_000_000) - encoded(agreement, half * 0.99, 2_000_000)
    assert (moved == 1).all()
    # An update of float32 may be off by half a last digit, with the row and without it.
    float32 = 2.0**-23 * fixed_point_of(agreement).scale * agreement.cohort.max_update_norm
    assert of_a_row + l2_norm(moved.astype(np.float64)) + float32 <= share_of(agreement).sensitivity


@pytest.mark.parametrize(
    ("num_merchants", "colluders", "min_merchants"), [(3, 1, 3), (5, 1, 3), (8, 2, 5), (12, 3, 3), (25, 4, 10)]
)
def test_smallest_sum_has_the_whole_noise_after_colluders_have_taken_theirs_out(
    num_merchants: int, colluders: int, min_merchants: int
) -> None:
    agreement = agreement_with(
        roster=[f"m{n}" for n in range(num_merchants)],
        secure_aggregation={"protocol": "double-masking", "colluders": colluders},
        cohort={"min_merchants": min_merchants, "max_update_norm": 1.5, "max_examples": MAX_EXAMPLES},
    )
    share, limits = share_of(agreement), thresholds_of(agreement)
    honest = limits.smallest_sum - colluders
    assert honest >= 2
    assert share.deviation * math.sqrt(honest) >= full_deviation(agreement)
    # No more than that is added: shares are shares.
    assert share.deviation * math.sqrt(honest) <= full_deviation(agreement) * 1.01 + 2
    drawn = [share.drawn(PrivacyRandom(bytes([place]) * 32), 20_000) for place in range(honest)]
    measured = np.std(np.sum(drawn, axis=0))
    assert measured == pytest.approx(full_deviation(agreement), rel=0.03)
    assert np.std(drawn[0]) == pytest.approx(full_deviation(agreement) / math.sqrt(honest), rel=0.03)


def test_smallest_group_decides_how_large_a_share_is() -> None:
    grouped = agreement_with(
        roster=[f"m{n}" for n in range(23)],
        cohort={"min_merchants": 3, "max_update_norm": 1.5, "max_examples": MAX_EXAMPLES},
        secure_aggregation={"protocol": "double-masking", "colluders": 1},
        robustness={"rule": "median", "num_dishonest": 1, "groups": 4},
    )
    assert honest_in_smallest_sum(grouped) <= thresholds_of(grouped).smallest_sum - 1
    for size in (5, 6):
        alone = agreement_with(
            roster=[f"m{n}" for n in range(size)],
            cohort={"min_merchants": 3, "max_update_norm": 1.5, "max_examples": MAX_EXAMPLES},
            secure_aggregation={"protocol": "double-masking", "colluders": 1},
        )
        assert honest_in_smallest_sum(grouped) <= honest_in_smallest_sum(alone)


def test_longest_updates_with_far_out_noise_do_not_wrap_around() -> None:
    agreement = agreement_with()
    share, layout = share_of(agreement), round_layout(agreement, size_of(agreement), 1)
    longest = np.zeros(size_of(agreement), np.float32)
    longest[[0, 1]] = share.most_norm * (1 - 1e-6), 0
    for sign in (1, -1):
        total = np.zeros(layout.num_elements, np.uint32)
        for _ in ROSTER:
            vector = layout.encode(sign * longest, 0.0, MAX_EXAMPLES, np.zeros(layout.num_counts, np.int64))
            add_noise(vector, np.full(size_of(agreement), sign * 12 * share.deviation, np.int64))
            total += vector
        found = layout.decode(total, len(ROSTER))
        assert found.mean_update[0] == pytest.approx(sign * agreement.cohort.max_update_norm, rel=1e-3)
        assert np.sign(found.mean_update).tolist() == [sign] * size_of(agreement)
        assert found.mean_loss == 0.0
        assert not found.counts.any()


def test_noise_touches_the_update_alone() -> None:
    agreement = agreement_with()
    layout, size = round_layout(agreement, size_of(agreement), 1), size_of(agreement)
    vector = layout.encode(np.zeros(size, np.float32), 0.0, 400, np.zeros(layout.num_counts, np.int64))
    before = vector.copy()
    add_noise(vector, share_of(agreement).drawn(PrivacyRandom(bytes(32)), size))
    assert (vector[size:] == before[size:]).all()
    assert (vector[:size] != before[:size]).mean() > 0.9


def test_mean_with_its_noise_is_believed_and_a_longer_one_not() -> None:
    agreement = agreement_with()
    share, fixed, size = share_of(agreement), fixed_point_of(agreement), size_of(agreement)
    for num_rows in (8, 800, 8 * MAX_EXAMPLES):
        noise = sum(share.drawn(PrivacyRandom(bytes([place]) * 32), size) for place in range(8))
        mean = noise / fixed.scale * MAX_EXAMPLES / num_rows
        mean[0] += share.most_norm
        assert l2_norm(mean) <= longest_mean(agreement, 0.5, num_rows)
    assert longest_mean(agreement, 0.5, 8 * MAX_EXAMPLES) < agreement.cohort.max_update_norm * 1.1


def test_noise_goes_with_the_learning_rate_and_protects_alike() -> None:
    agreement = agreement_with()
    for rate in (0.5, 0.25, 0.01):
        share = noise_share_of(agreement, rate)
        of_a_row = fixed_point_of(agreement).scale * rate * 0.7 / 0.5 / MAX_EXAMPLES
        assert share.deviation * math.sqrt(honest_in_smallest_sum(agreement)) >= 2.0 * of_a_row


# --- costs and words --------------------------------------------------------------------------------------------------


def test_a_round_costs_one_sampled_discrete_gaussian() -> None:
    agreement = agreement_with()
    assert run_cost(agreement).mechanisms[1:] == (SampledDiscreteGaussian(2.0, 0.5, 1),) * 5


def test_run_that_costs_more_is_refused_with_the_shared_noise_that_would_hold() -> None:
    promised = {**DP, "epsilon": 3.0, "statistics": "domains"}
    with pytest.raises(AgreementError, match="set noise_multiplier = ") as refused:
        check_affordable(agreement_with(promised))
    enough = float(str(refused.value).split("set noise_multiplier = ")[1].split(",")[0])
    check_affordable(agreement_with({**promised, "noise_multiplier": enough}))
    with pytest.raises(AgreementError):
        check_affordable(agreement_with({**promised, "noise_multiplier": enough - 0.002}))


def test_statement_tells_whom_shared_noise_asks_to_trust_and_of_which_kind_it_is() -> None:
    agreement = agreement_with()
    told = " ".join(statement(agreement))
    honest = honest_in_smallest_sum(agreement)
    for said in (f"adds 1/{honest}", "no more than 2 of a sum", "secure aggregation", "discrete Gaussian", "one step"):
        assert said in told
    assert "adds noise of" not in told
    assert privacy_json(agreement)["noise"] == "shared"


# --- refusals ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"secure_aggregation": {"protocol": "none"}}, "needs [secure_aggregation] protocol = 'double-masking'"),
        ({"secure_aggregation": {"protocol": "double-masking"}}, "needs secure_aggregation.colluders = 1 or more"),
        ({"plan": {**PLAN, "local_steps": 2}}, "refuses training.plan.local_steps 2"),
        ({"plan": {**PLAN, "optimizer": "adam"}}, "refuses training.plan.optimizer 'adam'"),
        ({"plan": {**PLAN, "optimizer": "momentum"}}, "refuses training.plan.optimizer 'momentum'"),
        ({"training": {"algorithm": "scaffold", "plan": PLAN}}, "refuses algorithm 'scaffold'"),
    ],
)
def test_what_has_no_bound_or_no_sum_is_refused_in_one_line(changes, problem: str) -> None:
    with pytest.raises(AgreementError) as refused:
        agreement_with(**changes)
    assert problem in str(refused.value)
    assert len(str(refused.value).splitlines()) == 2


def test_sums_without_room_for_the_noise_are_refused_with_the_bound_that_has_it() -> None:
    narrow = {"min_merchants": 5, "max_update_norm": 0.352, "max_examples": MAX_EXAMPLES}
    with pytest.raises(AgreementError, match="takes room in masked sums") as refused:
        check_affordable(agreement_with(cohort=narrow))
    enough = float(str(refused.value).split("agree on ")[1].split(",")[0])
    check_affordable(agreement_with(cohort={**narrow, "max_update_norm": enough}))


def test_grid_that_is_coarser_than_the_noise_is_refused() -> None:
    with pytest.raises(AgreementError, match=f"at least {MIN_DEVIATION} are needed"):
        check_affordable(agreement_with({**DP, "noise_multiplier": 0.01}, cohort={
            "min_merchants": 5, "max_update_norm": 1.5, "max_examples": MAX_EXAMPLES * 1000,
        }))  # fmt: skip


def test_server_side_optimizers_are_free_to_choose() -> None:
    for algorithm, l2 in itertools.product(("fedavg", "fedadam", "fedavgm", "fedyogi", "fedprox"), (0.0, 1e-3)):
        check_affordable(
            agreement_with(training={"algorithm": algorithm, "rounds": 5, "plan": PLAN}, model={"hidden": [], "l2": l2})
        )
