"""Killed at any write, a merchant has charged what it worked on, once, and goes on."""

from __future__ import annotations

import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from hansa_client.ledger import Ledger, LedgerFiles
from hansa_client.ledger_account import Tally, epsilon_of
from hansa_client.ledger_entries import entries
from hansa_client.ledger_head import LedgerHead
from hansa_client.ledger_payers import payer_of

# For each n in turn: a process that charges, works on and answers orders, and is killed at its n-th step on the disk; a
# write is then half done. What it worked on, and what left, is told as it goes.
PROGRAM = """
import importlib.util, itertools, os, signal, sys
from pathlib import Path
from hansa_client.ledger import Ledger, LedgerFiles
from hansa_client.ledger_head import LedgerHead
from hansa_client.ledger_payers import payer_of

spec = importlib.util.spec_from_file_location("conftest_of_ledger", sys.argv[2])
shared = importlib.util.module_from_spec(spec)
spec.loader.exec_module(shared)
real_write = os.write
# What is computed once is not imported and computed in each child.
known = Ledger()
for number in range(1, 4):
    known.charge(shared.charge_of(number))

def die_at(step):
    steps = itertools.count(1)
    for name in ("open", "write", "fsync", "replace", "truncate", "ftruncate", "mkdir"):
        real = getattr(os, name)
        def counted(*words, real=real, name=name, **options):
            if next(steps) == step:
                if name == "write":
                    real(words[0], words[1][: len(words[1]) // 2])
                os.kill(os.getpid(), signal.SIGKILL)
            return real(*words, **options)
        setattr(os, name, counted)

def live(place, step, num_orders):
    told = os.open(place / "told", os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    (place / "state").mkdir(mode=0o700)
    die_at(step)
    files = LedgerFiles(place / "state" / "ledger", LedgerHead(place / "elsewhere" / "head"))
    ledger = Ledger(files, payer=payer_of(place / "state"))
    for number in range(1, num_orders + 1):
        asked = shared.charge_of(number)
        ledger.charge(asked)
        real_write(told, f"worked {asked.order_hash}\\n".encode())
        ledger.answered(asked.order_hash)
        real_write(told, f"left {asked.order_hash}\\n".encode())

for step in itertools.count(1):
    place = Path(sys.argv[1], str(step))
    place.mkdir()
    if (child := os.fork()) == 0:
        live(place, step, 3)
        os._exit(0)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if code == 0:
        break
    assert code == -signal.SIGKILL, code
"""


@pytest.mark.system
def test_killed_at_any_write_it_has_charged_what_it_worked_on_once(tmp_path, charge):
    words = [sys.executable, "-c", PROGRAM, str(tmp_path), str(Path(__file__).with_name("conftest.py"))]
    subprocess.run(words, check=True, timeout=120)
    killed = sorted(path.parent for path in tmp_path.glob("*/told"))
    assert len(killed) > 40
    for place in killed:
        files = LedgerFiles(place / "state" / "ledger", LedgerHead(place / "elsewhere" / "head"))
        told = [line.split() for line in (place / "told").read_text().splitlines()]
        worked, left = ([order for what, order in told if what == asked] for asked in ("worked", "left"))
        ledger = Ledger(files, payer=payer_of(place / "state"))
        known = (
            Counter((entry.what, entry.order) for entry in entries(files.path)) if files.path.exists() else Counter()
        )
        assert all(known["charged", order] == 1 for order in worked)
        assert all(known["answered", order] == 1 for order in left)
        assert sum(known.values()) <= len(worked) + len(left) + 1
        # It goes on where it was: what was charged and never left is not charged again.
        for number in range(len(left) + 1, 4):
            if not known["answered", charge(number).order_hash]:
                ledger.charge(charge(number))
                ledger.answered(charge(number).order_hash)
        assert Counter(entry.what for entry in entries(files.path)) == {"charged": 3, "answered": 3}
        assert files.head.read() == ledger.state == Ledger(files).state


SPENDING = """
import importlib.util, sys
from pathlib import Path
from hansa_client.ledger import Ledger, LedgerFiles
from hansa_client.ledger_account import Limit
from hansa_client.ledger_head import LedgerHead
from hansa_common.errors import BudgetError

spec = importlib.util.spec_from_file_location("conftest_of_ledger", sys.argv[2])
shared = importlib.util.module_from_spec(spec)
spec.loader.exec_module(shared)
place, first = Path(sys.argv[1]), int(sys.argv[3])
ledger = Ledger(LedgerFiles(place / "ledger", LedgerHead(place / "head")))
print("ready", flush=True)
sys.stdin.readline()
own = Limit(2.0, 1e-5, "merchant.toml has max_epsilon = 2")
try:
    for number in range(first, first + 10_000):
        ledger.charge(shared.charge_of(number, agreement=f"{first:064x}"), own)
except BudgetError:
    print("spent", flush=True)
"""


@pytest.mark.system
def test_two_processes_that_spend_at_once_keep_to_one_budget(tmp_path):
    conftest = str(Path(__file__).with_name("conftest.py"))
    spenders = [
        subprocess.Popen(
            [sys.executable, "-c", SPENDING, str(tmp_path), conftest, str(first)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )
        for first in (1, 100_000)
    ]  # fmt: skip
    for spender in spenders:
        assert spender.stdout.readline() == "ready\n"
    for spender in spenders:
        spender.stdin.write("go\n")
        spender.stdin.close()
    assert [spender.stdout.read() for spender in spenders] == ["spent\n"] * 2
    for spender in spenders:
        spender.wait(60)
        spender.stdout.close()
    spent = Tally()
    for entry in entries(tmp_path / "ledger" / "ledger.jsonl"):
        spent.update(entry.cost)
    assert 1.9 < epsilon_of(spent, 1e-5) <= 2.0
