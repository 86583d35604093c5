"""The other side of bench_simulation.py: the same federation as a Flower user would write it, on Flower's own Ray
simulation, with what costs time there kept in the actor: TensorFlow, the compiled model and each silo's rows.

Its own module, because Ray's actors import it: what a pickled function keeps in globals is lost with every message.
Also the rows of both sides.
"""

from __future__ import annotations

import os
import time
from functools import cache
from typing import Any, Final

import numpy as np
from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp
from numpy.typing import NDArray

NUM_INPUTS: Final = 30
# With these inputs 25,697 parameters.
HIDDEN: Final = (160, 128)
NUM_TRAIN_ROWS: Final = 1600
NUM_VALIDATION_ROWS: Final = 200
NUM_TEST_ROWS: Final = 200
BATCH_SIZE: Final = 64
LEARNING_RATE: Final = 1e-3

Rows = tuple[NDArray[np.float32], NDArray[np.uint8]]


def silo_rows(silo: int) -> Rows:
    """(rows, NUM_INPUTS) inputs and (rows,) labels of one silo, 15 % of them positive."""
    random = np.random.default_rng([17, silo])
    num_rows = NUM_TRAIN_ROWS + NUM_VALIDATION_ROWS + NUM_TEST_ROWS
    inputs = random.normal(random.normal(0, 0.3, NUM_INPUTS), 1.0, (num_rows, NUM_INPUTS)).astype(np.float32)
    hidden = np.random.default_rng(17).normal(size=(NUM_INPUTS, 4))
    score = np.tanh(inputs @ hidden).sum(axis=1) + random.normal(0, 0.5, num_rows)
    return inputs, (score > np.quantile(score, 0.85)).astype(np.uint8)


@cache
def _model() -> Any:
    import keras

    model = keras.Sequential(
        [keras.Input((NUM_INPUTS,)), *(keras.layers.Dense(n, "relu") for n in HIDDEN), keras.layers.Dense(1)]
    )
    model.compile(
        optimizer=keras.optimizers.Adam(LEARNING_RATE),
        loss=keras.losses.BinaryCrossentropy(from_logits=True),
        metrics=[keras.metrics.AUC(curve="PR", from_logits=True)],
    )
    return model


@cache
def _parts(silo: int) -> tuple[Rows, Rows]:
    inputs, labels = silo_rows(silo)
    end = NUM_TRAIN_ROWS + NUM_VALIDATION_ROWS
    return (inputs[:NUM_TRAIN_ROWS], labels[:NUM_TRAIN_ROWS]), (
        inputs[NUM_TRAIN_ROWS:end],
        labels[NUM_TRAIN_ROWS:end],
    )


client_app = ClientApp()


def _silo(context: Context) -> int:
    return int(context.node_config["partition-id"])


@client_app.train()
def train(message: Message, context: Context) -> Message:
    """One epoch of the silo's rows."""
    model, (rows, _) = _model(), _parts(_silo(context))
    model.set_weights(message.content["arrays"].to_numpy_ndarrays())
    history = model.fit(*rows, batch_size=BATCH_SIZE, epochs=1, verbose=0).history
    metrics = MetricRecord({"loss": history["loss"][-1], "num-examples": len(rows[0])})
    return Message(RecordDict({"arrays": ArrayRecord(model.get_weights()), "metrics": metrics}), reply_to=message)


@client_app.evaluate()
def evaluate(message: Message, context: Context) -> Message:
    """Loss and PR-AUC on the silo's validation rows."""
    model, (_, rows) = _model(), _parts(_silo(context))
    model.set_weights(message.content["arrays"].to_numpy_ndarrays())
    loss, pr_auc = model.evaluate(*rows, batch_size=len(rows[0]), verbose=0)
    metrics = MetricRecord({"loss": loss, "pr-auc": pr_auc, "num-examples": len(rows[0])})
    return Message(RecordDict({"metrics": metrics}), reply_to=message)


def app_of_actor() -> ClientApp:
    """By reference, so that an actor that unpickles it uses its own module, with its caches."""
    return client_app


def round_seconds(num_silos: int, num_rounds: int) -> list[float]:
    """Seconds of each round of stock FedAvg on Flower's Ray simulation, on as many actors as there are cores."""
    from flwr.serverapp.strategy import FedAvg
    from flwr.simulation import run_simulation

    ends: list[float] = []
    server_app = ServerApp()

    @server_app.main()
    def main(grid: Grid, _: Context) -> None:
        strategy = FedAvg(min_train_nodes=num_silos, min_evaluate_nodes=num_silos, min_available_nodes=num_silos)
        strategy.start(
            grid,
            ArrayRecord(_model().get_weights()),
            num_rounds=num_rounds,
            evaluate_fn=lambda _round, _arrays: ends.append(time.monotonic()),
        )

    run_simulation(
        server_app,
        client_app,
        num_supernodes=num_silos,
        backend_config={
            "client_resources": {"num_cpus": 1, "num_gpus": 0.0},
            "init_args": {"num_cpus": os.cpu_count() or 1, "include_dashboard": False},
        },
    )
    return np.diff(ends).tolist()
