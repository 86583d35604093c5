"""A merchant's part in the masked sums of one run: each sum's steps laid into two exchanges, beside those of the next.

exchange   of the sum r                           of the sum r + 1
mask       shares in, the masked vector out       fresh keys out
open       who is in the sum in, shares out       everybody's keys in, sealed shares out

A run begins with two exchanges that mask nothing (`begin`, then `opened` for a sum of nobody), and so does a merchant's
part that was broken off: keys and shares are in memory alone, and `begin` forgets what there was. From then on a sum
takes two exchanges. The next sum may be of another group: each has its own session.

- A sum that is not to be known is left by `opened` for nobody: its shares are forgotten, and nothing of it is opened
  any more. So whoever is asked for less opens less: to leave a sum tells what a merchant that dropped out would tell.
- A refused exchange leaves everything as it was; what was answered is not answered again. Who holds a state keeps the
  latest alone, and the history of keys for as long as the run can come back.

What each step refuses is secure_round.py's. Which sums this merchant takes part in, and what its vector is, is for
others to say.
"""

from __future__ import annotations

import secrets
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace

from hansa_common.errors import PolicyError
from hansa_common.masking import Ring
from hansa_common.secret_sharing import DrawBytes
from hansa_common.secure_keys import KeyHistory, Session, keys_from_bytes
from hansa_common.secure_round import Advertised, MerchantState, advertise, mask, share, unmask
from hansa_common.secure_rows import rows_from_bytes, rows_to_bytes
from hansa_common.secure_shares import SEALED_BYTES


@dataclass(frozen=True)
class MaskedRounds:
    """Where a merchant stands: in the sum that is under way, and with keys for the next. `identities` are the
    agreement's keys by name, `draw` gives random bytes.
    """

    merchant: str
    identities: Mapping[str, str]
    identity_private_key: bytes = field(repr=False)
    history: KeyHistory = field(default_factory=KeyHistory)
    current: MerchantState | None = None
    following: Advertised | None = None
    draw: DrawBytes = secrets.token_bytes

    def begin(self, session: Session) -> tuple[MaskedRounds, bytes]:
        """Leave whatever sum was under way, and draw keys for this one; the advertisement.

        Raises:
            PolicyError: this merchant is not in its cohort.
            ReplayError: it was there, or a later one.
        """
        following = self._advertised(session)
        return replace(self, current=None, following=following), following.advertisement.to_bytes()

    def masked(
        self, session: Session, inbox: bytes, order_hash: bytes, vector: Ring, next_session: Session | None
    ) -> tuple[MaskedRounds, bytes]:
        """Mask the vector of a sum, in place, and draw keys for the next, if there is one; the advertisement, if so.

        Raises:
            HansaError: as secure_round.mask, or the sum is not the one that is under way, or the next not after it.
        """
        if self.current is None or self.current.session != session:
            raise PolicyError(f"{self.merchant!r} has handed out no shares for this masked sum {session.round}")
        following = None if next_session is None else self._advertised(next_session)
        sealed = rows_from_bytes(inbox, SEALED_BYTES, len(session.cohort))
        current = mask(self.current, vector, sealed, order_hash)
        after = replace(self, current=current, following=following)
        return after, b"" if following is None else following.advertisement.to_bytes()

    def opened(self, in_sum: Collection[int], next_keys: bytes) -> tuple[MaskedRounds, bytes, bytes]:
        """Open shares for the sum that is under way, or with nobody `in_sum` leave it for good, and share for the next,
        if there are keys for it; the opened shares and the sealed ones. Keys that were drawn for a next sum that is not
        to be are forgotten.

        Raises:
            HansaError: as secure_round.unmask and share, or there is no sum to open for, or keys for none.
        """
        if self.following is None and next_keys:
            raise PolicyError(f"{self.merchant!r} is asked to share for a masked sum for which it drew no keys")
        current, openings = self._unmasked(in_sum) if in_sum else (None, b"")
        if self.following is None or not next_keys:
            return replace(self, current=current, following=None), openings, b""
        keys = keys_from_bytes(next_keys, len(self.following.session.cohort))
        shared = share(self.following, keys, self.identities, self.history, self.draw)
        after = replace(self, current=shared, following=None, history=shared.history)
        return after, openings, shared.offer.to_bytes()

    def _unmasked(self, in_sum: Collection[int]) -> tuple[MerchantState, bytes]:
        if self.current is None:
            raise PolicyError(f"{self.merchant!r} is asked to open a sum of {len(in_sum)}, and none is under way")
        after, rows = unmask(self.current, in_sum)
        return after, rows_to_bytes(rows)

    def _advertised(self, session: Session) -> Advertised:
        self.history.at(session)
        return advertise(session, self.merchant, self.identity_private_key, self.draw)
