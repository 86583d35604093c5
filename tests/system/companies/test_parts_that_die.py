"""Whichever part of a merchant is killed in the middle of a round, and the gateway too: no merchant needs a hand."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

import pytest

pytestmark = [pytest.mark.system, pytest.mark.data, pytest.mark.timeout(600)]

# Each where it hurts: the trainer at an order, the node with one that is not answered, the ways between.
VICTIMS = {
    "alder": "hansa_client.trainer_service",
    "birch": "hansa_client.forwarder",
    "cedar": "hansa_client.flower_node",
    "server": "hansa_server.gateway",
}


def asked(state: Path, number: int) -> bool:
    """Whether a merchant's own audit says that it was asked for a round."""
    lines = (state / "audit.jsonl").read_text().split("\n")[:-1] if (state / "audit.jsonl").exists() else []
    return any(entry["what"] == "asked" and entry.get("round") == number for entry in map(json.loads, lines))


def test_run_goes_on_when_each_part_is_killed_in_a_round_and_nobody_lends_a_hand(companies, wait_until):
    coordinator, merchants = companies.coordinator, companies.merchants
    parties = {**merchants, "server": coordinator}
    agreement, out = companies.another_agreement("short", compression={}), coordinator.folder / "runs" / "killed"
    with (
        companies.serving() as server,
        companies.taking_part("--agreement", agreement) as commands,
        coordinator.running("server", "train", agreement, "--out", out) as train,
    ):
        wait_until("round 1", lambda: all(asked(party.state, 1) for party in merchants.values()))
        for name, program in VICTIMS.items():
            os.kill(companies.process(parties[name], program), signal.SIGKILL)
        assert train.wait_for_end() == 0, train.text
        for name in merchants:
            commands[name].wait_for_line("runs again")
        server.wait_for_line("the gateway runs again")
        assert [command.process.poll() for command in commands.values()] == [None] * 3
        # And each is there for the last round.
        metrics = json.loads((out / "metrics.json").read_text())
        assert metrics["rounds"][-1]["dropped"] == {}
        for party in merchants.values():
            party.told("client", "audit")
    companies.wait_until_gone()


def test_killed_command_leaves_no_process(companies):
    party = companies.merchants["alder"]
    with companies.serving() as server, party.running("client", "start", "--data", "alder.csv") as command:
        command.wait_for_line("waiting for orders")
        command.process.kill()
        command.wait_for_end()
        server.process.kill()
        server.wait_for_end()
    companies.wait_until_gone()
