import pytest
from hypothesis import given
from hypothesis import strategies as st

from hansa_common.secure_thresholds import Thresholds, secure_thresholds


@given(data=st.data(), num_merchants=st.integers(3, 200))
def test_the_least_threshold_holds_and_one_less_does_not(data, num_merchants):
    colluders = data.draw(st.integers(0, num_merchants - 2))
    limits = secure_thresholds(num_merchants, colluders)
    assert num_merchants + colluders < 2 * limits.threshold <= 2 * num_merchants
    with pytest.raises(ValueError, match="a threshold of"):
        secure_thresholds(num_merchants, colluders, limits.threshold - 1)


@given(data=st.data(), num_merchants=st.integers(3, 200))
def test_two_merchants_of_any_sum_are_honest(data, num_merchants):
    colluders = data.draw(st.integers(0, num_merchants - 2))
    assert secure_thresholds(num_merchants, colluders).least - colluders >= 2


@pytest.mark.parametrize(
    ("num_merchants", "colluders", "threshold", "dropouts"),
    [
        (3, 0, 2, 1),
        (3, 1, 3, 0),
        (4, 0, 3, 1),
        (4, 1, 3, 1),
        (4, 2, 4, 0),
        (10, 0, 6, 4),
        (10, 3, 7, 3),
        (50, 0, 26, 24),
    ],
)
def test_what_a_cohort_tolerates(num_merchants, colluders, threshold, dropouts):
    limits = secure_thresholds(num_merchants, colluders)
    assert (limits.threshold, limits.dropouts) == (threshold, dropouts)


def test_more_merchants_in_a_sum_than_shares_need_are_fewer_dropouts():
    assert secure_thresholds(10, min_merchants=8).dropouts == 2


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ((2, 0, None, 1), "of two, each knows the other's"),
        ((3, 2, None, 1), "allowed are 0 to 1"),
        ((3, -1, None, 1), "allowed are 0 to 1"),
        ((3, 1, 2, 1), "allowed are 3 to 3"),
        ((10, 0, 5, 1), "allowed are 6 to 10"),
        ((10, 0, 11, 1), "allowed are 6 to 10"),
        ((10, 0, 6, 11), "a sum of 11 merchants at least is none of 10"),
        ((10, 0, 6, 0), "a sum of 0 merchants"),
    ],
)
def test_what_cannot_hold_together_is_refused_with_what_is_allowed(values, said):
    with pytest.raises(ValueError, match=said):
        secure_thresholds(*values)


def test_thresholds_that_nobody_worked_out_are_checked_too():
    with pytest.raises(ValueError, match="a threshold of 2 shares does not hold for 4 merchants of whom 0 collude"):
        Thresholds(num_merchants=4, colluders=0, threshold=2, min_merchants=1)
