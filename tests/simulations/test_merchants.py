"""The synthetic world keeps what it promises: the same rows for the same seed, merchants that differ, rings that go
from one to the next, and no column that gives fraud away."""

from __future__ import annotations

import dataclasses

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hansa_common.metrics import metrics_from_histogram, score_histogram
from hansa_simulations.merchants import (
    DAY,
    EPOCH,
    FIVE_MERCHANTS,
    FIVE_SHOPS,
    Payments,
    payments,
    shop_events,
    trailing_counts,
)

FEW = Payments({"one": 900, "two": 700, "three": 500}, num_rings=6, num_campaigns=18)
NUM_DAYS = 20


def drawn(world=FIVE_MERCHANTS, seed=0):
    return payments(world, np.random.default_rng(seed))


@pytest.fixture(scope="module")
def five():
    return drawn()


@pytest.fixture(scope="module")
def events():
    return shop_events(FIVE_SHOPS, NUM_DAYS, np.random.default_rng(0))


def slow_counts(keys, times, window, counted):
    """Row by row, as the docstring says it."""
    counts = []
    for i in range(len(keys)):
        before = [j for j in range(len(keys)) if keys[j] == keys[i] and times[i] - window <= times[j] < times[i]]
        if counted is not None:
            before = [j for j in before if is_first(j, keys, times, counted)]
        counts.append(len(before))
    return counts


def is_first(j, keys, times, counted):
    same = [k for k in range(len(keys)) if keys[k] == keys[j] and counted[k] == counted[j]]
    return j == min(same, key=lambda k: (times[k], k))


ROWS = st.lists(st.tuples(st.sampled_from("abc"), st.integers(0, 30), st.integers(0, 3)), min_size=1, max_size=25)


@settings(deadline=None)
@given(ROWS, st.integers(1, 40), st.booleans())
def test_trailing_counts_equal_a_slow_reference(rows, window, is_by_new_pairs):
    keys, times, seconds = (np.array(column) for column in zip(*rows, strict=True))
    counted = seconds if is_by_new_pairs else None
    found = trailing_counts(keys, times.astype(float), float(window), counted)
    assert found.tolist() == slow_counts(keys, times, window, counted)


def test_same_seed_same_payments_and_another_seed_others():
    pd.testing.assert_frame_equal(drawn(FEW, seed=3), drawn(FEW, seed=3))
    assert not drawn(FEW, seed=3).equals(drawn(FEW, seed=4))


def test_same_seed_same_events_and_another_seed_others():
    def log(seed):
        return shop_events(FIVE_SHOPS[:2], 20, np.random.default_rng(seed))

    pd.testing.assert_frame_equal(log(3), log(3))
    assert not log(3).equals(log(4))


def test_every_merchant_has_its_payments_in_order_of_time(five):
    assert five.groupby("merchant", sort=False).size().to_dict() == FIVE_MERCHANTS.num_payments
    for _, rows in five.groupby("merchant"):
        assert rows["time"].is_monotonic_increasing
        assert rows["time"].between(EPOCH, EPOCH + (FIVE_MERCHANTS.num_days + 1) * DAY).all()
    assert np.isfinite(five.select_dtypes("number")).all().all()
    assert not five.isna().any().any()


def test_fraud_is_as_frequent_as_promised_and_not_equally_so():
    world = dataclasses.replace(FIVE_MERCHANTS, lone_fraud_share=0.02)
    rows = drawn(world)
    num_rows = sum(world.num_payments.values())
    promised = world.lone_fraud_share + world.num_campaigns * world.campaign_payments / num_rows
    # Lone fraud varies by half at each merchant, ring fraud as a Poisson number does.
    assert rows["is_fraud"].mean() == pytest.approx(promised, rel=0.2)
    by_merchant = rows.groupby("merchant")["is_fraud"].mean()
    assert by_merchant.max() > 1.3 * by_merchant.min()


def test_world_without_rings_has_lone_fraud_alone():
    rows = drawn(dataclasses.replace(FEW, num_campaigns=0, lone_fraud_share=0.1))
    assert rows["is_fraud"].mean() == pytest.approx(0.1, rel=0.5)
    assert rows[rows["is_fraud"] == 1]["device"].is_unique


@pytest.mark.parametrize(("num_visits", "num_merchants_met"), [(1, 1), (2, 2), (3, 3), (6, 3)])
def test_ring_visits_every_merchant_before_it_comes_to_one_again(num_visits, num_merchants_met):
    # One device a ring tells the ring; campaigns large enough that none is empty.
    world = dataclasses.replace(
        FEW, devices_per_ring=1, lone_fraud_share=0.0, campaign_payments=12.0, num_campaigns=6 * num_visits
    )
    rows = drawn(world)
    met = rows[rows["is_fraud"] == 1].groupby("device")["merchant"].nunique()
    assert met.tolist() == [num_merchants_met] * 6


def test_ring_is_met_elsewhere_before_it_is_met_here(five):
    """What a federation is worth here: of ring fraud in the last quarter, who has seen the device commit fraud."""
    fraud = five[five["is_fraud"] == 1]
    fraud = fraud[fraud.groupby("device")["device"].transform("size") > 1]
    before = fraud[fraud["time"] < EPOCH + 0.75 * FIVE_MERCHANTS.num_days * DAY]
    after = fraud[fraud["time"] >= EPOCH + 0.75 * FIVE_MERCHANTS.num_days * DAY]
    here = set(zip(before["merchant"], before["device"], strict=True))
    by_merchant = np.mean([pair in here for pair in zip(after["merchant"], after["device"], strict=True)])
    by_anyone = after["device"].isin(before["device"]).mean()
    assert by_merchant < 0.2
    assert by_anyone > 0.8


def test_honest_devices_stay_with_one_merchant(five):
    honest = five[five["is_fraud"] == 0]
    assert honest.groupby("device")["merchant"].nunique().max() == 1


def test_networks_of_rings_carry_honest_customers_too(five):
    fraud = five[five["is_fraud"] == 1]
    of_rings = fraud[fraud.groupby("device")["device"].transform("size") > 1]["network"].unique()
    rows = five[five["network"].isin(of_rings)]
    assert 0.03 < rows["is_fraud"].mean() < 0.5


@pytest.mark.parametrize(
    "column", ["amount", "account_age_days", "orders_30d", "device_customers_30d", "network_orders_30d"]
)
def test_no_column_alone_gives_fraud_away(five, column):
    for sign in (1, -1):
        found = metrics_from_histogram(score_histogram(sign * five[column].astype("float32"), five["is_fraud"]))
        assert found.pr_auc < 0.6


def test_counts_of_a_payment_are_those_of_the_month_before_it(five):
    rows = five[five["merchant"] == "elm books"].reset_index(drop=True)
    # Times are written in whole seconds; two payments of one network in the same second would not tell their order.
    rows = rows[~rows.duplicated(["network", "time"], keep=False)]
    place = rows.index[-200]
    row = rows.loc[place]
    month = rows[(rows["time"] < row["time"]) & (rows["time"] >= row["time"] - 30 * DAY)]
    assert abs((month["network"] == row["network"]).sum() - row["network_orders_30d"]) <= 1


def test_shop_logs_hold_whole_visits(events):
    assert list(events.columns) == ["shop", "customer", "session", "kind", "time"]
    assert set(events["kind"]) == {"view", "search", "purchase"}
    assert events["shop"].unique().tolist() == [shop.name for shop in FIVE_SHOPS]
    for _, log in events.groupby("shop"):
        assert log["time"].is_monotonic_increasing
        visits = log.groupby("session")
        assert len(log[["session", "customer"]].drop_duplicates()) == len(visits)
        assert (visits["time"].max() - visits["time"].min() <= 1800).all()
        kinds = pd.crosstab(log["session"], log["kind"])
        assert (kinds["view"] >= 1).all()
        assert (kinds["purchase"] <= 1).all()


def test_shops_are_visited_and_bought_from_as_promised(events):
    for shop in FIVE_SHOPS:
        log = events[events["shop"] == shop.name]
        per_visit = log["kind"].value_counts() / log["session"].nunique()
        assert per_visit["view"] == pytest.approx(1 + shop.views_a_visit, rel=0.05)
        assert per_visit["search"] == pytest.approx(shop.searches_a_visit, rel=0.1)
        # A readiness of each customer's own, and few customers with most of the visits.
        assert per_visit["purchase"] == pytest.approx(shop.purchases_a_visit, rel=0.25)
        assert log["customer"].nunique() <= shop.num_customers
