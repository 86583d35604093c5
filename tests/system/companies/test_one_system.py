"""Three merchants and a coordinator over mTLS, on real data, from keys to a model in use: with the commands that are
printed, and to the same bytes as the simulation."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

pytestmark = [pytest.mark.system, pytest.mark.data, pytest.mark.timeout(600)]


def assert_same_model(one: Path, other: Path) -> None:
    for name in ("spec.json", "preprocessing.json"):
        assert (one / "model" / name).read_text() == (other / "model" / name).read_text()
    with np.load(one / "model" / "weights.npz") as first, np.load(other / "model" / "weights.npz") as second:
        assert sorted(first.files) == sorted(second.files)
        for name in first.files:
            assert first[name].tobytes() == second[name].tobytes(), f"{name} differs"
    for name in ("weights.npz", "float.tflite", "int8.tflite"):
        assert (one / "bundle" / name).read_bytes() == (other / "bundle" / name).read_bytes(), name


def assert_audit_tells_all(audit: dict, fingerprint: str, num_rounds: int) -> None:
    lines = audit["lines"]
    assert (lines[0]["what"], lines[0]["agreement"]) == ("started", fingerprint)
    answered = [line for line in lines if line["what"] == "answered"]
    assert len(answered) == sum(line["what"] == "asked" for line in lines)
    assert {line["decision"] for line in answered} == {"answered"}
    assert sorted({line["round"] for line in answered if "round" in line}) == list(range(1, num_rounds + 1))
    assert audit["unfinished_bytes"] == 0


def assert_printed(companies) -> None:
    """The guides print what a merchant and the coordinator have run, word by word but for what differs by nature."""
    docs = Path(__file__).parents[3] / "docs"
    printed = {line for name in ("coordinator.md", "merchant.md") for line in (docs / name).read_text().splitlines()}
    alike = {
        companies.address: "fl.example.com",
        f" --yes-to {companies.fingerprint}": "",
        " --last 0": "",
        " --json": "",
    }
    for party in (companies.merchants["alder"], companies.coordinator):
        for words in party.said:
            for own, theirs in alike.items():
                words = words.replace(own, theirs)  # noqa: PLW2901 - step by step
            assert f"hansa {words}" in printed, words


def assert_in_use(companies, commands) -> None:
    """What each merchant has once the run is over: the bundle, a threshold of its own, and a record of all of it."""
    for name, party in companies.merchants.items():
        commands[name].wait_for_line("was delivered")
        fetched = json.loads(party.told("client", "fetch", "-o", "bundle", "--json"))
        assert 0 < fetched["own"]["threshold"] < 1
        audit = json.loads(party.told("client", "audit", "--last", "0", "--json"))
        assert_audit_tells_all(audit, companies.fingerprint, 2)


def test_three_merchants_and_a_coordinator_over_mtls_end_with_the_same_bytes_as_the_simulation(companies):
    coordinator, merchants = companies.coordinator, companies.merchants
    run, simulated = coordinator.folder / "runs" / "first", coordinator.folder / "simulated"
    with companies.serving() as server:
        checked = json.loads(merchants["alder"].told("client", "check", "--data", "alder.csv", "--json"))
        assert {check["verdict"] for check in checked["checks"]} == {"good"}, checked
        with companies.taking_part() as commands:
            told = coordinator.told("server", "train", "kits/agreement.toml", "--out", "runs/first")
            assert companies.fingerprint[:12] in told
            status = json.loads(coordinator.told("server", "status", "--json"))
            assert_in_use(companies, commands)
            assert [command.stop() for command in commands.values()] == [0, 0, 0]
        assert server.stop() == 0
    companies.wait_until_gone()
    assert_printed(companies)

    metrics = json.loads((run / "metrics.json").read_text())
    assert [sorted(entry["cohort"]) for entry in metrics["rounds"]] == [sorted(merchants)] * 2
    assert all(not entry["dropped"] for entry in metrics["rounds"])
    assert metrics["agreement_fingerprint"] == companies.fingerprint
    assert list(status["merchants"]) == list(merchants)
    assert all(entry["connected"] and entry["agreement_approved"] for entry in status["merchants"].values())
    assert status["unknown_nodes"] == 0

    table = companies.folder / "all.csv"
    coordinator.told("simulate", "agreement.toml", table, "--silo", "merchant", "--out", simulated)
    assert_same_model(run, simulated)


def test_killed_command_leaves_no_process(companies):
    party = companies.merchants["alder"]
    with companies.serving() as server, party.running("client", "start", "--data", "alder.csv") as command:
        command.wait_for_line("waiting for orders")
        command.process.kill()
        command.wait_for_end()
        server.process.kill()
        server.wait_for_end()
    companies.wait_until_gone()
