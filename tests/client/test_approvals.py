"""What a merchant approves it has seen: in plain words, with what is new, and by its fingerprint."""

from __future__ import annotations

import os
import pty
import subprocess
import sys
from pathlib import Path

import pytest

from hansa_client.agreement_words import differences, plain_words
from hansa_client.approvals import Approvals
from hansa_common.agreement import Agreement, parse_agreement, validate_agreement
from hansa_common.errors import AgreementMismatchError, MerchantError
from hansa_common.keys import make_signing_key, public_key_of
from hansa_common.trust import Trust

AGREEMENT = """
name = "Three shops"
task = "fraud"
roster = ["alder", "birch"]
[label]
column = "is_fraud"
positive = "yes"
[[features]]
kind = "numeric"
name = "amount"
low = 0
high = 100
[[features]]
kind = "boolean"
name = "gift"
[model]
hidden = [8]
[training]
algorithm = "fedavg"
rounds = 12
[training.plan]
local_epochs = 2
"""
OTHERS = {"coordinator": public_key_of(bytes(32)), "birch": public_key_of(bytes([1]) * 32)}


@pytest.fixture
def state(tmp_path) -> Path:
    folder = tmp_path / "state"
    folder.mkdir(mode=0o700)
    make_signing_key(folder / "identity.key")
    return folder


def agreed(text: str = AGREEMENT) -> Agreement:
    return parse_agreement(text, "the test")


def trusted(state: Path, agreement: Agreement, name: str = "alder") -> Agreement:
    own = public_key_of(bytes.fromhex((state / "identity.key").read_text()))
    keys = {other: public_key_of(other.encode().ljust(32, b"-")) for other in agreement.roster}
    trust = Trust(coordinator=OTHERS["coordinator"], merchants={**keys, name: own})
    return agreement.with_trust(trust)


def written(tmp_path: Path, agreement: Agreement, text: str = AGREEMENT) -> Path:
    path = tmp_path / "agreement.toml"
    trust = ""
    if agreement.trust is not None:
        keys = "\n".join(f'{name} = "{key}"' for name, key in agreement.trust.merchants.items())
        trust = f'[trust]\ncoordinator = "{agreement.trust.coordinator}"\n[trust.merchants]\n{keys}\n'
    path.write_text(f"{text}\n{trust}")
    assert parse_agreement(path.read_text(), "it") == agreement
    return path


# On record


def test_only_what_was_approved_is_approved(state):
    approvals, one, other = Approvals(state), agreed(), agreed().with_seed(7)
    with pytest.raises(AgreementMismatchError, match="hansa client approve"):
        approvals.verify(one.fingerprint)
    approvals.approve(one)
    Approvals(state).verify(one.fingerprint)
    with pytest.raises(AgreementMismatchError, match=other.fingerprint):
        approvals.verify(other.fingerprint)
    assert (state / "approved" / f"{one.fingerprint}.json").read_bytes() == one.canonical_json()


def test_latest_is_the_one_approved_last(state):
    approvals = Approvals(state)
    assert approvals.latest() is None
    for agreement in (agreed(), agreed().with_seed(7), agreed()):
        approvals.approve(agreement)
        assert approvals.latest() == agreement.model_dump(mode="json")
    (state / "approved" / f"{agreed().fingerprint}.json").unlink()
    assert approvals.latest() is None


def test_approval_whose_file_was_changed_is_told(state):
    approvals = Approvals(state)
    approvals.approve(agreed())
    (path,) = (state / "approved").glob("*.json")
    path.write_bytes(path.read_bytes().replace(b"12", b"13"))
    with pytest.raises(MerchantError, match="not what was approved"):
        approvals.latest()


# In plain words


def test_words_say_what_is_asked_and_what_leaves():
    words = "\n".join(plain_words(agreed()))
    for said in (
        "a fraud model of column 'is_fraud', positive where it says 'yes'", "2 more, nothing else: amount, gift",
        "up to 12 rounds", "2 epochs", "2 merchants or more, of the roster's 2: alder, birch", "no count below 5",
        "your own figures are not sent", "in the clear", "nothing is signed",
    ):  # fmt: skip
        assert said in words


def test_words_say_how_many_may_lie_and_that_a_round_needs_more_for_it():
    values = agreed().model_dump(mode="json")
    roster = ["alder", "birch", "cedar", "dogwood", "elm"]
    krum = {"rule": "krum", "num_dishonest": 1}
    words = "\n".join(plain_words(validate_agreement({**values, "roster": roster, "robustness": krum}, "the test")))
    assert "a round counts with 5 merchants or more" in words
    assert "up to 1 merchant may lie: a round makes its step by krum over merchants that count alike" in words


def test_words_of_a_hostile_author_draw_on_no_terminal():
    hostile = AGREEMENT.replace('"is_fraud"', '"is\\u009b2Jfraud"').replace("Three shops", "\\u001b[2J" + "x" * 100)
    words = plain_words(agreed(hostile))
    assert all(line.isprintable() for line in words)
    assert max(map(len, words)) < 3000
    changed = differences({"name": "a"}, agreed(hostile).model_dump(mode="json"))
    assert all(line.isprintable() for line in changed)


def changed(text: str, *replacements: tuple[str, str]) -> dict:
    for old, new in replacements:
        assert old in text
        text = text.replace(old, new)
    return agreed(text).model_dump(mode="json")


@pytest.mark.parametrize(
    ("replacement", "told"),
    [
        (("rounds = 12", "rounds = 13"), ["training.rounds: 12 -> 13"]),
        (("high = 100", "high = 200"), ["features.amount.high: 100.0 -> 200.0"]),
        (('name = "gift"', 'name = "age"'), ["features: 'age' is new", "features: 'gift' is gone"]),
        (('"birch"]', '"birch", "cedar"]'), ["roster: 'cedar' is new"]),
        (('["alder", "birch"]', '["birch", "alder"]'), ["roster: in another order"]),
        (("hidden = [8]", "hidden = [8, 4]"), ["model.hidden: [8] -> [8, 4]"]),
    ],
)
def test_every_difference_is_told_by_its_place(replacement, told):
    assert differences(changed(AGREEMENT), changed(AGREEMENT, replacement)) == told
    assert differences(changed(AGREEMENT), changed(AGREEMENT)) == []


def test_another_key_and_another_merchant_are_told(state):
    before = trusted(state, agreed())
    key = public_key_of(bytes([9]) * 32)
    other = before.with_trust(
        Trust(coordinator=OTHERS["coordinator"], merchants={**before.trust.merchants, "birch": key})
    )
    (line,) = differences(before.model_dump(mode="json"), other.model_dump(mode="json"))
    assert line == f"trust.merchants.birch: {before.trust.merchants['birch']} -> {key}"
    (line,) = differences(agreed().model_dump(mode="json"), before.model_dump(mode="json"))
    assert line.startswith("trust: null -> ")


# By its fingerprint


def test_script_must_name_the_fingerprint(hansa, state, tmp_path):
    path = written(tmp_path, agreed())
    refused = hansa("client", "approve", path, "--state", state)
    assert refused.exit_code == 2
    assert f"--yes-to {agreed().fingerprint}" in refused.stderr
    wrong = hansa("client", "approve", path, "--state", state, "--yes-to", "0" * 64)
    assert wrong.exit_code == 2
    assert agreed().fingerprint in wrong.stderr
    assert not (state / "approved").exists()
    done = hansa("client", "approve", path, "--state", state, "--yes-to", agreed().fingerprint)
    assert done.exit_code == 0, done.stderr
    Approvals(state).verify(agreed().fingerprint)
    assert "first agreement to be approved here" in done.stdout


def test_command_tells_both_fingerprints_who_you_are_and_what_is_new(hansa, state, tmp_path):
    (state / "merchant.toml").write_text("max_rounds = 12\n")
    first = trusted(state, agreed())
    hansa("client", "approve", written(tmp_path, first), "--state", state, "--yes-to", first.fingerprint)
    longer = AGREEMENT.replace("rounds = 12", "rounds = 13")
    second = trusted(state, agreed(longer))
    path = written(tmp_path, second, longer)
    told = hansa("client", "approve", path, "--state", state, "--yes-to", second.fingerprint)
    assert told.exit_code == 0, told.stderr
    for said in (
        "you are 'alder'", f"agreement fingerprint  {second.fingerprint}",
        f"roster fingerprint     {second.roster_fingerprint}", "training.rounds: 12 -> 13",
        "merchant.toml will refuse orders under it: the agreement asks for rounds up to 13",
    ):  # fmt: skip
        assert said in told.stdout


def test_agreement_without_this_merchants_key_is_not_approved(hansa, state, tmp_path):
    stranger = tmp_path / "stranger"
    stranger.mkdir(mode=0o700)
    make_signing_key(stranger / "identity.key")
    path = written(tmp_path, trusted(state, agreed()))
    refused = hansa("client", "approve", path, "--state", stranger, "--yes-to", trusted(state, agreed()).fingerprint)
    assert refused.exit_code == 2
    assert "no merchant with your identity key" in refused.stderr


@pytest.mark.system
@pytest.mark.parametrize(("answer", "is_approved"), [("y\n", True), ("n\n", False), ("\n", False)])
def test_person_is_asked_after_the_words_and_no_answer_is_no(state, tmp_path, answer, is_approved):
    path = written(tmp_path, agreed())
    ours, theirs = pty.openpty()
    words = ["client", "approve", str(path), "--state", str(state)]
    command = [sys.executable, "-c", "from hansa_common.cli import main; main()", *words]
    with subprocess.Popen(command, stdin=theirs, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as asked:
        os.write(ours, answer.encode())
        told = asked.communicate(timeout=60)[0]
    os.close(ours)
    os.close(theirs)
    assert asked.returncode == (0 if is_approved else 1), told
    assert told.index("up to 12 rounds") < told.index(agreed().fingerprint) < told.index("do you approve")
    assert (state / "approved" / f"{agreed().fingerprint}.json").exists() == is_approved
