"""A 32-byte secret in shares, of which any `threshold` give it back and fewer say nothing about it.

Shamir, "How to share a secret" (1979), over the integers modulo 2^521 - 1: a prime above every secret, written
in one line. Share i is the polynomial at i + 1; at 0 it is the secret. Who holds which share, and which shares
may ever be opened, is masking's protocol, not this module's.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Final

SECRET_BYTES: Final = 32
SHARE_BYTES: Final = 66
PRIME: Final = 2**521 - 1

DrawBytes = Callable[[int], bytes]
# Far more bits than the prime has, so that what is left after the division is uniform but for 2^-128.
_COEFFICIENT_BYTES: Final = SHARE_BYTES + 16


def split(secret: bytes, num_shares: int, threshold: int, draw: DrawBytes = secrets.token_bytes) -> tuple[bytes, ...]:
    """Shares (num_shares,) of SHARE_BYTES each; `draw` gives random bytes, the operating system's unless simulated.

    Raises:
        ValueError: the secret has another length, or 1 <= threshold <= num_shares does not hold.
    """
    if len(secret) != SECRET_BYTES:
        raise ValueError(f"a secret has {SECRET_BYTES} bytes, this one {len(secret)}")
    if not 1 <= threshold <= num_shares:
        raise ValueError(f"a threshold is between 1 and the {num_shares} shares, not {threshold}")
    drawn = (int.from_bytes(draw(_COEFFICIENT_BYTES), "big") % PRIME for _ in range(threshold - 1))
    coefficients = [int.from_bytes(secret, "big"), *drawn]
    return tuple(_value(coefficients, place + 1).to_bytes(SHARE_BYTES, "big") for place in range(num_shares))


def combine(shares: Mapping[int, bytes], threshold: int) -> bytes:
    """The secret, from shares by their place (0 is the first of `split`); the lowest `threshold` places are used.

    Shares that do not belong together give another secret or an error: that a share is the one that was handed out is
    for whoever received it to know.

    Raises:
        ValueError: fewer shares than the threshold, or what they give is no secret of `split`.
    """
    if len(shares) < threshold:
        raise ValueError(f"{len(shares)} shares are there, {threshold} are needed")
    places = tuple(sorted(shares)[:threshold])
    values = [_element(shares[place]) for place in places]
    secret = sum(value * weight for value, weight in zip(values, _weights_at_zero(places), strict=True)) % PRIME
    if secret >= 2 ** (8 * SECRET_BYTES):
        raise ValueError("the shares do not belong together")
    return secret.to_bytes(SECRET_BYTES, "big")


def _value(coefficients: list[int], x: int) -> int:
    value = 0
    for coefficient in reversed(coefficients):
        value = (value * x + coefficient) % PRIME
    return value


# A round opens a secret of each merchant from shares of the same places.
@lru_cache(maxsize=16)
def _weights_at_zero(places: tuple[int, ...]) -> tuple[int, ...]:
    """Lagrange's polynomials of the places' points, at zero."""
    return tuple(_weight_at_zero(place + 1, [other + 1 for other in places if other != place]) for place in places)


def _weight_at_zero(x: int, others: list[int]) -> int:
    numerator, denominator = 1, 1
    for other in others:
        numerator = numerator * other % PRIME
        denominator = denominator * (other - x) % PRIME
    return numerator * pow(denominator, -1, PRIME)


def _element(share: bytes) -> int:
    value = int.from_bytes(share, "big")
    if len(share) != SHARE_BYTES or value >= PRIME:
        raise ValueError(f"a share is {SHARE_BYTES} bytes below 2^521 - 1")
    return value
