"""Secure aggregation as arithmetic: what a merchant adds to its update so that only a whole sum can be read.

Guarantees:
- the sum of masked vectors, less the masks that their owners' shares give back, is the sum of the vectors in
  Z / 2^32, to the bit, whoever of the cohort dropped out;
- with values within the bounds that `FixedPoint` states, that sum cannot wrap around;
- a mask is a stream of ChaCha20 under a key of 256 bits that depends on `context`: merchants who were given
  different orders draw masks that do not cancel.

Source: Bonawitz et al., "Practical Secure Aggregation for Privacy-Preserving Machine Learning" (2017); the context,
against Pasquini et al., "Eluding Secure Aggregation in Federated Learning via Model Inconsistency" (2022). Pure
functions: who sends what when, and what is refused, is the protocol's, which this module does not know.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Final

import numpy as np
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from numpy.typing import NDArray

from hansa_common.vectors import Vector

KEY_BYTES: Final = 32
MAX_EXAMPLES: Final = 2**30
NUM_COUNT_ELEMENTS: Final = 2

# Elements of Z / 2^32.
Ring = NDArray[np.uint32]

_HALF_RING: Final = 2**31
# The count of examples goes in two digits: alone it would leave room for four merchants.
_COUNT_DIGIT: Final = 2**15
# In pieces that stay in cache; a stream is never whole in memory.
_CHUNK: Final = 1 << 16
_ZEROS: Final = bytes(4 * _CHUNK)
_NONCE: Final = bytes(16)


@dataclass(frozen=True)
class FixedPoint:
    """How updates weighted by examples become elements of the ring, and their sum becomes a mean again.

    max_norm: what an update's coordinates are at most, in absolute value; its L2 norm is a bound of that.
    max_examples: what a merchant's count of training rows is at most; max_merchants: how many may be in one sum.
    """

    max_norm: float
    max_examples: int
    max_merchants: int

    def __post_init__(self) -> None:
        if not (0 < self.max_norm < math.inf and 1 <= self.max_examples <= MAX_EXAMPLES):
            raise ValueError(f"no fixed point for norm {self.max_norm} and {self.max_examples} examples")
        if not 1 <= self.max_merchants <= _HALF_RING // _COUNT_DIGIT:
            raise ValueError(f"a sum has 1 to {_HALF_RING // _COUNT_DIGIT} merchants, not {self.max_merchants}")

    @property
    def scale(self) -> float:
        """Ring elements per unit of a weighted update: the most at which `max_merchants` of them, each half a step off
        by rounding, stay below half the ring.
        """
        return (_HALF_RING - 1 - self.max_merchants / 2) / (self.max_merchants * self.max_norm)

    def mean_error(self, num_merchants: int, total_examples: int) -> float:
        """By how much a coordinate of the decoded mean is off at most, apart from float64's own rounding."""
        return 0.5 * num_merchants / self.scale * self.max_examples / total_examples

    def encode(self, update: Vector, num_examples: int) -> Ring:
        """num_examples / max_examples times the update, rounded to the nearest step, and the count.

        update: (num_params,) float32; the result: (num_params + NUM_COUNT_ELEMENTS,).

        Raises:
            ValueError: a coordinate is not finite or beyond max_norm, or the count is out of bounds.
        """
        if not 1 <= num_examples <= self.max_examples:
            raise ValueError(f"{num_examples} examples; allowed are 1 to {self.max_examples}")
        largest = float(np.max(np.abs(update), initial=0.0))
        if not largest <= self.max_norm:
            raise ValueError(f"a coordinate of the update is {largest}, allowed is {self.max_norm}")
        factor = self.scale * (num_examples / self.max_examples)
        encoded = np.empty(update.size + NUM_COUNT_ELEMENTS, np.uint32)
        for start in range(0, update.size, _CHUNK):
            piece = np.multiply(update[start : start + _CHUNK], factor, dtype=np.float64)
            encoded[start : start + piece.size] = np.rint(piece).astype(np.int64).astype(np.uint32)
        encoded[update.size :] = num_examples % _COUNT_DIGIT, num_examples // _COUNT_DIGIT
        return encoded

    def decode_mean(self, ring_sum: Ring) -> tuple[NDArray[np.float64], int]:
        """The mean update by examples (num_params,) float64, and how many examples are in it.

        Raises:
            ValueError: the sum counts no examples, or more than max_merchants can have.
        """
        low, high = (int(digit) for digit in ring_sum[-NUM_COUNT_ELEMENTS:])
        total_examples = low + high * _COUNT_DIGIT
        if not 1 <= total_examples <= self.max_examples * self.max_merchants:
            raise ValueError(f"the sum counts {total_examples} examples: it is not one of this cohort's vectors")
        signed = ring_sum[:-NUM_COUNT_ELEMENTS].view(np.int32)
        factor = self.max_examples / total_examples / self.scale
        return np.multiply(signed, factor, dtype=np.float64), total_examples


def pair_key(private_key: X25519PrivateKey, peer_public_key: bytes, context: bytes) -> bytes:
    """The key of the mask that two merchants share under a context: the same from either side, KEY_BYTES long.

    Raises:
        ValueError: the peer's key is no public key, or one that makes the secret known (a point of low order).
    """
    shared = private_key.exchange(X25519PublicKey.from_public_bytes(peer_public_key))
    info = b"hansa/secure-aggregation/pair/v1\0" + context
    return HKDF(algorithm=SHA256(), length=KEY_BYTES, salt=None, info=info).derive(shared)


def self_key(self_secret: bytes, context: bytes) -> bytes:
    """The key of a merchant's own mask under a context, KEY_BYTES long, from its secret of 32 random bytes."""
    info = b"hansa/secure-aggregation/self/v1\0" + context
    return HKDF(algorithm=SHA256(), length=KEY_BYTES, salt=None, info=info).derive(self_secret)


def add_stream(vector: Ring, key: bytes) -> None:
    """Add the stream of a key to the vector, in place."""
    for piece, stream in _pieces(vector, key):
        np.add(piece, stream, out=piece)


def subtract_stream(vector: Ring, key: bytes) -> None:
    """Subtract the stream of a key from the vector, in place."""
    for piece, stream in _pieces(vector, key):
        np.subtract(piece, stream, out=piece)


def mask(vector: Ring, place: int, self_key: bytes, pair_keys: Mapping[int, bytes]) -> None:
    """Mask a merchant's vector in place: with its own stream, and with one for each other merchant of the cohort.

    `place` and the keys of `pair_keys` are places in the cohort: of two merchants the earlier one adds the stream
    that the later one subtracts.
    """
    add_stream(vector, self_key)
    for other, key in pair_keys.items():
        (add_stream if place < other else subtract_stream)(vector, key)


def unmask_self(masked_sum: Ring, self_key: bytes) -> None:
    """Remove, in place, the own stream of a merchant whose masked vector is in the sum."""
    subtract_stream(masked_sum, self_key)


def unmask_dropped(masked_sum: Ring, dropped: int, pair_keys: Mapping[int, bytes]) -> None:
    """Remove, in place, what the merchants in the sum added for one that is not in it.

    `pair_keys` are the dropped merchant's with each merchant in the sum, by place.
    """
    for place, key in pair_keys.items():
        (subtract_stream if place < dropped else add_stream)(masked_sum, key)


def _pieces(vector: Ring, key: bytes) -> Iterator[tuple[Ring, Ring]]:
    """The vector in pieces (views), each with its part of the key's stream; a key is for one stream only."""
    cipher = Cipher(algorithms.ChaCha20(key, _NONCE), mode=None).encryptor()
    stream = bytearray(4 * min(vector.size, _CHUNK))
    for start in range(0, vector.size, _CHUNK):
        piece = vector[start : start + _CHUNK]
        num_bytes = cipher.update_into(_ZEROS[: piece.nbytes], stream)
        yield piece, np.frombuffer(stream, "<u4", num_bytes // 4)
