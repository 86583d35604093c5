"""The protocol's bytes, step by step: who changes one of them makes another protocol, and gives it another version."""

import hashlib

import numpy as np

from hansa_common.masking import FixedPoint
from hansa_server.unmasking import MaskedSum, unmasked_sum


def shortened(content) -> str:
    return hashlib.sha256(bytes(content)).hexdigest()[:32]


def test_the_bytes_of_every_step_are_pinned(cohort_of, order_hash):
    cohort = cohort_of(4, seed=2026)
    fixed = FixedPoint(1.0, 1000, 4)
    updates = np.linspace(-1, 1, 4 * 50, dtype=np.float32).reshape(4, 50)
    vectors = np.stack([fixed.encode(update, 100 + i) for i, update in enumerate(updates)])

    keys = cohort.keys()
    offers = cohort.offers(keys)
    adding = MaskedSum(offers, vectors.shape[1])
    masked = {name: cohort.mask(name, offers.inbox(name), vectors[i]) for i, name in enumerate(cohort.session.cohort)}
    for name in cohort.present({2}):
        adding.add(name, masked[name])
    closed = adding.close()
    openings = cohort.openings(closed)
    total, _ = unmasked_sum(closed, order_hash, openings)

    found = {
        "session": shortened(cohort.session.digest),
        "keys": shortened(keys.table()),
        "offer": shortened(offers.offers[0].to_bytes()),
        "inbox": shortened(offers.inbox("merchant 0")),
        "masked": shortened(masked["merchant 0"].astype("<u4").tobytes()),
        "dropped": shortened(masked["merchant 2"].astype("<u4").tobytes()),
        "opened": shortened(openings["merchant 3"]),
        "sum": shortened(total.astype("<u4").tobytes()),
    }
    assert found == PINNED


PINNED = {
    "session": "525282b08d6b02387572d2456f0059c8",
    "keys": "f343f3645cb005bc583ebcb579da3c87",
    "offer": "b0b5e12b18760d075e58ccb091ad655e",
    "inbox": "01af9fbfa779feee80987cc1f59ff74e",
    "masked": "ec580c8396fe2a1222301271f3de880a",
    "dropped": "8971d388dcdf95d0e17e6f69bbb2ee70",
    "opened": "7ff97f0fb3e3069e4043a88dfe0dc708",
    "sum": "fe6dbc2b00183ad4059ca333ae61c30b",
}
