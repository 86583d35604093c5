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


def test_three_merchants_and_a_coordinator_over_mtls_end_with_the_same_bytes_as_the_simulation(companies):
    coordinator, merchants = companies.coordinator, companies.merchants
    with companies.serving() as server, companies.taking_part() as commands:
        told = coordinator.told("server", "train", "kits/agreement.toml", "--out", "runs/first")
        assert companies.fingerprint[:12] in told
        status = json.loads(coordinator.told("server", "status", "--json"))
        for name, party in merchants.items():
            commands[name].wait_for_line("was delivered")
            fetched = json.loads(party.told("client", "fetch", "-o", "bundle", "--json"))
            assert 0 < fetched["own"]["threshold"] < 1
            audit = json.loads(party.told("client", "audit", "--last", "0", "--json"))
            assert_audit_tells_all(audit, companies.fingerprint, 2)
        assert [command.stop() for command in commands.values()] == [0, 0, 0]
        assert server.stop() == 0
    companies.wait_until_gone()

    metrics = json.loads((coordinator.folder / "runs" / "first" / "metrics.json").read_text())
    assert [sorted(entry["cohort"]) for entry in metrics["rounds"]] == [sorted(merchants)] * 2
    assert all(not entry["dropped"] for entry in metrics["rounds"])
    assert metrics["agreement_fingerprint"] == companies.fingerprint
    assert list(status["merchants"]) == list(merchants)
    assert all(entry["connected"] and entry["agreement_approved"] for entry in status["merchants"].values())
    assert status["unknown_nodes"] == 0

    words = ("agreement.toml", companies.folder / "all.csv", "--silo", "merchant", "--out", "simulated")
    coordinator.told("simulate", *words)
    assert_same_model(coordinator.folder / "runs" / "first", coordinator.folder / "simulated")
