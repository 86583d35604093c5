"""A coordinator who has provisioned serves through the gateway, to the nodes whose keys it issued and no others; what
keeps it from that is one clear line."""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
import time
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta

import httpx
import pytest
from flwr.proto.fleet_pb2 import RegisterNodeFleetRequest
from flwr.supercore.primitives.asymmetric import generate_key_pairs, public_key_to_bytes
from flwr.supernode.fleet_http_client import FleetHttpClient
from flwr.supernode.node_auth_http_interceptor import NodeAuthHttpInterceptor

from hansa_common import keys
from hansa_common.addresses import Address, parse_address
from hansa_common.certificates import certificate_pem
from hansa_server import flower_private, serving, superlink
from hansa_server.authority import open_authority
from hansa_server.issued_register import IssuedRegister, record

HANSA = [sys.executable, "-c", "from hansa_common.cli import main; main()"]
WAIT_SECONDS = 120.0


@pytest.fixture
def start(enrolled, hansa):
    return lambda *words: hansa("server", "start", "--state", enrolled.state, *words)


@pytest.fixture
def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


@pytest.mark.parametrize(
    ("provisioned", "listens"),
    [
        ("fl.example.com:8443", "0.0.0.0:8443"),
        ("192.0.2.7:9000", "0.0.0.0:9000"),
        ("[2001:db8::1]:8443", "[::]:8443"),
        ("127.0.0.1:8443", "127.0.0.1:8443"),
        ("localhost:8443", "localhost:8443"),
    ],
)
def test_gateway_listens_where_merchants_were_told_to_come(enrolled, provisioned, listens):
    (enrolled.state / "address").write_text(f"{provisioned}\n")
    assert serving._listening_address(enrolled.state) == parse_address(listens)


def test_port_in_use_is_one_clear_line_and_nothing_is_started(start, enrolled, refused):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        refused(
            start("--address", address), f"{address} cannot be used (Address already in use); give another --address"
        )
    assert not (enrolled.state / superlink.DATABASE_NAME).exists()


def test_address_of_another_machine_is_one_clear_line(start, refused):
    refused(start("--address", "192.0.2.7:8443"), "192.0.2.7:8443 cannot be used", "give another --address")


def test_certificate_that_has_expired_is_one_clear_line(start, enrolled, refused):
    begins = datetime.now(UTC) - timedelta(days=3)
    key = keys.read_tls_key(enrolled.state / "server.key", "the key").public_key()
    certificate = open_authority(enrolled.state, datetime.now(UTC)).issued_to_server("fl.example.com", key, begins, 1)
    (enrolled.state / "server.crt").write_bytes(certificate_pem(certificate))
    refused(start(), "server.crt expired at", "renew it, or set the clock", exit_code=1)


def test_training_takes_the_agreement_that_names_this_coordinators_key_and_no_other(enrolled, hansa, refused):
    words = ("--out", enrolled.folder / "run", "--state", enrolled.state)
    refused(hansa("server", "train", enrolled.folder / "agreement.toml", *words), "has no [trust]", "hansa provision")
    text = (enrolled.kits / "agreement.toml").read_text()
    other = enrolled.folder / "other.toml"
    other.write_text(text.replace(enrolled.agreed.trust.coordinator, "ab" * 32))
    refused(hansa("server", "train", other, *words), "signing.key is the key", "the agreement trusts abab")
    assert not (enrolled.folder / "run").exists()
    # The right one is stopped by nothing but that no server runs.
    told = hansa("server", "train", enrolled.kits / "agreement.toml", *words)
    assert "start one with `hansa server start`" in told.stderr


@contextmanager
def running(enrolled, port: int):
    """`hansa server start` in a process of its own, and the line that says where what listens."""
    words = [*HANSA, "server", "start", "--state", str(enrolled.state), "--address", f"127.0.0.1:{port}"]
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        try:
            yield process.stdout.readline()
        finally:
            process.send_signal(signal.SIGTERM)
            process.stdout.read()


def known_keys(enrolled) -> set[str]:
    database = flower_private.open_database(enrolled.state / superlink.DATABASE_NAME)
    return {node.public_key.decode() for node in flower_private.nodes(database)}


@pytest.mark.system
def test_superlink_knows_the_keys_that_were_issued_those_issued_meanwhile_and_no_node_that_registers_itself(
    enrolled, free_port
):
    issued = IssuedRegister.read(enrolled.state).merchants
    with running(enrolled, free_port) as line:
        assert f"server: gateway on 127.0.0.1:{free_port}, SuperLink on 127.0.0.1:" in line
        assert known_keys(enrolled) == {entry.node_key for entry in issued.values()}

        late = issued["alder"].model_copy(
            update={"merchant": "cedar", "node_key": keys.public_pem(generate_key_pairs()[1])}
        )
        record(enrolled.state, late)
        deadline = time.monotonic() + WAIT_SECONDS
        while late.node_key not in known_keys(enrolled):
            assert time.monotonic() < deadline

        own = Address(*line.partition("SuperLink on ")[2].partition(";")[0].split(":"))
        private, public = generate_key_pairs()
        fleet = FleetHttpClient.from_server_address(
            str(own), True, None, interceptors=[NodeAuthHttpInterceptor(private, public)]
        )
        with fleet, pytest.raises(httpx.HTTPStatusError) as refused:
            fleet.RegisterNode(RegisterNodeFleetRequest(public_key=public_key_to_bytes(public)))
        assert refused.value.response.status_code in range(400, 500)
        assert public_key_to_bytes(public).decode() not in known_keys(enrolled)
