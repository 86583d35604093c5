"""One order that two state folders answer is two releases, and is paid for twice; what one folder repeats is not."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter

import pytest

from hansa_client.ledger import Ledger, read
from hansa_client.ledger_account import Limit, Tally, epsilon_of
from hansa_client.ledger_entries import entries
from hansa_client.ledger_payers import PAYER_NAME, charging_alone, payer_of
from hansa_common.errors import BudgetError, MerchantError, UsageError
from hansa_common.privacy import epsilon


@pytest.fixture
def folders(tmp_path):
    """Two state folders of one merchant."""
    for name in ("one", "two"):
        (tmp_path / name).mkdir(mode=0o700)
    return tmp_path / "one", tmp_path / "two"


@pytest.fixture
def opened_for(files):
    """Open the one ledger as a trainer with this state folder does."""
    return lambda folder: Ledger(files, payer=payer_of(folder))


def what(files) -> list[str]:
    return [entry.what for entry in entries(files.path)]


def test_id_of_a_state_folder_is_drawn_once_and_is_its_own(folders):
    one, two = folders
    first = payer_of(one)
    assert len(bytes.fromhex(first)) == 16
    assert payer_of(one) == first != payer_of(two)
    assert (one / PAYER_NAME).stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("content", [b"", b"x" * 32, b"0" * 31, b"0" * 33, b"\xff" * 32])
def test_damaged_id_is_refused_and_says_what_to_do(folders, content):
    (folders[0] / PAYER_NAME).write_bytes(content)
    with pytest.raises(MerchantError, match="is damaged; remove it"):
        payer_of(folders[0])


def test_second_folder_pays_for_the_order_that_the_first_is_still_at(files, folders, opened_for, charge):
    # Both are asked before either has answered, and each answer has noise of its own.
    one, two = map(opened_for, folders)
    for ledger in (one, two, one, two):
        ledger.charge(charge(1))
    assert what(files) == ["charged", "charged"]
    assert len({entry.payer for entry in entries(files.path)}) == 2
    one.answered(charge(1).order_hash)
    assert what(files) == ["charged", "charged", "answered"]
    # The second one's charge still stands for its answer, also after a restart.
    again = opened_for(folders[1])
    again.charge(charge(1))
    again.answered(charge(1).order_hash)
    assert what(files) == ["charged", "charged", "answered", "answered"]
    cost = sum((entry.cost for entry in entries(files.path)), Tally())
    assert epsilon_of(cost, 1e-5) == epsilon([charge(1).mechanisms[0]] * 2, 1e-5)


def test_second_folder_is_refused_where_the_same_order_once_more_would_pass_the_budget(folders, opened_for, charge):
    once = epsilon(charge(1).mechanisms, 1e-5)
    asked = charge(1, agreed=Limit(once, 1e-5, "enough for one"))
    one, two = map(opened_for, folders)
    one.charge(asked)
    with pytest.raises(BudgetError, match="enough for one"):
        two.charge(asked)


def test_folder_that_lost_its_id_pays_once_more_and_never_less(files, folders, opened_for, charge):
    opened_for(folders[0]).charge(charge(1))
    (folders[0] / PAYER_NAME).unlink()
    opened_for(folders[0]).charge(charge(1))
    assert what(files) == ["charged", "charged"]


def test_lines_from_before_there_were_ids_count_and_pay_for_nobody(files, opened, folders, opened_for, charge):
    old = opened()
    old.charge(charge(1))
    old.answered(charge(1).order_hash)
    old.charge(charge(2))
    assert b"payer" not in files.path.read_bytes()
    now = opened_for(folders[0])
    assert now.spent_under("a" * 64) == old.spent_under("a" * 64)
    # Whether an answer to it left was another folder's to know.
    now.charge(charge(2))
    now.answered(charge(2).order_hash)
    assert what(files) == ["charged", "answered", "charged", "charged", "answered"]
    assert [line["what"] for line in map(json.loads, files.path.read_text().splitlines())] == what(files)
    state, lines = read(files)
    assert (state, [line.payer for line in lines][:3]) == (now.state, [""] * 3)


def test_command_tells_which_folders_a_ledger_was_charged_for(files, folders, opened, opened_for, charge, hansa):
    def shown(*words: str) -> str:
        return hansa(
            "client", "ledger", "--state", files.folder.parent, "--ledger-head", files.head.path, *words
        ).stdout

    opened_for(folders[0]).charge(charge(1))
    opened_for(folders[0]).charge(charge(2))
    assert "state folders" not in shown()
    opened_for(folders[1]).charge(charge(1))
    opened().charge(charge(3))
    one, two = map(payer_of, folders)
    told = f"charged for 3 state folders ({one[:8]}: 2 orders, {two[:8]}: 1 order, before folders had ids: 1 order)"
    assert told in shown()
    assert json.loads(shown("--json"))["payers"] == {one: 2, two: 1, "": 1}


# Two processes of one id


def test_copy_of_a_state_folder_cannot_charge_while_the_other_runs(files, folders, opened_for):
    one, two = folders
    (two / PAYER_NAME).write_bytes(payer_of(one).encode())
    copied = opened_for(two)
    with opened_for(one).charging_alone():
        with pytest.raises(UsageError, match=r"one of the two is a copy; in the copy, remove the file 'payer'"):
            copied.charging_alone().__enter__()
        (two / PAYER_NAME).unlink()
        with opened_for(two).charging_alone():
            pass
    with copied.charging_alone():
        pass


HOLDING = """
import sys
from pathlib import Path
from hansa_client.ledger_payers import charging_alone

with charging_alone(Path(sys.argv[1]), sys.argv[2]):
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.mark.system
def test_id_is_free_again_once_the_process_that_charged_was_killed(files, folders, opened_for):
    ledger, payer = opened_for(folders[0]), payer_of(folders[0])
    words = [sys.executable, "-c", HOLDING, str(files.folder), payer]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout.readline() == "held\n"
        with pytest.raises(UsageError, match="another process charges"):
            ledger.charging_alone().__enter__()
        other.kill()
        other.wait(60)
        with charging_alone(files.folder, payer):
            pass


ANSWERING = """
import importlib.util, sys
from pathlib import Path
from hansa_client.ledger import Ledger, LedgerFiles
from hansa_client.ledger_head import LedgerHead
from hansa_client.ledger_payers import payer_of

spec = importlib.util.spec_from_file_location("conftest_of_ledger", sys.argv[2])
shared = importlib.util.module_from_spec(spec)
spec.loader.exec_module(shared)
place, state = Path(sys.argv[1]), Path(sys.argv[3])
ledger = Ledger(LedgerFiles(place / "ledger", LedgerHead(place / "head")), payer=payer_of(state))
with ledger.charging_alone():
    print("ready", flush=True)
    sys.stdin.readline()
    for number in range(1, 7):
        asked = shared.charge_of(number)
        ledger.charge(asked)
        ledger.answered(asked.order_hash)
"""


@pytest.mark.system
def test_two_trainers_that_answer_the_same_orders_at_once_pay_for_both_answers(tmp_path, folders, charge, request):
    conftest = str(request.path.with_name("conftest.py"))
    trainers = [
        subprocess.Popen(
            [sys.executable, "-c", ANSWERING, str(tmp_path), conftest, str(folder)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )
        for folder in folders
    ]  # fmt: skip
    for trainer in trainers:
        assert trainer.stdout.readline() == "ready\n"
    for trainer in trainers:
        trainer.stdin.write("go\n")
        trainer.stdin.close()
    for trainer in trainers:
        assert trainer.wait(120) == 0
        trainer.stdout.close()
    known = Counter((entry.what, *entry.answer) for entry in entries(tmp_path / "ledger" / "ledger.jsonl"))
    orders = [charge(number).order_hash for number in range(1, 7)]
    payers = [payer_of(folder) for folder in folders]
    every = [(word, payer, order) for word in ("charged", "answered") for payer in payers for order in orders]
    assert known == Counter(every)
