"""SCAFFOLD variates: no pattern of drops, crashes or kills separates a merchant from the coordinator."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hansa_client.variates import NUM_RUNS_KEPT, Variate, VariateStore, control_delta
from hansa_common import durable_files
from hansa_common.errors import MerchantError, UsageError

RUN = "run-1"


def reply_hash(number: int) -> str:
    return f"{number:064x}"


def variate(number: int, *values: float) -> Variate:
    return Variate(number, reply_hash(10_000 + number), reply_hash(number), np.array(values or (number,), np.float32))


def store_in(kind: str, folder: Path) -> VariateStore:
    return VariateStore(folder / "variates" if kind == "folder" else None)


@pytest.fixture(params=["memory", "folder"])
def store(request, tmp_path):
    return store_in(request.param, tmp_path)


def test_nothing_is_committed_before_a_reply_is_included(store):
    assert store.begin(RUN, 0, "") is None
    store.propose(RUN, 0, variate(1))
    assert store.begin(RUN, 0, "") is None


def test_included_reply_commits_its_variate(store):
    store.propose(RUN, 0, variate(1, 3.0, -4.0))
    np.testing.assert_array_equal(store.begin(RUN, 0, reply_hash(1)), np.float32([3.0, -4.0]))


def test_same_included_again_gives_the_same_variate(store):
    store.propose(RUN, 0, variate(1))
    store.begin(RUN, 0, reply_hash(1))
    assert store.begin(RUN, 0, reply_hash(1)) == np.float32([1.0])


def test_dropped_proposal_is_discarded_for_good(store):
    store.propose(RUN, 0, variate(1))
    store.begin(RUN, 0, reply_hash(1))
    store.propose(RUN, 0, variate(2))
    assert store.begin(RUN, 0, reply_hash(1)) == np.float32([1.0])
    with pytest.raises(MerchantError, match="counts reply"):
        store.begin(RUN, 0, reply_hash(2))


def test_order_that_counts_an_unknown_reply_is_refused_and_changes_nothing(store):
    store.propose(RUN, 0, variate(1))
    with pytest.raises(MerchantError, match="sit this run out"):
        store.begin(RUN, 0, reply_hash(99))
    assert store.begin(RUN, 0, reply_hash(1)) == np.float32([1.0])


def test_order_that_forgets_the_commit_is_refused(store):
    store.propose(RUN, 0, variate(1))
    store.begin(RUN, 0, reply_hash(1))
    with pytest.raises(MerchantError, match="'none'"):
        store.begin(RUN, 0, "")


def test_plans_and_runs_do_not_touch_each_other(store):
    store.propose(RUN, 0, variate(1))
    store.propose(RUN, 1, variate(2))
    store.propose("run-2", 0, variate(3))
    assert store.begin(RUN, 1, reply_hash(2)) == np.float32([2.0])
    assert store.begin("run-2", 0, "") is None
    assert store.begin(RUN, 0, reply_hash(1)) == np.float32([1.0])


def test_old_runs_are_forgotten_the_latest_kept(store):
    for number in range(NUM_RUNS_KEPT + 3):
        store.propose(f"run-{number}", 0, variate(number))
    newest = NUM_RUNS_KEPT + 2
    assert store.begin(f"run-{newest}", 0, reply_hash(newest)) == np.float32([newest])
    with pytest.raises(MerchantError):
        store.begin("run-0", 0, reply_hash(0))


@pytest.mark.parametrize("run", ["../../escape", "/etc/passwd", "a/b", "..", "\0"])
def test_run_named_by_the_coordinator_cannot_lead_out_of_the_folder(tmp_path, run):
    VariateStore(tmp_path / "variates").propose(run, 0, variate(1))
    assert [path.name for path in tmp_path.iterdir()] == ["variates"]
    (run_folder,) = (tmp_path / "variates").iterdir()
    assert [path.name for path in run_folder.iterdir()] == ["0.pending"]


def test_files_are_for_this_user_alone(tmp_path):
    VariateStore(tmp_path / "variates").propose(RUN, 0, variate(1))
    for path in (tmp_path / "variates").rglob("*"):
        assert path.stat().st_mode & 0o077 == 0


@pytest.mark.parametrize("damage", [lambda b: b[:-1], lambda b: b[:-1] + b"\x01", lambda _: b"", lambda _: b"[]\n"])
def test_damaged_file_is_refused_not_used(tmp_path, damage):
    store = VariateStore(tmp_path)
    store.propose(RUN, 0, variate(1))
    (path,) = tmp_path.glob("*/0.pending")
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(MerchantError, match="damaged"):
        store.begin(RUN, 0, "")


def test_second_process_cannot_hold_the_state_folder(tmp_path):
    with durable_files.exclusive(tmp_path):
        code = (
            "import sys, pathlib\nfrom hansa_common import durable_files\n"
            "with durable_files.exclusive(pathlib.Path(sys.argv[1])): pass"
        )
        other = subprocess.run([sys.executable, "-c", code, tmp_path], capture_output=True, text=True, check=False)
    assert UsageError.__name__ in other.stderr
    with durable_files.exclusive(tmp_path):
        pass


# --- the law of the sum -------------------------------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(
    outcomes=st.lists(
        st.lists(st.sampled_from(["included", "dropped", "absent", "restarted"]), min_size=3, max_size=3), max_size=8
    ),
    seed=st.integers(0, 2**32 - 1),
)
@pytest.mark.parametrize("kind", ["memory", "folder"])
def test_server_variate_is_row_weighted_mean_of_committed_variates(kind, outcomes, seed, tmp_path_factory):
    """Any pattern of drops and restarts: c = sum(n_i c_i) / sum(n_i), as in the reference of the paper."""
    folder = tmp_path_factory.mktemp("law")
    values = np.random.default_rng(seed)
    rows = np.array([100, 250, 40])
    num_params = 5
    stores = [store_in(kind, folder / str(i)) for i in range(3)]
    included = ["", "", ""]
    server = np.zeros(num_params)
    number = 0
    for outcome in outcomes:
        for i, fate in enumerate(outcome):
            if fate == "absent":
                continue
            if fate == "restarted" and kind == "folder":
                stores[i] = store_in(kind, folder / str(i))
            committed = stores[i].begin(RUN, 0, included[i])
            before = np.zeros(num_params, np.float32) if committed is None else committed
            delta = values.normal(size=num_params).astype(np.float32)
            number += 1
            stores[i].propose(RUN, 0, Variate(number, reply_hash(0), reply_hash(number), before + delta))
            if fate != "dropped":
                server += rows[i] * delta.astype(np.float64) / rows.sum()
                included[i] = reply_hash(number)
    final = [stores[i].begin(RUN, 0, included[i]) for i in range(3)]
    mean = (
        sum(n * (np.zeros(num_params) if c is None else c.astype(np.float64)) for n, c in zip(rows, final, strict=True))
        / rows.sum()
    )
    np.testing.assert_allclose(server, mean, atol=1e-5)


# --- crashes --------------------------------------------------------------------------------------------------------


class Crash(BaseException):
    """The process is gone: nothing after this point ran."""


class CrashAt:
    """Let `count` operations on files through, then end the process before the next one."""

    def __init__(self, monkeypatch, count: int) -> None:
        self.left = count
        for owner, name in ((os, "open"), (os, "fsync"), (Path, "replace"), (Path, "unlink"), (Path, "mkdir")):
            monkeypatch.setattr(owner, name, self._counted(getattr(owner, name)))

    def _counted(self, operation):
        def counted(*args, **kwargs):
            self.left -= 1
            if self.left < 0:
                raise Crash
            return operation(*args, **kwargs)

        return counted


def crash_after(monkeypatch, count: int, action) -> bool:
    """Run the action, crashing it before its operation number `count`; whether it crashed."""
    with monkeypatch.context() as patch:
        CrashAt(patch, count)
        try:
            action()
        except Crash:
            return True
    return False


def every_crash(monkeypatch, prepare, act):
    """The store's folder after a crash at each point of an action, and once after no crash."""
    for count in range(100):
        folder = prepare(count)
        crashed = crash_after(monkeypatch, count, lambda folder=folder: act(VariateStore(folder)))
        yield folder, crashed
        if not crashed:
            assert count > 3, "the action touched no files; the test sees nothing"
            return
    raise AssertionError("the action never came to its end")


def test_crash_at_any_point_of_a_proposal_leaves_the_last_commit(tmp_path, monkeypatch):
    def prepare(count: int) -> Path:
        store = VariateStore(tmp_path / str(count))
        store.propose(RUN, 0, variate(1))
        store.begin(RUN, 0, reply_hash(1))
        return tmp_path / str(count)

    for folder, _ in every_crash(monkeypatch, prepare, lambda store: store.propose(RUN, 0, variate(2))):
        # The reply cannot have left, so the coordinator still counts the first one.
        assert VariateStore(folder).begin(RUN, 0, reply_hash(1)) == np.float32([1.0])


def test_first_proposal_of_a_run_survives_a_crash_as_nothing(tmp_path, monkeypatch):
    crashes = every_crash(
        monkeypatch, lambda count: tmp_path / str(count), lambda store: store.propose(RUN, 0, variate(1))
    )
    for folder, _ in crashes:
        assert VariateStore(folder).begin(RUN, 0, "") is None


def test_finished_proposal_is_there_after_any_later_crash(tmp_path, monkeypatch):
    def prepare(count: int) -> Path:
        store = VariateStore(tmp_path / str(count))
        store.propose(RUN, 0, variate(1))
        store.begin(RUN, 0, reply_hash(1))
        store.propose(RUN, 0, variate(2))
        return tmp_path / str(count)

    for included in (reply_hash(2), reply_hash(1)):
        folders = every_crash(
            monkeypatch,
            lambda count, included=included: prepare(count + 1000 * int(included[-1])),
            lambda store, included=included: _begin_with_many_files(store, included),
        )
        for folder, _ in folders:
            # The coordinator repeats its order, or sends the next one, which counts the same reply.
            assert VariateStore(folder).begin(RUN, 0, included) == np.float32([int(included, 16)])


def _begin_with_many_files(store: VariateStore, included: str) -> None:
    store.begin(RUN, 0, included)
    store.begin(RUN, 0, included)
    store.propose(RUN, 0, variate(3))


def test_killed_process_leaves_a_state_that_agrees_with_one_of_its_replies(tmp_path):
    """A real kill -9, in the middle of writing rounds as fast as it goes, several times over one folder."""
    program = textwrap.dedent(
        """
        import sys
        from pathlib import Path
        import numpy as np
        from hansa_client.variates import Variate, VariateStore
        folder, start, included = Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
        store = VariateStore(folder)
        for number in range(start, start + 100_000):
            store.begin("run", 0, included)
            values = np.full(50_000, number, np.float32)
            included = f"{number:064x}"
            store.propose("run", 0, Variate(number, "0" * 64, included, values))
            print(number, flush=True)
        """
    )
    start, included = 1, ""
    for kill_after in (1, 3, 7, 12):
        command = [sys.executable, "-c", program, tmp_path, str(start), included]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
            sent = [int(process.stdout.readline()) for _ in range(kill_after)]
            process.send_signal(signal.SIGKILL)
            sent += [int(line) for line in process.stdout.read().split()]
        # What was printed was sent; the coordinator counted the last of it.
        included = reply_hash(sent[-1])
        committed = VariateStore(tmp_path).begin("run", 0, included)
        np.testing.assert_array_equal(committed, np.full(50_000, sent[-1], np.float32))
        start = sent[-1] + 1


def test_control_delta_follows_option_ii():
    c, update = np.float32([1.0, -2.0]), np.float32([0.5, 0.25])
    np.testing.assert_allclose(control_delta(c, update, 5, 0.1), [-2.0, 1.5], atol=1e-6)
