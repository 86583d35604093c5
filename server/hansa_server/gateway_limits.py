"""How much of the gateway one party may take: connections, requests and bytes, each with its own measure.

A merchant that is greedy or broken into slows down nobody but itself: every limit is counted for one merchant, and
those who have not shown a certificate yet have limits of their own, by address and altogether. Time is handed in.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Final

from hansa_common.fleet_api import MAX_OBJECT_BYTES, RefusedError

# A node polls a few times a second, and asks once or twice for every 5 MB of a message.
REQUESTS_PER_SECOND: Final = 100.0
BURST_REQUESTS: Final = 400.0
# A node pushes two objects at a time.
_OBJECTS_AT_A_TIME: Final = 2


@dataclass(frozen=True)
class Limits:
    """What one merchant may take, and what strangers may."""

    max_object_bytes: int = MAX_OBJECT_BYTES
    requests_per_second: float = REQUESTS_PER_SECOND
    burst_requests: float = BURST_REQUESTS
    max_connections: int = 16
    max_strangers: int = 128
    max_strangers_at_an_address: int = 32


class Places:
    """A bounded number of places for each of many holders, and for all of them together."""

    def __init__(self, each: int, together: int | None = None) -> None:
        self._each = each
        self._together = together
        self._taken: Counter[str] = Counter()
        self._lock = threading.Lock()

    @contextmanager
    def taken(self, holder: str, what: str) -> Iterator[None]:
        """Hold a place while the block runs.

        Raises:
            RefusedError: there is none.
        """
        with self._lock:
            full = self._together is not None and self._taken.total() >= self._together
            if full or self._taken[holder] >= self._each:
                raise RefusedError("too-many-connections", f"too many {what} at once")
            self._taken[holder] += 1
        try:
            yield
        finally:
            with self._lock:
                self._taken[holder] -= 1
                if not self._taken[holder]:
                    del self._taken[holder]


@dataclass
class _Account:
    tokens: float
    at: float
    bytes_in_flight: int = 0


@dataclass
class Accounts:
    """Requests and bytes of each merchant."""

    limits: Limits
    now: Callable[[], float]
    _accounts: dict[str, _Account] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    @contextmanager
    def request(self, merchant: str, num_bytes: int) -> Iterator[None]:
        """Count a request, and its bytes while the block runs.

        Raises:
            RefusedError: the merchant makes more requests, or has more bytes on the way, than it may.
        """
        with self._lock:
            account = self._refilled(merchant)
            if account.tokens < 1.0:
                raise RefusedError("too-many-requests", "more requests than one merchant may make")
            account.tokens -= 1.0
            if account.bytes_in_flight + num_bytes > _OBJECTS_AT_A_TIME * self.limits.max_object_bytes:
                raise RefusedError("too-many-requests", "more bytes on the way than one merchant may have")
            account.bytes_in_flight += num_bytes
        try:
            yield
        finally:
            with self._lock:
                account.bytes_in_flight -= num_bytes

    def _refilled(self, merchant: str) -> _Account:
        now, most = self.now(), self.limits.burst_requests
        account = self._accounts.setdefault(merchant, _Account(most, now))
        account.tokens = min(most, account.tokens + (now - account.at) * self.limits.requests_per_second)
        account.at = now
        return account
