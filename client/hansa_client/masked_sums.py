"""A merchant's answers to orders about masked sums: its rows leave as one vector of a sum of the whole roster, or of
its group, or not.

- A session's cohort, thresholds and keys come from the agreement: an order names a sum by its number and nothing else.
- A vector is masked for the order that asked for it: merchants who were given different orders have masks that do not
  cancel (secure_round.py).
- Statistics are released once a run, the scores of a model on one part of the rows once: two sums over the same rows
  could be compared where somebody dropped out of one. A round over weights that were scored before is for an order
  without `asks_scores`, whose histograms are all zero: with some of them zero, the sum would be of the others alone.
- With shared noise a round's vector gets this merchant's share of it before it is masked.
- What must outlast this process is on disk before an answer can leave (masked_memory.py). A merchant that starts again
  is refused until it is asked for fresh keys.

The protocol's own refusals are secure_round.py's; what a vector holds is secure_layouts.py's.
"""

from __future__ import annotations

import hashlib
import secrets
from dataclasses import replace
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from hansa_client.departures import check_contents
from hansa_client.masked_memory import SUMS_NAME, SumMemory, SumRecord
from hansa_client.masked_round import MaskedRounds
from hansa_client.private_rounds import system_noise
from hansa_client.releases import DrawNoise
from hansa_common.agreement import Agreement
from hansa_common.errors import MerchantError, PolicyError
from hansa_common.keys import read_signing_key
from hansa_common.masking import Ring
from hansa_common.merchant_keys import IDENTITY_KEY
from hansa_common.messages import (
    EvaluateOrder,
    EvaluateReply,
    RoundOrder,
    RoundReply,
    StatisticsOrder,
    StatisticsReply,
)
from hansa_common.record_types import Order
from hansa_common.round_vector import RoundVector
from hansa_common.secret_sharing import DrawBytes
from hansa_common.secure_agreement import identities_of
from hansa_common.secure_groups import session_of
from hansa_common.secure_keys import Session, development_identity
from hansa_common.secure_layouts import evaluation_layout, round_layout, rounding, statistics_layout
from hansa_common.secure_messages import (
    KeysOrder,
    KeysReply,
    MaskableOrder,
    MaskedReply,
    Masking,
    UnmaskOrder,
    UnmaskReply,
)
from hansa_common.secure_round import common_order_hash
from hansa_common.shared_noise import add_noise, is_shared, noise_share_of
from hansa_common.vectors import l2_norm

_STATISTICS: Final = "statistics"
_KEY: Final = "the identity key"


class MaskedSums:
    """One merchant's part in the masked sums of the run that it is in. `draw` gives random bytes, `draw_noise` the
    numbers that its share of the noise is made of: the operating system's, unless simulated.
    """

    def __init__(
        self,
        agreement: Agreement,
        merchant: str,
        identity_private_key: bytes,
        memory: SumMemory,
        draw: DrawBytes = secrets.token_bytes,
        draw_noise: DrawNoise = system_noise,
    ) -> None:
        self._agreement = agreement
        self._fingerprint = agreement.fingerprint
        self._merchant = merchant
        self._memory = memory
        self._draw_noise = draw_noise
        self._begun = MaskedRounds(merchant, identities_of(agreement), identity_private_key, draw=draw)
        self._record = SumRecord(run_id="none")
        self._rounds = self._begun

    def check_under_way(self, order: MaskableOrder) -> None:
        """See that this merchant has a part in the sum that an order asks for, and has not released before what it asks
        for: before any work is done for it.

        Raises:
            PolicyError: it has none, or it has.
        """
        masking, current = _masking(order), self._of_run(order).current
        if current is None or current.session != self._session(order, masking.sum):
            raise PolicyError(f"{self._merchant!r} has handed out no shares for the masked sum {masking.sum}")
        name = _release_name(order)
        if _asks_for_figures(order) and name in self._record.released:
            raise PolicyError(
                f"the order asks a second time for {name.partition(' ')[0]} of this run and these weights; each is "
                "released in one sum"
            )

    def answer(self, order: KeysOrder | UnmaskOrder, order_hash: str) -> KeysReply | UnmaskReply:
        """What belongs to a sum beside its vectors: fresh keys, whatever was under way; or opened shares for the sum
        under way, which may be left unopened, and sealed ones for the next.

        Raises:
            HansaError: as MaskedRounds.begin and opened, or the order names other sums than these.
        """
        return self._keys(order, order_hash) if isinstance(order, KeysOrder) else self._unmask(order, order_hash)

    def _keys(self, order: KeysOrder, order_hash: str) -> KeysReply:
        self._rounds, advertised = self._of_run(order).begin(self._session(order, order.sum))
        return KeysReply(merchant=self._merchant, order_hash=order_hash, keys=_octets(advertised))

    def _unmask(self, order: UnmaskOrder, order_hash: str) -> UnmaskReply:
        rounds = self._of_run(order)
        under_way = 0 if rounds.current is None else rounds.current.session.round
        drawn_for = 0 if rounds.following is None else rounds.following.session.round
        is_asked_for = order.sum in {0, under_way} and order.next_sum in {0, drawn_for}
        is_whole = (order.sum == 0) == (len(order.in_sum) == 0) and (order.next_sum == 0) == (len(order.keys) == 0)
        if not (is_asked_for and is_whole):
            raise PolicyError(
                f"the order is to open the masked sum {order.sum} of {len(order.in_sum)} and to share for "
                f"{order.next_sum} among {len(order.keys)} bytes of keys; under way is {under_way}, keys are drawn for "
                f"{drawn_for}"
            )
        after, openings, shares = rounds.opened(order.in_sum, order.keys.tobytes())
        if after.history != rounds.history:
            self._remember(self._record.with_history(after.history))
        self._rounds = after
        return UnmaskReply(
            merchant=self._merchant, order_hash=order_hash, openings=_octets(openings), shares=_octets(shares)
        )

    def masked(self, order: MaskableOrder, reply: StatisticsReply | RoundReply | EvaluateReply) -> MaskedReply:
        """What would leave in the clear, after the last look at it, as a vector under the masks of the order's sum.

        Raises:
            MerchantError: it may not leave, or holds a number beyond what was agreed.
            HansaError: as MaskedRounds.masked, or as check_under_way.
        """
        self.check_under_way(order)
        check_contents(reply, self._agreement)
        vector, masking = self._vector(order, reply), _masking(order)
        following = None if masking.next_sum == 0 else self._session(order, masking.next_sum)
        after, keys = self._rounds.masked(
            self._session(order, masking.sum), order.shares.tobytes(), common_order_hash(order), vector, following
        )
        if _asks_for_figures(order):
            self._remember(self._record.with_release(_release_name(order)))
        self._rounds = after
        return MaskedReply(merchant=self._merchant, order_hash=reply.order_hash, vector=vector, keys=_octets(keys))

    def _vector(self, order: MaskableOrder, reply: StatisticsReply | RoundReply | EvaluateReply) -> Ring:
        try:
            match reply:
                case StatisticsReply():
                    values = np.concatenate([np.array([reply.num_train_rows], np.int64), reply.statistics])
                    return statistics_layout(self._agreement).encode(values)
                case EvaluateReply():
                    return evaluation_layout(self._agreement).encode(reply.histogram)
                case RoundReply():
                    return self._update_vector(order, reply)
        except ValueError as error:
            raise MerchantError(f"what was to be masked is not as agreed: {error}") from error

    def _update_vector(self, order: MaskableOrder, reply: RoundReply) -> Ring:
        norm, most = l2_norm(reply.update), self._agreement.cohort.max_update_norm
        if norm > most:
            raise MerchantError(
                f"the update has norm {norm:.4g}, cohort.max_update_norm is {most:g}, and a longer one does not fit "
                "into the sum; lower the learning rate, or agree on a larger bound"
            )
        histogram = reply.validation if _asks_for_figures(order) else np.zeros_like(reply.validation)
        layout = round_layout(self._agreement, reply.update.size, reply.round)
        told = (reply.update, reply.train_loss, reply.num_examples, histogram)
        if isinstance(layout, RoundVector):
            return self._noised(layout.encode(*told), reply)
        return layout.encode(*told, rounding(self._agreement, self._merchant, reply.round))

    def _noised(self, vector: Ring, reply: RoundReply) -> Ring:
        """The vector with this merchant's share of the noise, where noise is shared."""
        if is_shared(self._agreement):
            # There is no `auto` beside it, so there is one plan.
            share = noise_share_of(self._agreement, self._agreement.training.plan.learning_rate)
            add_noise(vector, share.drawn(self._draw_noise(f"share of round {reply.round}"), reply.update.size))
        return vector

    def _of_run(self, order: Order) -> MaskedRounds:
        """Where this merchant stands in the order's run; what it had in another is left."""
        if self._record.run_id != order.run_id:
            self._record = self._memory.recall(order.run_id)
            self._rounds = replace(self._begun, history=self._record.history)
        return self._rounds

    def _remember(self, record: SumRecord) -> None:
        self._memory.remember(record)
        self._record = record

    def _session(self, order: Order, number: int) -> Session:
        return session_of(self._agreement, self._fingerprint, order.run_id, number)


def masked_sums_of(agreement: Agreement, merchant: str, state: Path) -> MaskedSums | None:
    """The part of a merchant whose state folder this is, and which the caller holds; None where nothing is masked.

    Raises:
        UsageError: the agreement has [trust], and the identity key is not there or others may read it.
    """
    if not agreement.secure_aggregation.is_on:
        return None
    is_development = agreement.trust is None
    key = development_identity(merchant) if is_development else read_signing_key(state / IDENTITY_KEY, _KEY)
    return MaskedSums(agreement, merchant, key, SumMemory(state / SUMS_NAME))


def _masking(order: MaskableOrder) -> Masking:
    if order.masking is None:
        raise PolicyError(f"the {order.KIND!r} order asks for what it is about in the clear")
    return order.masking


def _asks_for_figures(order: MaskableOrder) -> bool:
    return not isinstance(order, RoundOrder) or order.asks_scores


def _release_name(order: MaskableOrder) -> str:
    if isinstance(order, StatisticsOrder):
        return _STATISTICS
    if not isinstance(order, RoundOrder | EvaluateOrder):
        raise PolicyError(f"a {order.KIND!r} order has no masked form")
    split = "validation" if isinstance(order, RoundOrder) else order.split
    return f"{split} {hashlib.sha256(order.weights.tobytes()).hexdigest()}"


def _octets(content: bytes) -> NDArray[np.uint8]:
    return np.frombuffer(content, np.uint8)
