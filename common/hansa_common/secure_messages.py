"""The records of masked sums: how an order asks for a masked vector, and what is exchanged around one.

| record         | brings                                                                                       |
|----------------|----------------------------------------------------------------------------------------------|
| `keys`         | the number of a masked sum to begin with; the answer: two fresh keys, signed                 |
| a masked order | in a round, statistics or an evaluation: `masking`, and the others' sealed shares in `shares` |
| `unmask`       | who is in the sum, and everybody's keys for the next; the answer: opened and sealed shares   |

A masked sum is known by its number, which no other sum of its run has; who may be in it follows from the agreement
(secure_groups.py), and the next one may be of another group. The tables of keys and shares are arrays of secure_keys.py
and secure_shares.py. What is refused is secure_round.py's.
"""

from __future__ import annotations

from typing import Annotated, ClassVar, Final

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from hansa_common.record_types import MAX_COHORT, Bytes, Elements, Order, Release, Reply

MAX_SUMS: Final = 2**31
SumNumber = Annotated[int, Field(ge=1, le=MAX_SUMS)]
# 0: there is none.
SumNumberOrNone = Annotated[int, Field(ge=0, le=MAX_SUMS)]
Place = Annotated[int, Field(ge=0, lt=MAX_COHORT)]


class Masking(BaseModel):
    """Which masked sum a vector is for, and for which the merchant is to draw keys beside it (0: for none)."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    sum: SumNumber
    next_sum: SumNumberOrNone


class MaskableOrder(Order):
    """An order whose answer can be a vector of a masked sum: with `masking` a `masked-reply` answers it. `shares` are
    the others' for the recipient alone, sealed.
    """

    masking: Masking | None = None
    shares: Bytes = Field(default_factory=lambda: np.zeros(0, np.uint8))


class KeysOrder(Order):
    """Asks a merchant to leave whatever masked sum is under way, and to draw keys for this one."""

    KIND: ClassVar[str] = "keys"
    RELEASE: ClassVar[Release] = "nothing"
    sum: SumNumber


class UnmaskOrder(Order):
    """Asks a merchant to open shares for the masked sum `sum`, which holds the vectors of those at the places `in_sum`
    (0, nobody: to leave what is under way, for good), and to share its secrets for `next_sum` (0: for none) among those
    whose keys these are.

    What the sum tells of rows was asked for by the order that it is of.
    """

    KIND: ClassVar[str] = "unmask"
    RELEASE: ClassVar[Release] = "nothing"
    sum: SumNumberOrNone
    in_sum: Annotated[tuple[Place, ...], Field(max_length=MAX_COHORT, fail_fast=True)]
    next_sum: SumNumberOrNone
    keys: Bytes


class KeysReply(Reply):
    """A merchant's two public keys for one masked sum, signed."""

    KIND: ClassVar[str] = "keys-reply"
    RELEASE: ClassVar[Release] = "nothing"
    keys: Bytes


class MaskedReply(Reply):
    """One vector, masked: of itself it tells nothing. `keys` are the merchant's for the next sum, none where none was
    asked for.
    """

    KIND: ClassVar[str] = "masked-reply"
    RELEASE: ClassVar[Release] = "training"
    vector: Elements
    keys: Bytes


class UnmaskReply(Reply):
    """A share of one half of each one's secret, and shares of the merchant's own for the next sum, sealed."""

    KIND: ClassVar[str] = "unmask-reply"
    RELEASE: ClassVar[Release] = "nothing"
    openings: Bytes
    shares: Bytes


def is_masked(order: Order) -> bool:
    """Whether an order asks for a masked vector."""
    return isinstance(order, MaskableOrder) and order.masking is not None
