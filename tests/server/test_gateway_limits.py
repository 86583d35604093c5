"""What one merchant takes is counted for it alone, and given back."""

from __future__ import annotations

import pytest

from hansa_common.fleet_api import RefusedError
from hansa_server.gateway_limits import Accounts, Limits, Places


class ManualTime:
    def __init__(self) -> None:
        self.seconds = 0.0

    def __call__(self) -> float:
        return self.seconds


def is_refused(accounts: Accounts, merchant: str) -> bool:
    try:
        with accounts.request(merchant, 0):
            return False
    except RefusedError:
        return True


def requests_until_refused(accounts: Accounts, merchant: str) -> int:
    return next(number for number in range(1000) if is_refused(accounts, merchant))


def test_burst_is_served_and_then_as_many_as_time_brings():
    time = ManualTime()
    accounts = Accounts(Limits(requests_per_second=10.0, burst_requests=40.0), time)
    assert requests_until_refused(accounts, "alpha") == 40
    assert requests_until_refused(accounts, "beta") == 40
    time.seconds += 1.5
    assert requests_until_refused(accounts, "alpha") == 15
    time.seconds += 1000.0
    assert requests_until_refused(accounts, "alpha") == 40


def test_bytes_on_the_way_are_bounded_and_given_back():
    accounts = Accounts(Limits(max_object_bytes=100), ManualTime())
    with accounts.request("alpha", 100), accounts.request("alpha", 100):
        with pytest.raises(RefusedError, match="more bytes"), accounts.request("alpha", 1):
            pass
        with accounts.request("beta", 100):
            pass
    with pytest.raises(ZeroDivisionError), accounts.request("alpha", 200):
        raise ZeroDivisionError
    with accounts.request("alpha", 200):
        pass


def test_places_are_bounded_for_each_and_for_all_and_given_back():
    places = Places(2, together=3)
    with places.taken("a", "x"), places.taken("a", "x"):
        with pytest.raises(RefusedError, match="too many x at once"), places.taken("a", "x"):
            pass
        with (
            places.taken("b", "x"),
            pytest.raises(RefusedError) as refused,
            places.taken("c", "x"),
        ):
            pass
        assert refused.value.reason == "too-many-connections"
    with places.taken("a", "x"), places.taken("c", "x"):
        pass
