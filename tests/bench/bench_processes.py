"""How fast a round of real processes is: Hansa's commands against an app in the layout of Flower's TensorFlow template.

Both sides, one after the other on this machine: a real SuperLink and three merchants' nodes on loopback, FedAvg of all
three, the same rows, the same network of 25,697 parameters, Adam, one local epoch in batches of 64, training and an
evaluation on each merchant's validation rows in every round. Flower's side (flower-template/) imports TensorFlow,
builds the model and fits it for every message, because Flower starts a process a message; its polling is Flower's own,
and its rows come ready from an .npz file. Hansa's side is `hansa server start`, `hansa client start` and `hansa server
train` over CSV files. A figure is the median of the rounds after the first, from one round's end to the next one's.
Mark: at least twice as fast.

    python tests/bench/bench_processes.py [--rounds 4] [--sides hansa flower] [--json FILE]
"""

from __future__ import annotations

import argparse
import json
import os
import select
import signal
import subprocess
import sys
import tempfile
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Final, Self

MARK_RATIO: Final = 2.0
SIDES: Final = ("hansa", "flower")
MERCHANTS: Final = ("alpha", "beta", "gamma")
NUM_LOCAL_EPOCHS: Final = 1
READY_SECONDS: Final = 300.0
RUN_SECONDS: Final = 1800.0
STOP_SECONDS: Final = 60.0
WATCH_SECONDS: Final = 0.02
# Whatever a side starts, at any remove, inherits it.
MARKER: Final = "HANSA_BENCH_ID"
HANSA: Final = (sys.executable, "-c", "from hansa_common.cli import main; main()")
TEMPLATE: Final = Path(__file__).parent / "flower-template"


class RoundWatch:
    """Notes, while it is open, when each round ends: when its line is there whole in the file of rounds."""

    def __init__(self, path: Path) -> None:
        self.entries: list[dict[str, int]] = []
        self._moments: list[float] = []
        self._path = path
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    @property
    def seconds(self) -> list[float]:
        """Seconds of each round after the first."""
        return [after - before for before, after in pairwise(self._moments)]

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._end.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._end.wait(WATCH_SECONDS):
            self._look()
        self._look()

    def _look(self) -> None:
        if not self._path.exists():
            return
        whole = self._path.read_text().rpartition("\n")[0].splitlines()
        for line in whole[len(self._moments) :]:
            self._moments.append(time.monotonic())
            self.entries.append(json.loads(line))


@contextmanager
def started(words: list[str], environment: Mapping[str, str], log: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A process while the block runs, told to end after it and made to end if it does not."""
    with log.open("ab") as output:
        process = subprocess.Popen(
            words,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        yield process
    finally:
        process.terminate()
        try:
            process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def wait_until(is_so: Callable[[], bool], process: subprocess.Popen[bytes], log: Path) -> None:
    """Wait for a condition that the process brings about."""
    deadline = time.monotonic() + READY_SECONDS
    while not is_so():
        if time.monotonic() > deadline or process.poll() is not None:
            raise SystemExit(f"the process of {log.name} did not get ready:\n{log.read_text()[-4000:]}")
        with suppress(subprocess.TimeoutExpired):
            process.wait(WATCH_SECONDS)


def run_to_end(words: list[str], environment: Mapping[str, str], log: Path) -> str:
    """The output of a command that succeeds."""
    with started(words, environment, log) as process:
        try:
            code = process.wait(RUN_SECONDS)
        except subprocess.TimeoutExpired:
            raise SystemExit(f"{log.name} did not end in {RUN_SECONDS:.0f} s:\n{log.read_text()[-4000:]}") from None
    told = log.read_text()
    if code != 0:
        raise SystemExit(f"the command of {log.name} failed:\n{told[-4000:]}")
    return told


@contextmanager
def marked_environment(environment: Mapping[str, str]) -> Iterator[dict[str, str]]:
    """An environment with a mark; what still bears it a while after the block is ended by force."""
    mark = uuid.uuid4().hex
    try:
        yield {**environment, MARKER: mark, "KERAS_BACKEND": "tensorflow", "TF_CPP_MIN_LOG_LEVEL": "2"}
    finally:
        deadline = time.monotonic() + STOP_SECONDS
        # Until none is left: one that is ending may still have started another.
        while pids := marked_processes(mark):
            end_processes(pids, deadline)


def end_processes(pids: list[int], deadline: float) -> None:
    """Wait for the end of processes, and after the deadline end them by force."""
    for pid in pids:
        with suppress(ProcessLookupError):
            descriptor = os.pidfd_open(pid)
            try:
                if not select.select([descriptor], [], [], max(0.0, deadline - time.monotonic()))[0]:
                    signal.pidfd_send_signal(descriptor, signal.SIGKILL)
                    select.select([descriptor], [], [], STOP_SECONDS)
            finally:
                os.close(descriptor)


def marked_processes(mark: str) -> list[int]:
    """The processes that bear the mark in their environment."""
    found = []
    for folder in Path("/proc").iterdir():
        with suppress(OSError):
            if folder.name.isdecimal() and f"{MARKER}={mark}".encode() in (folder / "environ").read_bytes():
                found.append(int(folder.name))
    return found


def write_rows(folder: Path) -> None:
    """Each merchant's rows twice: a CSV table for Hansa, arrays for Flower's app. Their order divides them."""
    import flower_simulation as workload
    import numpy as np
    import pandas as pd

    first, end = workload.NUM_TRAIN_ROWS, workload.NUM_TRAIN_ROWS + workload.NUM_VALIDATION_ROWS
    for number, merchant in enumerate(MERCHANTS):
        inputs, labels = workload.silo_rows(number)
        frame = pd.DataFrame(inputs, columns=[f"x{i}" for i in range(workload.NUM_INPUTS)])
        frame.assign(label=labels, moment=range(len(frame))).to_csv(folder / f"{merchant}.csv", index=False)
        np.savez(
            folder / f"{merchant}.npz",
            train_inputs=inputs[:first],
            train_labels=labels[:first],
            validation_inputs=inputs[first:end],
            validation_labels=labels[first:end],
        )


def agreement_toml(num_rounds: int) -> str:
    """What the template's app does, as an agreement."""
    import flower_simulation as workload

    features = "".join(
        f'[[features]]\nkind = "numeric"\nname = "x{i}"\nlow = -8.0\nhigh = 8.0\nmissing = "refuse"\n\n'
        for i in range(workload.NUM_INPUTS)
    )
    return f"""
name = "benchmark"
task = "fraud"
roster = {json.dumps(MERCHANTS)}

[label]
column = "label"

{features}
[data]
split = "time"
time_column = "moment"
validation_from = {workload.NUM_TRAIN_ROWS}
test_from = {workload.NUM_TRAIN_ROWS + workload.NUM_VALIDATION_ROWS}

[model]
hidden = {list(workload.HIDDEN)}
l2 = 0.0
output_bias = 0.0

[training]
algorithm = "fedavg"
rounds = {num_rounds}
patience = {num_rounds}

[training.plan]
optimizer = "adam"
learning_rate = {workload.LEARNING_RATE}
batch_size = {workload.BATCH_SIZE}
local_epochs = {NUM_LOCAL_EPOCHS}

[cohort]
min_merchants = {len(MERCHANTS)}
"""


def hansa_rounds(folder: Path, num_rounds: int) -> RoundWatch:
    """A run of Hansa's commands."""
    from hansa_client.flower_node import LOOPBACK, free_port
    from hansa_common.addresses import Address
    from hansa_server import run_folder, superlink

    agreement, out = folder / "agreement.toml", folder / "run"
    agreement.write_text(agreement_toml(num_rounds))
    server = Address(LOOPBACK, free_port())
    with ExitStack() as stack:
        environment = stack.enter_context(marked_environment(os.environ))
        log = folder / "server.log"
        words = [*HANSA, "server", "start", "--address", str(server), "--state", str(folder / "state" / "server")]
        wait_until(lambda: superlink.is_superlink(server), stack.enter_context(started(words, environment, log)), log)
        clients = {}
        for name in MERCHANTS:
            words = [*HANSA, "client", "start", "--development", "--agreement", str(agreement), "--merchant", name]
            words += ["--data", str(folder / f"{name}.csv"), "--server", str(server)]
            words += ["--state", str(folder / "state" / name)]
            log = folder / f"{name}.log"
            clients[log] = stack.enter_context(started(words, environment, log))
        for log, client in clients.items():
            wait_until(lambda log=log: "waiting for orders" in log.read_text(), client, log)
        with RoundWatch(out / run_folder.ROUNDS) as watch:
            words = [*HANSA, "server", "train", str(agreement), "--out", str(out), "--server", str(server)]
            words += ["--state", str(folder / "state" / "server")]
            run_to_end(words, environment, folder / "train.log")
    check_hansa_run(out, num_rounds)
    return watch


def check_hansa_run(out: Path, num_rounds: int) -> None:
    """See that every merchant took part in every round, with the rows and the network of the other side."""
    import flower_simulation as workload
    import numpy as np

    metrics = json.loads((out / "metrics.json").read_text())
    assert len(metrics["rounds"]) == num_rounds
    assert all(entry["aggregated"] and not entry["dropped"] for entry in metrics["rounds"])
    rows = {name: merchant["num_train_rows"] for name, merchant in metrics["merchants"].items()}
    assert rows == dict.fromkeys(MERCHANTS, workload.NUM_TRAIN_ROWS)
    with np.load(out / "model" / "weights.npz") as weights:
        assert sum(weights[name].size for name in weights.files) == num_params()


def num_params() -> int:
    """Weights and biases of the network."""
    import flower_simulation as workload

    widths = (workload.NUM_INPUTS, *workload.HIDDEN, 1)
    return sum((before + 1) * after for before, after in pairwise(widths))


@contextmanager
def flower_processes(folder: Path, node_options: Mapping[str, list[str]]) -> Iterator[dict[str, str]]:
    """Flower's own SuperLink and a node for each merchant, with these options, on loopback; the environment in which
    `flwr run APP bench` reaches them. Flower's telemetry and its installing of dependencies are off; nothing else is
    changed.
    """
    from hansa_client.flower_node import LOOPBACK, free_port
    from hansa_common.addresses import Address
    from hansa_common.flower_environment import flower_environment
    from hansa_server import superlink

    server = Address(LOOPBACK, free_port())
    (folder / "config.toml").write_text(
        f'[superlink]\ndefault = "bench"\n\n[superlink.bench]\naddress = "{server}"\ninsecure = true\n'
    )
    with ExitStack() as stack:
        environment = stack.enter_context(marked_environment(flower_environment(folder)))
        log = folder / "superlink.log"
        words = ["flower-superlink", "--insecure", "--host", server.host, "--port", str(server.port)]
        words += ["--database", str(folder / "state.db")]
        wait_until(lambda: superlink.is_superlink(server), stack.enter_context(started(words, environment, log)), log)
        for name, options in node_options.items():
            words = ["flower-supernode", "--insecure", "--superlink", str(server), "--host", LOOPBACK]
            words += ["--port", str(free_port()), *options]
            stack.enter_context(started(words, environment, folder / f"{name}.log"))
        yield environment


def flower_rounds(folder: Path, num_rounds: int) -> RoundWatch:
    """A run of the template's app on Flower's own processes."""
    import flower_simulation as workload

    rounds = folder / "rounds.jsonl"
    config = folder / "run.toml"
    config.write_text(
        f"num-server-rounds = {num_rounds}\nnum-nodes = {len(MERCHANTS)}\nlocal-epochs = {NUM_LOCAL_EPOCHS}\n"
        f"batch-size = {workload.BATCH_SIZE}\nlearning-rate = {workload.LEARNING_RATE}\n"
        f"rounds-file = {json.dumps(str(rounds))}\n"
    )
    rows = {name: ["--node-config", f"data={json.dumps(str(folder / f'{name}.npz'))}"] for name in MERCHANTS}
    with flower_processes(folder, rows) as environment, RoundWatch(rounds) as watch:
        words = ["flwr", "run", str(TEMPLATE), "bench", "--run-config", str(config), "--stream"]
        told = run_to_end(words, environment, folder / "run.log")
    whole = told.count(f"Received {len(MERCHANTS)} results and 0 failures")
    if whole != 2 * num_rounds or any(entry["num_params"] != num_params() for entry in watch.entries):
        raise SystemExit(f"Flower's run lacks replies:\n{told[-4000:]}")
    return watch


def measured(side: str, num_rounds: int) -> list[float]:
    """Seconds of each round of a side after the first."""
    with tempfile.TemporaryDirectory(prefix="hansa-bench-") as name:
        folder = Path(name)
        write_rows(folder)
        watch = {"hansa": hansa_rounds, "flower": flower_rounds}[side](folder, num_rounds)
    assert len(watch.entries) == num_rounds
    return watch.seconds


def main() -> int:
    """Print the figures; exit code 1 where the mark is missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=4, help="of each side, at least 2; the first is left out")
    parser.add_argument("--sides", nargs="+", choices=SIDES, default=list(SIDES))
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    if options.rounds < 2:
        parser.error("--rounds is at least 2: the first round is left out")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("stopped"))
    seconds = {}
    for side in options.sides:
        seconds[side] = measured(side, options.rounds)
        told = ", ".join(f"{value:.2f}" for value in seconds[side])
        print(f"{side:>6}: {median(seconds[side]):6.2f} s a round (median of {told})", flush=True)
    ratio = median(seconds["flower"]) / median(seconds["hansa"]) if set(SIDES) <= set(seconds) else None
    if options.json:
        options.json.write_text(json.dumps({"seconds": seconds, "ratio": ratio}, indent=2))
    if ratio is None:
        return 0
    outcome = "met" if ratio >= MARK_RATIO else "MISSED"
    print(f"mark: {ratio:.1f} times faster, at least {MARK_RATIO:g} asked: {outcome}")
    return 0 if ratio >= MARK_RATIO else 1


if __name__ == "__main__":
    sys.exit(main())
