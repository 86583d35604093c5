"""What a merchant takes for the finished bundle: what the trusted key signed for its own agreement, whole; its own
threshold with it; and nothing that the coordinator hears depends on a row."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import time
from pathlib import Path

import numpy as np
import pytest

from hansa_client.data import feature_rows, merchant_table
from hansa_client.delivery import DELIVERED_NAME, OWN_NAME, Inbox, Kept, OwnDecision
from hansa_client.halting import Halt
from hansa_client.policy import Policy
from hansa_common import bundle as bundles
from hansa_common import statistics
from hansa_common.agreement import validate_agreement
from hansa_common.bundle import FILE_NAMES, MANIFEST_NAME, SIGNATURE_NAME, Manifest, make_bundle, open_bundle
from hansa_common.errors import AgreementMismatchError, BundleError, MerchantError, MessageError, PolicyError
from hansa_common.features import FittedPreprocessing, Inputs
from hansa_common.keys import public_key_of
from hansa_common.messages import Delivered, DeliverOrder, decode, encode, message_hash
from hansa_common.model import ModelSpec, initial_weights
from hansa_common.parcel import pack, unpack
from hansa_common.trust import Trust

STRANGER = bytes(range(64, 96))


@pytest.fixture
def state(tmp_path) -> Path:
    folder = tmp_path / "state"
    folder.mkdir(mode=0o700)
    return folder


@pytest.fixture
def inbox(state, unfinished) -> Inbox:
    return Inbox(state, unfinished.parts.agreement)


def packed(files: dict[str, bytes]) -> np.ndarray:
    return np.frombuffer(pack(files), np.uint8)


def deliver(inbox: Inbox, files: dict[str, bytes]) -> None:
    """What the trainer does with an order, but that no network is run for the threshold."""
    arrived = inbox.opened(packed(files))
    known = {"bundle": arrived.bundle.bundle_id, "key_from": arrived.key_from}
    inbox.keep(arrived, OwnDecision(**known, num_rows=3, num_positives=2, threshold=0.25, f1=0.5))


def with_parts(made, key: bytes | None = None, **changes) -> dict[str, bytes]:
    return make_bundle(dataclasses.replace(made.parts, **changes), made.signing_key if key is None else key)


def files_in(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}


# --- whose ------------------------------------------------------------------------------------------------------------


def test_first_delivery_pins_its_key_and_one_by_another_key_is_refused_naming_both(inbox, state, unfinished):
    deliver(inbox, unfinished.files)
    assert (state / "coordinator.pub").read_text() == unfinished.trusted + "\n"
    before = (state / DELIVERED_NAME).read_bytes()
    with pytest.raises(PolicyError) as refused:
        deliver(inbox, with_parts(unfinished, STRANGER))
    assert unfinished.trusted in str(refused.value)
    assert public_key_of(STRANGER) in str(refused.value)
    assert (state / DELIVERED_NAME).read_bytes() == before
    assert (state / "coordinator.pub").read_text() == unfinished.trusted + "\n"


def test_next_bundle_of_the_same_key_takes_the_place_of_the_first(inbox, state, unfinished):
    deliver(inbox, unfinished.files)
    deliver(inbox, with_parts(unfinished, run_id="run 2"))
    assert Kept.read(state).bundle.manifest.run_id == "run 2"


@pytest.mark.parametrize("pinned_before", [False, True])
def test_key_that_the_agreement_names_is_the_one_to_trust_from_the_first_delivery_on(state, unfinished, pinned_before):
    trust = Trust(coordinator=unfinished.trusted, merchants={"alder": "0" * 64, "birch": "1" * 64})
    agreed = unfinished.parts.agreement.with_roster(("alder", "birch")).with_trust(trust)
    inbox = Inbox(state, agreed)
    if pinned_before:
        (state / "coordinator.pub").write_text(public_key_of(STRANGER))
    with pytest.raises(PolicyError, match="the agreement names"):
        deliver(inbox, with_parts(unfinished, STRANGER, agreement=agreed))
    deliver(inbox, with_parts(unfinished, agreement=agreed))
    assert Kept.read(state).own.key_from == "agreement"
    assert Kept.read(state).bundle.signer == unfinished.trusted


def test_refused_bundle_pins_nothing(inbox, state, unfinished):
    with pytest.raises(MessageError):
        deliver(inbox, {**unfinished.files, "card.md": b""})
    assert files_in(state) == set()


# --- whole ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", sorted(FILE_NAMES))
def test_flipped_byte_in_any_file_is_refused(inbox, state, unfinished, name):
    content = bytearray(unfinished.files[name])
    content[len(content) // 2] ^= 1
    with pytest.raises((MessageError, PolicyError)):
        deliver(inbox, {**unfinished.files, name: bytes(content)})
    assert files_in(state) == set()


@pytest.mark.parametrize("name", sorted(FILE_NAMES))
def test_missing_file_is_refused_by_its_name(inbox, unfinished, name):
    rest = {other: content for other, content in unfinished.files.items() if other != name}
    with pytest.raises(MessageError, match=name):
        deliver(inbox, rest)


@pytest.mark.parametrize("name", ["../../escaped", "/escaped", "extra.txt", OWN_NAME, "threshold.json", "own.json/x"])
def test_name_that_is_no_bundles_is_refused_and_nothing_is_written(inbox, state, tmp_path, unfinished, name):
    with pytest.raises(MessageError, match="may not be called"):
        deliver(inbox, {**unfinished.files, name: b"x"})
    assert files_in(tmp_path) == {"state"}


@pytest.mark.parametrize("content", [b"", b"HANSA-FILES-1", b"PK\x03\x04", b"\x00" * 100])
def test_what_was_not_packed_is_refused(inbox, content):
    with pytest.raises(MessageError):
        inbox.opened(np.frombuffer(content, np.uint8))


def test_delivery_larger_than_a_bundle_of_this_model_can_be_is_refused_unread(inbox):
    with pytest.raises(PolicyError, match="at most"):
        inbox.opened(np.zeros(2**27, np.uint8))


# --- of the agreement -------------------------------------------------------------------------------------------------


def test_bundle_of_another_agreement_is_refused(inbox, unfinished):
    with pytest.raises(PolicyError, match="approved is"):
        deliver(inbox, with_parts(unfinished, agreement=unfinished.parts.agreement.with_seed(5)))


def test_other_features_under_the_agreements_name_are_refused(inbox, unfinished):
    values = json.loads(unfinished.parts.agreement.canonical_json())
    values["features"][0]["high"] = 400.0
    other = validate_agreement(values, "the test")
    columns = feature_rows(unfinished.rows(300), other.features, "the test").columns
    labels = np.arange(len(columns["age"])).astype(np.uint8) % 2
    fitted = FittedPreprocessing.fit(other, statistics.measure(other, columns, labels))
    with pytest.raises(PolicyError, match="other features"):
        deliver(inbox, with_parts(unfinished, preprocessing=fitted))


def test_another_network_under_the_agreements_name_is_refused(inbox, unfinished):
    values = json.loads(unfinished.parts.agreement.canonical_json())
    values["model"]["hidden"] = [8]
    spec = ModelSpec.from_agreement(validate_agreement(values, "the test"))
    with pytest.raises(PolicyError, match="another network"):
        deliver(inbox, with_parts(unfinished, spec=spec, weights=initial_weights(spec, 1)))


def test_another_hash_key_under_the_agreements_name_is_refused(inbox, unfinished):
    manifest = Manifest.model_validate_json(unfinished.files[MANIFEST_NAME])
    content = manifest.model_copy(update={"hash_key_id": "0" * 64}).canonical_json()
    signature = bundles._signature(content, unfinished.signing_key)
    with pytest.raises(PolicyError, match="hashes with key"):
        deliver(inbox, {**unfinished.files, MANIFEST_NAME: content, SIGNATURE_NAME: signature})


def order_of(fingerprint: str, recipient: str = "alder") -> DeliverOrder:
    header = {"run_id": "run", "sequence": 1, "recipient": recipient, "fingerprint": fingerprint}
    return DeliverOrder(**header, deadline_seconds=60.0, bundle=np.zeros(3, np.uint8))


def test_bundle_is_permitted_only_under_the_approved_agreement_and_where_a_small_model_was_agreed(unfinished):
    plain = unfinished.parts.agreement
    values = json.loads(plain.canonical_json())
    small = validate_agreement({**values, "compression": {"format": "int8"}}, "the test")
    Policy(small, "alder").verify(order_of(small.fingerprint))
    with pytest.raises(PolicyError, match="as trained"):
        Policy(plain, "alder").verify(order_of(plain.fingerprint))
    with pytest.raises(AgreementMismatchError):
        Policy(small, "alder").verify(order_of(plain.fingerprint))
    with pytest.raises(PolicyError, match="birch"):
        Policy(small, "alder").verify(order_of(small.fingerprint, "birch"))


# --- kept -------------------------------------------------------------------------------------------------------------


def test_kept_bundle_is_the_delivered_one_byte_for_byte_and_its_users_alone(inbox, state, unfinished):
    deliver(inbox, unfinished.files)
    kept = Kept.read(state)
    assert kept.files == unfinished.files
    assert kept.bundle.bundle_id == open_bundle(unfinished.files, unfinished.trusted).bundle_id
    assert (kept.own.num_rows, kept.own.num_positives, kept.own.threshold) == (3, 2, 0.25)
    assert all(path.stat().st_mode & 0o077 == 0 for path in state.iterdir())


def test_disk_that_fails_at_any_step_leaves_the_earlier_bundle_or_the_new_one(inbox, state, unfinished, monkeypatch):
    deliver(inbox, unfinished.files)
    arrived = inbox.opened(packed(with_parts(unfinished, run_id="run 2")))
    own = Kept.read(state).own.model_copy(update={"bundle": arrived.bundle.bundle_id})
    fsync, num_steps, found = os.fsync, 0, set()
    while "run 2" not in found:
        steps_left = iter(range(num_steps))

        def failing(descriptor, steps_left=steps_left):
            if next(steps_left, None) is None:
                raise OSError("the disk is gone")
            fsync(descriptor)

        with monkeypatch.context() as patched:
            patched.setattr(os, "fsync", failing)
            with contextlib.suppress(OSError):
                inbox.keep(arrived, own)
        found.add(Kept.read(state).bundle.manifest.run_id)
        num_steps += 1
    assert found == {"run 1", "run 2"}


def test_nothing_delivered_yet_is_told_with_what_to_do(state):
    with pytest.raises(MerchantError, match="hansa server deliver"):
        Kept.read(state)


@pytest.mark.parametrize("name", [OWN_NAME, "int8.tflite", MANIFEST_NAME])
def test_kept_bundle_that_was_changed_or_lacks_a_file_is_not_given_out(inbox, state, unfinished, name):
    deliver(inbox, unfinished.files)
    path = state / DELIVERED_NAME
    files = unpack(path.read_bytes(), FILE_NAMES | {OWN_NAME})
    for changed in ({**files, name: files[name][:-1] + b"?"}, {k: v for k, v in files.items() if k != name}):
        path.write_bytes(pack(changed))
        with pytest.raises(BundleError, match="not what was delivered"):
            Kept.read(state)
    path.write_bytes(b"nothing of ours")
    with pytest.raises(BundleError, match="not what was delivered"):
        Kept.read(state)


def test_decision_with_another_bundle_is_not_given_out_with_this_one(inbox, state, unfinished):
    deliver(inbox, unfinished.files)
    path = state / DELIVERED_NAME
    files = unpack(path.read_bytes(), FILE_NAMES | {OWN_NAME})
    own = json.loads(files[OWN_NAME])
    path.write_bytes(pack({**files, OWN_NAME: json.dumps({**own, "bundle": "0" * 64}).encode()}))
    with pytest.raises(BundleError, match="another bundle"):
        Kept.read(state)


# --- the threshold ----------------------------------------------------------------------------------------------------


@pytest.mark.system
def test_threshold_is_the_best_f1_of_the_delivered_models_own_scores(finished, state):
    """By trying every score of the rows as a threshold, with the scores that `hansa score` gives."""
    from hansa_common.scorer import Scorer

    arrived = Inbox(state, finished.parts.agreement).opened(packed(finished.files))
    columns = feature_rows(finished.rows(600, seed=4), finished.parts.agreement.features, "the test").columns
    scores = Scorer(arrived.bundle, finished.hash_key).score(columns)
    labels = (scores + np.random.default_rng(0).normal(0, scores.std(), scores.size) > np.median(scores)).astype(
        np.uint8
    )
    own = arrived.decided(arrived.bundle.preprocessing.transform(columns, finished.hash_key), labels)

    def f1(threshold: float) -> float:
        called = scores >= threshold
        return 2 * (called & (labels == 1)).sum() / (called.sum() + labels.sum())

    assert own.f1 == pytest.approx(max(map(f1, scores)), abs=2e-3)
    assert own.f1 == pytest.approx(f1(own.threshold), abs=1e-9)
    assert (own.num_rows, own.num_positives, own.reason) == (len(labels), labels.sum(), "")


@pytest.mark.system
def test_rows_of_one_class_give_no_threshold_and_are_told(finished, state):
    arrived = Inbox(state, finished.parts.agreement).opened(packed(finished.files))
    columns = feature_rows(finished.rows(20, seed=4), finished.parts.agreement.features, "the test").columns
    inputs = arrived.bundle.preprocessing.transform(columns, finished.hash_key)
    own = arrived.decided(inputs, np.zeros(len(inputs), np.uint8))
    assert own.threshold is None
    assert "one class" in own.reason


@pytest.mark.system
def test_network_that_is_none_gives_no_threshold_says_why_and_is_no_refusal(inbox, unfinished):
    """Whether a network fails can depend on rows; that a bundle was delivered may not."""
    arrived = inbox.opened(packed(unfinished.files))
    rows = Inputs(np.zeros((3, arrived.bundle.spec.num_dense), np.float32), np.zeros((3, 2), np.int32))
    own = arrived.decided(rows, np.array([0, 1, 1], np.uint8))
    assert own.threshold is None
    assert "int8.tflite" in own.reason


@pytest.mark.system
def test_trainer_decides_on_its_validation_rows_and_answers_one_word(finished, state):
    from hansa_client.programs import Programs
    from hansa_client.trainer import MerchantTrainer
    from hansa_client.variates import VariateStore
    from hansa_common.scorer import Scorer

    values = json.loads(finished.parts.agreement.canonical_json())
    agreed = validate_agreement({**values, "compression": {"format": "int8"}, "roster": ["alder", "birch"]}, "the test")
    files = with_parts(finished, agreement=agreed)
    scorer = Scorer(open_bundle(files, finished.trusted), finished.hash_key)
    frame = finished.rows(900, seed=6)
    scores = scorer.score(feature_rows(frame, agreed.features, "the test").columns)
    fraud = scores + np.random.default_rng(1).normal(0, scores.std(), scores.size) > np.quantile(scores, 0.8)
    table = merchant_table(frame.assign(is_fraud=fraud.astype(int).astype(str)), agreed, "alder", "the test")
    trainer = MerchantTrainer(
        agreed, "alder", table, hash_key=finished.hash_key, state=VariateStore(),
        programs=Programs.for_tables(agreed, table), out=state,
    )  # fmt: skip
    order = order_of(agreed.fingerprint).model_copy(update={"bundle": packed(files)})
    reply = decode(trainer.work(order, message_hash(encode(order)), Halt(time.monotonic() + 60)))
    assert reply == Delivered(merchant="alder", order_hash=message_hash(encode(order)))

    kept, rows = Kept.read(state), table.validation
    labels = table.labels[rows]
    scores = scorer.score({name: column[rows] for name, column in table.columns.items()})
    called = scores >= kept.own.threshold
    assert (kept.own.num_rows, kept.own.num_positives) == (len(rows), labels.sum())
    assert kept.own.f1 == pytest.approx(2 * (called & (labels == 1)).sum() / (called.sum() + labels.sum()))
    assert kept.files == files
