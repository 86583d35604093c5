"""What breaks in the middle of a round, one run through it all: the run goes on, or ends with a reason and is resumed;
every round is over within its stated time, and no merchant lends a hand."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import pytest
from hansa_command import stand_still, wait_until

pytestmark = [pytest.mark.system, pytest.mark.data, pytest.mark.timeout(600)]

MERCHANTS = ("alder", "birch", "cedar")
TRAINER, FORWARDER = "hansa_client.trainer_service", "hansa_client.forwarder"
NODE, GATEWAY = "hansa_client.flower_node", "hansa_server.gateway"
# Half a minute of silence, and a trainer that loads its libraries anew.
DEADLINE_SECONDS = 120.0
# exchange.py's grace, and what a slow machine needs besides.
ROUND_SECONDS = DEADLINE_SECONDS + 15.0 + 45.0
AGREEMENT = f"""
name = "faults"
task = "purchase"
seed = 7
roster = {json.dumps(MERCHANTS)}
label = {{column = "Revenue", positive = "TRUE"}}
features = [{{kind = "numeric", name = "PageValues", low = 0.0, high = 400.0, scaling = "log"}}]
model = {{hidden = [8]}}
cohort = {{min_merchants = 2, wait_seconds = 120.0, deadline_seconds = {DEADLINE_SECONDS}}}
privacy = {{min_count = 1, min_positives = 1}}

[training]
algorithm = "scaffold"
rounds = 10000
patience = 10000

[training.plan]
optimizer = "sgd"
learning_rate = 0.01
local_epochs = 30
"""


class Federation:
    """A run that does not end by itself, what it has noted, and what its merchants have."""

    def __init__(self, companies, commands, stack: ExitStack) -> None:
        self.companies, self.commands, self._stack = companies, commands, stack
        self.out = companies.coordinator.folder / "runs" / "endless"
        self.run = self.command("train", "kits/agreement.toml", "--out", self.out)

    def command(self, *words: object):
        return self._stack.enter_context(self.companies.coordinator.running("server", *words))

    def party(self, name: str):
        return {**self.companies.merchants, "server": self.companies.coordinator}[name]

    def pid(self, name: str, program: str) -> int:
        return self.companies.process(self.party(name), program)

    def signal(self, name: str, program: str, number: signal.Signals) -> None:
        os.kill(self.pid(name, program), number)

    def noted(self, name: str) -> list[dict]:
        """The lines of a merchant's own audit, the last of which may still be being written."""
        lines = (self.party(name).state / "audit.jsonl").read_text().split("\n")[:-1]
        return [json.loads(line) for line in lines]

    def rounds(self) -> list[dict]:
        path = self.out / "rounds.jsonl"
        lines = path.read_text().split("\n")[:-1] if path.exists() else []
        return [json.loads(line) for line in lines]

    def wait_for_round(self, number: int) -> dict:
        """The line of a round, once it is over."""
        began = time.monotonic()
        wait_until(f"the end of round {number}", lambda: any(r["round"] == number for r in self.rounds()))
        assert time.monotonic() - began < ROUND_SECONDS
        return next(r for r in self.rounds() if r["round"] == number)

    def wait_until_whole(self) -> None:
        """Wait until the last round lacked nobody."""
        wait_until("a round of all", lambda: [r["dropped"] for r in self.rounds()[-1:]] == [{}])

    @contextmanager
    def at_an_order(self, *names: str) -> Iterator[int]:
        """Merchants' trainers, stopped in the middle of their order of one round, before anything of their answer is
        on disk; go on after the block.
        """
        pids = {name: self.pid(name, TRAINER) for name in names}
        stopped: dict[str, int] = {}

        def are_stopped() -> bool:
            for name in pids.keys() - stopped.keys():
                if self._order_at(name):
                    stand_still(pids[name])
                    stopped[name] = self._order_at(name)
            # Where one has answered, before it stood still or while another did, it is another round.
            answered = {self._answered(name) for name in pids.keys() - stopped.keys()}
            if 0 in stopped.values() or len({*stopped.values()}) > 1 or answered & {*stopped.values()}:
                let_go()
            return stopped.keys() == pids.keys()

        def let_go() -> None:
            for name in stopped:
                with suppress(ProcessLookupError):
                    os.kill(pids[name], signal.SIGCONT)
            stopped.clear()

        try:
            wait_until(f"{names} at an order", are_stopped)
            yield next(iter(stopped.values()))
        finally:
            let_go()

    def _order_at(self, name: str) -> int:
        """The round whose order a trainer is at, with nothing of its answer on disk; 0 where there is none."""
        last = self.noted(name)[-1]
        replies = (self.party(name).state / "orders").glob(f"*/{last.get('sequence')}.reply*")
        return last.get("round", 0) if last["what"] == "asked" and not any(replies) else 0

    def _answered(self, name: str) -> int:
        """The last round that a merchant has answered."""
        return max((entry.get("round", 0) for entry in self.noted(name) if entry["what"] == "answered"), default=0)


@contextmanager
def on_a_small_disk(folder: Path) -> Iterator[None]:
    """A folder with what is in it, on a disk of its own of 16 MB while the block runs; needs root."""
    content = folder.parent.parent / f"{folder.name}.content"
    shutil.copytree(folder, content)
    options = ["-t", "tmpfs", "-o", "size=16m,mode=0700", "tmpfs", folder]
    if subprocess.run(["mount", *options], capture_output=True, check=False).returncode:
        pytest.skip("this user may not mount a small disk, which tests of a full one need")
    try:
        shutil.copytree(content, folder, dirs_exist_ok=True)
        yield
    finally:
        subprocess.run(["umount", "--lazy", folder], check=True)


@contextmanager
def full(folder: Path) -> Iterator[None]:
    """No byte is left on the folder's disk while the block runs, though others give some back."""
    is_over = threading.Event()

    def fill() -> None:
        with suppress(OSError):
            while True:
                file.write(bytes(1 << 12))

    def keep_full() -> None:
        while not is_over.wait(0.01):
            fill()

    with (folder / "ballast").open("wb", buffering=0) as file:
        fill()
        keeper = threading.Thread(target=keep_full)
        keeper.start()
        try:
            yield
        finally:
            is_over.set()
            keeper.join()
            (folder / "ballast").unlink()


def taking_part(party):
    """A merchant's command; the last one's trainer is apart from its node."""
    apart = []
    if party.name == "cedar":
        (party.folder / "socket").mkdir(mode=0o700)
        apart = ["--trainer-only", "socket"]
    return party.running("client", "start", "--data", f"{party.name}.csv", *apart)


def node_apart(party):
    """The other command of a merchant whose node is another user's, with what that needs and no more."""
    folder = party.folder / "node"
    shutil.copytree(party.folder / "kits" / party.name, folder)
    folder.chmod(0o700)
    for key in ("node.key", "tls.key"):
        shutil.copy(party.state / key, folder)
    return party.running("client", "node", "--state", "node", "--trainer", "socket")


@pytest.fixture(scope="module")
def running(new_companies):
    companies = new_companies(AGREEMENT)
    runs = companies.coordinator.folder / "runs"
    runs.mkdir()
    with ExitStack() as stack:
        stack.enter_context(on_a_small_disk(companies.merchants["birch"].state))
        stack.enter_context(on_a_small_disk(runs))
        stack.enter_context(companies.serving())
        commands = {name: stack.enter_context(taking_part(companies.merchants[name])) for name in MERCHANTS}
        commands["cedar"].wait_for_line("the trainer listens in")
        for name in ("alder", "birch"):
            commands[name].wait_for_line("waiting for orders")
        stack.enter_context(node_apart(companies.merchants["cedar"])).wait_for_line("connected to")
        federation = Federation(companies, commands, stack)
        yield federation
        assert [command.process.poll() for command in commands.values()] == [None] * 3
        companies.coordinator.told("server", "stop", "--run-only")
        for party in companies.merchants.values():
            party.told("client", "audit")
    companies.wait_until_gone()


@pytest.fixture
def federation(running) -> Federation:
    """The federation while all is well."""
    running.wait_until_whole()
    return running


def decisions(federation, name: str, number: int) -> list[str]:
    return [e["decision"] for e in federation.noted(name) if e.get("round") == number and "decision" in e]


def test_trainer_killed_at_an_order_obeys_it_once_it_is_back_and_the_round_lacks_nobody(federation):
    command = federation.commands["alder"]
    told = len(command.lines)
    with federation.at_an_order("alder") as number:
        federation.signal("alder", TRAINER, signal.SIGKILL)
        command.wait_for_line("the trainer was ended by SIGKILL; it is started again", told)
    assert federation.wait_for_round(number)["dropped"] == {}
    command.wait_for_line("the trainer runs again", told)
    assert decisions(federation, "alder", number) == ["answered"]


@pytest.mark.parametrize(("name", "program"), [("alder", FORWARDER), ("server", GATEWAY)])
def test_round_lacks_nobody_when_the_way_between_is_killed(federation, name, program):
    with federation.at_an_order("alder") as number:
        federation.signal(name, program, signal.SIGKILL)
    assert federation.wait_for_round(number)["dropped"] == {}


@pytest.mark.parametrize(("name", "program"), [("alder", FORWARDER), ("server", GATEWAY)])
def test_reply_that_meets_a_dead_line_comes_through_when_it_lives_again(federation, name, program):
    with federation.at_an_order("alder") as number:
        federation.signal(name, program, signal.SIGSTOP)
    try:
        wait_until("the reply", lambda: decisions(federation, "alder", number) == ["answered"])
    finally:
        federation.signal(name, program, signal.SIGCONT)
    assert federation.wait_for_round(number)["dropped"] == {}


def test_merchant_with_a_full_disk_refuses_and_is_back_when_there_is_room(federation):
    with federation.at_an_order("birch") as number, full(federation.party("birch").state):
        federation.signal("birch", TRAINER, signal.SIGCONT)
        assert federation.wait_for_round(number)["dropped"] == {"birch": "failed"}
    federation.wait_until_whole()
    assert not any("Traceback" in line for line in federation.commands["birch"].lines)


def test_run_whose_disk_is_full_ends_with_its_reason_and_is_resumed(federation):
    with full(federation.out):
        assert federation.run.wait_for_end() == 1
    assert "No space left on device" in federation.run.lines[-2], federation.run.text
    assert f"`hansa server resume {federation.out}` goes on with it" in federation.run.lines[-1]
    last = federation.rounds()[-1]["round"]
    federation.run = federation.command("resume", federation.out)
    assert federation.wait_for_round(last + 1)["aggregated"]


@pytest.fixture(scope="module")
def bad_round(running):
    """One round in which each merchant has another trouble: a cut line, a trainer that stands still, no node."""
    running.wait_until_whole()
    told = len(running.commands["birch"].lines)
    with running.at_an_order(*MERCHANTS) as number:
        running.signal("cedar", NODE, signal.SIGKILL)
        running.signal("alder", FORWARDER, signal.SIGSTOP)
        for name in ("alder", "cedar"):
            running.signal(name, TRAINER, signal.SIGCONT)
        running.commands["birch"].wait_for_line("no sign of life", told)
        running.signal("alder", FORWARDER, signal.SIGCONT)
        return running.wait_for_round(number)


def test_trainer_that_stands_still_is_ended_and_obeys_the_order_when_it_is_back(running, bad_round):
    assert "birch" not in bad_round["dropped"]
    assert decisions(running, "birch", bad_round["round"]) == ["answered"]


def test_merchant_whose_line_is_cut_for_half_a_minute_is_heard_in_the_same_round(bad_round):
    assert "alder" not in bad_round["dropped"]


def test_node_killed_at_an_order_is_given_it_once_more_when_it_is_back(running, bad_round):
    assert "cedar" not in bad_round["dropped"]
    # Worked on once; whoever had asked for the node that died may have heard the answer too.
    assert decisions(running, "cedar", bad_round["round"]).count("answered") == 1
