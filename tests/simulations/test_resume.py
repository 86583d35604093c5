"""A run broken off in any of its exchanges, over the merchants' own trainers: what it leaves in the end, down to the
signed bundle, is what it would have left."""

from __future__ import annotations

import hashlib
import json

import pytest

from hansa_client.guarded_trainer import Boundary, GuardedTrainer
from hansa_client.order_log import OrderLog
from hansa_client.policy import Policy
from hansa_client.programs import Programs
from hansa_common.messages import IntroduceOrder, decode, message_hash
from hansa_server import checkpoint, compression, run_folder
from hansa_server.app import app
from hansa_server.run_state import RunState
from hansa_simulations.grid import LocalGrid, run_server_app
from hansa_simulations.scenario import simulated_signing_key

pytestmark = pytest.mark.system

PLAN = {"optimizer": "sgd", "learning_rate": 0.1, "batch_size": 16, "local_epochs": 2}
SMALL = {
    "format": "int8", "sparsity": 0.5, "pruning_rounds": 1, "max_pr_auc_loss": 1.0, "max_merchant_pr_auc_loss": 1.0,
}  # fmt: skip
CASES = {
    "scaffold, pruned": {
        "training": {"algorithm": "scaffold", "rounds": 2, "plan": PLAN},
        "model": {"hidden": [4], "dropout": 0.1},
        "compression": SMALL,
    },
    "auto": {
        "training": {
            "algorithm": "auto", "rounds": 4, "trial_rounds": 1, "plan": PLAN,
            "candidates": [{**PLAN, "algorithm": "scaffold"}, {**PLAN, "algorithm": "fedadam"}],
        },
        "compression": {"format": "none"},
    },
}  # fmt: skip


class Killed(BaseException):
    """The coordinator's process ends here."""


class DyingGrid(LocalGrid):
    """Ends the process in one exchange: the first merchant's reply has come, the second's is lost, the third was asked
    and has not begun."""

    def __init__(self, trainers, last_sequence=None):
        super().__init__(trainers)
        self.last_sequence = last_sequence
        self.orders = {}
        self._asked = {}

    def push_messages(self, messages):
        messages = list(messages)
        ids = super().push_messages(messages)
        for message_id, message in zip(ids, messages, strict=True):
            content = message.content["hansa"]["message"]
            self._asked[message_id] = order = decode(content)
            if not isinstance(order, IntroduceOrder):
                self.orders[order.sequence, order.recipient] = message_hash(content)
        return ids

    def pull_messages(self, message_ids):
        replies = super().pull_messages(message_ids)
        for reply in replies:
            order = self._asked[reply.metadata.reply_to_message_id]
            if order.sequence == self.last_sequence and order.recipient == "birch":
                raise Killed
        return replies


class Counted:
    """A merchant's trainer that notes what it works on."""

    def __init__(self, worker, worked):
        self._worker, self._worked = worker, worked

    def work(self, order, order_hash, halt):
        if not isinstance(order, IntroduceOrder):
            self._worked.append(order_hash)
        return self._worker.work(order, order_hash, halt)


@pytest.fixture(scope="module")
def remembered():
    """The child that makes small files, remembering what it made of which request: it takes ten seconds each time."""
    made, run_child = {}, compression._run_child

    def run_once(folder, max_seconds):
        request = hashlib.sha256(b"".join(path.read_bytes() for path in sorted(folder.iterdir()))).hexdigest()
        if request not in made:
            run_child(folder, max_seconds)
            made[request] = {path.name: path.read_bytes() for path in folder.iterdir()}
        for name, content in made[request].items():
            (folder / name).write_bytes(content)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(compression, "_run_child", run_once)
        # Processes die here, and no power is cut.
        patched.setattr("os.fsync", lambda _: None)
        yield made


class BrokenRun:
    """A run's folder, and merchants that outlive the coordinator's processes; `logged` in their records of orders."""

    def __init__(self, folder, shops, scenario, programs, *, logged):
        self.folder, self.worked = folder, []
        agreement = scenario.agreement
        run_folder.create(folder, agreement)
        checkpoint.prepare(folder)
        # The same name for every run that is compared.
        checkpoint.save(folder, agreement, RunState("run-1"))
        self.trainers = {}
        for name, worker in shops.workers(scenario, programs).items():
            log = OrderLog(folder.with_name(f"{folder.name}-{name}")) if logged else OrderLog()
            boundary = Boundary(Policy(agreement, name), log=log)
            self.trainers[name] = GuardedTrainer(Counted(worker, self.worked), boundary)

    def start(self, last_sequence=None):
        """One process of the coordinator's: what it asked, and whether it came to the end."""
        grid = DyingGrid(self.trainers, last_sequence)
        try:
            run_server_app(app, grid, {"run-folder": str(self.folder)})
        except Killed:
            return grid.orders, False
        return grid.orders, True


def outcome(folder, agreement):
    """Every file that the run leaves, without how long it took."""
    if run_folder.has_small_model(folder):
        run_folder.write_bundle(folder, simulated_signing_key(agreement.seed))
    files = {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    metrics = json.loads(files.pop(next(path for path in files if path.name == "metrics.json")))
    kept = {path: content for path, content in files.items() if path.parts[0] in {"model", "small", "bundle"}}
    for entry in metrics["rounds"]:
        entry.pop("seconds")
    return kept, metrics


@pytest.mark.parametrize(("case", "logged"), [("scaffold, pruned", True), ("auto", False)])
def test_run_broken_off_in_any_exchange_leaves_the_same_files(remembered, shops, tmp_path, case, logged):
    """Merchants with a record of their orders give the answers that they gave, and the others make them anew."""
    scenario = shops.scenario(**CASES[case])
    agreement, programs = scenario.agreement, Programs.for_tables(scenario.agreement, *scenario.tables.values())

    def new_run(name):
        return BrokenRun(tmp_path / name, shops, scenario, programs, logged=logged)

    plain = new_run("plain")
    orders, is_finished = plain.start()
    assert is_finished
    expected = outcome(plain.folder, agreement)
    num_exchanges, num_networks = max(sequence for sequence, _ in orders), len(remembered)
    assert num_exchanges > 5
    # Of the small model every second: its judges are processes. All are in tests/server/test_resume.py.
    for sequence in range(1, num_exchanges + 1, 2 if logged else 1):
        broken = new_run(f"broken-{sequence}")
        before, is_finished = broken.start(sequence)
        assert not is_finished
        after, is_finished = broken.start()
        assert is_finished
        assert {**before, **after} == orders
        if logged:
            assert sorted(broken.worked) == sorted(plain.worked), sequence
        assert outcome(broken.folder, agreement) == expected, sequence
    # Nor did the network that the small files are made of differ in a bit.
    assert len(remembered) == num_networks
    if agreement.compression.format == "int8":
        assert {path.parts[0] for path in expected[0]} == {"model", "small", "bundle"}
        assert expected[1]["compression"]["released"]
