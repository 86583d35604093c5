"""The server's side: Flower's FedAvg over every node. Where the benchmark looks at, a line is left for each round."""

from __future__ import annotations

import json
from pathlib import Path

from flwr.app import ArrayRecord, Context
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg

from flower_template.task import load_model

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    config = context.run_config
    rounds = Path(config["rounds-file"])

    def leave_line(number: int, arrays: ArrayRecord) -> None:
        # Flower also calls it before the first round.
        if number > 0:
            num_params = sum(array.size for array in arrays.to_numpy_ndarrays())
            with rounds.open("a") as file:
                file.write(json.dumps({"round": number, "num_params": num_params}) + "\n")

    nodes = config["num-nodes"]
    strategy = FedAvg(min_train_nodes=nodes, min_evaluate_nodes=nodes, min_available_nodes=nodes)
    strategy.start(
        grid,
        ArrayRecord(load_model(config["learning-rate"]).get_weights()),
        num_rounds=config["num-server-rounds"],
        evaluate_fn=leave_line,
    )
