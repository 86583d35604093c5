"""Random numbers that privacy rests on: who can predict them can undo it.

They are a ChaCha20 stream under a key of 256 bits. The operating system draws the key, except in a simulation, where a
seed does, and nothing is private. `randomness.py` is for everything else.

Sampling: each row is in or out by a coin of its own, as the accounting assumes, not in batches of a fixed size.
Gaussians are Marsaglia and Bray's ("A Convenient Method for Generating Normal Variables", 1964) of 53-bit uniforms in
float64, so at most 12 standard deviations; that floating point leaves gaps between them (Mironov, "On Significance of
the Least Significant Bits for Differential Privacy", 2012) is not corrected here.
"""

from __future__ import annotations

import math
import os
from typing import Final

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms
from numpy.typing import NDArray

KEY_BYTES: Final = 32
_NONCE: Final = bytes(16)
# Pieces that stay in cache, and that no allocator asks the system for.
_CHUNK_WORDS: Final = 1 << 13
_CHUNK_PAIRS: Final = 1 << 12
_CHUNK_BYTES: Final = 8 * _CHUNK_WORDS
_ZEROS: Final = memoryview(bytes(_CHUNK_BYTES))
_SPARE_POINTS: Final = 16


class PrivacyRandom:
    """A stream of random numbers under one key, which nothing else shares."""

    def __init__(self, key: bytes) -> None:
        """For simulations and tests: whoever knows the key knows the numbers.

        Raises:
            ValueError: the key has not KEY_BYTES.
        """
        self._stream = Cipher(algorithms.ChaCha20(key, _NONCE), mode=None).encryptor()

    @classmethod
    def from_system(cls) -> PrivacyRandom:
        """Under a key of the operating system's, which is nowhere else."""
        return cls(os.urandom(KEY_BYTES))

    def __repr__(self) -> str:
        return "PrivacyRandom()"

    def words(self, number: int) -> NDArray[np.uint64]:
        """(number,) of 64 random bits each."""
        return np.frombuffer(self._stream.update(bytes(8 * number)), "<u8")

    def uniforms(self, number: int) -> NDArray[np.float64]:
        """(number,) uniform in (0, 1], in steps of 2^-53."""
        values = np.empty(number, np.float64)
        for start in range(0, number, _CHUNK_WORDS):
            piece = values[start : start + _CHUNK_WORDS]
            words = np.frombuffer(self._stream.update(_ZEROS[: piece.nbytes]), "<u8")
            np.multiply((words >> 11) + 1, 2.0**-53, out=piece)
        return values

    def sample(self, num_rows: int, rate: float) -> NDArray[np.int64]:
        """The places of the rows that are in, each with probability `rate` and by itself; ascending."""
        # A byte of each row's says no to most; of a rate a byte cannot hold, those that are left have the rest.
        parts, is_left = min(256, math.floor(256 * rate) + 1), np.empty(num_rows, np.bool_)
        for start in range(0, num_rows, _CHUNK_BYTES):
            piece = is_left[start : start + _CHUNK_BYTES]
            np.less(np.frombuffer(self._stream.update(_ZEROS[: piece.size]), np.uint8), parts, out=piece)
        left = np.flatnonzero(is_left)
        return left[self.uniforms(left.size) <= 256 * rate / parts]

    def gaussians(self, number: int) -> NDArray[np.float64]:
        """(number,) independent standard normal values."""
        half = (number + 1) // 2
        values = np.empty((2, half), np.float64)
        done = 0
        while done < half:
            pairs = self._gaussian_pairs(min(half - done, _CHUNK_PAIRS))
            values[:, done : done + pairs.shape[1]] = pairs
            done += pairs.shape[1]
        return values.ravel()[:number]

    def _gaussian_pairs(self, most: int) -> NDArray[np.float64]:
        """(2, pairs) independent standard normal values, `most` pairs or, rarely, fewer."""
        # Of points in a square the circle holds pi / 4: of a few more than its inverse, nearly always enough.
        points = 2.0 * self.uniforms(2 * (most * 13 // 10 + _SPARE_POINTS)).reshape(2, -1) - 1.0
        squares = points[0] ** 2 + points[1] ** 2
        kept = np.flatnonzero((squares < 1.0) & (squares > 0.0))[:most]
        squares = squares[kept]
        pairs: NDArray[np.float64] = np.take(points, kept, axis=1) * np.sqrt(-2.0 * np.log(squares) / squares)
        return pairs
