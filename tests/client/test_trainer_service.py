"""The resident trainer's door: who may knock, what passes, and that no caller waits for ever."""

from __future__ import annotations

import stat
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import numpy as np
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from hansa_client import trainer_link, trainer_pb2, trainer_service
from hansa_client.trainer_link import (
    ACCESS_NAME,
    PIECE_BYTES,
    SERVICE,
    SOCKET_NAME,
    TOKEN_METADATA,
    Access,
    RemoteTrainer,
    answer_seconds,
    new_access,
)
from hansa_client.trainer_service import TrainerServer, check_socket_folder
from hansa_common.errors import TransportError, UsageError
from hansa_common.messages import EvaluateOrder, IntroduceOrder, Refusal, encode, message_hash
from hansa_common.sealing import seal


class Mirror:
    """A trainer whose reply is the order."""

    def answer(self, order: bytes, has_gone) -> bytes:  # noqa: ARG002 - what is asked of a trainer
        return order


class Hung:
    """A trainer that answers when it is let go."""

    def __init__(self) -> None:
        self.started = threading.Event()
        self.let_go = threading.Event()

    def answer(self, order: bytes, has_gone) -> bytes:  # noqa: ARG002 - what is asked of a trainer
        self.started.set()
        assert self.let_go.wait(60)
        return order


class Patient:
    """A trainer that works until nobody waits for it."""

    def __init__(self) -> None:
        self.started = threading.Event()
        self.noticed = threading.Event()

    def answer(self, order: bytes, has_gone) -> bytes:
        self.started.set()
        while not has_gone():
            assert not self.noticed.wait(0.01)
        self.noticed.set()
        return order


def introduction(deadline_seconds: float = 60.0) -> bytes:
    return encode(IntroduceOrder(run_id="run", recipient="*", fingerprint="0" * 64, deadline_seconds=deadline_seconds))


@pytest.fixture
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("s")
    folder.chmod(0o700)
    return folder


def remote(folder: Path, access: Access | None = None) -> RemoteTrainer:
    return RemoteTrainer(folder / SOCKET_NAME, access or Access.read(folder))


def test_order_and_reply_pass_unchanged(folder):
    with TrainerServer(Mirror(), "alpha", folder):
        assert remote(folder).answer(introduction()) == introduction()


def test_message_far_above_grpc_default_limit_passes(folder):
    order = encode(
        EvaluateOrder(
            run_id="run",
            sequence=1,
            recipient="alpha",
            fingerprint="0" * 64,
            deadline_seconds=60,
            split="test",
            preprocessing="",
            weights=np.zeros(8 * 2**20, np.float32),
        )
    )
    with TrainerServer(Mirror(), "alpha", folder):
        assert message_hash(remote(folder).answer(order)) == message_hash(order)


@pytest.mark.parametrize("token", ["", "0" * 64, "wrong"])
def test_caller_without_the_token_is_turned_away(folder, token):
    with TrainerServer(Mirror(), "alpha", folder), pytest.raises(TransportError, match="UNAUTHENTICATED"):
        remote(folder, Access("alpha", token)).answer(introduction())


def test_of_an_order_without_the_token_nothing_is_read(folder):
    given = []

    def pieces():
        for number in range(512):
            given.append(number)
            yield trainer_pb2.OrderPiece(encoded=bytes(PIECE_BYTES))

    with TrainerServer(Mirror(), "alpha", folder), grpc.insecure_channel(f"unix:{folder / SOCKET_NAME}") as channel:
        ask = channel.stream_unary(f"/{SERVICE}/Answer", trainer_pb2.OrderPiece.SerializeToString)
        with pytest.raises(grpc.RpcError) as refused:
            ask(pieces(), metadata=((TOKEN_METADATA, "wrong"),), timeout=30)
    assert refused.value.code() is grpc.StatusCode.UNAUTHENTICATED
    # What lies in the socket and in gRPC's windows.
    assert len(given) < 32


def test_long_question_about_its_health_is_refused_unread(folder):
    with TrainerServer(Mirror(), "alpha", folder), pytest.raises(grpc.RpcError) as refused:
        health_of(folder, "x" * 2 * PIECE_BYTES)
    assert refused.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED


def test_order_longer_than_any_message_is_refused(folder, monkeypatch):
    monkeypatch.setattr(trainer_service, "MAX_ORDER_BYTES", 3 * PIECE_BYTES)
    with TrainerServer(Mirror(), "alpha", folder):
        assert len(remote(folder).answer(bytes(3 * PIECE_BYTES))) == 3 * PIECE_BYTES
        with pytest.raises(TransportError, match="RESOURCE_EXHAUSTED"):
            remote(folder).answer(bytes(3 * PIECE_BYTES + 1))


def test_tokens_are_fresh_and_the_files_private(folder):
    with TrainerServer(Mirror(), "alpha", folder):
        assert stat.S_IMODE((folder / ACCESS_NAME).stat().st_mode) == 0o600
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
        assert Access.read(folder).merchant == "alpha"
    assert new_access("alpha").token != new_access("alpha").token
    assert len(bytes.fromhex(new_access("alpha").token)) == 32


@pytest.mark.parametrize("mode", [0o750, 0o701, 0o770])
def test_folder_that_others_can_open_is_refused(folder, mode):
    folder.chmod(mode)
    with pytest.raises(UsageError, match="chmod 700"):
        TrainerServer(Mirror(), "alpha", folder)


def test_folder_too_long_for_a_socket_is_refused_with_a_way_out(tmp_path):
    folder = tmp_path / ("x" * 100)
    folder.mkdir(mode=0o700)
    with pytest.raises(UsageError, match="TMPDIR"):
        check_socket_folder(folder)


def test_hung_trainer_releases_its_caller_after_deadline_and_grace(folder, monkeypatch):
    monkeypatch.setattr(trainer_link, "GRACE_SECONDS", 0.2)
    hung = Hung()
    with TrainerServer(hung, "alpha", folder):
        with pytest.raises(TransportError, match="DEADLINE_EXCEEDED"):
            remote(folder).answer(introduction(deadline_seconds=0.2))
        hung.let_go.set()


def test_trainer_notices_that_its_caller_has_hung_up(folder):
    patient = Patient()
    with TrainerServer(patient, "alpha", folder):
        caller = remote(folder)

        def ask() -> None:
            with pytest.raises(TransportError):
                caller.answer(introduction())

        asking = threading.Thread(target=ask)
        asking.start()
        assert patient.started.wait(30)
        caller.close()
        assert patient.noticed.wait(30)
        asking.join(30)


def test_trainer_notices_that_its_callers_process_was_killed(folder):
    patient = Patient()
    program = (
        "import sys; from pathlib import Path; from hansa_client.trainer_link import Access, RemoteTrainer\n"
        "socket = Path(sys.argv[1])\n"
        "RemoteTrainer(socket, Access.read(socket.parent)).answer(bytes.fromhex(sys.argv[2]))"
    )
    command = [sys.executable, "-c", program, folder / SOCKET_NAME, introduction().hex()]
    with TrainerServer(patient, "alpha", folder), subprocess.Popen(command) as caller:
        assert patient.started.wait(60)
        assert not patient.noticed.is_set()
        caller.kill()
        assert patient.noticed.wait(30)


def test_trainer_notices_that_its_callers_patience_is_over(folder, monkeypatch):
    monkeypatch.setattr(trainer_link, "GRACE_SECONDS", 0.2)
    patient = Patient()
    with TrainerServer(patient, "alpha", folder):
        with pytest.raises(TransportError, match="DEADLINE_EXCEEDED"):
            remote(folder).answer(introduction(deadline_seconds=0.2))
        assert patient.noticed.wait(30)


def health_of(folder: Path, service: str = "") -> str:
    with grpc.insecure_channel(f"unix:{folder / SOCKET_NAME}") as channel:
        request = health_pb2.HealthCheckRequest(service=service)
        told = health_pb2_grpc.HealthStub(channel).Check(request, timeout=30)
    return health_pb2.HealthCheckResponse.ServingStatus.Name(told.status)


@pytest.mark.parametrize("service", ["", SERVICE])
def test_health_is_told_by_grpcs_own_protocol_also_while_an_order_is_worked_on(folder, service):
    hung = Hung()
    with TrainerServer(hung, "alpha", folder):
        assert health_of(folder, service) == "SERVING"
        asking = threading.Thread(target=remote(folder).answer, args=(introduction(),))
        asking.start()
        assert hung.started.wait(30)
        assert health_of(folder, service) == "SERVING"
        hung.let_go.set()
        asking.join(30)


def test_watcher_of_its_health_hears_that_a_trainer_stops(folder):
    with grpc.insecure_channel(f"unix:{folder / SOCKET_NAME}") as channel, ThreadPoolExecutor(1) as pool:
        with TrainerServer(Mirror(), "alpha", folder):
            told = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest(service=SERVICE), timeout=60)
            assert next(told).status == health_pb2.HealthCheckResponse.SERVING
            # A server that stops waits a while for who hangs on.
            heard_last = pool.submit(lambda: (next(told).status, told.cancel()))
        assert heard_last.result()[0] == health_pb2.HealthCheckResponse.NOT_SERVING


def test_absent_trainer_is_an_error_of_transport_at_once(folder):
    with pytest.raises(TransportError, match="access file"):
        Access.read(folder)
    with pytest.raises(TransportError, match="UNAVAILABLE"):
        remote(folder, new_access("alpha")).answer(introduction())


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"merchant": "a"}', '{"merchant": "a", "token": "b", "c": 1}'])
def test_damaged_access_file_is_an_error_of_transport(folder, content):
    (folder / ACCESS_NAME).write_text(content)
    with pytest.raises(TransportError, match="access file"):
        Access.read(folder)


def test_caller_waits_for_the_deadline_that_the_order_gives():
    for order in (introduction(7.0), seal(introduction(7.0), bytes(32), "order")):
        assert answer_seconds(order) == 7.0 + trainer_link.GRACE_SECONDS
    assert answer_seconds(b"not an order") == trainer_link.UNREADABLE_ORDER_SECONDS
    reply = encode(Refusal(merchant="alpha", order_hash="0" * 64, code="failed"))
    assert answer_seconds(reply) == trainer_link.UNREADABLE_ORDER_SECONDS
