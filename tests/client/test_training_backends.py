"""The same training in other processes: byte for byte on one backend, closely on another, and in one federation."""

from __future__ import annotations

import os
import select
import subprocess
import sys
import time
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from hansa_client.trainer_link import SOCKET_NAME, Access, RemoteTrainer
from hansa_client.training_loop import CHUNK_SECONDS, LocalTraining
from hansa_common import statistics
from hansa_common.agreement import parse_agreement
from hansa_common.agreement_sections import Model, Plan
from hansa_common.children import running
from hansa_common.features import FittedPreprocessing, Inputs
from hansa_common.messages import (
    EvaluateOrder,
    EvaluateReply,
    IntroduceOrder,
    RoundOrder,
    RoundReply,
    StatisticsOrder,
    decode,
    encode,
)
from hansa_common.metrics import metrics_from_histogram
from hansa_common.model import ModelSpec, initial_weights
from hansa_server.aggregation import weighted_mean

pytestmark = [pytest.mark.system, pytest.mark.timeout(600)]

START_SECONDS = 240.0
# Dropout, embeddings, LayerNorm, L2; batches large enough for several threads, if several could compute.
TRAIN = """
import os, sys
out, num_cores = sys.argv[1], int(sys.argv[2])
os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:num_cores])
import numpy as np
from hansa_client.training_loop import LocalTraining, describe_device
from hansa_common.agreement_sections import Model, Plan
from hansa_common.features import Inputs
from hansa_common.model import EmbeddingSpec, ModelSpec, initial_weights

model = Model(hidden=(64, 32), dropout=0.3, l2=1e-3, layer_norm=True, activation="gelu")
plan = Plan(optimizer="momentum", learning_rate=0.02, batch_size=2048)
spec = ModelSpec(num_dense=12, embeddings=(EmbeddingSpec(feature="shop", num_ids=50, dim=4),), hidden=model.hidden,
                 activation="gelu", dropout=0.3, l1=0.0, l2=1e-3, layer_norm=True, output_bias=0.0)
values = np.random.default_rng(0)
inputs = Inputs(values.normal(size=(5000, 12)).astype(np.float32), values.integers(0, 50, (5000, 1)).astype(np.int32))
labels = (inputs.dense[:, 0] > 0.5).astype(np.uint8)
training = LocalTraining(spec, model, plan, capacity_rows=5000)
start = initial_weights(spec, 0)
epochs = np.stack([values.permutation(5000) for _ in range(7)])
outcome = training.train(start, inputs, labels, epochs, correction=None, dropout_seed=5, should_stop=lambda: False)
from hansa_common.dropout import SeededDropout
layer = SeededDropout(0.3)
layer.seed_state.assign(np.array([7, 3], np.uint32))
mask = np.asarray(layer(np.ones((64, 50), "float32"), training=True))
np.savez(out, start=start, weights=outcome.weights, loss=outcome.mean_loss, device=describe_device(), mask=mask,
         logits=training.logits(outcome.weights, inputs))
"""


def environment(backend: str, **changes: str) -> dict[str, str]:
    return {**os.environ, "KERAS_BACKEND": backend, "TF_CPP_MIN_LOG_LEVEL": "2", **changes}


def trained_in_a_process(folder: Path, backend: str, num_cores: int, **changes: str) -> dict[str, np.ndarray]:
    out = folder / f"{backend}-{len(list(folder.iterdir()))}.npz"
    words = [sys.executable, "-c", TRAIN, str(out), str(num_cores)]
    finished = subprocess.run(
        words, env=environment(backend, **changes), capture_output=True, text=True, check=False, timeout=START_SECONDS
    )
    assert finished.returncode == 0, finished.stderr[-3000:]
    with np.load(out) as stored:
        return dict(stored)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("processes")


@pytest.fixture(scope="module")
def on_tensorflow(folder):
    return trained_in_a_process(folder, "tensorflow", 2)


@pytest.fixture(scope="module")
def on_jax(folder):
    return trained_in_a_process(folder, "jax", 2)


def test_jax_trains_as_tensorflow_does_within_a_hundred_thousandth_and_drops_the_same(on_tensorflow, on_jax):
    assert on_tensorflow["device"].tolist() == ["tensorflow", "CPU"]
    assert on_jax["device"].tolist() == ["jax", "CPU"]
    assert np.abs(on_jax["weights"] - on_jax["start"]).max() > 1e-2
    np.testing.assert_allclose(on_jax["weights"], on_tensorflow["weights"], rtol=0, atol=1e-5)
    np.testing.assert_allclose(on_jax["logits"], on_tensorflow["logits"], rtol=0, atol=1e-4)
    assert on_jax["loss"] == pytest.approx(on_tensorflow["loss"], rel=1e-5)
    np.testing.assert_array_equal(on_jax["mask"] != 0, on_tensorflow["mask"] != 0)


@pytest.mark.parametrize("backend", ["tensorflow", "jax"])
def test_another_process_on_one_core_gives_the_same_bytes(folder, backend, request):
    there = trained_in_a_process(folder, backend, 1)
    here = request.getfixturevalue(f"on_{backend}")
    for name in ("weights", "loss", "logits"):
        assert there[name].tobytes() == here[name].tobytes(), name


@pytest.mark.gpu
def test_gpu_ends_within_a_fiftieth_of_the_way_of_the_cpu(folder):
    """Its tensor cores may round factors to eleven bits; and its sums have another order."""
    cpu = trained_in_a_process(folder, "tensorflow", 2, CUDA_VISIBLE_DEVICES="-1")
    gpu = trained_in_a_process(folder, "tensorflow", 2)
    assert cpu["device"].tolist() == ["tensorflow", "CPU"]
    assert gpu["device"].tolist() != cpu["device"].tolist()
    way = np.linalg.norm(cpu["weights"] - cpu["start"])
    assert np.linalg.norm(gpu["weights"] - cpu["weights"]) < 0.02 * way
    np.testing.assert_array_equal(gpu["mask"] != 0, cpu["mask"] != 0)


def test_backend_that_cannot_train_is_refused_with_those_that_can():
    code = (
        "from hansa_client.training_loop import describe_device\n"
        "from hansa_common.errors import UsageError\n"
        "try:\n    describe_device()\n"
        "except UsageError as error:\n    print(error)"
    )
    words = [sys.executable, "-c", code]
    finished = subprocess.run(
        words, env=environment("numpy"), capture_output=True, text=True, check=False, timeout=START_SECONDS
    )
    assert "KERAS_BACKEND is 'numpy'; Hansa trains on tensorflow or jax" in finished.stdout, finished.stderr[-3000:]


def test_chunks_of_a_heavy_model_are_near_their_length_from_the_first_call_on():
    """Steps of about a quarter of a second. Processor time, which does not tell how busy the machine is."""
    model, plan = Model(hidden=(1024, 1024)), Plan(batch_size=2048)
    spec = ModelSpec(
        num_dense=64, embeddings=(), hidden=model.hidden, activation="relu", dropout=0.0, l1=0.0, l2=0.0,
        layer_norm=False, output_bias=0.0,
    )  # fmt: skip
    num_rows = 20 * 2048
    inputs = Inputs(np.zeros((num_rows, 64), np.float32), np.zeros((num_rows, 0), np.int32))
    training = LocalTraining(spec, model, plan, capacity_rows=num_rows)
    asked: list[float] = []

    def note_the_time() -> bool:
        asked.append(time.process_time())
        return False

    training.train(
        initial_weights(spec, 0), inputs, np.zeros(num_rows, np.uint8), np.arange(num_rows)[None],
        correction=None, dropout_seed=0, should_stop=note_the_time,
    )  # fmt: skip
    # The first call compiles.
    chunks = np.diff(asked)[1:]
    assert len(chunks) >= 4
    assert chunks.max() < 3 * CHUNK_SECONDS


# --- one federation on two backends -----------------------------------------------------------------------------------

AGREEMENT = """
task = "purchase"
roster = ["alpha", "beta"]

[label]
column = "buys"

[[features]]
kind = "numeric"
name = "amount"
low = 0.0
high = 100.0

[[features]]
kind = "categorical"
name = "channel"
vocabulary = ["web", "shop", "phone"]
encoding = "embedding"
embedding_dim = 3

[model]
hidden = [16, 8]
dropout = 0.2

[training]
algorithm = "scaffold"

[training.plan]
learning_rate = 0.1
batch_size = 32
local_epochs = 2

[privacy]
min_positives = 1
"""
NUM_ROUNDS = 4


def write_files(folder: Path) -> None:
    (folder / "agreement.toml").write_text(AGREEMENT)
    values = np.random.default_rng(5)
    for merchant, num_rows in (("alpha", 500), ("beta", 700)):
        amount, channel = values.uniform(0, 100, num_rows), values.choice(["web", "shop", "fax"], num_rows)
        buys = values.uniform(size=num_rows) < 1 / (1 + np.exp(2.5 - amount / 25 - (channel == "shop")))
        table = pd.DataFrame({"amount": amount.round(2), "channel": channel, "buys": buys.astype(int)})
        table.to_csv(folder / f"{merchant}.csv", index=False)


def start_trainer(stack: ExitStack, files: Path, merchant: str, backend: str) -> RemoteTrainer:
    """A trainer in a process of its own, on this backend, that is ready for orders."""
    place = files / f"{merchant}-{backend}"
    place.mkdir(mode=0o700)
    ready, ready_end = os.pipe()
    words = [sys.executable, "-m", "hansa_client.trainer_service", "--agreement", files / "agreement.toml"]
    words += ["--data", files / f"{merchant}.csv", "--merchant", merchant, "--state", place / "state"]
    words += ["--folder", place, "--ready", str(ready_end)]
    stack.enter_context(
        running(merchant, [str(word) for word in words], environment(backend), log=place / "log", pass_fds=(ready_end,))
    )
    os.close(ready_end)
    stack.callback(os.close, ready)
    assert select.select([ready], [], [], START_SECONDS)[0], "the trainer did not get ready"
    assert os.read(ready, 6) == b"ready\n", (place / "log").read_text()
    trainer = RemoteTrainer(place / SOCKET_NAME, Access.read(place))
    stack.callback(trainer.close)
    return trainer


class Coordinator:
    """FedAvg's and SCAFFOLD's averages over whatever trainers it is given."""

    def __init__(self, run_id: str, trainers: dict[str, RemoteTrainer]) -> None:
        self.agreement = parse_agreement(AGREEMENT, "the test")
        self.trainers = trainers
        self.run_id = run_id
        self.sequence = 0

    def ask(self, merchant: str, order: type, **fields):
        self.sequence += 1
        head = {"run_id": self.run_id, "sequence": self.sequence, "recipient": merchant}
        head |= {"fingerprint": self.agreement.fingerprint}
        message = encode(order(**head, deadline_seconds=120, **fields))
        return decode(self.trainers[merchant].answer(message))

    def backends(self) -> list[str]:
        # To '*', as every introduction.
        head = {"run_id": self.run_id, "recipient": "*", "fingerprint": self.agreement.fingerprint}
        order = encode(IntroduceOrder(**head, deadline_seconds=120))
        return [decode(trainer.answer(order)).backend for trainer in self.trainers.values()]

    def final_weights(self) -> np.ndarray:
        merged = statistics.merge([self.ask(merchant, StatisticsOrder).statistics for merchant in self.trainers])
        self.preprocessing = FittedPreprocessing.fit(self.agreement, merged).to_json()
        weights = initial_weights(ModelSpec.from_agreement(self.agreement), self.agreement.seed)
        self.first, control = weights, np.zeros_like(weights)
        for number in range(NUM_ROUNDS):
            fields = {"round": number, "plan": 0, "cohort": tuple(self.trainers), "included": ""}
            fields |= {"preprocessing": self.preprocessing, "weights": weights, "control": control}
            replies = [self.ask(merchant, RoundOrder, **fields) for merchant in self.trainers]
            assert all(isinstance(reply, RoundReply) for reply in replies), replies
            rows = [reply.num_examples for reply in replies]
            weights = (weights + weighted_mean([reply.update for reply in replies], rows)).astype(np.float32)
            control = (control + weighted_mean([reply.control_delta for reply in replies], rows)).astype(np.float32)
        return weights

    def roc_auc(self, weights: np.ndarray) -> float:
        fields = {"split": "validation", "preprocessing": self.preprocessing, "weights": weights}
        replies = [self.ask(merchant, EvaluateOrder, **fields) for merchant in self.trainers]
        assert all(isinstance(reply, EvaluateReply) for reply in replies), replies
        return metrics_from_histogram(sum(reply.histogram for reply in replies)).roc_auc


def test_merchants_on_different_backends_end_in_the_model_of_merchants_on_one(folder):
    files = folder / "f"
    files.mkdir()
    write_files(files)
    with ExitStack() as stack:
        alpha = start_trainer(stack, files, "alpha", "tensorflow")
        mixed = Coordinator("mixed", {"alpha": alpha, "beta": start_trainer(stack, files, "beta", "jax")})
        alike = Coordinator("alike", {"alpha": alpha, "beta": start_trainer(stack, files, "beta", "tensorflow")})
        # One run after the other: a merchant takes part in the one that it was last introduced to.
        assert mixed.backends() == ["tensorflow", "jax"]
        model = mixed.final_weights()
        roc_auc = mixed.roc_auc(model)
        assert roc_auc > mixed.roc_auc(mixed.first) + 0.05
        assert alike.backends() == ["tensorflow", "tensorflow"]
        expected = alike.final_weights()
        assert np.abs(expected - alike.first).max() > 0.05
        np.testing.assert_allclose(model, expected, rtol=0, atol=1e-5)
        assert roc_auc == pytest.approx(alike.roc_auc(expected), abs=0.002)
