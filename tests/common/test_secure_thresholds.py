"""What a masked sum tolerates: no sum of fewer than agreed, whatever a coordinator tells whom."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hansa_common.secure_thresholds import Thresholds, secure_thresholds


@given(data=st.data(), num_merchants=st.integers(3, 200))
def test_no_threshold_tolerates_more_dropouts_and_half_of_all_is_too_low(data, num_merchants):
    colluders = data.draw(st.integers(0, num_merchants - 2))
    limits, least = secure_thresholds(num_merchants, colluders), (num_merchants + colluders) // 2 + 1
    assert num_merchants + colluders < 2 * limits.threshold <= 2 * num_merchants
    other = data.draw(st.integers(least, num_merchants))
    assert secure_thresholds(num_merchants, colluders, other).dropouts <= limits.dropouts
    with pytest.raises(ValueError, match="a threshold of"):
        secure_thresholds(num_merchants, colluders, least - 1)


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
        (10, 0, 6, 3),
        (10, 3, 7, 2),
        (50, 0, 29, 18),
    ],
)
def test_what_a_cohort_tolerates(num_merchants, colluders, threshold, dropouts):
    limits = secure_thresholds(num_merchants, colluders)
    assert (limits.threshold, limits.dropouts) == (threshold, dropouts)


def test_more_merchants_in_a_sum_than_shares_need_are_fewer_dropouts():
    assert secure_thresholds(10, min_merchants=8).dropouts == 2


def sums_that_can_be_opened(limits: Thresholds, size: int) -> set[frozenset[int]]:
    """The honest merchants of each sum that becomes known where each of these is told of some sum of `size` or more."""
    honest = range(limits.num_merchants - limits.colluders)
    needed = limits.threshold - limits.colluders
    told = [
        frozenset(others) for number in range(size, limits.num_merchants + 1)
        for others in itertools.combinations(range(limits.num_merchants), number)
    ]  # fmt: skip
    known = set()
    for asked in itertools.product(*([sum_ for sum_ in told if place in sum_] for place in honest)):
        in_sum = [sum(place in sum_ for sum_ in asked) for place in honest]
        if all(number >= needed or len(honest) - number >= needed for number in in_sum):
            # Of the two halves of a merchant's secret never both: else one vector could be read.
            assert not any(number >= needed and len(honest) - number >= needed for number in in_sum)
            known.add(frozenset(place for place in honest if in_sum[place] >= needed))
    return known


PAIRS = [(3, 0), (4, 0), (4, 1), (5, 0), (5, 1), (5, 2)]


@pytest.mark.parametrize(("num_merchants", "colluders"), PAIRS)
def test_no_sum_of_fewer_than_agreed_comes_of_telling_each_opener_of_another(num_merchants, colluders):
    limits = secure_thresholds(num_merchants, colluders, min_merchants=3)
    known = sums_that_can_be_opened(limits, limits.least)
    assert known
    assert min(map(len, known)) + colluders >= limits.smallest_sum >= max(3, colluders + 2)


def sums_of_who_was_told_alike(limits: Thresholds) -> set[frozenset[int]]:
    """The honest merchants of each sum that becomes known where each of these is told of some merchants who take part,
    and then of some sum of theirs.
    """
    honest, needed = range(limits.num_merchants - limits.colluders), limits.threshold - limits.colluders
    everyone = frozenset(range(limits.num_merchants))
    sizes = range(limits.least, limits.num_merchants + 1)
    told = [frozenset(some) for size in sizes for some in itertools.combinations(everyone, size)]
    stories = [(taking_part, sum_) for taking_part in told for sum_ in told if sum_ <= taking_part]
    known = set()
    for asked in itertools.product(*([story for story in stories if place in story[1]] for place in honest)):
        in_sum = [sum(place in sum_ for _, sum_ in asked) for place in honest]
        left_out = [sum(place in everyone_told - sum_ for everyone_told, sum_ in asked) for place in honest]
        for taking_part in {everyone_told for everyone_told, _ in asked}:
            alike = {place for place in honest if asked[place][0] == taking_part}
            vectors = {place for place in alike if in_sum[place] >= needed}
            if vectors and all(left_out[place] >= needed for place in taking_part & set(honest) - vectors):
                known.add(frozenset(vectors))
    return known


@pytest.mark.parametrize(("num_merchants", "colluders"), PAIRS)
def test_no_sum_of_fewer_than_agreed_comes_of_telling_each_that_others_take_part(num_merchants, colluders):
    limits = secure_thresholds(num_merchants, colluders, min_merchants=3)
    known = sums_of_who_was_told_alike(limits)
    assert known
    assert min(map(len, known)) + colluders >= limits.smallest_sum >= max(3, colluders + 2)


def openings_of_each(limits: Thresholds, num_told: int, num_honest: int) -> list[int]:
    """How often the masks' key is opened of each of the others among `num_told`, who are to be left out of the sum of
    so many honest merchants; all others are told that everyone takes part, and open those who have the fewest.
    """
    left_out = dict.fromkeys(range(num_honest, num_told - limits.colluders), 0)
    for opener in range(limits.num_merchants - limits.colluders):
        room = (num_told if opener < num_honest else limits.num_merchants) - limits.least
        for place in sorted(left_out.keys() - {opener}, key=left_out.__getitem__)[:room]:
            left_out[place] += 1
    return list(left_out.values())


@pytest.mark.parametrize("num_merchants", range(3, 25))
def test_in_larger_cohorts_nobody_can_be_left_out_of_the_smallest_sum_either(num_merchants):
    for colluders in range(num_merchants - 1):
        limits = secure_thresholds(num_merchants, colluders, min_merchants=3)
        assert limits.smallest_sum >= max(3, colluders + 2)
        for num_told in range(limits.least, num_merchants + 1):
            for num_honest in range(1, min(limits.smallest_sum, num_told) - colluders):
                openings = openings_of_each(limits, num_told, num_honest)
                assert min(openings) < limits.threshold - colluders


def test_openers_asked_for_no_more_than_the_threshold_could_be_told_of_five_sums_and_open_one_of_two():
    limits = secure_thresholds(5, min_merchants=3)
    assert (limits.threshold, limits.least, limits.dropouts) == (3, 4, 1)
    assert min(map(len, sums_that_can_be_opened(limits, limits.threshold))) == 2


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
