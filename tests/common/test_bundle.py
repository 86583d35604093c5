"""A bundle is what its signer signed, whole, or it is refused, and nobody's threshold stands in it."""

from __future__ import annotations

import dataclasses
import hashlib
import json

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from hansa_common.bundle import (
    CARD_NAME,
    FLOAT_NAME,
    INT8_NAME,
    MANIFEST_NAME,
    METRICS_NAME,
    SIGNATURE_NAME,
    claimed_signer,
    make_bundle,
    open_bundle,
    verify_bundle,
)
from hansa_common.errors import BundleError, UsageError
from hansa_common.keys import check_public_key, public_key_of
from hansa_common.model import PREPROCESSING_NAME, SPEC_NAME

OTHER_KEY = bytes(32)
CONTEXT = b"hansa bundle manifest 1\0"


def signed(files: dict[str, bytes], manifest: bytes, key: bytes) -> dict[str, bytes]:
    """The files with another manifest, signed anew as make_bundle does, whatever it says."""
    private = Ed25519PrivateKey.from_private_bytes(key)
    lines = f"{public_key_of(key)}\n{private.sign(CONTEXT + manifest).hex()}\n"
    return {**files, MANIFEST_NAME: manifest, SIGNATURE_NAME: lines.encode()}


def with_file(bundle, name: str, content: bytes) -> dict[str, bytes]:
    """The bundle with another file that its manifest lists correctly, signed by the true key."""
    values = json.loads(bundle.files[MANIFEST_NAME])
    values["files"][name] = {"sha256": hashlib.sha256(content).hexdigest(), "size": len(content)}
    return signed({**bundle.files, name: content}, canonical(values), bundle.signing_key)


def canonical(values) -> bytes:
    return json.dumps(values, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()


def refusal(files, trusted: str) -> str:
    with pytest.raises(BundleError) as told:
        open_bundle(files, trusted)
    assert len(str(told.value)) < 1000
    return str(told.value)


# --- what is refused --------------------------------------------------------------------------------------------------


def test_what_was_made_is_verified_and_holds_the_model_it_was_made_of(unfinished):
    bundle = open_bundle(unfinished.files, unfinished.trusted)
    assert set(unfinished.files) == {
        "manifest.json", "manifest.sig", "float.tflite", "int8.tflite", "spec.json", "weights.npz",
        "preprocessing.json", "metrics.json", "card.md",
    }  # fmt: skip
    assert bundle.spec == unfinished.parts.spec
    assert bundle.preprocessing == unfinished.parts.preprocessing
    np.testing.assert_array_equal(bundle.weights, unfinished.parts.weights)
    assert bundle.networks == {INT8_NAME: b"an int8 network", FLOAT_NAME: b"a float network"}
    assert bundle.manifest.agreement_fingerprint == unfinished.parts.agreement.fingerprint
    assert bundle.manifest.sparsity == {"dense kernels": 0.25}
    assert bundle.signer == unfinished.trusted == claimed_signer(unfinished.files)


def test_equal_parts_and_key_give_equal_bytes_and_no_file_holds_the_key(unfinished):
    again = make_bundle(unfinished.parts, unfinished.signing_key)
    assert again == unfinished.files
    for content in again.values():
        assert unfinished.signing_key not in content
        assert unfinished.signing_key.hex().encode() not in content


def test_flipped_bit_in_any_file_is_refused_by_its_name(unfinished):
    random = np.random.default_rng(0)
    for name, content in unfinished.files.items():
        places = {0, len(content) - 1, *random.integers(0, len(content), 20).tolist()}
        for place in places:
            changed = bytearray(content)
            changed[place] ^= 1 << int(random.integers(8))
            told = refusal({**unfinished.files, name: bytes(changed)}, unfinished.trusted)
            assert name in told, (name, place)


def test_shorter_and_longer_file_is_refused_by_its_name(unfinished):
    for name, content in unfinished.files.items():
        for changed in (content[:-1], content + b"\n", b""):
            assert name in refusal({**unfinished.files, name: changed}, unfinished.trusted)


def test_missing_file_is_refused_by_its_name(unfinished):
    for name in unfinished.files:
        rest = {other: content for other, content in unfinished.files.items() if other != name}
        assert f"{name} is missing" in refusal(rest, unfinished.trusted)


@pytest.mark.parametrize("name", ["threshold.json", "../card.md", "manifest.json.bak", ".hidden", "float.tflite "])
def test_additional_file_is_refused_by_its_name(unfinished, name):
    assert f"{name} does not belong here" in refusal({**unfinished.files, name: b""}, unfinished.trusted)


def test_exchanged_files_are_refused(unfinished):
    files = unfinished.files
    exchanged = {**files, FLOAT_NAME: files[INT8_NAME], INT8_NAME: files[FLOAT_NAME]}
    assert "was changed" in refusal(exchanged, unfinished.trusted)


def test_signature_of_another_key_is_refused_with_both_keys(unfinished):
    foreign = make_bundle(unfinished.parts, OTHER_KEY)
    told = refusal(foreign, unfinished.trusted)
    assert public_key_of(OTHER_KEY) in told
    assert unfinished.trusted in told


def test_another_signature_under_the_trusted_name_is_refused(unfinished):
    manifest = unfinished.files[MANIFEST_NAME]
    forged = Ed25519PrivateKey.from_private_bytes(OTHER_KEY).sign(CONTEXT + manifest).hex()
    lines = f"{unfinished.trusted}\n{forged}\n".encode()
    assert "manifest.json" in refusal({**unfinished.files, SIGNATURE_NAME: lines}, unfinished.trusted)


def test_signature_of_the_same_bytes_for_another_purpose_is_refused(unfinished):
    manifest = unfinished.files[MANIFEST_NAME]
    plain = Ed25519PrivateKey.from_private_bytes(unfinished.signing_key).sign(manifest).hex()
    lines = f"{unfinished.trusted}\n{plain}\n".encode()
    assert "manifest.json" in refusal({**unfinished.files, SIGNATURE_NAME: lines}, unfinished.trusted)


def test_signature_of_another_bundle_by_the_same_key_is_refused(unfinished):
    other = make_bundle(dataclasses.replace(unfinished.parts, run_id="run 2"), unfinished.signing_key)
    mixed = {**unfinished.files, SIGNATURE_NAME: other[SIGNATURE_NAME]}
    assert "do not belong together" in refusal(mixed, unfinished.trusted)


def test_unsigned_manifest_is_refused_before_it_is_parsed(unfinished):
    files = {MANIFEST_NAME: b"[" * 100_000, SIGNATURE_NAME: unfinished.files[SIGNATURE_NAME]}
    assert "do not belong together" in refusal(files, unfinished.trusted)


@pytest.mark.parametrize(
    "change",
    [
        {"format": "hansa-bundle-2"},
        {"threshold": 0.5},
        {"agreement_fingerprint": "0"},
        {"sparsity": {"all": 1.5}},
        {"run_id": "\x1b[2J"},
        {"files": {}},
        {"files": []},
    ],
    ids=str,
)
def test_signed_manifest_of_another_schema_is_refused(unfinished, change):
    values = {**json.loads(unfinished.files[MANIFEST_NAME]), **change}
    told = refusal(signed(unfinished.files, canonical(values), unfinished.signing_key), unfinished.trusted)
    assert "manifest.json" in told


def test_signed_manifest_that_is_not_canonical_is_refused(unfinished):
    content = json.dumps(json.loads(unfinished.files[MANIFEST_NAME])).encode()
    told = refusal(signed(unfinished.files, content, unfinished.signing_key), unfinished.trusted)
    assert "not canonical" in told


@pytest.mark.parametrize(
    ("name", "content"),
    [
        (SPEC_NAME, b"{}"),
        (PREPROCESSING_NAME, b"{}"),
        ("weights.npz", b"PK"),
        (METRICS_NAME, b"[]"),
        (METRICS_NAME, b'{"roc_auc": NaN}'),
        (METRICS_NAME, b"[" * 100_000),
        (CARD_NAME, b"\xff"),
    ],
)
def test_signed_file_that_is_not_of_a_model_is_refused(unfinished, name, content):
    refusal(with_file(unfinished, name, content), unfinished.trusted)


def test_signed_preprocessing_of_another_schema_than_the_network_is_refused(unfinished):
    values = json.loads(unfinished.files[PREPROCESSING_NAME])
    values["features"], values["fitted"] = values["features"][1:], values["fitted"][1:]
    told = refusal(with_file(unfinished, PREPROCESSING_NAME, canonical(values)), unfinished.trusted)
    assert "another network" in told


@pytest.mark.parametrize("key", ["", "0" * 63, "0" * 65, "G" * 64, "A" * 64, " " + "0" * 63, "0" * 64 + "\n"])
def test_text_that_is_no_public_key_is_refused_as_one(unfinished, key):
    with pytest.raises(UsageError, match="64 hexadecimal digits"):
        check_public_key(key)
    with pytest.raises(UsageError):
        verify_bundle(unfinished.files, key)


# --- what stands in it ------------------------------------------------------------------------------------------------


def test_no_threshold_and_no_merchant_stands_in_a_bundle(unfinished):
    metrics = open_bundle(unfinished.files, unfinished.trusted).metrics
    assert metrics["federated"] == {"roc_auc": 0.93, "pr_auc": 0.74}
    for content in (unfinished.files[METRICS_NAME], unfinished.files[MANIFEST_NAME], unfinished.files[CARD_NAME]):
        assert b"alder" not in content
        assert b"0.31" not in content


@pytest.mark.parametrize("metrics", [{"threshold": 0.2}, {"federated": [{"best_f1_threshold": 0.2}]}])
def test_signed_metrics_with_a_threshold_are_refused(unfinished, metrics):
    assert "threshold" in refusal(with_file(unfinished, METRICS_NAME, canonical(metrics)), unfinished.trusted)


def test_card_says_data_metric_limits_and_privacy_and_keeps_names_from_being_markup(unfinished):
    card = unfinished.files[CARD_NAME].decode()
    headings = [line for line in card.splitlines() if line.startswith("#")]
    assert headings == [
        "# Model card: Every kind \\| of feature", "## What it is", "## Data", "## Metric", "## Limits", "## Privacy",
    ]  # fmt: skip
    for feature in unfinished.parts.agreement.features:
        assert f"| {feature.name} | {feature.kind} |" in card
    assert "| ROC-AUC | 0.9300 | 0.9290 |" in card
    assert unfinished.parts.agreement.fingerprint in card


def test_bundle_without_an_int8_file_scores_with_the_float_one(unfinished):
    parts = dataclasses.replace(unfinished.parts, int8_tflite=None)
    bundle = open_bundle(make_bundle(parts, OTHER_KEY), public_key_of(OTHER_KEY))
    assert bundle.network_name == FLOAT_NAME
    assert set(bundle.networks) == {FLOAT_NAME}
