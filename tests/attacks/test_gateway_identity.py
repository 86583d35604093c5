"""Who gets through the gateway: a merchant with its own certificate and its own node key, and nobody else."""

from __future__ import annotations

import ssl
from datetime import UTC, datetime, timedelta

import httpx
import pytest
from flwr.proto.control_pb2 import ListNodesRequest, RegisterNodeRequest, StartRunRequest
from flwr.proto.fleet_pb2 import (
    ActivateNodeRequest,
    PullMessagesRequest,
    PushMessagesRequest,
    RegisterNodeFleetRequest,
)
from flwr.proto.heartbeat_pb2 import SendNodeHeartbeatRequest
from flwr.proto.message_pb2 import Message, Metadata
from flwr.proto.node_pb2 import Node
from flwr.supercore.control import ControlHttpClient
from flwr.supercore.primitives.asymmetric import generate_key_pairs, public_key_to_bytes
from flwr.supernode.fleet_http_client import FleetHttpClient
from flwr.supernode.node_auth_http_interceptor import NodeAuthHttpInterceptor

from hansa_common import keys
from hansa_common.certificates import certificate_pem
from hansa_server.authority import open_authority
from hansa_server.gateway_sightings import read_two_places
from hansa_server.issued_register import revoke

pytestmark = pytest.mark.system

PULL = "/v1/fleet/pull-messages"
PUSH = "/v1/fleet/push-messages"
CONTROL = {
    "register a node": ("/v1/control/register-node", "RegisterNode", RegisterNodeRequest),
    "list nodes": ("/v1/control/list-nodes", "ListNodes", ListNodesRequest),
    "start a run": ("/v1/control/start-run", "StartRun", StartRunRequest),
}


def pull(node_id: int) -> bytes:
    return PullMessagesRequest(node=Node(node_id=node_id)).SerializeToString()


def wanted(attack: str, federation):
    kind = CONTROL[attack][2]
    return kind(public_key=federation.alpha.public_pem) if kind is RegisterNodeRequest else kind()


def control_answers(federation, attack: str) -> bool:
    """Whether SuperLink, asked on loopback, does what the attacker wants; so the gateway is what holds it back."""
    with federation.control() as control:
        try:
            getattr(control, CONTROL[attack][1])(wanted(attack, federation))
        except httpx.HTTPStatusError as error:
            # It came as far as SuperLink's own judgement of the request.
            return error.response.status_code not in {401, 403, 404}
    return True


@pytest.mark.parametrize("attack", CONTROL)
def test_holder_of_only_the_ca_certificate_reaches_no_control(federation, attack):
    assert control_answers(federation, attack)
    ca = federation.ca.read_bytes()
    control = ControlHttpClient.from_server_address(str(federation.gateway), False, ca, [])
    with control, pytest.raises(httpx.TransportError):
        getattr(control, CONTROL[attack][1])(wanted(attack, federation))
    with pytest.raises(ssl.SSLError, match="CERTIFICATE_REQUIRED"):
        federation.attacker(None).asks(CONTROL[attack][0], wanted(attack, federation).SerializeToString())


def test_holder_of_only_the_ca_certificate_registers_no_node_of_its_own(federation):
    private_key, public_key = generate_key_pairs()
    signing = NodeAuthHttpInterceptor(private_key, public_key)
    ca = federation.ca.read_bytes()
    fleet = FleetHttpClient.from_server_address(str(federation.gateway), False, ca, [signing])
    with fleet, pytest.raises(httpx.TransportError):
        fleet.RegisterNode(RegisterNodeFleetRequest(public_key=public_key_to_bytes(public_key)))


@pytest.mark.parametrize("attack", CONTROL)
def test_merchant_with_a_good_certificate_reaches_no_control(federation, attack):
    body = wanted(attack, federation).SerializeToString()
    answer = federation.attacker(federation.beta).asks(CONTROL[attack][0], body, federation.beta.signed())
    assert (answer.status, answer.headers["hansa-refusal"]) == (403, "not-a-node-request")


def test_merchant_registers_no_second_node(federation):
    private_key, public_key = generate_key_pairs()
    body = RegisterNodeFleetRequest(public_key=public_key_to_bytes(public_key)).SerializeToString()
    other = type(federation.beta)("other", federation.beta.state, private_key)
    for target in ("/v1/fleet/register-node", "/v1/fleet/unregister-node"):
        assert federation.attacker(federation.beta).asks(target, body, other.signed()).status == 403


def test_merchant_speaks_with_its_own_node_key(federation):
    alpha = federation.alpha
    node = Node(node_id=alpha.node_id)
    for target, message in (
        ("/v1/fleet/activate-node", ActivateNodeRequest(public_key=alpha.public_pem, heartbeat_interval=30)),
        ("/v1/fleet/send-node-heartbeat", SendNodeHeartbeatRequest(node=node, heartbeat_interval=30)),
        (PULL, PullMessagesRequest(node=node)),
    ):
        answer = federation.attacker(alpha).asks(target, message.SerializeToString(), alpha.signed())
        assert (answer.status, answer.num_responses) == (200, 1), answer
    assert federation.attacker(alpha).asks("/health", method="GET").status == 200


def test_betas_certificate_with_alphas_stolen_node_key_pulls_nothing(federation):
    body, signed = pull(federation.alpha.node_id), federation.alpha.signed()
    # The key is good: with alpha's own certificate it is let through.
    assert federation.attacker(federation.alpha).asks(PULL, body, signed).status == 200
    answer = federation.attacker(federation.beta).asks(PULL, body, signed)
    assert (answer.status, answer.headers["hansa-refusal"]) == (401, "other-node-key")
    assert "beta: refused (other-node-key)" in federation.log()


def test_betas_certificate_and_key_with_alphas_node_id_pull_nothing(federation):
    answer = federation.attacker(federation.beta).asks(PULL, pull(federation.alpha.node_id), federation.beta.signed())
    assert answer.status == 401
    assert b"Invalid SuperNode authentication" in answer.body


def test_betas_certificate_activates_no_node_of_alphas(federation):
    body = ActivateNodeRequest(public_key=federation.alpha.public_pem, heartbeat_interval=30).SerializeToString()
    answer = federation.attacker(federation.beta).asks("/v1/fleet/activate-node", body, federation.beta.signed())
    assert answer.status == 401


def test_request_without_a_node_key_or_with_a_forged_signature_is_refused(federation):
    beta, body = federation.beta, pull(federation.beta.node_id)
    attacker = federation.attacker(beta)
    assert attacker.asks(PULL, body).headers["hansa-refusal"] == "other-node-key"
    for forged in (
        beta.signed(**{"flwr-signature": federation.alpha.signed()["flwr-signature"]}),
        beta.signed(**{"flwr-timestamp": (datetime.now(UTC) - timedelta(hours=1)).isoformat()}),
    ):
        assert attacker.asks(PULL, body, forged).status == 401


def pushed(node_id: int, **metadata) -> bytes:
    message = Message(metadata=Metadata(run_id=1, message_type="train", ttl=60.0, **metadata))
    return PushMessagesRequest(node=Node(node_id=node_id), messages_list=[message]).SerializeToString()


def test_beta_sends_no_order_to_alpha_in_the_coordinators_name(federation):
    """SuperLink 1.41 stores a pushed message that answers none as an order for whatever node it names."""
    beta = federation.beta
    for source in (1, beta.node_id):
        body = pushed(beta.node_id, src_node_id=source, dst_node_id=federation.alpha.node_id)
        answer = federation.attacker(beta).asks(PUSH, body, beta.signed())
        assert (answer.status, answer.headers["hansa-refusal"]) == (403, "not-its-own-message")


def test_beta_answers_nothing_in_alphas_name(federation):
    """SuperLink 1.41 takes a reply from any node, if it names the node that was asked."""
    beta = federation.beta
    body = pushed(beta.node_id, src_node_id=federation.alpha.node_id, dst_node_id=1, reply_to_message_id="a" * 64)
    answer = federation.attacker(beta).asks(PUSH, body, beta.signed())
    assert (answer.status, answer.headers["hansa-refusal"]) == (403, "not-its-own-message")


def test_beta_hides_no_second_message_behind_its_own(federation):
    beta = federation.beta
    own = pushed(beta.node_id, src_node_id=beta.node_id, dst_node_id=1, reply_to_message_id="a" * 64)
    other = pushed(beta.node_id, src_node_id=federation.alpha.node_id, dst_node_id=1, reply_to_message_id="b" * 64)
    for body in (own + other, other + own, b""):
        answer = federation.attacker(beta).asks(PUSH, body, beta.signed())
        assert (answer.status, answer.headers["hansa-refusal"]) == (403, "not-its-own-message")
    assert federation.attacker(beta).asks(PUSH, own, beta.signed()).headers.get("hansa-refusal") is None


def test_revoked_certificate_is_refused_at_once_even_on_an_open_connection(federation, tmp_path):
    gamma = federation.coordinator.enrol("gamma", tmp_path / "gamma")
    ask = b"GET /health HTTP/1.1\r\nHost: a\r\n\r\n"
    with federation.attacker(gamma).connected() as connection:
        connection.sendall(ask)
        assert connection.recv(1000).startswith(b"HTTP/1.1 200")
        assert revoke(federation.coordinator.state, "gamma", datetime.now(UTC)) == 1
        connection.sendall(ask)
        assert b"hansa-refusal: certificate-revoked" in connection.recv(1000)
    assert federation.attacker(gamma).asks("/health", method="GET").headers["hansa-refusal"] == "certificate-revoked"


def test_expired_and_future_certificates_are_refused(federation, tmp_path):
    now = datetime.now(UTC)
    for name, begins, words in (
        ("late", now - timedelta(days=3), "CERTIFICATE_EXPIRED"),
        ("early", now + timedelta(days=3), "BAD_CERTIFICATE"),
    ):
        party = federation.coordinator.enrol(name, tmp_path / name, begins, days=1)
        with pytest.raises(ssl.SSLError, match=words):
            federation.attacker(party).asks("/health", method="GET")


def test_certificate_of_another_federations_authority_is_refused(federation, tmp_path):
    other = type(federation.coordinator).at(tmp_path / "other").enrol("alpha", tmp_path / "alpha")
    with pytest.raises(ssl.SSLError, match="UNKNOWN_CA"):
        federation.attacker(other).asks("/health", method="GET")


def test_certificate_that_stands_in_no_register_is_refused(federation, tmp_path):
    """As one that was issued by whoever stole the authority's key would be."""
    key = keys.make_tls_key(tmp_path / "tls.key")
    authority = open_authority(federation.coordinator.state, datetime.now(UTC))
    certificate = authority.issued_to_merchant("alpha", key.public_key(), datetime.now(UTC), 30)
    (tmp_path / "tls.crt").write_bytes(certificate_pem(certificate))
    forged = type(federation.alpha)("alpha", tmp_path, federation.alpha.node_key)
    answer = federation.attacker(forged).asks(PULL, pull(federation.alpha.node_id), forged.signed())
    assert (answer.status, answer.headers["hansa-refusal"]) == (401, "certificate-unknown")


@pytest.mark.parametrize("name", ["server", "ca"])
def test_certificates_of_server_and_authority_open_nothing_as_a_merchants(federation, name):
    state = federation.coordinator.state
    attacker = federation.attacker(None)
    attacker.context.load_cert_chain(state / f"{name}.crt", state / f"{name}.key")
    with pytest.raises(ssl.SSLError, match=r"UNSUPPORTED_CERTIFICATE|UNKNOWN_CA|BAD_CERTIFICATE"):
        attacker.asks("/health", method="GET")


def test_older_tls_is_refused(federation):
    attacker = federation.attacker(federation.alpha)
    attacker.context.maximum_version = ssl.TLSVersion.TLSv1_2
    with pytest.raises(ssl.SSLError, match="PROTOCOL_VERSION"):
        attacker.asks("/health", method="GET")


def test_log_names_the_merchant_and_holds_no_key_or_body(federation):
    log = federation.log()
    for secret in (federation.alpha.signed()["flwr-public-key"], "BEGIN", "control", "start-run"):
        assert secret not in log


def test_copied_certificate_with_its_key_gets_in_and_is_noticed(federation):
    attacker = federation.attacker(federation.alpha)
    request = attacker.request("/health", method="GET")
    answers = [attacker.says(request, source=source) for source in ("127.0.0.1", "127.0.0.2", "127.0.0.1")]
    assert [answer.status for answer in answers] == [200, 200, 200]
    assert "alpha: certificate in use in two places" in federation.log()
    assert set(read_two_places(federation.coordinator.state)) == {"alpha"}
