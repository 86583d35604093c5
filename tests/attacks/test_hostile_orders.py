"""Orders from whoever is not the coordinator, and from a coordinator who does not keep to what was agreed, at a
merchant's boundary as `hansa client start` puts it round the trainer: none is obeyed, and each is noted."""

from __future__ import annotations

import json
from itertools import count
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hansa_client.approvals import Approvals
from hansa_client.audit import ASIDE_LINES_AN_HOUR, AUDIT_NAME, entries
from hansa_client.guarded_trainer import Boundary, GuardedTrainer
from hansa_client.merchant_files import MerchantFiles
from hansa_common.agreement import Agreement, validate_agreement
from hansa_common.keys import make_signing_key, public_key_of
from hansa_common.messages import (
    EvaluateOrder,
    IntroduceOrder,
    Introduction,
    Refusal,
    RoundOrder,
    RoundReply,
    StatisticsOrder,
    StatisticsReply,
    decode,
    encode,
    message_hash,
)
from hansa_common.metrics import HISTOGRAM_LENGTH
from hansa_common.sealing import SEAL_BYTES, open_seal, seal, unopened_hash, unverified

COORDINATOR, MALLORY = bytes(range(32)), bytes(range(100, 132))
NONE = np.zeros(0, np.float32)


def agreed_on(alder: str, **changes) -> Agreement:
    values = {
        "task": "fraud",
        "label": {"column": "fraud"},
        "features": [{"kind": "boolean", "name": "gift"}],
        "model": {"hidden": []},
        "training": {"algorithm": "fedavg", "rounds": 9, "plan": {"optimizer": "sgd"}},
        "roster": ["alder", "birch"],
        "trust": {
            "coordinator": public_key_of(COORDINATOR),
            "merchants": {"alder": alder, "birch": public_key_of(bytes([7]) * 32)},
        },
    }
    return validate_agreement({**values, **changes}, "the test")


class Rows:
    """Stands where the merchant's rows are, and counts who comes that far."""

    def __init__(self) -> None:
        self.obeyed = []

    def work(self, order, order_hash, halt):  # noqa: ARG002 - a worker's arguments
        self.obeyed.append(order)
        head = {"merchant": "alder", "order_hash": order_hash}
        if isinstance(order, IntroduceOrder):
            return encode(Introduction(**head, hansa_version="1", backend="paper", device="pencil"))
        if isinstance(order, RoundOrder):
            head |= {"round": order.round, "num_examples": 90, "train_loss": 0.5, "update": NONE, "control_delta": NONE}
            return encode(RoundReply(**head, validation=np.zeros(HISTOGRAM_LENGTH, np.int64)))
        return encode(StatisticsReply(**head, statistics=np.array([90, 40]), num_train_rows=90))


class Merchant:
    """A merchant called alder that has approved one agreement, and has taken part in one order of a run."""

    def __init__(self, state: Path) -> None:
        state.mkdir(mode=0o700)
        self.state, self.rows = state, Rows()
        self.introductions = count(1)
        self.key = public_key_of(make_signing_key(state / "identity.key"))
        self.agreement = agreed_on(self.key)
        Approvals(state).approve(self.agreement)
        self.restart()
        assert self.obeys(self.introduction())
        assert self.obeys(self.order(1))
        self.rows.obeyed.clear()

    def restart(self) -> None:
        files = MerchantFiles(self.state / "agreement.toml", self.state / "rows.csv", self.state)
        boundary = Boundary.of_files(self.agreement, "alder", files, lambda: False)
        self.trainer = GuardedTrainer(self.rows, boundary)

    def introduction(self, run: str = "run", **changes) -> bytes:
        header = {"run_id": run, "recipient": "*", "fingerprint": self.agreement.fingerprint, "deadline_seconds": 5.0}
        return encode(IntroduceOrder(**{**header, "number": next(self.introductions), **changes}))

    def order(self, sequence: int, kind=StatisticsOrder, run: str = "run", **changes) -> bytes:
        values = {"run_id": run, "sequence": sequence, "recipient": "alder", "fingerprint": self.agreement.fingerprint}
        if kind is RoundOrder:
            values |= {"round": sequence, "plan": 0, "cohort": ("alder", "birch"), "preprocessing": "", "weights": NONE}
            values |= {"control": NONE, "included": ""}
        return encode(kind(**{**values, "deadline_seconds": 5.0, **changes}))

    def answered(self, sent: bytes):
        """The reply, which whatever was sent is signed by the merchant."""
        return decode(open_seal(self.trainer.answer(sent), self.key, "reply"))

    def obeys(self, message: bytes) -> bool:
        return not isinstance(self.answered(seal(message, COORDINATOR, "order")), Refusal)

    def refuses(self, sent: bytes, code: str) -> None:
        reply, noted = self.answered(sent), list(entries(self.state / AUDIT_NAME))
        assert isinstance(reply, Refusal), reply
        named = unopened_hash(sent) if code == "not-signed" else message_hash(unverified(sent))
        assert (reply.code, reply.order_hash) == (code, named)
        assert self.rows.obeyed == []
        assert noted[-1].what == "answered"
        assert (noted[-1].decision, noted[-1].code, noted[-1].order) == ("refused", code, reply.order_hash)

    def refuses_signed(self, message: bytes, code: str) -> None:
        self.refuses(seal(message, COORDINATOR, "order"), code)


@pytest.fixture
def merchant(tmp_path) -> Merchant:
    return Merchant(tmp_path / "alder")


# Whoever is not the coordinator


def test_unsigned_order_is_refused(merchant):
    for message in (merchant.introduction(), merchant.order(2), merchant.order(2, RoundOrder)):
        merchant.refuses(message, "not-signed")


def test_badly_signed_order_is_refused(merchant):
    message = merchant.order(2)
    merchant.refuses(seal(message, MALLORY, "order"), "not-signed")
    merchant.refuses(seal(message, COORDINATOR, "reply"), "not-signed")
    merchant.refuses(seal(seal(message, COORDINATOR, "order"), MALLORY, "order"), "not-signed")
    sealed = seal(message, COORDINATOR, "order")
    for place in (0, 5, 6, SEAL_BYTES - 1, SEAL_BYTES, len(sealed) - 1):
        spoilt = bytearray(sealed)
        spoilt[place] ^= 1
        merchant.refuses(bytes(spoilt), "not-signed")


def test_signed_refusal_of_a_real_order_under_a_wrong_seal_is_none_of_the_real_order(merchant):
    """A SuperLink that was broken into could answer the coordinator with it, and the merchant would never be asked."""
    real = merchant.order(2)
    for spoilt in (real, seal(real, MALLORY, "order")):
        assert merchant.answered(spoilt).order_hash != message_hash(real)
    assert merchant.obeys(real)


def test_merchants_own_signature_is_no_coordinators(merchant):
    own = bytes.fromhex((merchant.state / "identity.key").read_text())
    merchant.refuses(seal(merchant.order(2), own, "order"), "not-signed")


@pytest.mark.parametrize(
    "forged",
    [
        {"run_id": "another"}, {"sequence": 9}, {"recipient": "birch"}, {"fingerprint": "0" * 64}, {"round": 8},
        {"deadline_seconds": 500.0}, {"cohort": ("alder",)}, {"plan": 1}, {"included": "1" * 64}, {"stage": "control"},
        {"weights": np.ones(2, np.float32)}, {"control": np.ones(2, np.float32)}, {"preprocessing": "{}"},
        {"masks": np.ones(2, np.uint8)},
    ],
    ids=lambda forged: next(iter(forged)),
)  # fmt: skip
def test_forged_order_is_refused_whatever_was_changed_under_the_signature(merchant, forged):
    signature = seal(merchant.order(2, RoundOrder), COORDINATOR, "order")[:SEAL_BYTES]
    changes = {"sequence": 2, **forged}
    merchant.refuses(signature + merchant.order(changes.pop("sequence"), RoundOrder, **changes), "not-signed")


# Who has kept what the coordinator once signed


def test_replayed_order_is_refused(merchant):
    first = seal(merchant.order(1), COORDINATOR, "order")
    for number in (2, 3, 4):
        assert merchant.obeys(merchant.order(number, RoundOrder))
    merchant.rows.obeyed.clear()
    merchant.refuses(first, "replayed")
    merchant.restart()
    merchant.refuses(first, "replayed")


def test_replayed_last_order_gets_the_answer_that_it_had_and_nothing_is_computed(merchant):
    sealed = seal(merchant.order(1), COORDINATOR, "order")
    answer = merchant.trainer.answer(sealed)
    merchant.restart()
    assert merchant.trainer.answer(sealed) == answer
    assert merchant.rows.obeyed == []


def test_reordered_orders_are_refused(merchant):
    assert merchant.obeys(merchant.order(3))
    merchant.rows.obeyed.clear()
    merchant.refuses_signed(merchant.order(2), "replayed")
    merchant.restart()
    merchant.refuses_signed(merchant.order(2), "replayed")


def test_cross_run_order_is_refused(merchant):
    held_back = merchant.order(2)
    merchant.refuses_signed(merchant.order(2, run="never begun"), "replayed")
    assert merchant.obeys(merchant.introduction("next"))
    merchant.rows.obeyed.clear()
    merchant.refuses_signed(held_back, "replayed")
    merchant.restart()
    merchant.refuses_signed(held_back, "replayed")


def test_replayed_introduction_takes_no_merchant_back_to_an_order_that_was_held_back(merchant):
    first, held_back = merchant.introduction(), merchant.order(2)
    assert merchant.obeys(first)
    assert merchant.obeys(merchant.introduction("next"))
    merchant.rows.obeyed.clear()
    for _ in range(2):
        merchant.refuses_signed(first, "replayed")
        merchant.refuses_signed(held_back, "replayed")
        merchant.refuses_signed(merchant.introduction(number=0), "replayed")
        merchant.restart()
    # Its own run may ask again.
    assert merchant.obeys(merchant.introduction())
    assert merchant.obeys(held_back)


def test_order_for_another_merchant_is_refused(merchant):
    merchant.refuses_signed(merchant.order(2, recipient="birch"), "not-permitted")
    merchant.refuses_signed(merchant.order(2, recipient="*"), "not-permitted")


# A coordinator who does not keep to what was agreed


def test_different_order_for_a_round_already_answered_is_refused(merchant):
    assert merchant.obeys(merchant.order(2, RoundOrder, round=5))
    merchant.rows.obeyed.clear()
    merchant.refuses_signed(merchant.order(3, RoundOrder, round=5, included="1" * 64), "replayed")
    merchant.refuses_signed(merchant.order(2, RoundOrder, round=6), "replayed")


def test_round_that_goes_backwards_is_refused(merchant):
    assert merchant.obeys(merchant.order(2, RoundOrder, round=5))
    merchant.rows.obeyed.clear()
    merchant.refuses_signed(merchant.order(3, RoundOrder, round=4), "replayed")


def test_unapproved_agreement_is_refused(merchant):
    other = agreed_on(merchant.key, privacy={"min_count": 1})
    merchant.refuses_signed(merchant.order(2, fingerprint=other.fingerprint), "agreement-mismatch")
    merchant.refuses_signed(merchant.introduction("next", fingerprint=other.fingerprint), "agreement-mismatch")
    (approval,) = (merchant.state / "approved").glob("*.json")
    approval.unlink()
    merchant.refuses_signed(merchant.order(2), "agreement-mismatch")


def test_roster_with_an_extra_merchant_is_refused(merchant):
    trust = merchant.agreement.trust.model_dump()
    trust["merchants"]["mallory"] = public_key_of(MALLORY)
    padded = agreed_on(merchant.key, roster=["alder", "birch", "mallory"], trust=trust)
    merchant.refuses_signed(merchant.order(2, fingerprint=padded.fingerprint), "agreement-mismatch")
    cohort = ("alder", "birch", "mallory")
    merchant.refuses_signed(merchant.order(2, RoundOrder, cohort=cohort), "not-permitted")
    merchant.refuses_signed(merchant.order(2, RoundOrder, cohort=("alder", "mallory")), "not-permitted")


def test_roster_with_another_key_for_a_merchant_is_refused(merchant):
    trust = merchant.agreement.trust.model_dump()
    trust["merchants"]["birch"] = public_key_of(MALLORY)
    swapped = agreed_on(merchant.key, trust=trust)
    assert swapped.roster == merchant.agreement.roster
    merchant.refuses_signed(merchant.order(2, fingerprint=swapped.fingerprint), "agreement-mismatch")


def test_order_while_paused_is_refused_at_once_and_obeyed_after(merchant):
    (merchant.state / "merchant.toml").write_text("paused = true\n")
    merchant.refuses_signed(merchant.order(2), "not-now")
    (merchant.state / "merchant.toml").write_text("paused = false\n")
    assert merchant.obeys(merchant.order(2))


def test_policy_that_is_damaged_while_it_is_in_use_permits_nothing(merchant):
    (merchant.state / "merchant.toml").write_text("max_rouns = 3\n")
    merchant.refuses_signed(merchant.order(2), "not-permitted")


# Any bytes at all


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=40)
@given(wild=st.binary(max_size=300), cut=st.integers(0, 10**6))
def test_fuzzed_bytes_are_refused_and_nothing_is_computed(merchant, wild, cut):
    sealed = seal(merchant.order(2, RoundOrder), COORDINATOR, "order")
    for sent in (wild, sealed[: cut % len(sealed)], sealed[:SEAL_BYTES] + wild, sealed[:6] + wild):
        assert merchant.answered(sent).code in {"not-signed", "message-invalid"}
    assert merchant.rows.obeyed == []


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=40)
@given(wild=st.binary(max_size=300), cut=st.integers(0, 10**6), appended=st.binary(min_size=1, max_size=20))
def test_fuzzed_messages_under_a_true_signature_are_refused_whole(merchant, wild, cut, appended):
    message = merchant.order(2, EvaluateOrder, split="test", preprocessing="", weights=NONE)
    for signed in (wild, message[: cut % len(message)], message + appended):
        assert merchant.answered(seal(signed, COORDINATOR, "order")).code == "message-invalid"
    assert merchant.rows.obeyed == []


def test_flood_of_orders_that_are_not_obeyed_fills_no_disk(merchant):
    """Whoever has the socket's token, or SuperLink: with the coordinator's own orders, and with any bytes."""
    stored, old = (
        seal(merchant.order(1), COORDINATOR, "order"),
        seal(merchant.introduction(number=1), COORDINATOR, "order"),
    )
    before = (merchant.state / AUDIT_NAME).stat().st_size
    for _ in range(ASIDE_LINES_AN_HOUR):
        for sent in (b"any bytes", merchant.order(2), stored, old):
            merchant.trainer.answer(sent)
    assert (merchant.state / AUDIT_NAME).stat().st_size - before < 700 * ASIDE_LINES_AN_HOUR
    # Who it is, a merchant says again.
    assert all(isinstance(order, IntroduceOrder) for order in merchant.rows.obeyed)
    assert merchant.obeys(merchant.order(2))
    asked, answered = list(entries(merchant.state / AUDIT_NAME))[-2:]
    assert (asked.what, asked.num_unnoted) == ("asked", 3 * ASIDE_LINES_AN_HOUR)
    assert (answered.what, answered.decision) == ("answered", "answered")


def test_what_is_asked_in_an_attack_draws_on_no_terminal_and_fills_no_disk(merchant):
    size = (merchant.state / AUDIT_NAME).stat().st_size
    names = tuple(f"merchant {i}" for i in range(5000))
    merchant.refuses_signed(merchant.order(2, RoundOrder, cohort=names), "not-permitted")
    line = (merchant.state / AUDIT_NAME).read_bytes()[size:].splitlines()[-1]
    assert len(line) < 4000
    assert json.loads(line)["reason"].isprintable()
