"""Random numbers that privacy rests on: who can predict them can undo it.

They are a ChaCha20 stream under a key of 256 bits. The operating system draws the key, except in a simulation, where a
seed does, and nothing is private. `randomness.py` is for everything else.

Sampling: each row is in or out by a coin of its own, as the accounting assumes, not in batches of a fixed size.
Gaussians are Box and Muller's (1958) of 53-bit uniforms in float64, so at most 8.6 standard deviations; that floating
point leaves gaps between them (Mironov, "On Significance of the Least Significant Bits for Differential Privacy", 2012)
is not corrected here.
"""

from __future__ import annotations

import os
from typing import Final

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms
from numpy.typing import NDArray

KEY_BYTES: Final = 32
_NONCE: Final = bytes(16)
_CHUNK_WORDS: Final = 1 << 15
_ZEROS: Final = bytes(8 * _CHUNK_WORDS)


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
        return np.flatnonzero(self.uniforms(num_rows) <= rate)

    def gaussians(self, number: int) -> NDArray[np.float64]:
        """(number,) independent standard normal values."""
        half = (number + 1) // 2
        values = np.empty(2 * half, np.float64)
        radius = np.sqrt(-2.0 * np.log(self.uniforms(half)))
        angle = 2.0 * np.pi * self.uniforms(half)
        np.multiply(radius, np.cos(angle), out=values[:half])
        np.multiply(radius, np.sin(angle), out=values[half:])
        return values[:number]
