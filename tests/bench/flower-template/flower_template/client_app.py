"""A node's side: every message is a fresh process, which imports TensorFlow, builds the model and loads the rows."""

from __future__ import annotations

import keras
from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

from flower_template.task import load_data, load_model

app = ClientApp()


@app.train()
def train(message: Message, context: Context) -> Message:
    keras.backend.clear_session()
    inputs, labels, _, _ = load_data(context.node_config["data"])
    config = context.run_config
    model = load_model(config["learning-rate"])
    model.set_weights(message.content["arrays"].to_numpy_ndarrays())
    history = model.fit(inputs, labels, epochs=config["local-epochs"], batch_size=config["batch-size"], verbose=0)
    metrics = MetricRecord({"train_loss": history.history["loss"][-1], "num-examples": len(inputs)})
    return Message(RecordDict({"arrays": ArrayRecord(model.get_weights()), "metrics": metrics}), reply_to=message)


@app.evaluate()
def evaluate(message: Message, context: Context) -> Message:
    keras.backend.clear_session()
    _, _, inputs, labels = load_data(context.node_config["data"])
    model = load_model(context.run_config["learning-rate"])
    model.set_weights(message.content["arrays"].to_numpy_ndarrays())
    loss, accuracy = model.evaluate(inputs, labels, verbose=0)
    metrics = MetricRecord({"eval_loss": loss, "eval_acc": accuracy, "num-examples": len(inputs)})
    return Message(RecordDict({"metrics": metrics}), reply_to=message)
