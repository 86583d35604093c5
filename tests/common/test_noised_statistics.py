"""One row's reach in noised statistics, the noise they get, and preprocessing that is fitted to them."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hansa_common import noised_statistics, statistics
from hansa_common.agreement import validate_agreement
from hansa_common.features import FittedPreprocessing
from hansa_common.privacy_noise import PrivacyRandom
from hansa_common.statistics import SCALE

FEATURES = [
    {"kind": "numeric", "name": "amount", "low": 0, "high": 100},
    {"kind": "numeric", "name": "age", "low": 18, "high": 99, "missing": "refuse", "scaling": "log"},
    {"kind": "numeric", "name": "hour", "low": 0, "high": 24, "scaling": "quantile", "bins": 8},
    {"kind": "categorical", "name": "country", "vocabulary": ["DE", "FR"]},
    {"kind": "boolean", "name": "member"},
]
REFUSED = 1


def agreement_with(**dp):
    values = {
        "task": "purchase",
        "label": {"column": "buys"},
        "features": FEATURES,
        "training": {"algorithm": "fedavg", "plan": {"local_steps": 7}},
        "privacy": {"dp": {"epsilon": 8, "noise_multiplier": 2.0, "sampling_rate": 0.1, **dp}},
    }
    return validate_agreement(values, "the test")


AGREEMENT = agreement_with()
DP = AGREEMENT.privacy.dp
LENGTH = statistics.statistics_length(AGREEMENT)


def table(size: int, seed: int = 1):
    random = np.random.default_rng(seed)
    amount = np.where(random.random(size) < 0.1, np.nan, random.normal(30, 10, size))
    columns = {
        "amount": amount,
        "age": random.uniform(18, 99, size),
        "hour": random.uniform(0, 24, size),
        "country": random.choice(np.array(["DE", "FR", None], object), size),
        "member": random.integers(0, 2, size).astype(float),
    }
    return columns, random.integers(0, 2, size).astype(np.uint8)


def counted(columns, labels):
    return statistics.measure(AGREEMENT, columns, labels)


def noise_matrix():
    """(LENGTH, LENGTH): what each Gaussian adds to each entry, for one deviation of share 1."""
    sigma = noised_statistics.deviation(AGREEMENT, DP)
    nothing = np.zeros(LENGTH, np.int64)
    return np.stack([noised_statistics.noised(AGREEMENT, DP, nothing, unit) for unit in np.eye(LENGTH)], axis=1) / sigma


@settings(deadline=None, max_examples=40)
@given(
    amount=st.one_of(st.just(np.nan), st.floats(-50, 200)),
    age=st.floats(0, 200),
    hour=st.one_of(st.just(np.nan), st.floats(-1, 30)),
    country=st.sampled_from(["DE", "FR", "IT", None]),
    label=st.integers(0, 1),
)
def test_one_row_moves_what_gets_noise_by_no_more_than_the_bound(amount, age, hour, country, label) -> None:
    columns, labels = table(20)
    row = {"amount": amount, "age": age, "hour": hour, "country": country, "member": 1.0}
    more = {name: np.append(values, np.array([row[name]], values.dtype)) for name, values in columns.items()}
    with_row, without = counted(more, np.append(labels, label).astype(np.uint8)), counted(columns, labels)
    # A row that is not counted leaves its place, which is not hidden: in the middle, where it is worth nothing.
    parts = list(statistics.parts(AGREEMENT.features, without))
    parts[REFUSED][1][:] += [1, SCALE // 2, SCALE // 4]
    moved = (with_row - without).astype(float)
    reached = noise_matrix()
    in_noise, *_ = np.linalg.lstsq(reached, moved, rcond=None)
    assert np.linalg.norm(in_noise) <= noised_statistics.row_bound(AGREEMENT)
    # What it moves beside that does not leave.
    silent = np.ones(LENGTH, np.int64) * 0
    assert (noised_statistics.noised(AGREEMENT, DP, with_row, silent)[1] == 0).all()
    left_out = moved - reached @ in_noise
    leaving = noised_statistics.noised(AGREEMENT, DP, np.rint(left_out).astype(np.int64), silent.astype(float))
    assert np.abs(leaving[1:]).max() <= 2


def test_noise_has_the_stated_deviation_for_a_unit_of_several_rows() -> None:
    agreement = agreement_with(entity_column="card", max_rows_per_entity=5, statistics_noise_multiplier=3.0)
    dp = agreement.privacy.dp
    random = PrivacyRandom(bytes(32))
    nothing = np.zeros(LENGTH, np.int64)
    drawn = np.stack(
        [noised_statistics.noised(agreement, dp, nothing, random.gaussians(LENGTH)) for _ in range(2000)]
    ).astype(float)
    sigma = 3.0 * 5 * noised_statistics.row_bound(agreement)
    assert noised_statistics.deviation(agreement, dp) == pytest.approx(sigma)
    amount = drawn[:, 2:5] / np.array([1, SCALE, SCALE])
    centred, spread = amount[:, 1] - amount[:, 0] / 2, amount[:, 2] - amount[:, 1] + amount[:, 0] / 4
    for values, share in ((amount[:, 0], 4.0), (centred, 1.0), (spread, 1.0), (drawn[:, 8], 1.0)):
        assert values.std() == pytest.approx(share * sigma, rel=0.06)
        assert abs(values.mean()) < 0.1 * share * sigma


def test_what_nothing_is_fitted_to_does_not_leave() -> None:
    released = noised_statistics.noised(AGREEMENT, DP, counted(*table(50)), np.ones(LENGTH))
    assert released[0] == 50
    assert released[1] == 0
    assert (released[-2:] == 0).all()


def test_preprocessing_fitted_to_many_noised_rows_is_near_the_exact_one_and_knows_every_entry() -> None:
    columns, labels = table(200_000)
    exact = counted(columns, labels)
    noisy = noised_statistics.noised(AGREEMENT, DP, exact, PrivacyRandom(bytes(32)).gaussians(LENGTH))
    fitted, plain = FittedPreprocessing.fit(AGREEMENT, noisy).fitted, FittedPreprocessing.fit(AGREEMENT, exact).fitted
    for place in (0, 1):
        assert fitted[place].scale.mean == pytest.approx(plain[place].scale.mean, abs=1e-3)
        assert fitted[place].scale.deviation == pytest.approx(plain[place].scale.deviation, rel=0.02)
    np.testing.assert_allclose(fitted[2].shares, plain[2].shares, atol=2e-3)
    assert fitted[3].known == (True, True)


@settings(deadline=None, max_examples=60)
@given(st.integers(0, 40), st.integers(0, 2**32))
def test_whatever_the_noise_preprocessing_is_valid_and_never_finer_than_it(num_rows: int, seed: int) -> None:
    columns, labels = table(num_rows)
    random = PrivacyRandom(seed.to_bytes(32, "big"))
    released = noised_statistics.noised(AGREEMENT, DP, counted(columns, labels), random.gaussians(LENGTH))
    noised_statistics.check_noised(AGREEMENT, DP, released, num_rows)
    fitted = FittedPreprocessing.fit(AGREEMENT, released)
    assert FittedPreprocessing.from_json(fitted.to_json()) == fitted
    assert np.abs(fitted.transform(columns, None).dense).max(initial=0) < 10


def test_scaled_by_domains_alone_nothing_of_rows_leaves_and_every_entry_is_known() -> None:
    agreement = agreement_with(statistics="domains")
    dp = agreement.privacy.dp
    released = noised_statistics.noised(agreement, dp, counted(*table(50)), np.ones(LENGTH))
    assert released.tolist() == [50] + [0] * (LENGTH - 1)
    noised_statistics.check_noised(agreement, dp, released, 50)
    with pytest.raises(ValueError, match="noise can make"):
        noised_statistics.check_noised(agreement, dp, np.array([50, 0, 1] + [0] * (LENGTH - 3)), 50)
    fitted = FittedPreprocessing.fit(agreement, released)
    assert fitted.fitted[0].scale.mean == fitted.fitted[0].scale.deviation == 0.5
    assert fitted.fitted[2].shares == tuple(place / 8 for place in range(9))
    assert fitted.fitted[3].known == (True, True)


@pytest.mark.parametrize(
    ("place", "value", "problem"),
    [
        (0, 51, "statistics of 51 rows"),
        (1, 7, "nothing is fitted to"),
        (-1, 3, "nothing is fitted to"),
        (3, 2**55, "more than 50 rows and noise"),
        (3, -(2**55), "more than 50 rows and noise"),
    ],
)
def test_statistics_that_no_merchant_sends_are_refused(place: int, value: int, problem: str) -> None:
    released = noised_statistics.noised(AGREEMENT, DP, counted(*table(50)), np.zeros(LENGTH))
    released[place] = value
    with pytest.raises(ValueError, match=problem):
        noised_statistics.check_noised(AGREEMENT, DP, released, 50)
