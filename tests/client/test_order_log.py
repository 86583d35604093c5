"""An order is obeyed once: whatever comes again, late, in another order or after a kill."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from hansa_client import order_log
from hansa_client.order_log import MAX_REPLIES, OrderLog
from hansa_common.errors import MerchantError, ReplayError
from hansa_common.messages import RoundOrder, StatisticsOrder, encode, message_hash

NONE = np.zeros(0, np.float32)
COORDINATOR = "c0" * 32


def order(sequence, round_number=None, *, run="run", stage="train", plan=0, kind=StatisticsOrder):
    header = {"run_id": run, "sequence": sequence, "recipient": "alpha", "fingerprint": "0" * 64}
    header |= {"deadline_seconds": 5.0}
    if round_number is not None:
        return RoundOrder(
            **header, round=round_number, plan=plan, cohort=("alpha",), preprocessing="", weights=NONE, control=NONE,
            included="", stage=stage,
        )  # fmt: skip
    return kind(**header)


def hash_of(asked) -> str:
    return message_hash(encode(asked))


def take(log, asked):
    return log.take(asked, hash_of(asked))


def answered(log, asked, reply=None):
    assert take(log, asked) is None
    log.keep(hash_of(asked), reply or f"reply to {asked.sequence}".encode())
    return asked


@pytest.fixture(params=["folder", "memory"])
def log(request, tmp_path) -> OrderLog:
    log = OrderLog(tmp_path / "orders" if request.param == "folder" else None)
    log.begin("run")
    return log


@pytest.fixture
def folder(tmp_path) -> Path:
    return tmp_path / "orders"


def begun(folder, run="run") -> OrderLog:
    log = OrderLog(folder)
    log.begin(run)
    return log


def test_order_that_cannot_be_put_on_record_is_never_taken(folder, full_disk):
    log = begun(folder)
    asked = answered(log, order(1, 1))
    for _ in range(2):
        with full_disk(), pytest.raises(OSError, match="too large"):
            take(log, order(2, 2))
    # Not even in memory: the record is on disk before the order is obeyed.
    assert [entry.sequence for entry in log._current.taken] == [1]
    assert take(log, asked) == b"reply to 1"
    answered(log, order(2, 2))
    assert take(OrderLog(folder), order(2, 2)) == b"reply to 2"


# Replayed, reordered, of another run


def test_replayed_order_is_refused(log):
    first = answered(log, order(1))
    for number in range(2, 5):
        answered(log, order(number, number))
    with pytest.raises(ReplayError, match=r"number 1.*above 4"):
        take(log, first)


def test_reordered_orders_are_refused(log):
    answered(log, order(7, 3))
    with pytest.raises(ReplayError, match=r"number 5.*above 7"):
        take(log, order(5, 4))
    answered(log, order(8, 4))


def test_other_order_with_the_same_number_is_refused(log):
    answered(log, order(2))
    with pytest.raises(ReplayError, match="not the one that had it"):
        take(log, order(2, kind=StatisticsOrder, run="run").model_copy(update={"deadline_seconds": 6.0}))


@pytest.mark.parametrize(("number", "stage"), [(5, "train"), (4, "train"), (0, "train"), (5, "prune"), (6, "train")])
def test_other_order_for_a_round_already_answered_and_a_round_that_goes_backwards_are_refused(log, number, stage):
    answered(log, order(1, 5))
    answered(log, order(2, 6, stage="prune"))
    with pytest.raises(ReplayError, match="round never comes twice"):
        take(log, order(3, number, stage=stage, plan=1))
    answered(log, order(3, 7, stage="prune"))
    answered(log, order(4, 6, stage="control"))


def test_cross_run_order_is_refused(log):
    answered(log, order(1))
    with pytest.raises(ReplayError, match=r"'other'.*'run'"):
        take(log, order(2, run="other"))
    log.begin("other")
    held_back = order(2)
    with pytest.raises(ReplayError, match=r"'run'.*'other'"):
        take(log, held_back)
    answered(log, order(1, run="other"))


def test_old_introduction_takes_nobody_back_also_after_a_kill(folder):
    log = OrderLog(folder)
    log.begin("one", 5, COORDINATOR)
    log.begin("two", 9, COORDINATOR)
    for reopened in (log, OrderLog(folder)):
        for run, number in (("one", 5), ("one", 9), ("two", 8), ("three", 9), ("three", 0)):
            with pytest.raises(ReplayError, match=f"number {number}, this merchant has seen 9"):
                reopened.begin(run, number, COORDINATOR)
        assert take(reopened, order(1, run="two")) is None
        with pytest.raises(ReplayError, match="of run 'one'"):
            take(reopened, order(1, run="one"))
        reopened.begin("two", 9, COORDINATOR)
    OrderLog(folder).begin("one", 10, COORDINATOR)
    assert take(OrderLog(folder), order(1, run="one")) is None


def test_numbers_of_introductions_are_each_coordinators_own_and_say_nothing_where_nobody_signs(log):
    log.begin("one", 2**50, COORDINATOR)
    log.begin("two", 1, "1" * 64)
    for number in (7, 3, 0):
        log.begin(f"unsigned {number}", number)
    log.begin("three", 2, "1" * 64)


def test_order_before_any_introduction_is_refused():
    with pytest.raises(ReplayError, match="introduced itself to none"):
        take(OrderLog(), order(1))


def test_run_that_is_resumed_after_another_goes_on_where_it_was(log):
    answered(log, order(3, 1))
    log.begin("other")
    log.begin("run")
    with pytest.raises(ReplayError):
        take(log, order(2))
    answered(log, order(4, 2))


# The same order again


def test_identical_order_gets_the_stored_reply_also_from_the_next_process(folder):
    log = begun(folder)
    asked = answered(log, order(1, 1), b"the update")
    assert take(log, asked) == take(OrderLog(folder), asked) == b"the update"


def test_replies_since_the_last_round_but_one_are_kept_and_no_others(folder):
    log = begun(folder)
    orders = [order(1), order(2, 1), order(3), order(4, 2), order(5), order(6, 3), order(7), order(8)]
    for asked in orders:
        answered(log, asked)
    for asked in orders[3:]:
        assert take(log, asked) == f"reply to {asked.sequence}".encode()
    for asked in orders[:3]:
        with pytest.raises(ReplayError):
            take(log, asked)
    assert len(list(folder.glob("*/*"))) == 5


def test_last_order_without_a_reply_is_to_be_obeyed_an_earlier_one_is_not(folder):
    log = begun(folder)
    assert take(log, order(1)) is None
    assert take(OrderLog(folder), order(1)) is None
    assert take(log, order(2)) is None
    with pytest.raises(ReplayError):
        take(log, order(1))


def test_only_the_reply_to_the_last_order_is_kept(log):
    answered(log, order(1))
    with pytest.raises(ValueError, match="taken last"):
        log.keep("0" * 64, b"reply")


# Bounded in size


def test_orders_without_rounds_do_not_fill_the_disk(folder):
    log = begun(folder)
    for number in range(1, MAX_REPLIES + 10):
        answered(log, order(number))
    assert len(list(folder.glob("*/*"))) == MAX_REPLIES
    with pytest.raises(ReplayError):
        take(log, order(9))
    assert take(log, order(10)) == b"reply to 10"


def test_replies_of_old_runs_go_and_their_orders_stay_refused(folder):
    log = OrderLog(folder)
    runs = [f"run {i}" for i in range(order_log.NUM_RUNS_WITH_REPLIES + 1)]
    for run in runs:
        log.begin(run)
        answered(log, order(3, 1, run=run))
    assert len(list(folder.glob("*/*"))) == order_log.NUM_RUNS_WITH_REPLIES
    for reopened in (log, OrderLog(folder)):
        reopened.begin(runs[0])
        with pytest.raises(ReplayError):
            take(reopened, order(3, 1, run=runs[0]))


def test_too_many_runs_are_refused_rather_than_forgotten(folder, monkeypatch):
    monkeypatch.setattr(order_log, "MAX_RUNS", 2)
    log = begun(folder, "one")
    log.begin("two")
    with pytest.raises(MerchantError, match=r"2 runs.*--state"):
        log.begin("three")
    log.begin("one")


# Damage and kills


@pytest.mark.parametrize("content", [b"", b"{}", b"not JSON", b'{"run_id": "run", "begun": 0}'])
def test_damaged_record_is_told_with_its_file(folder, content):
    begun(folder)
    (path,) = folder.glob("*.json")
    path.write_bytes(content)
    with pytest.raises(MerchantError, match=path.name):
        OrderLog(folder)


def test_record_of_another_run_is_refused(folder):
    begun(folder)
    (path,) = folder.glob("*.json")
    path.write_text(json.dumps({**json.loads(path.read_text()), "run_id": "other"}))
    with pytest.raises(MerchantError, match=r"'other'"):
        OrderLog(folder)


def test_damaged_reply_is_not_sent(folder):
    log = begun(folder)
    asked = answered(log, order(1))
    (path,) = folder.glob("*/*.reply")
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(MerchantError, match=r"1\.reply"):
        take(log, asked)


# For each n in turn: a process that obeys orders, and is killed before it touches its folder for the n-th time. What it
# obeyed, and what left, is told as it goes.
PROGRAM = """
import itertools, os, signal, sys
from pathlib import Path
from hansa_client import order_log
from hansa_common.messages import decode, message_hash

order_log.NUM_RUNS_WITH_REPLIES = int(sys.argv[2])
place = Path(sys.argv[1])
story = [path.read_bytes() for path in sorted(place.glob("*.order"))]

def obey(folder, kill_at):
    touches = itertools.count(1)
    def count(event, args):
        if event in {"open", "os.rename", "os.remove", "os.mkdir", "os.rmdir"} and str(folder) in str(args[0]):
            if next(touches) == kill_at:
                os.kill(os.getpid(), signal.SIGKILL)
    told = os.open(folder.parent / "told", os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    sys.addaudithook(count)
    log = order_log.OrderLog(folder)
    for message in story:
        order, order_hash = decode(message), message_hash(message)
        log.begin(order.run_id)
        reply = log.take(order, order_hash)
        if reply is None:
            os.write(told, f"obeyed {order_hash}\\n".encode())
            # At random: computed anew it would be another.
            reply = os.urandom(4).hex().encode()
            log.keep(order_hash, reply)
        os.write(told, f"left {order_hash} {reply.decode()}\\n".encode())

for kill_at in itertools.count(1):
    folder = place / str(kill_at) / "orders"
    folder.parent.mkdir()
    if (child := os.fork()) == 0:
        obey(folder, kill_at)
        os._exit(0)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if code == 0:
        break
    assert code == -signal.SIGKILL, code
"""
STORY = [order(1), order(2, 1), order(3, 2), order(4, 3), order(1, run="b"), order(1, run="c"), order(2, 1, run="c")]


@pytest.mark.system
def test_killed_at_any_write_it_obeys_an_order_once_before_the_reply_leaves(tmp_path, monkeypatch):
    monkeypatch.setattr(order_log, "NUM_RUNS_WITH_REPLIES", 2)
    for number, asked in enumerate(STORY):
        (tmp_path / f"{number}.order").write_bytes(encode(asked))
    subprocess.run([sys.executable, "-c", PROGRAM, str(tmp_path), "2"], check=True, timeout=120)
    killed = sorted(path.parent for path in tmp_path.glob("*/told"))
    assert len(killed) > 40
    for place in killed:
        check_that_it_can_go_on(place)


def check_that_it_can_go_on(place):
    """The order that was worked on, and those before it, sent again after the kill."""
    lines = [line.split() for line in (place / "told").read_text().splitlines()]
    obeyed = [words[1] for words in lines if words[0] == "obeyed"]
    left = {words[1]: words[2].encode() for words in lines if words[0] == "left"}
    assert len(obeyed) == len(set(obeyed))
    log, asked = OrderLog(place / "orders"), STORY[min(len(left), len(STORY) - 1)]
    log.begin(asked.run_id)
    reply = take(log, asked)
    if reply is None:
        assert hash_of(asked) not in left
        log.keep(hash_of(asked), b"computed after the kill")
    else:
        assert reply == left.get(hash_of(asked), reply)
    for earlier in STORY[: STORY.index(asked)]:
        try:
            assert take(log, earlier) == left[hash_of(earlier)]
        except ReplayError:
            assert earlier.run_id != asked.run_id or earlier.sequence < asked.sequence
