"""The exchanges of masked sums, and what they came to so far; which exchanges there are is masked_sums.py's and
masked_groups.py's.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Final, TypeVar

from hansa_common.record_types import Order, Reply
from hansa_server.participants import Merchant, Run

VECTORS: Final = "vectors"
Taken = TypeVar("Taken")


@dataclass
class MaskedExchanges:
    """Asks merchants in `run` for `what`, step by step, and counts. `on_reply` hears whose vector came, or did not."""

    run: Run
    what: str
    on_reply: Callable[[str], None]
    dropped: dict[str, str] = field(default_factory=dict, kw_only=True)
    hashes: dict[str, str] = field(default_factory=dict, kw_only=True)
    bytes_received: int = field(default=0, kw_only=True)
    bytes_sent: int = field(default=0, kw_only=True)

    def asked(
        self,
        step: str,
        merchants: Sequence[Merchant],
        order: Callable[[Merchant], Order],
        taken: Callable[[Merchant, Reply], Taken],
    ) -> dict[str, Taken]:
        """What was taken of each valid answer, by name; why there is none of the others is noted."""
        found: dict[str, Taken] = {}
        for heard in self.run.ask(f"{self.what}, {step}", merchants, order, taken):
            self.bytes_received += heard.answer.bytes_received
            self.bytes_sent += heard.answer.sent.num_bytes
            if heard.reason:
                self.dropped[heard.merchant.name] = heard.reason
            else:
                found[heard.merchant.name] = heard.reply  # type: ignore[assignment]  # None is what `taken` may return
            if step == VECTORS:
                self.hashes[heard.merchant.name] = heard.answer.reply_hash
                self.on_reply(heard.merchant.name)
        return found
