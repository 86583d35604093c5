"""Where private noise comes from: streams that never repeat, against the distributions they should have."""

import numpy as np
import pytest
from scipy import stats

from hansa_common.privacy_noise import PrivacyRandom

KEY = bytes(range(32))


def test_one_key_gives_one_stream():
    assert np.array_equal(PrivacyRandom(KEY).gaussians(100), PrivacyRandom(KEY).gaussians(100))
    assert not np.array_equal(PrivacyRandom(KEY).gaussians(100), PrivacyRandom(bytes(32)).gaussians(100))


def test_the_systems_stream_is_another_each_time():
    drawn = {PrivacyRandom.from_system().uniforms(1)[0] for _ in range(100)}
    assert len(drawn) == 100


def test_what_was_drawn_is_never_drawn_again():
    random = PrivacyRandom(KEY)
    assert np.intersect1d(random.uniforms(1000), random.uniforms(1000)).size == 0


def test_long_draws_are_the_short_ones_one_after_the_other():
    whole, pieces = PrivacyRandom(KEY), PrivacyRandom(KEY)
    assert np.array_equal(whole.uniforms(100_000), np.concatenate([pieces.uniforms(60_000), pieces.uniforms(40_000)]))


def test_uniforms_are_uniform_and_never_zero():
    values = PrivacyRandom(KEY).uniforms(200_000)
    assert values.min() > 0
    assert values.max() <= 1
    assert stats.kstest(values, "uniform").pvalue > 1e-3


def test_gaussians_are_normal_and_independent():
    values = PrivacyRandom(KEY).gaussians(200_001)
    assert values.size == 200_001
    assert stats.kstest(values, "norm").pvalue > 1e-3
    # The two halves come from the same radii.
    first, second = values[:100_000], values[100_001:200_001]
    assert abs(np.corrcoef(first, second)[0, 1]) < 5 / np.sqrt(100_000)
    assert abs(np.corrcoef(first**2, second**2)[0, 1]) < 5 / np.sqrt(100_000)
    assert abs(np.corrcoef(values[:-1], values[1:])[0, 1]) < 5 / np.sqrt(200_000)


def test_each_row_is_sampled_by_a_coin_of_its_own():
    random = PrivacyRandom(KEY)
    times = np.zeros(500, int)
    sizes = []
    for _ in range(2000):
        rows = random.sample(500, 0.1)
        times[rows] += 1
        sizes.append(rows.size)
    # Every row as often as every other, and batches of binomial sizes, not of one size.
    assert stats.chisquare(times).pvalue > 1e-3
    assert abs(np.var(sizes) - 500 * 0.1 * 0.9) < 6
    assert abs(np.mean(sizes) - 50) < 0.7


@pytest.mark.parametrize(("rate", "expected"), [(1.0, 300), (0.0, 0)])
def test_all_rows_or_none(rate, expected):
    assert PrivacyRandom(KEY).sample(300, rate).size == expected


def test_a_key_of_another_length_is_refused():
    with pytest.raises(ValueError, match="key"):
        PrivacyRandom(bytes(16))


def test_the_key_is_not_shown():
    assert KEY.hex() not in repr(PrivacyRandom(KEY))
    assert repr(PrivacyRandom(KEY)) == "PrivacyRandom()"
