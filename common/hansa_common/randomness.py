"""The one way from the agreement's seed to a random generator.

Every generator is named by what it is for, so that no two uses share a stream and adding one never shifts
another. Keys and privacy noise do not come from here: they come from the operating system.
"""

from __future__ import annotations

import hashlib

import numpy as np


def derived_seed(seed: int, *purpose: str | int) -> int:
    """64 bits of SHA-256 over the seed and the purpose; distinct purposes give independent seeds.

    >>> derived_seed(0, "shuffle", "alpha", 1) == derived_seed(0, "shuffle", "alpha", 1)
    True
    >>> derived_seed(0, "shuffle", "alpha", 1) == derived_seed(0, "shuffle", "alpha", 2)
    False
    """
    # Lengths go in, so that ("ab", "c") and ("a", "bc") differ.
    digest = hashlib.sha256(b"hansa-seed-1")
    for part in (seed, *purpose):
        encoded = f"{type(part).__name__}:{part}".encode()
        digest.update(len(encoded).to_bytes(4, "big") + encoded)
    return int.from_bytes(digest.digest()[:8], "big")


def generator(seed: int, *purpose: str | int) -> np.random.Generator:
    """A PCG64 generator of its own for one purpose."""
    return np.random.Generator(np.random.PCG64(derived_seed(seed, *purpose)))
