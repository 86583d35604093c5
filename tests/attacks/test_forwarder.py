"""A merchant's forwarder speaks to its federation's gateway and no other, and for its own user and no other."""

from __future__ import annotations

import http.client
import json
import os
import re
import select
import signal
import socket
import ssl
import subprocess
import sys
import threading
import time
from contextlib import ExitStack, closing, contextmanager, suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from flwr.proto.fleet_pb2 import PullMessagesRequest
from flwr.proto.node_pb2 import Node

from hansa_client import forwarder
from hansa_common import keys
from hansa_common.addresses import Address
from hansa_common.certificates import certificate_pem
from hansa_common.fleet_api import PUSH_OBJECT
from hansa_server.authority import open_authority
from hansa_server.issued_register import revoke

pytestmark = pytest.mark.system

PULL = "/v1/fleet/pull-messages"
NOBODY = 65534
LISTENER_AND_ONE = 2


def told(gateway: Address, state: Path) -> str:
    """The one line with which a forwarder ends that cannot begin."""
    process = subprocess.Popen(
        forwarder.command(gateway, state, 1), stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    # Its standard input stays open: that it closes would be the end of its parent.
    with process:
        code, said = process.wait(60), process.stderr.read().decode()
        assert code in {1, 2}, said
    (line,) = said.splitlines()
    assert line.startswith("hansa: ")
    return line


@contextmanager
def impostor(certificate: Path, key: Path):
    """A server that answers everyone, with this certificate."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    heard: list[bytes] = []

    def serve(listener: socket.socket) -> None:
        while True:
            try:
                raw, _ = listener.accept()
            except OSError:
                return
            with raw, suppress(OSError), context.wrap_socket(raw, server_side=True) as connection:
                heard.append(connection.recv(65536))

    with socket.create_server(("127.0.0.1", 0)) as listener:
        threading.Thread(target=serve, args=(listener,), daemon=True).start()
        yield Address(*listener.getsockname()), heard
        listener.shutdown(socket.SHUT_RDWR)


@pytest.fixture
def issued_to_server(federation, tmp_path):
    """A certificate of the federation's own authority for a server, as the test wants it."""

    def issue(host: str, begins: datetime, days: int) -> tuple[Path, Path]:
        key = keys.make_tls_key(tmp_path / "server.key")
        authority = open_authority(federation.coordinator.state, datetime.now(UTC))
        certificate = authority.issued_to_server(host, key.public_key(), begins, days)
        (tmp_path / "server.crt").write_bytes(certificate_pem(certificate))
        return tmp_path / "server.crt", tmp_path / "server.key"

    return issue


def test_gateway_of_another_authority_is_not_spoken_to(federation, tmp_path):
    other = type(federation.coordinator).at(tmp_path / "other").state
    with impostor(other / "server.crt", other / "server.key") as (address, heard):
        assert "is not of the authority in ca.crt, so this is not the federation's gateway" in told(
            address, federation.alpha.state
        )
    assert heard == []


def test_other_merchant_is_not_taken_for_the_gateway(federation):
    with impostor(*federation.beta.identity) as (address, heard):
        assert "its certificate is not good" in told(address, federation.alpha.state)
    assert heard == []


def test_gateway_of_another_name_or_time_is_not_spoken_to(federation, issued_to_server, tmp_path):
    now = datetime.now(UTC)
    clock = r"this machine's clock says \d{4}-\d\d-\d\d \d\d:\d\d UTC"
    for host, begins, words in (
        ("gateway.example", now, "is not for 127.0.0.1; give the address that the coordinator named"),
        ("127.0.0.1", now + timedelta(days=3), f"is not valid yet, and {clock}; set the clock"),
        ("127.0.0.1", now - timedelta(days=3), f"has expired, and {clock}; set the clock, or tell the coordinator"),
    ):
        (tmp_path / "server.key").unlink(missing_ok=True)
        with impostor(*issued_to_server(host, begins, 1)) as (address, heard):
            assert re.search(words, told(address, federation.alpha.state))
        assert heard == []


def test_port_that_speaks_no_tls_is_told(federation):
    def answer(listener: socket.socket) -> None:
        connection, _ = listener.accept()
        with connection:
            connection.sendall(b"HTTP/1.1 400 \r\n\r\n")

    with socket.create_server(("127.0.0.1", 0)) as listener:
        threading.Thread(target=answer, args=(listener,), daemon=True).start()
        assert "is this the gateway's port?" in told(Address(*listener.getsockname()), federation.alpha.state)


def test_unreachable_gateway_is_told(federation):
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        address = Address(*unused.getsockname())
        assert "nothing listens there; has the coordinator started?" in told(address, federation.alpha.state)
    nowhere = told(Address("no-such-host.invalid", 8443), federation.alpha.state)
    assert "no machine is known by this name" in nowhere


def test_own_certificate_that_does_not_hold_is_told_before_anything_is_sent(federation, tmp_path):
    now = datetime.now(UTC)
    late = federation.coordinator.enrol("too late", tmp_path / "late", now - timedelta(days=3), days=1)
    early = federation.coordinator.enrol("too early", tmp_path / "early", now + timedelta(days=3), days=1)
    assert re.search(
        r"tls.crt expired at .* and this machine's clock says .*; renew it", told(federation.gateway, late.state)
    )
    assert re.search(r"tls.crt is valid from .* set the clock", told(federation.gateway, early.state))
    (late.state / "tls.crt").unlink()
    assert "hansa client enroll" in told(federation.gateway, late.state)


def test_revoked_and_foreign_certificates_are_told(federation, tmp_path):
    gone = federation.coordinator.enrol("gone", tmp_path / "gone")
    revoke(federation.coordinator.state, "gone", datetime.now(UTC))
    assert "this merchant's certificate was revoked; ask the coordinator" in told(federation.gateway, gone.state)
    foreign = type(federation.coordinator).at(tmp_path / "other").enrol("alpha", tmp_path / "foreign")
    (foreign.state / "ca.crt").write_bytes(federation.ca.read_bytes())
    assert "it refuses tls.crt" in told(federation.gateway, foreign.state)


def answers(party, address: Address, requests: list[tuple[str, bytes | None]]) -> list[tuple[int, bytes]]:
    """What a node of this party's gets from a forwarder, in plain HTTP on one connection; no body is a good one."""
    own = PullMessagesRequest(node=Node(node_id=party.node_id)).SerializeToString()
    said = {"content-type": "application/protobuf", "accept": "application/protobuf"}
    got = []
    with closing(http.client.HTTPConnection(address.host, address.port, timeout=60)) as connection:
        for target, body in requests:
            connection.request("POST", target, own if body is None else body, {**said, **party.signed()})
            answer = connection.getresponse()
            got.append((answer.status, answer.read()))
    return got


def pulls(party, address: Address) -> int:
    """The status of one good request."""
    return answers(party, address, [(PULL, None)])[0][0]


def num_sockets(pid: int) -> int:
    number = 0
    for link in Path(f"/proc/{pid}/fd").iterdir():
        # It may be closed meanwhile.
        with suppress(FileNotFoundError):
            number += link.readlink().name.startswith("socket:")
    return number


@pytest.fixture
def alphas(federation, running_forwarder):
    """Alpha's forwarder: its process, its address, its log."""
    log = federation.alpha.state / forwarder.LOG_NAME
    log.unlink(missing_ok=True)
    with running_forwarder(federation.gateway, federation.alpha.state) as (child, address):
        yield child, address, log


def test_node_is_served_over_one_connection_that_is_kept(federation, alphas):
    child, address, log = alphas
    for _ in range(5):
        assert answers(federation.alpha, address, [(PULL, None)] * 10) == [(200, b"")] * 10
    assert log.read_text() == ""
    # Of connections that were given back, one serves all; a thread may still be closing the node's.
    pause, until = threading.Event(), time.monotonic() + 20
    while num_sockets(child.process.pid) > LISTENER_AND_ONE:
        assert time.monotonic() < until
        pause.wait(0.05)


def test_forwarder_passes_no_control_request_of_a_local_process(federation, alphas):
    _, address, _ = alphas
    for target in ("/v1/control/start-run", "/v1/fleet/../control/start-run", "//v1/control/start-run"):
        assert answers(federation.alpha, address, [(target, b"")])[0][0] == 403
    assert pulls(federation.alpha, address) == 200


def healthy_for(uid: int, address: Address) -> bool:
    """Whether a process of this user gets an answer."""
    program = """if True:
        import os, socket, sys
        os.setuid(int(sys.argv[1]))
        # Not create_connection, which imports what another user may not be able to read.
        with socket.socket() as connection:
            connection.connect((sys.argv[2], int(sys.argv[3])))
            connection.sendall(b"GET /health HTTP/1.1\\r\\nHost: a\\r\\n\\r\\n")
            sys.stdout.buffer.write(connection.recv(1000))
    """
    words = [sys.executable, "-c", program, str(uid), address.host, str(address.port)]
    answer = subprocess.run(words, capture_output=True, timeout=60, check=False)
    assert answer.stderr == b"" or b"ConnectionResetError" in answer.stderr
    return answer.stdout.startswith(b"HTTP/1.1 200")


@pytest.mark.skipif(os.getuid() != 0, reason="only root can be another user")
def test_other_user_of_the_machine_gets_no_answer_from_the_forwarder(alphas):
    _, address, log = alphas
    assert healthy_for(0, address)
    assert not healthy_for(NOBODY, address)
    assert f"user {NOBODY} of this machine connected; only user 0 is served" in log.read_text()


@pytest.mark.skipif(os.getuid() != 0, reason="only root can be another user")
def test_node_that_runs_as_a_user_of_its_own_is_served_and_others_are_not(federation, running_forwarder):
    with running_forwarder(federation.gateway, federation.alpha.state, node_uid=NOBODY) as (_, address):
        assert healthy_for(NOBODY, address)
        assert not healthy_for(0, address)


def test_long_message_goes_through_the_forwarder_in_pieces(federation, alphas, peak_memory):
    child, address, _ = alphas
    peak = peak_memory(child.process.pid)
    size = 96 << 20
    ((status, _),) = answers(federation.alpha, address, [(PUSH_OBJECT, b"\x00" * size)])
    assert status in range(400, 500)
    assert peak.growth_bytes < size / 4


def test_gateway_that_goes_and_comes_back_is_told_once_each(federation, running_gateway, running_forwarder):
    log = federation.alpha.state / forwarder.LOG_NAME
    log.unlink(missing_ok=True)
    listen = federation.free_address()
    with ExitStack() as stack:
        with running_gateway(federation, listen=listen, log="gone.log") as (_, address):
            _, here = stack.enter_context(running_forwarder(address, federation.alpha.state))
            assert pulls(federation.alpha, here) == 200
        assert [pulls(federation.alpha, here) for _ in range(4)] == [503] * 4
        with running_gateway(federation, listen=listen, log="back.log"):
            assert pulls(federation.alpha, here) == 200
    lines = log.read_text().splitlines()
    assert len(lines) <= 3
    assert "nothing listens there" in lines[-2]
    assert "the gateway serves again" in lines[-1]


def test_wrong_node_key_is_told_at_the_merchant(federation, alphas):
    _, address, log = alphas
    stranger = type(federation.alpha)(
        "alpha", federation.alpha.state, federation.beta.node_key, federation.beta.node_id
    )
    assert answers(stranger, address, [(PULL, None)]) == [(401, b"other-node-key\n")]
    assert "the node's key is not the one that was issued with the certificate" in log.read_text()


@pytest.mark.parametrize("side", ["gateway", "forwarder"])
def test_both_end_with_their_parent(federation, side, tmp_path):
    program = (
        "import json, subprocess, sys, time; "
        "child = subprocess.Popen(json.loads(sys.argv[1]), stdin=subprocess.PIPE, pass_fds=(int(sys.argv[2]),)); "
        "print(child.pid, flush=True); time.sleep(600)"
    )
    told_end, ready = os.pipe()
    words = (
        forwarder.command(federation.gateway, federation.alpha.state, ready)
        if side == "forwarder"
        else federation.gateway_command(federation.free_address(), ready)
    )
    parent = subprocess.Popen(
        [sys.executable, "-c", program, json.dumps(words), str(ready)], stdout=subprocess.PIPE, pass_fds=(ready,)
    )
    os.close(ready)
    try:
        pid = int(parent.stdout.readline())
        assert os.read(told_end, 100).startswith(b"127.0.0.1:")
        descriptor = os.pidfd_open(pid)
        parent.send_signal(signal.SIGKILL)
        readable, _, _ = select.select([descriptor], [], [], 30)
        assert readable
        os.close(descriptor)
    finally:
        parent.kill()
        parent.wait()
        parent.stdout.close()
        os.close(told_end)
