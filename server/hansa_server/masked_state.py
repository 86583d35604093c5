"""Where a run stands in its masked sums, between one and the next.

It counts as ExchangeNumbers counts: a number is used once in a run, whatever became of its sum. Keys and shares are not
kept on disk: a run that is resumed begins its sums anew, with numbers that nobody has seen.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field

from hansa_common.secure_keys import KeyHistory
from hansa_common.vectors import Vector
from hansa_server.masked_batches import Sums
from hansa_server.unmasking import Offers


@dataclass
class MaskedState:
    """The last number in use, the run's keys, and the shares that were handed out for the next sums, if they were.

    `num_train_rows` is how many training rows all registered merchants have together: of one alone it is not known.
    `scored` are hashes of the weights whose scores on validation rows somebody was asked for.
    """

    last: int = 0
    num_train_rows: int = 0
    history: KeyHistory = field(default_factory=KeyHistory)
    offers: Sums[Offers] | None = None
    scored: set[bytes] = field(default_factory=set)

    def take_offers(self) -> Sums[Offers] | None:
        """The shares for the next sums; they are for one time."""
        offers, self.offers = self.offers, None
        return offers

    def is_first_asked_to_score(self, weights: Vector) -> bool:
        """Whether nobody was asked for these weights' scores on validation rows before; merchants tell them once."""
        digest = hashlib.sha256(weights.tobytes()).digest()
        is_first = digest not in self.scored
        self.scored.add(digest)
        return is_first
