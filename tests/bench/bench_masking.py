"""What a masked sum costs beside a plain one: CPU time of one merchant and of the coordinator, and bytes.

Every step of the protocol is in a figure, signatures, sealed shares, fixed point and the hash of the order included; in
the coordinator's also the adding up of the vectors. Nobody trains here and nothing is sent. Who drops out does so after
its shares are handed out and before its vector comes, which costs the coordinator most.

The merchant's floor is its masks alone: OpenSSL's ChaCha20, one stream for each merchant of the cohort, in pieces that
stay in cache, added to nothing. The coordinator's is the streams that it must remove, regenerated and added. Floor and
protocol take turns, and a figure is the median of the repetitions' ratios. Marks: a merchant at most 3 times its floor
in a cohort of 10 and 2 times in one of 50; the coordinator at most 2 times its own.

    python tests/bench/bench_masking.py [--params 1000000] [--repetitions 21] [--json FILE]
"""

from __future__ import annotations

import argparse
import hashlib
import json
import random
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any, Final

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms

from hansa_common import secure_round
from hansa_common.keys import public_key_of
from hansa_common.masking import FixedPoint, Ring, add_stream
from hansa_common.messages import RoundOrder
from hansa_common.secure_keys import KeyHistory, Session, keys_from_bytes
from hansa_common.secure_rows import rows_from_bytes, rows_to_bytes
from hansa_common.secure_shares import SEALED_BYTES
from hansa_common.secure_thresholds import secure_thresholds
from hansa_common.vectors import Vector
from hansa_server.unmasking import (
    Closed,
    Keys,
    MaskedSum,
    Offers,
    decoded_mean,
    gather_keys,
    gather_offers,
    unmasked_sum,
)

MARKS_MERCHANT: Final = {10: 3.0, 50: 2.0}
MARK_COORDINATOR: Final = 2.0
SHARES_OF_DROPOUTS: Final = (0.0, 0.2)
PIECE_BYTES: Final = 1 << 18
NUM_EXAMPLES: Final = 500


@dataclass
class Work:
    """One merchant's sums of one session, and the coordinator's beside it; the same ones however often."""

    session: Session
    order: RoundOrder
    fixed: FixedPoint
    updates: list[Vector]

    @classmethod
    def of(cls, num_merchants: int, num_params: int) -> Work:
        names = tuple(f"merchant {place}" for place in range(num_merchants))
        session = Session("ab" * 32, "run", 1, names, secure_thresholds(num_merchants))
        draw = np.random.default_rng(3)
        updates = [draw.uniform(-1, 1, num_params).astype(np.float32) for _ in names]
        order = RoundOrder(
            run_id="run", sequence=1, recipient=names[0], fingerprint=session.fingerprint, deadline_seconds=60.0,
            round=1, plan=0, cohort=names, preprocessing="{}", weights=updates[0], control=np.zeros(0, np.float32),
            included="",
        )  # fmt: skip
        return cls(session, order, FixedPoint(1.0, 1000, num_merchants), updates)

    def identity(self, place: int) -> bytes:
        return hashlib.sha256(b"%d" % place).digest()

    @property
    def identities(self) -> dict[str, str]:
        return {name: public_key_of(self.identity(place)) for place, name in enumerate(self.session.cohort)}

    def advertised(self, place: int) -> secure_round.Advertised:
        # The same keys again, so that the others' shares for them open again.
        draw = random.Random(place).randbytes
        return secure_round.advertise(self.session, self.session.cohort[place], self.identity(place), draw)

    def shared(self, place: int, table: bytes, identities: dict[str, str]) -> secure_round.Shared:
        draw = random.Random(-1 - place).randbytes
        keys = keys_from_bytes(table, len(self.session.cohort))
        return secure_round.share(self.advertised(place), keys, identities, KeyHistory(), draw)

    def masked(self, shared: secure_round.Shared, inbox: bytes) -> tuple[secure_round.Masked, Ring]:
        vector = self.fixed.encode(self.updates[shared.place], NUM_EXAMPLES)
        sealed = rows_from_bytes(inbox, SEALED_BYTES, len(self.session.cohort))
        return secure_round.mask(shared, vector, sealed, secure_round.common_order_hash(self.order)), vector


@dataclass
class Exchanged:
    """All that was sent in one sum."""

    keys: Keys
    offers: Offers
    closed: Closed
    advertisements: dict[str, bytes]
    shares: dict[str, bytes]
    vectors: dict[str, Ring]
    openings: dict[str, bytes]


def exchange(work: Work, num_dropouts: int) -> Exchanged:
    names, identities = work.session.cohort, work.identities
    advertisements = {name: work.advertised(place).advertisement.to_bytes() for place, name in enumerate(names)}
    keys = gather_keys(work.session, identities, KeyHistory(), advertisements)
    shared = [work.shared(place, keys.table(), identities) for place in range(len(names))]
    shares = {name: state.offer.to_bytes() for name, state in zip(names, shared, strict=True)}
    offers = gather_offers(keys, shares)
    left = names[: len(names) - num_dropouts]
    masked = {name: work.masked(shared[place], offers.inbox(name)) for place, name in enumerate(left)}
    vectors = {name: vector for name, (_, vector) in masked.items()}
    closed = summed(offers, vectors)
    openings = {
        name: rows_to_bytes(secure_round.unmask(state, closed.in_sum)[1]) for name, (state, _) in masked.items()
    }
    return Exchanged(keys, offers, closed, advertisements, shares, vectors, openings)


def summed(offers: Offers, vectors: dict[str, Ring]) -> Closed:
    adding = MaskedSum(offers, next(iter(vectors.values())).size)
    for name, vector in vectors.items():
        adding.add(name, vector)
    return adding.close()


def merchant_work(work: Work, sent: Exchanged, identities: dict[str, str]) -> None:
    """All that the first merchant does for the sum beside training."""
    shared = work.shared(0, sent.keys.table(), identities)
    shared.offer.to_bytes()
    state, _ = work.masked(shared, sent.offers.inbox(work.session.cohort[0]))
    rows_to_bytes(secure_round.unmask(state, sent.closed.in_sum)[1])


def coordinator_work(work: Work, sent: Exchanged, identities: dict[str, str]) -> np.ndarray:
    """All that the coordinator does for the sum; the mean."""
    keys = gather_keys(work.session, identities, KeyHistory(), sent.advertisements)
    keys.table()
    offers = gather_offers(keys, sent.shares)
    for name in work.session.cohort:
        offers.inbox(name)
    closed = summed(offers, sent.vectors)
    total, _ = unmasked_sum(closed, secure_round.common_order_hash(work.order), sent.openings)
    return decoded_mean(work.session, work.fixed, total)[0]


def merchant_floor(num_streams: int, num_bytes: int) -> None:
    stream, zeros = bytearray(PIECE_BYTES), bytes(PIECE_BYTES)
    for number in range(num_streams):
        cipher = Cipher(algorithms.ChaCha20(number.to_bytes(32, "big"), bytes(16)), mode=None).encryptor()
        for start in range(0, num_bytes, PIECE_BYTES):
            cipher.update_into(zeros[: num_bytes - start], stream)


def coordinator_floor(num_streams: int, vector: Ring) -> None:
    for number in range(num_streams):
        add_stream(vector, number.to_bytes(32, "big"))


def cpu_seconds(action: Callable[[], object]) -> float:
    began = time.process_time()
    action()
    return time.process_time() - began


def measured(num_merchants: int, share_of_dropouts: float, num_params: int, repetitions: int) -> dict[str, Any]:
    work = Work.of(num_merchants, num_params)
    num_dropouts = round(num_merchants * share_of_dropouts)
    sent, identities = exchange(work, num_dropouts), work.identities
    left = num_merchants - num_dropouts
    check_mean(work, coordinator_work(work, sent, identities), left)
    vector = np.zeros(num_params, np.uint32)
    rivals = {
        "merchant": lambda: merchant_work(work, sent, identities),
        "merchant_floor": lambda: merchant_floor(num_merchants, 4 * num_params),
        "coordinator": lambda: coordinator_work(work, sent, identities),
        "coordinator_floor": lambda: coordinator_floor(left + num_dropouts * left, vector),
    }
    taken: dict[str, list[float]] = {name: [] for name in rivals}
    for _ in range(repetitions):
        for name, action in rivals.items():
            taken[name].append(cpu_seconds(action))
    found: dict[str, Any] = {f"{name}_ms": 1e3 * median(values) for name, values in taken.items()}
    for party in ("merchant", "coordinator"):
        found[f"{party}_times"] = median(a / b for a, b in zip(taken[party], taken[f"{party}_floor"], strict=True))
    return found | bytes_of(work, sent)


def check_mean(work: Work, mean: np.ndarray, num_left: int) -> None:
    """Not the same work, if it is another mean than the plain one."""
    plain = np.mean(np.stack(work.updates[:num_left]), axis=0, dtype=np.float64)
    apart = float(np.abs(mean - plain).max())
    if not apart <= work.fixed.mean_error(num_left, num_left * NUM_EXAMPLES) + 1e-12:
        raise SystemExit(f"the masked mean is {apart:.1e} off the plain one")


def bytes_of(work: Work, sent: Exchanged) -> dict[str, int]:
    """One merchant's, in one sum: the vector, and what masking adds to it, up and down."""
    name = work.session.cohort[0]
    up = len(sent.advertisements[name]) + len(sent.shares[name]) + len(sent.openings[name])
    down = len(sent.keys.table()) + len(sent.offers.inbox(name))
    vector = sent.vectors[name].nbytes
    return {"vector_bytes": vector, "plain_bytes": work.updates[0].nbytes, "up_bytes": up, "down_bytes": down}


def main() -> int:
    """Print the table; exit code 1 where a mark is missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--params", type=int, default=1_000_000)
    parser.add_argument("--repetitions", type=int, default=21)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    columns = ("merchant ms", "floor ms", "times", "server ms", "floor ms", "times", "vector B", "more up B", "down B")
    print(f"{'cohort':>6} {'gone':>5} " + " ".join(f"{column:>11}" for column in columns))
    rows = []
    for num_merchants in MARKS_MERCHANT:
        for share in SHARES_OF_DROPOUTS:
            found = measured(num_merchants, share, options.params, options.repetitions)
            rows.append({"merchants": num_merchants, "dropouts": share, **found})
            told = [
                found[f"{party}{what}"]
                for party in ("merchant", "coordinator")
                for what in ("_ms", "_floor_ms", "_times")
            ]
            sizes = [found["vector_bytes"], found["up_bytes"], found["down_bytes"]]
            print(
                f"{num_merchants:>6} {share:>5.0%}",
                *(f"{x:>11.2f}" for x in told),
                *(f"{x:>11}" for x in sizes),
                flush=True,
            )
    if options.json:
        options.json.write_text(json.dumps(rows, indent=2))
    return 1 if any_missed(rows) else 0


def any_missed(rows: list[dict[str, Any]]) -> bool:
    """Say of each mark whether it is met."""
    missed = False
    for row in rows:
        for party, mark in (("merchant", MARKS_MERCHANT[row["merchants"]]), ("coordinator", MARK_COORDINATOR)):
            is_met = row[f"{party}_times"] <= mark
            missed |= not is_met
            what = f"{party} of {row['merchants']}, {row['dropouts']:.0%} gone: at most {mark:g} times the floor"
            print(f"mark: {what}: {'met' if is_met else 'MISSED'}")
    return missed


if __name__ == "__main__":
    sys.exit(main())
