"""A signature is what Flower's own nodes verify: by the key that they were told, over these bytes, and no others."""

from __future__ import annotations

import json

import pytest
import yaml
from flwr.supercore.fab import Fab
from flwr.supernode.cli.flower_supernode import _validate_public_keys_ed25519
from flwr.supernode.start_client_internal import _verify_fab

from hansa_common.flower_bundle import bundle_hash, flower_bundle
from hansa_common.keys import public_key_of
from hansa_common.publisher import KEY_ID, signed_by, trusted_entities_yaml

KEY, OTHER_KEY = bytes(range(32)), bytes(range(1, 33))
SIGNED_AT = 1_700_000_000
BUNDLE = flower_bundle()
TRUSTED = yaml.safe_load(trusted_entities_yaml(public_key_of(KEY)))


def is_verified(bundle: bytes, verifications: dict[str, str]) -> bool:
    return _verify_fab(Fab(bundle_hash(bundle), bundle, verifications), TRUSTED)


def altered(verifications: dict[str, str], **values) -> dict[str, str]:
    return {**verifications, KEY_ID: json.dumps({**json.loads(verifications[KEY_ID]), **values})}


def test_flower_takes_the_file_of_trusted_entities():
    _validate_public_keys_ed25519(TRUSTED)
    assert list(TRUSTED) == [KEY_ID]


def test_flower_verifies_what_the_publisher_signed():
    assert is_verified(BUNDLE, signed_by(KEY, BUNDLE, SIGNED_AT))


@pytest.mark.parametrize(
    "verifications",
    [
        pytest.param(signed_by(OTHER_KEY, BUNDLE, SIGNED_AT), id="another's signature"),
        pytest.param(signed_by(KEY, flower_bundle("9.9.9"), SIGNED_AT), id="of another bundle"),
        pytest.param(altered(signed_by(KEY, BUNDLE, SIGNED_AT), signed_at=SIGNED_AT + 1), id="another time"),
        pytest.param({"valid_license": "Valid"}, id="no signature"),
    ],
)
def test_flower_does_not_verify(verifications):
    assert not is_verified(BUNDLE, verifications)
