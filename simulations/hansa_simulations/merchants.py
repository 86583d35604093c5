"""A synthetic world of merchants, for demonstrations and tests: card payments with fraud rings, and shop visits.

Promises: the same generator state gives the same rows; every draw is vectorised; no number is taken from real people.
The merchants differ on purpose, as real ones do: in size, in how often fraud or purchases happen (prevalence), and in
how amounts, hours and visits are distributed (covariate shift).

What makes a federation worth it here is in the payments: a fraud ring uses the same devices and networks at one
merchant after another, so that a merchant alone meets most rings for the first time when it is too late, and
merchants together have seen most of them before. A ring is no give-away: its networks carry honest customers too,
and part of all fraud belongs to no ring.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import pandas as pd
from numpy.typing import NDArray

DAY: Final = 86_400.0
# 1 January 2024, a Monday.
EPOCH: Final = 1_704_067_200.0
COUNTRIES: Final = ("DE", "FR", "NL", "PL", "SE", "ES", "IT", "US")


@dataclass(frozen=True)
class Payments:
    """A world of card payments at several merchants.

    `num_payments`: by merchant name. `lone_fraud_share`: of all payments, fraud that belongs to no ring.
    A campaign is one ring at one merchant for `campaign_days`, with about `campaign_payments`; a ring visits every
    merchant before it comes to one again.
    """

    num_payments: dict[str, int]
    num_days: int = 150
    lone_fraud_share: float = 0.008
    num_rings: int = 52
    devices_per_ring: int = 6
    networks_per_ring: int = 2
    num_campaigns: int = 260
    campaign_days: float = 9.0
    campaign_payments: float = 5.0
    num_networks: int = 600


FIVE_MERCHANTS: Final = Payments(
    {"alder outfitters": 9000, "birch tickets": 7000, "cedar games": 5000, "drift travel": 4000, "elm books": 3000}
)


@dataclass(frozen=True)
class Shop:
    """One shop's customers: how many, how often they come, how much they look, how readily they buy.

    `visits_a_week` is the median over its customers; `visits_spread` the standard deviation of its logarithm.
    """

    name: str
    num_customers: int
    visits_a_week: float
    visits_spread: float
    views_a_visit: float
    searches_a_visit: float
    purchases_a_visit: float


FIVE_SHOPS: Final = (
    Shop("bakery", 1000, 0.65, 2.7, 1.6, 0.2, 0.75),
    Shop("books", 900, 0.55, 2.7, 3.0, 1.2, 0.50),
    Shop("electronics", 850, 0.7, 2.7, 6.0, 2.5, 0.30),
    Shop("fashion", 1100, 0.75, 2.7, 8.0, 0.9, 0.40),
    Shop("garden", 650, 0.5, 2.7, 2.5, 0.6, 0.65),
)


def payments(world: Payments, random: np.random.Generator) -> pd.DataFrame:
    """One row a payment, in order of time at each merchant.

    Columns: merchant, time (seconds since 1970), amount, country, account_age_days, device, network (opaque texts),
    orders_30d (of this customer), device_customers_30d and network_orders_30d (at this merchant), is_fraud.
    """
    rings = _Rings.drawn(world, random)
    parts = [
        _at_merchant(world, place, name, num_payments, rings, random)
        for place, (name, num_payments) in enumerate(world.num_payments.items())
    ]
    return pd.concat(parts, ignore_index=True)


def shop_events(shops: tuple[Shop, ...], num_days: int, random: np.random.Generator) -> pd.DataFrame:
    """The event logs of shops, in order of time at each shop.

    Columns: shop, customer, session, kind ("view", "search" or "purchase"), time (seconds since 1970).
    """
    return pd.concat([_shop_log(shop, num_days, random) for shop in shops], ignore_index=True)


def trailing_counts(
    keys: NDArray[Any], times: NDArray[np.float64], window: float, counted: NDArray[Any] | None = None
) -> NDArray[np.int64]:
    """How many earlier rows with the same key lie within `window` before each row; all arrays (rows,).

    With `counted`, only rows count whose (key, counted) pair is new: the first order of a customer on a device.

    >>> trailing_counts(np.array(["a", "a", "b", "a"]), np.array([0.0, 5.0, 5.0, 20.0]), window=10.0)
    array([0, 1, 0, 0])
    """
    codes = np.unique(keys, return_inverse=True)[1]
    is_counted = np.ones(len(codes), np.bool_) if counted is None else _is_first(codes, counted, times)
    order = np.lexsort((times, codes))
    # One ascending number for (key, time): windows never reach into the key before.
    span = float(times.max() - times.min()) + window + 1.0
    place = codes[order] * span + (times[order] - times.min())
    until = np.searchsorted(place, place, side="left")
    since = np.searchsorted(place, place - window, side="left")
    before = np.concatenate([[0], np.cumsum(is_counted[order])])
    counts = np.empty(len(codes), np.int64)
    counts[order] = before[until] - before[since]
    return counts


def _is_first(codes: NDArray[np.int64], counted: NDArray[Any], times: NDArray[np.float64]) -> NDArray[np.bool_]:
    second = np.unique(counted, return_inverse=True)[1]
    order = np.lexsort((times, second, codes))
    is_new = np.ones(len(order), np.bool_)
    is_new[1:] = (np.diff(codes[order]) != 0) | (np.diff(second[order]) != 0)
    first = np.empty(len(order), np.bool_)
    first[order] = is_new
    return first


@dataclass(frozen=True)
class _Rings:
    """Who attacks where and when: each row of the campaign arrays is one ring at one merchant for some days."""

    devices: NDArray[np.int64]
    networks: NDArray[np.int64]
    amount_level: NDArray[np.float64]
    campaign_ring: NDArray[np.int64]
    campaign_merchant: NDArray[np.int64]
    campaign_start: NDArray[np.float64]

    @classmethod
    def drawn(cls, world: Payments, random: np.random.Generator) -> _Rings:
        num_rings, num_campaigns, num_merchants = world.num_rings, world.num_campaigns, len(world.num_payments)
        ring, visit = np.arange(num_campaigns) % num_rings, np.arange(num_campaigns) // num_rings
        tours = random.permuted(np.tile(np.arange(num_merchants), (num_rings, 1)), axis=1)
        start = random.uniform(0.0, (world.num_days - world.campaign_days) * DAY, num_campaigns)
        # A ring's visits in the order of its tour.
        start[np.argsort(ring, kind="stable")] = start[np.lexsort((start, ring))]
        return cls(
            devices=random.integers(2**40, size=(num_rings, world.devices_per_ring)),
            networks=random.integers(world.num_networks, size=(num_rings, world.networks_per_ring)),
            amount_level=random.normal(0.3, 0.5, num_rings),
            campaign_ring=ring,
            campaign_merchant=tours[ring, visit % num_merchants],
            campaign_start=start,
        )


@dataclass(frozen=True)
class _Rows:
    """Some payments of one merchant, every array (rows,)."""

    time: NDArray[np.float64]
    amount_level: NDArray[np.float64]
    country: NDArray[np.int64]
    account_age: NDArray[np.float64]
    customer: NDArray[np.int64]
    device: NDArray[np.int64]
    network: NDArray[np.int64]
    is_fraud: NDArray[np.int64]


def _at_merchant(
    world: Payments, place: int, name: str, num_payments: int, rings: _Rings, random: np.random.Generator
) -> pd.DataFrame:
    countries = random.dirichlet(np.full(len(COUNTRIES), 0.6))
    peak_hour = random.uniform(10.0, 21.0)
    ring_rows = _ring_rows(world, place, rings, random)
    num_lone = round(num_payments * world.lone_fraud_share * random.uniform(0.5, 1.5))
    num_honest = num_payments - num_lone - len(ring_rows.time)
    parts = [
        _honest_rows(world, num_honest, countries, peak_hour, random),
        _lone_fraud_rows(world, num_lone, random),
        ring_rows,
    ]
    rows = _Rows(*(np.concatenate([getattr(part, column) for part in parts]) for column in _Rows.__dataclass_fields__))
    typical, spread = random.uniform(2.8, 4.4), random.uniform(0.6, 1.0)
    return _frame(name, rows, np.exp(typical + spread * rows.amount_level))


def _honest_rows(
    world: Payments, count: int, countries: NDArray[np.float64], peak_hour: float, random: np.random.Generator
) -> _Rows:
    num_customers = max(1, count // 4)
    # A few customers order often, most seldom.
    often = random.pareto(1.5, num_customers) + 0.3
    customer = random.choice(num_customers, count, p=often / often.sum())
    home = random.choice(len(COUNTRIES), num_customers, p=countries)
    joined = random.uniform(-900.0, world.num_days, num_customers) * DAY
    # Networks near one another in number serve the same country; one order in seven comes from elsewhere.
    networks_a_country = world.num_networks // len(COUNTRIES)
    usual = home * networks_a_country + random.integers(networks_a_country, size=num_customers)
    is_away = random.random(count) < 0.15  # noqa: PLR2004 - said above
    time = _times(world, count, peak_hour, random)
    return _Rows(
        time=time,
        amount_level=random.normal(0.0, 1.0, count),
        country=home[customer],
        account_age=np.maximum(0.0, time - joined[customer]),
        customer=random.integers(2**40, size=num_customers)[customer],
        device=random.integers(2**40, size=num_customers)[customer],
        network=np.where(is_away, random.integers(world.num_networks, size=count), usual[customer]),
        is_fraud=np.zeros(count, np.int64),
    )


def _lone_fraud_rows(world: Payments, count: int, random: np.random.Generator) -> _Rows:
    return _Rows(
        time=_times(world, count, 2.0, random),
        amount_level=random.normal(1.1, 0.9, count),
        country=random.integers(len(COUNTRIES), size=count),
        account_age=random.exponential(40.0 * DAY, count),
        customer=random.integers(2**40, size=count),
        device=random.integers(2**40, size=count),
        network=random.integers(world.num_networks, size=count),
        is_fraud=np.ones(count, np.int64),
    )


def _ring_rows(world: Payments, place: int, rings: _Rings, random: np.random.Generator) -> _Rows:
    here = np.flatnonzero(rings.campaign_merchant == place)
    campaign = np.repeat(here, random.poisson(world.campaign_payments, len(here)))
    ring, count = rings.campaign_ring[campaign], len(campaign)
    start = rings.campaign_start[campaign]
    return _Rows(
        time=start + random.uniform(0.0, world.campaign_days * DAY, count),
        amount_level=random.normal(rings.amount_level[ring], 0.8),
        country=random.integers(len(COUNTRIES), size=count),
        # Bought accounts: their age says less than that of a lone fraudster's.
        account_age=random.exponential(160.0 * DAY, count),
        customer=random.integers(2**40, size=count),
        device=rings.devices[ring, random.integers(world.devices_per_ring, size=count)],
        network=rings.networks[ring, random.integers(world.networks_per_ring, size=count)],
        is_fraud=np.ones(count, np.int64),
    )


def _times(world: Payments, count: int, peak_hour: float, random: np.random.Generator) -> NDArray[np.float64]:
    """Seconds since the world began, most of them within some hours of the peak."""
    hour = np.mod(random.normal(peak_hour, 4.5, count), 24.0)
    return random.integers(world.num_days, size=count) * DAY + hour * (DAY / 24.0)


def _frame(name: str, rows: _Rows, amount: NDArray[np.float64]) -> pd.DataFrame:
    month = 30.0 * DAY
    frame = pd.DataFrame(
        {
            "merchant": name,
            "time": np.floor(EPOCH + rows.time),
            "amount": amount.round(2),
            "country": np.array(COUNTRIES, object)[rows.country],
            "account_age_days": (rows.account_age / DAY).round(1),
            "device": [f"d{number:010x}" for number in rows.device],
            "network": [f"n{number:03d}" for number in rows.network],
            "orders_30d": trailing_counts(rows.customer, rows.time, month),
            "device_customers_30d": trailing_counts(rows.device, rows.time, month, counted=rows.customer),
            "network_orders_30d": trailing_counts(rows.network, rows.time, month),
            "is_fraud": rows.is_fraud,
        }
    )
    return frame.sort_values("time", kind="stable", ignore_index=True)


def _shop_log(shop: Shop, num_days: int, random: np.random.Generator) -> pd.DataFrame:
    # Visits are heavy-tailed: some customers come daily, many hardly ever.
    rate = shop.visits_a_week / 7.0 * np.exp(shop.visits_spread * random.normal(size=shop.num_customers))
    visitor = np.repeat(np.arange(shop.num_customers), random.poisson(np.minimum(rate, 3.0) * num_days))
    began = EPOCH + random.uniform(0.0, num_days * DAY, len(visitor))
    readiness = np.clip(shop.purchases_a_visit * random.gamma(4.0, 0.25, shop.num_customers), 0.0, 1.0)
    per_visit = {
        "view": 1 + random.poisson(shop.views_a_visit, len(visitor)),
        "search": random.poisson(shop.searches_a_visit, len(visitor)),
        "purchase": random.random(len(visitor)) < readiness[visitor],
    }
    visit = np.concatenate([np.repeat(np.arange(len(visitor)), times.astype(np.int64)) for times in per_visit.values()])
    kind = np.repeat(list(per_visit), np.array([int(times.sum()) for times in per_visit.values()]))
    frame = pd.DataFrame(
        {
            "shop": shop.name,
            "customer": [f"c{number:05d}" for number in visitor[visit]],
            "session": visit,
            "kind": kind,
            "time": np.floor(began[visit] + random.uniform(0.0, 1800.0, len(visit))),
        }
    )
    return frame.sort_values("time", kind="stable", ignore_index=True)
