"""What an exchange costs in which next to nothing is trained: Hansa's over mTLS against Flower's own, empty.

Both sides, one after the other on this machine: a SuperLink and three merchants' nodes. Flower's side is its stock
`flower-superlink` and `flower-supernode` on loopback, without TLS, and an app whose client sends back an empty message;
nothing in it imports TensorFlow. Hansa's side is a federation across companies with everything that belongs to it:
keys, signed orders and replies, the gateway, forwarders, each merchant's order log and audit, and a round of logistic
regression over sixty rows, one step. A figure is the median of the exchanges after the first, from one's end to the
next one's. Mark: at most 1.5 times the empty exchange.

    python tests/bench/bench_exchange.py [--exchanges 8] [--json FILE]
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path
from statistics import median
from typing import Final

from bench_processes import (
    HANSA,
    MERCHANTS,
    RoundWatch,
    flower_processes,
    marked_environment,
    run_to_end,
    started,
    wait_until,
)

MARK_RATIO: Final = 1.5
NUM_ROWS: Final = 60
APP: Final = """
import json
from flwr.app import ConfigRecord, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import ServerApp

client = ClientApp()
server = ServerApp()

@client.train()
def echo(message, context):
    return Message(message.content, reply_to=message)

@server.main()
def main(grid, context):
    nodes = []
    while len(nodes) < context.run_config["num-nodes"]:
        nodes = list(grid.get_node_ids())
    for number in range(context.run_config["num-exchanges"]):
        content = RecordDict({"empty": ConfigRecord({"bytes": b""})})
        replies = list(grid.send_and_receive([Message(content, node, "train") for node in nodes]))
        assert len(replies) == len(nodes) and not any(reply.has_error() for reply in replies)
        with open(context.run_config["file"], "a") as file:
            file.write(json.dumps({"exchange": number}) + "\\n")
"""
PROJECT: Final = """
[project]
name = "empty-exchange"
version = "0.1.0"
description = "Messages without content"
license = "Apache-2.0"

[tool.flwr.app]
publisher = "hansa"

[tool.flwr.app.components]
serverapp = "empty_exchange:server"
clientapp = "empty_exchange:client"

[tool.flwr.app.config]
num-nodes = 0
num-exchanges = 0
file = ""
"""


def agreement_toml(num_exchanges: int) -> str:
    """A round with one step of the smallest network there is."""
    return f"""
name = "exchange"
task = "fraud"
roster = {json.dumps(MERCHANTS)}

[label]
column = "label"

[[features]]
kind = "numeric"
name = "x"
low = -8.0
high = 8.0

[model]
hidden = []

[training]
algorithm = "fedavg"
rounds = {num_exchanges}
patience = {num_exchanges}

[training.plan]
optimizer = "sgd"
batch_size = 4096

[cohort]
min_merchants = {len(MERCHANTS)}

[privacy]
min_count = 1
min_positives = 1
"""


def write_rows(folder: Path) -> None:
    """A small table for each merchant."""
    for place, name in enumerate(MERCHANTS):
        rows = [f"{((7 * row + place) % 13 - 6) / 2},{row % 3 == 0:d}" for row in range(NUM_ROWS)]
        (folder / f"{name}.csv").write_text("\n".join(["x,label", *rows]) + "\n")


def hansa_exchanges(folder: Path, num_exchanges: int) -> RoundWatch:
    """A run across companies, by Hansa's commands."""
    from hansa_client.flower_node import LOOPBACK, free_port
    from hansa_common.agreement_file import read_agreement
    from hansa_server import run_folder

    write_rows(folder)
    agreement, kits, state = folder / "agreement.toml", folder / "kits", folder / "state"
    agreement.write_text(agreement_toml(num_exchanges))
    server_state = ["--state", str(state / "server")]
    with ExitStack() as stack:
        environment = stack.enter_context(marked_environment(os.environ))

        def hansa(*words: str) -> str:
            return run_to_end([*HANSA, *words], environment, folder / "commands.log")

        address = f"{LOOPBACK}:{free_port()}"
        requests = folder / "requests"
        requests.mkdir()
        for name in MERCHANTS:
            hansa("client", "enroll", name, "--state", str(state / name))
            shutil.copy(state / name / f"{name}.request.json", requests)
        places = ["--requests", str(requests), "-o", str(kits), *server_state]
        hansa("provision", str(agreement), "--host", address, *places)
        fingerprint = read_agreement(kits / "agreement.toml")[0].fingerprint
        log = folder / "server.log"
        server = stack.enter_context(started([*HANSA, "server", "start", *server_state], environment, log))
        wait_until(lambda: "gateway on" in log.read_text(), server, log)
        clients = {}
        for name in MERCHANTS:
            own = ["--state", str(state / name)]
            hansa("client", "enroll", name, "--kit", str(kits / name), *own)
            hansa("client", "approve", str(kits / name / "agreement.toml"), "--yes-to", fingerprint, *own)
            words = [*HANSA, "client", "start", "--data", str(folder / f"{name}.csv"), *own]
            clients[folder / f"{name}.log"] = stack.enter_context(started(words, environment, folder / f"{name}.log"))
        for log, client in clients.items():
            wait_until(lambda log=log: "waiting for orders" in log.read_text(), client, log)
        with RoundWatch(folder / "run" / run_folder.ROUNDS) as watch:
            hansa("server", "train", str(kits / "agreement.toml"), "--out", str(folder / "run"), *server_state)
    rounds = json.loads((folder / "run" / "metrics.json").read_text())["rounds"]
    assert len(rounds) == num_exchanges
    assert all(entry["aggregated"] and not entry["dropped"] for entry in rounds)
    return watch


def flower_exchanges(folder: Path, num_exchanges: int) -> RoundWatch:
    """The empty app on Flower's own processes."""
    lines, app, config = folder / "exchanges.jsonl", folder / "empty-exchange", folder / "run.toml"
    app.mkdir()
    (app / "empty_exchange.py").write_text(APP)
    (app / "pyproject.toml").write_text(PROJECT)
    config.write_text(
        f"num-nodes = {len(MERCHANTS)}\nnum-exchanges = {num_exchanges}\nfile = {json.dumps(str(lines))}\n"
    )
    nodes: dict[str, list[str]] = {name: [] for name in MERCHANTS}
    with flower_processes(folder, nodes) as environment, RoundWatch(lines) as watch:
        words = ["flwr", "run", str(app), "bench", "--run-config", str(config), "--stream"]
        run_to_end(words, environment, folder / "run.log")
    return watch


def measured(side: str, num_exchanges: int) -> list[float]:
    """Seconds of each exchange of a side after the first."""
    with tempfile.TemporaryDirectory(prefix="hansa-bench-") as name:
        watch = {"flower": flower_exchanges, "hansa": hansa_exchanges}[side](Path(name), num_exchanges)
    assert len(watch.entries) == num_exchanges
    return watch.seconds


def main() -> int:
    """Print the figures; exit code 1 where the mark is missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--exchanges", type=int, default=8, help="of each side, at least 2; the first is left out")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    if options.exchanges < 2:
        parser.error("--exchanges is at least 2: the first is left out")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("stopped"))
    seconds = {}
    for side in ("flower", "hansa"):
        seconds[side] = measured(side, options.exchanges)
        told = ", ".join(f"{value:.2f}" for value in seconds[side])
        print(f"{side:>6}: {median(seconds[side]):6.2f} s an exchange (median of {told})", flush=True)
    ratio = median(seconds["hansa"]) / median(seconds["flower"])
    if options.json:
        options.json.write_text(json.dumps({"seconds": seconds, "ratio": ratio}, indent=2))
    outcome = "met" if ratio <= MARK_RATIO else "MISSED"
    print(f"mark: {ratio:.2f} times Flower's empty exchange, at most {MARK_RATIO:g} asked: {outcome}")
    return 0 if ratio <= MARK_RATIO else 1


if __name__ == "__main__":
    sys.exit(main())
