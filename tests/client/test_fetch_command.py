"""`hansa client fetch` brings a delivered bundle to where it is used, and writes over nothing that it should not."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest

from hansa_client.bundle_files import open_trusted, read_threshold, write_threshold
from hansa_client.delivery import DELIVERED_NAME, Inbox, OwnDecision
from hansa_common.bundle import make_bundle
from hansa_common.keys import public_key_of
from hansa_common.parcel import pack

STRANGER = bytes(range(64, 96))


class Merchant:
    """A merchant's folder with a state to which bundles were delivered, as the trainer leaves them."""

    def __init__(self, folder: Path, made):
        self.folder, self.made = folder, made
        self.state = folder / ".hansa" / "alder"
        self.state.mkdir(parents=True)

    def deliver(self, threshold: float | None = 0.25, key: bytes | None = None, state: Path | None = None, **changes):
        parts = dataclasses.replace(self.made.parts, **changes)
        files = make_bundle(parts, self.made.signing_key if key is None else key)
        inbox = Inbox(state or self.state, self.made.parts.agreement)
        arrived = inbox.opened(np.frombuffer(pack(files), np.uint8))
        decided = {"threshold": threshold, "f1": 0.5} if threshold is not None else {"reason": "one class only"}
        rows = {"num_rows": 40, "num_positives": 7, "key_from": arrived.key_from}
        inbox.keep(arrived, OwnDecision(bundle=arrived.bundle.bundle_id, **rows, **decided))
        return files

    def files(self) -> dict[str, bytes]:
        """All that stands beside the state."""
        return {
            str(path.relative_to(self.folder)): path.read_bytes()
            for path in self.folder.rglob("*")
            if path.is_file() and ".hansa" not in path.parts
        }


@pytest.fixture
def merchant(tmp_path, monkeypatch, unfinished) -> Merchant:
    monkeypatch.chdir(tmp_path)
    return Merchant(tmp_path, unfinished)


@pytest.fixture
def fetch(hansa):
    def run(*words):
        return hansa("client", "fetch", *words)

    return run


@pytest.fixture
def refused(fetch, merchant):
    """One line, the exit code that is asked for, and nothing written."""

    def run(*words, code: int = 2) -> str:
        before = merchant.files()
        result = fetch(*words)
        assert result.exit_code == code, result
        assert result.stdout == ""
        (line,) = result.stderr.splitlines()
        assert merchant.files() == before
        return line

    return run


def test_fetched_bundle_is_the_delivered_one_with_key_and_threshold_beside_it(merchant, fetch, hansa):
    files = merchant.deliver()
    result = fetch()
    assert result.exit_code == 0, result
    assert {path.name: path.read_bytes() for path in (merchant.folder / "bundle").iterdir()} == files
    bundle = open_trusted(merchant.folder / "bundle", None)
    assert read_threshold(merchant.folder / "bundle", bundle.bundle_id) == 0.25
    assert hansa("bundle", "verify", "bundle").exit_code == 0
    for part in (
        bundle.bundle_id, bundle.manifest.agreement_fingerprint, merchant.made.trusted, "compressed: roc_auc 0.9290",
        "your threshold is 0.25", "40 validation rows, 7 of them positive", "compare it with the coordinator",
        "hansa score bundle NEW.csv -o scores.csv --hash-key",
    ):  # fmt: skip
        assert part in result.stdout, part


def test_json_says_the_same(merchant, fetch):
    merchant.deliver()
    told = json.loads(fetch("--json", "-o", "models/first").stdout)
    assert told["folder"] == "models/first"
    assert told["key_from"] == "first delivery"
    assert told["own"] == {"num_rows": 40, "num_positives": 7, "threshold": 0.25, "f1": 0.5, "reason": ""}
    assert told["signer"] == merchant.made.trusted
    assert told["metrics"]["federated"] == {"roc_auc": 0.93, "pr_auc": 0.74}
    assert min(merchant.files()) == "models/coordinator.pub"


def test_nothing_delivered_yet_is_one_line_with_what_to_do(merchant, refused):
    line = refused(code=1)
    assert "nothing was delivered" in line
    assert "hansa server deliver" in line


def test_state_is_the_one_merchants_or_must_be_named(merchant, fetch, refused, tmp_path):
    assert "no state folder" in refused("--state", "absent")
    (merchant.folder / ".hansa" / "server").mkdir()
    merchant.deliver()
    assert fetch().exit_code == 0
    birch = merchant.folder / ".hansa" / "birch"
    birch.mkdir()
    assert "alder, birch" in refused()
    merchant.deliver(state=birch)
    assert fetch("--state", birch, "-o", "other/bundle").exit_code == 0


def test_no_state_anywhere_is_told(merchant, refused):
    merchant.state.rmdir()
    assert "--state" in refused()


def test_same_bundle_may_be_fetched_again(merchant, fetch):
    merchant.deliver()
    first = fetch("--json")
    again = fetch("--json")
    assert (first.exit_code, again) == (0, first)


def test_another_bundle_makes_way_only_where_that_was_said(merchant, fetch, refused):
    merchant.deliver()
    assert fetch().exit_code == 0
    files = merchant.deliver(0.75, run_id="run 2")
    assert "holds another bundle" in refused()
    assert fetch("--force").exit_code == 0
    assert merchant.files()["bundle/manifest.json"] == files["manifest.json"]
    bundle = open_trusted(merchant.folder / "bundle", None)
    assert read_threshold(merchant.folder / "bundle", bundle.bundle_id) == 0.75


def test_folder_of_other_things_never_makes_way(merchant, refused):
    merchant.deliver()
    (merchant.folder / "bundle").mkdir()
    (merchant.folder / "bundle" / "thesis.tex").write_text("years of work")
    assert "other things" in refused("--force")
    assert "other things" in refused("--force", "-o", "bundle/../bundle")
    (merchant.folder / "bundle" / "chapters").mkdir()
    assert "not a plain file" in refused("--force", code=1)
    (merchant.folder / "file").write_text("")
    assert "file" in refused("--force", "-o", "file")


def test_trust_in_another_key_is_never_written_over(merchant, refused):
    merchant.deliver()
    (merchant.folder / "coordinator.pub").write_text(public_key_of(STRANGER) + "\n")
    assert "trusts another key" in refused("--force")


def test_without_a_threshold_there_is_no_file_and_it_is_said_why(merchant, fetch):
    merchant.deliver(None)
    result = fetch()
    assert result.exit_code == 0
    assert "no threshold of yours: one class only" in result.stdout
    assert "threshold.json" not in merchant.files()
    bundle = open_trusted(merchant.folder / "bundle", None)
    write_threshold(merchant.folder / "bundle", bundle.bundle_id, 0.9)
    assert fetch().exit_code == 0
    assert read_threshold(merchant.folder / "bundle", bundle.bundle_id) == 0.9


def test_threshold_of_another_bundle_or_by_hand_makes_way_only_where_that_was_said(merchant, fetch, refused):
    merchant.deliver(None)
    (merchant.folder / "threshold.json").write_text(json.dumps({"bundle": "0" * 64, "threshold": 0.5}))
    assert "threshold.json" in refused()
    assert fetch("--force").exit_code == 0
    assert "threshold.json" not in merchant.files()
    merchant.deliver()
    bundle = open_trusted(merchant.folder / "bundle", None)
    write_threshold(merchant.folder / "bundle", bundle.bundle_id, 0.9)
    assert "threshold.json" in refused()
    assert fetch("--force").exit_code == 0
    assert read_threshold(merchant.folder / "bundle", bundle.bundle_id) == 0.25


def test_changed_state_gives_nothing_out(merchant, refused):
    merchant.deliver()
    path = merchant.state / DELIVERED_NAME
    path.write_bytes(path.read_bytes()[:-1])
    assert "have it delivered again" in refused(code=1)


def test_key_that_was_swapped_in_the_state_gives_nothing_out(merchant, refused):
    merchant.deliver()
    (merchant.state / "coordinator.pub").write_text(public_key_of(STRANGER))
    assert "the one to trust is" in refused(code=1)
