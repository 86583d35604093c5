"""Masked sums across companies, with keys, a gateway and processes of their own: a merchant whose trainer is killed
between the two exchanges of a round is in that round's sum, and takes part again."""

from __future__ import annotations

import json
import os
import signal

import pytest
from hansa_command import stand_still, wait_until

pytestmark = [pytest.mark.system, pytest.mark.data, pytest.mark.timeout(900)]

MERCHANTS = ("alder", "birch", "cedar")
TRAINER = "hansa_client.trainer_service"
NUM_ROUNDS = 4
AGREEMENT = f"""
name = "masked"
task = "purchase"
seed = 7
roster = {json.dumps(MERCHANTS)}
label = {{column = "Revenue", positive = "TRUE"}}
features = [{{kind = "numeric", name = "PageValues", low = 0.0, high = 400.0, scaling = "log"}}]
model = {{hidden = [8]}}
privacy = {{min_count = 1, min_positives = 1}}
secure_aggregation = {{protocol = "double-masking"}}

[cohort]
min_merchants = 3
wait_seconds = 120.0
deadline_seconds = 60.0
max_update_norm = 10.0
max_examples = 1000

[training]
algorithm = "scaffold"
rounds = {NUM_ROUNDS}
patience = {NUM_ROUNDS}

[training.plan]
optimizer = "sgd"
learning_rate = 0.1
local_steps = 30
"""


def noted(party) -> list[dict]:
    """The lines of a merchant's own audit, the last of which may still be being written."""
    return [json.loads(line) for line in (party.state / "audit.jsonl").read_text().split("\n")[:-1]]


def answered_round(party) -> int:
    """The number of the round whose update is a merchant's last word; 0 where that is something else."""
    last = noted(party)[-1]
    return last.get("round", 0) if last["what"] == "answered" else 0


def test_trainer_killed_between_the_exchanges_of_a_round_is_in_its_sum_and_takes_part_again(new_companies):
    companies = new_companies(AGREEMENT)
    alder, killed_at = companies.merchants["alder"], []

    def is_killed_between_exchanges() -> bool:
        if not answered_round(alder):
            return False
        trainer = companies.process(alder, TRAINER)
        stand_still(trainer)
        killed_at.append(answered_round(alder))
        # The second exchange may have begun meanwhile: another round, then.
        os.kill(trainer, signal.SIGKILL if killed_at[-1] else signal.SIGCONT)
        return killed_at[-1] > 0

    with companies.serving(), companies.taking_part() as commands:
        with companies.coordinator.running("server", "train", "kits/agreement.toml", "--out", "run") as run:
            wait_until("an answer in a round", is_killed_between_exchanges)
            commands["alder"].wait_for_line("the trainer was ended by SIGKILL; it is started again")
            assert run.wait_for_end(480) == 0, run.text
        assert run.process.returncode == 0
    metrics = json.loads((companies.coordinator.folder / "run" / "metrics.json").read_text())
    by_round = {entry["round"]: entry for entry in metrics["rounds"]}
    # Two of three opened shares, which is enough for the sum; the killed one's vector is in it.
    assert by_round[killed_at[-1]]["aggregated"]
    assert by_round[killed_at[-1]]["dropped"] == {}
    assert [entry["aggregated"] for entry in metrics["rounds"]].count(True) >= NUM_ROUNDS - 1
    assert by_round[NUM_ROUNDS]["aggregated"]
    assert by_round[NUM_ROUNDS]["dropped"] == {}
    assert metrics["federated"]["pr_auc"] > 0.4
    # No merchant's figures are among the run's, and nothing of rows left in the clear.
    assert all("num_train_rows" not in told for told in metrics["merchants"].values())
    refused = [line for line in noted(alder) if line.get("decision") == "refused"]
    assert any("masked sum" in line["reason"] or "is asked to open" in line["reason"] for line in refused)
    kinds = {line["kind"] for line in noted(alder) if line["what"] == "asked" and "kind" in line}
    assert {"keys", "unmask", "round", "statistics", "evaluate"} <= kinds
    companies.wait_until_gone()
