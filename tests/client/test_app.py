"""The ClientApp carries bytes and nothing else; whatever happens, it answers, and without a merchant's text."""

from __future__ import annotations

import subprocess
import sys
import threading
from pathlib import Path

import pytest
from flwr.app import ConfigRecord, Context, Message, RecordDict
from flwr.supercore.task_identity import TaskIdentity

from hansa_client import trainer_link
from hansa_client.app import app, client_app
from hansa_client.trainer_link import ACCESS_NAME, SOCKET_NAME, Access, new_access
from hansa_client.trainer_service import TrainerServer
from hansa_common.errors import TransportError
from hansa_common.messages import IntroduceOrder, Refusal, decode, encode, message_hash

ORDER = encode(IntroduceOrder(run_id="run", recipient="*", fingerprint="0" * 64, deadline_seconds=0.2))
PRIVATE_PATH = "/home/alpha/customers.csv"


class Reversing:
    """A trainer whose reply is the order backwards."""

    def answer(self, order: bytes, has_gone=None) -> bytes:  # noqa: ARG002 - what is asked of a trainer
        return order[::-1]


class Hung:
    """A trainer that never answers while the test runs."""

    def __init__(self) -> None:
        self.let_go = threading.Event()

    def answer(self, order: bytes, has_gone) -> bytes:  # noqa: ARG002 - what is asked of a trainer
        self.let_go.wait(60)
        return order


@pytest.fixture(autouse=True)
def _identity(monkeypatch):
    # Flower gives every process of an app its identity; a message takes its sender from there.
    for name in ("_run_id", "_node_id", "_task_id"):
        monkeypatch.setattr(TaskIdentity, name, 1)


def context(**node_config: str | int) -> Context:
    return Context(run_id=1, node_id=2, node_config=node_config, state=RecordDict(), run_config={})


def message(content: RecordDict | None = None) -> Message:
    if content is None:
        content = RecordDict({"hansa": ConfigRecord({"message": ORDER})})
    return Message(content=content, dst_node_id=2, message_type="train")


def reply_bytes(reply: Message) -> bytes:
    assert not reply.has_error()
    assert list(reply.content) == ["hansa"]
    assert list(reply.content["hansa"]) == ["message"]
    return reply.content["hansa"]["message"]


@pytest.fixture
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("s")
    folder.chmod(0o700)
    return folder


def test_order_goes_to_the_trainer_and_its_reply_comes_back():
    assert reply_bytes(client_app(lambda _: Reversing())(message(), context())) == ORDER[::-1]


def test_trainer_is_found_by_the_context_of_the_node():
    trainers = {"a": Reversing()}
    reply = client_app(lambda context: trainers[context.node_config["who"]])(message(), context(who="a"))
    assert reply_bytes(reply) == ORDER[::-1]


@pytest.mark.parametrize(
    "content",
    [
        RecordDict(),
        RecordDict({"other": ConfigRecord({"message": ORDER})}),
        RecordDict({"hansa": ConfigRecord({"other": ORDER})}),
        RecordDict({"hansa": ConfigRecord({"message": "text"})}),
    ],
)
def test_content_that_is_no_message_is_answered_with_one_word(content):
    reply = client_app(lambda _: Reversing())(message(content), context())
    assert reply.error.reason == "message-invalid"


def test_text_of_an_error_never_leaves():
    def no_trainer(_: Context) -> Reversing:
        raise TransportError(f"no socket beside {PRIVATE_PATH}")

    reply = client_app(no_trainer)(message(), context())
    assert reply.error.reason == "trainer-unreachable"


def test_node_reaches_its_resident_trainer(folder):
    with TrainerServer(Reversing(), "alpha", folder):
        reply = app(message(), context(trainer=str(folder / SOCKET_NAME)))
    assert reply_bytes(reply) == ORDER[::-1]


@pytest.mark.parametrize("node_config", [{}, {"trainer": 3}, {"trainer": "/nowhere/trainer.sock"}])
def test_node_without_a_trainer_answers_with_one_word(node_config):
    assert app(message(), context(**node_config)).error.reason == "trainer-unreachable"


def test_trainer_that_has_died_is_a_refusal_in_the_merchants_name(folder):
    new_access("alpha").write(folder)
    refusal = decode(reply_bytes(app(message(), context(trainer=str(folder / SOCKET_NAME)))))
    assert refusal == Refusal(merchant="alpha", order_hash=message_hash(ORDER), code="failed")


def test_trainer_that_is_started_again_gets_the_same_order(folder):
    """Of the first only the files are left, as after a kill."""
    new_access("alpha").write(folder)
    (folder / SOCKET_NAME).touch()
    patient = encode(IntroduceOrder(run_id="run", recipient="*", fingerprint="0" * 64, deadline_seconds=60.0))
    content = RecordDict({"hansa": ConfigRecord({"message": patient})})
    replies = []
    asking = threading.Thread(
        target=lambda: replies.append(app(message(content), context(trainer=str(folder / SOCKET_NAME))))
    )
    asking.start()
    asking.join(1.0)
    assert asking.is_alive()
    for name in (SOCKET_NAME, ACCESS_NAME):
        (folder / name).unlink()
    with TrainerServer(Reversing(), "alpha", folder):
        asking.join(60.0)
    assert reply_bytes(replies[0]) == patient[::-1]


def test_hung_trainer_is_a_refusal_after_deadline_and_grace(folder, monkeypatch):
    monkeypatch.setattr(trainer_link, "GRACE_SECONDS", 0.2)
    hung = Hung()
    with TrainerServer(hung, "alpha", folder):
        refusal = decode(reply_bytes(app(message(), context(trainer=str(folder / SOCKET_NAME)))))
        hung.let_go.set()
    assert isinstance(refusal, Refusal)
    assert refusal.code == "failed"


def test_watchdog_ends_a_process_that_hangs_outside_the_call(folder):
    """Python itself stands still (it holds its lock in a loop of C), and still the process ends."""
    program = f"""
import sys
from pathlib import Path
from hansa_client import app as app_module, trainer_link
app_module.GRACE_SECONDS = 0.2
trainer_link.GRACE_SECONDS = 0.2
class Stuck:
    def __init__(self, *_):
        pass
    def answer(self, order, seconds):
        sum(range(10**13))
    def close(self):
        pass
app_module.RemoteTrainer = Stuck
app_module._WatchedTrainer(Path(sys.argv[1])).answer({ORDER!r})
"""
    Access("alpha", "token").write(folder)
    command = [sys.executable, "-c", program, folder / SOCKET_NAME]
    finished = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert finished.returncode == 1
    assert "Timeout" in finished.stderr


def test_client_app_loads_no_tensorflow_no_rows_and_no_policy():
    program = (
        "import sys, hansa_client.app\n"
        "heavy = {'tensorflow', 'keras', 'jax', 'pandas', 'hansa_client.trainer', 'hansa_client.data',"
        " 'hansa_client.policy', 'hansa_client.training_loop', 'hansa_common.model'}\n"
        "print(sorted(heavy & set(sys.modules)))"
    )
    finished = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert finished.stdout.strip() == "[]"


def test_process_of_a_message_imports_no_backend_and_no_reader_of_tables():
    # Flower starts one for every message; the trainer, which stays, has them.
    script = "import sys, hansa_client.app; print(sorted({'tensorflow', 'keras', 'jax', 'pandas'} & set(sys.modules)))"
    told = subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True, timeout=60)
    assert told.stdout == "[]\n"
