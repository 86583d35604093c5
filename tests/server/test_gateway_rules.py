"""A certificate is looked up as the register stands now, and a request is held to the key that belongs to it."""

from __future__ import annotations

import base64
from datetime import UTC, datetime, timedelta

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from flwr.proto.fleet_pb2 import PushMessagesRequest
from flwr.proto.message_pb2 import Message, Metadata
from flwr.proto.node_pb2 import Node

from hansa_common import keys
from hansa_common.fleet_api import RefusedError
from hansa_common.http_heads import RequestHead
from hansa_server.authority import open_authority
from hansa_server.gateway_rules import (
    Certificate,
    LiveRegister,
    check_certificate,
    check_node_key,
    check_pushed_messages,
)
from hansa_server.issued_register import Issued, IssuedCertificate, IssuedKeys, record, revoke

NOW = datetime(2030, 5, 1, 12, 0, tzinfo=UTC)


@pytest.fixture
def state(tmp_path):
    tmp_path.chmod(0o700)
    return tmp_path


@pytest.fixture
def issue(state):
    authority = open_authority(state, NOW)

    def issue(merchant: str) -> Certificate:
        key = ec.generate_private_key(keys.TLS_CURVE()).public_key()
        made = authority.issued_to_merchant(merchant, key, NOW, 30)
        entry = IssuedKeys(
            merchant=merchant,
            identity_key="0" * 64,
            node_key=f"the node key of {merchant}",
            certificates=(IssuedCertificate.of(made),),
        )
        record(state, entry)
        return Certificate(made.serial_number, merchant, made.not_valid_after_utc.timestamp())

    return issue


def reason(call, *arguments) -> str:
    with pytest.raises(RefusedError) as refused:
        call(*arguments)
    return refused.value.reason


def test_what_is_issued_and_revoked_counts_from_then_on(state, issue):
    alpha = issue("alpha")
    register = LiveRegister(state)
    assert check_certificate(alpha, register, NOW.timestamp()).node_key == "the node key of alpha"
    beta = issue("beta")
    assert check_certificate(beta, register, NOW.timestamp()).merchant == "beta"
    assert revoke(state, "alpha", NOW) == 1
    assert reason(check_certificate, alpha, register, NOW.timestamp()) == "certificate-revoked"
    assert check_certificate(beta, register, NOW.timestamp()).merchant == "beta"


def test_certificate_that_ends_while_a_connection_is_open_is_refused(state, issue):
    alpha, register = issue("alpha"), LiveRegister(state)
    end = (NOW + timedelta(days=30)).timestamp()
    check_certificate(alpha, register, end - 1)
    assert reason(check_certificate, alpha, register, end + 1) == "certificate-expired"


def test_certificate_in_another_merchants_name_is_refused(state, issue):
    alpha, register = issue("alpha"), LiveRegister(state)
    forged = Certificate(alpha.serial, "beta", alpha.ends)
    assert reason(check_certificate, forged, register, NOW.timestamp()) == "certificate-unknown"
    assert reason(check_certificate, Certificate(5, "alpha", alpha.ends), register, NOW.timestamp()) == (
        "certificate-unknown"
    )


def test_damaged_register_lets_nobody_in(state, issue):
    alpha = issue("alpha")
    register = LiveRegister(state)
    (state / "revoked.json").write_text("{}")
    assert reason(check_certificate, alpha, register, NOW.timestamp()) == "unreachable"
    (state / "revoked.json").unlink()
    assert check_certificate(alpha, register, NOW.timestamp()).merchant == "alpha"


@pytest.mark.parametrize("given", [None, "", "another", "the node key of alpha"])
def test_request_speaks_with_the_key_of_its_certificate(given):
    holder = Issued("alpha", "the node key of alpha", "0" * 64)
    headers = {} if given is None else {"flwr-public-key": given}
    head = RequestHead("POST", "/v1/fleet/get-run", headers, 0)
    assert reason(check_node_key, head, holder) == "other-node-key"
    encoded = {"flwr-public-key": base64.b64encode(b"the node key of alpha").decode()}
    check_node_key(RequestHead("POST", "/v1/fleet/get-run", encoded, 0), holder)
    check_node_key(RequestHead("GET", "/health", {}, 0), holder)


def pushed(**metadata) -> bytes:
    message = Message(metadata=Metadata(**metadata))
    return PushMessagesRequest(node=Node(node_id=5), messages_list=[message]).SerializeToString()


def test_node_pushes_one_reply_of_its_own():
    reply = pushed(src_node_id=5, reply_to_message_id="a")
    check_pushed_messages(reply)
    for body in (
        pushed(src_node_id=5),
        pushed(src_node_id=6, reply_to_message_id="a"),
        reply + reply,
        PushMessagesRequest(node=Node(node_id=5)).SerializeToString(),
        # The last node named is the one that counts, for SuperLink too.
        reply + PushMessagesRequest(node=Node(node_id=6)).SerializeToString(),
    ):
        assert reason(check_pushed_messages, body) == "not-its-own-message"
    assert reason(check_pushed_messages, b"\xff") == "malformed"
