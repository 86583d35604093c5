"""A checkpoint comes back as it was, or not at all: whatever dies while it is written, whoever touched it since."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap
import threading
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hansa_common import durable_files
from hansa_common.errors import CoordinatorError, RunInterruptedError, UsageError
from hansa_common.metrics import metrics_from_histogram, score_histogram
from hansa_server import checkpoint
from hansa_server.algorithms import ServerState
from hansa_server.participants import Merchant
from hansa_server.rounds import PlanState
from hansa_server.run_events import RoundFinished
from hansa_server.run_state import RunState
from hansa_server.selection import Course, Model
from hansa_server.state_codec import to_plain

METRICS = metrics_from_histogram(score_histogram([-1.5, 0.1, 0.3, 2.0], [0, 1, 0, 1]))


def doubles(*values):
    return np.array(values, np.float64)


def course(plan, number):
    weights = np.array([0.1 * number, -0.0, 1e-42], np.float32)
    server = ServerState(weights, doubles(1 / 3, number), doubles(), doubles(np.pi, 5e-324, number))
    best = Model(number, weights + 1, METRICS)
    return Course(plan, PlanState(server, {"alpha": "a" * 64}), number + 1, number, True, best, 2)


def state_after(number):
    finished = RoundFinished(
        round=number, plan=1, seconds=0.1 + number, cohort=("alpha", "Ærø"), dropped={"Ærø": "deadline"},
        aggregated=True, validation=METRICS, train_loss=1 / 7, bytes_received=10**12, bytes_sent=5,
    )  # fmt: skip
    unseen = replace(finished, aggregated=False, validation=None, train_loss=None, stage="control")
    return RunState(
        run_id="run-1",
        sequence=number,
        merchants=(Merchant("alpha", 2**63, "tensorflow", "CPU", 400), Merchant("Ærø", -1, "jax", "GPU", 70)),
        preprocessing='{"features": []}',
        courses=(course(0, number), replace(course(1, 7), best=None)),
        chosen=None,
        stages={"prune": course(1, number + 5)},
        rounds=(finished, unseen),
    )


@pytest.fixture(autouse=True)
def _no_waiting_for_the_disk(monkeypatch):
    # Processes die here, and no power is cut.
    monkeypatch.setattr(os, "fsync", lambda _: None)


@pytest.fixture
def run(tmp_path):
    checkpoint.prepare(tmp_path)
    return tmp_path


@pytest.fixture
def agreement(world):
    return world.agreement()


def names(run):
    return {path.name for path in (run / "checkpoint").iterdir()}


def same(one, other):
    """Equal to the last bit, arrays and their types too."""
    arrays = {}, {}
    first, second = (to_plain(RunState, state, kept) for state, kept in zip((one, other), arrays, strict=True))
    return (json.dumps(first), arrays[0]) == (json.dumps(second), arrays[1])


@pytest.mark.parametrize("state", [RunState("run-1"), state_after(3)], ids=["new", "begun"])
def test_state_comes_back_as_it_was(run, agreement, state):
    checkpoint.save(run, agreement, state)
    back = checkpoint.load(run, agreement)
    assert same(back, state)
    for given_course, course_back in zip(state.courses, back.courses, strict=True):
        assert course_back.state.server.weights.dtype == np.float32
        assert course_back.state.server.second_moment.tobytes() == given_course.state.server.second_moment.tobytes()


def test_last_state_replaces_all_of_the_one_before(run, agreement):
    checkpoint.save(run, agreement, state_after(1))
    before = names(run)
    checkpoint.save(run, agreement, state_after(2))
    assert same(checkpoint.load(run, agreement), state_after(2))
    checkpoint.save(run, agreement, state_after(1))
    assert names(run) == before


def test_nobody_else_may_read_a_checkpoint(run, agreement):
    checkpoint.save(run, agreement, state_after(1))
    assert {path.stat().st_mode & 0o077 for path in [run / "checkpoint", *(run / "checkpoint").iterdir()]} == {0}


def test_run_that_keeps_none_leaves_none(tmp_path, agreement):
    with checkpoint.held(tmp_path):
        checkpoint.save(tmp_path, agreement, state_after(1))
        assert checkpoint.load(tmp_path, agreement) is None
    checkpoint.remove(tmp_path)
    assert not checkpoint.is_held(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_run_that_has_not_begun_has_no_state(run, agreement):
    assert checkpoint.load(run, agreement) is None


# A process that dies


KILLED = textwrap.dedent("""
    import os, signal, sys
    from pathlib import Path
    sys.path.insert(0, sys.argv[2])
    import importlib.util
    spec = importlib.util.spec_from_file_location("checkpoint_states", sys.argv[1])
    states = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(states)
    from hansa_common.agreement import validate_agreement
    from hansa_server import checkpoint
    import json

    os.fsync = lambda _: None
    agreement = validate_agreement(json.loads(sys.argv[3]), "the test")
    old, new = states.state_after(1), states.state_after(2)

    def die_at(step):
        steps = iter(range(step))
        for owner, name in ((os, "open"), (os, "fsync"), (os, "replace"), (os, "unlink"), (os, "write")):
            real = getattr(owner, name)
            def counted(*words, real=real, **options):
                if next(steps, None) is None:
                    os.kill(os.getpid(), signal.SIGKILL)
                return real(*words, **options)
            setattr(owner, name, counted)

    step, found = 0, []
    while True:
        run = Path(sys.argv[2]) / f"run{step}"
        run.mkdir()
        checkpoint.prepare(run)
        checkpoint.save(run, agreement, old)
        child = os.fork()
        if child == 0:
            die_at(step)
            checkpoint.save(run, agreement, new)
            os._exit(0)
        _, status = os.waitpid(child, 0)
        back = checkpoint.load(run, agreement)
        found.append("old" if states.same(back, old) else "new" if states.same(back, new) else "neither")
        checkpoint.save(run, agreement, new)
        assert states.same(checkpoint.load(run, agreement), new)
        if status == 0:
            break
        assert os.WTERMSIG(status) == signal.SIGKILL
        step += 1
    print(json.dumps([found, len(states.names(run))]))
""")


@pytest.mark.system
def test_kill_at_any_step_of_a_save_leaves_the_old_checkpoint_or_the_new(tmp_path, agreement):
    words = [sys.executable, "-c", KILLED, __file__, str(tmp_path), agreement.canonical_json().decode()]
    ended = subprocess.run(words, capture_output=True, text=True, timeout=120, check=False)
    assert ended.returncode == 0, ended.stderr
    found, num_files = json.loads(ended.stdout)
    assert found[0] == "old"
    assert found[-1] == "new"
    # Old up to one step, new from there on; among the steps are those after the new one stands.
    assert found == ["old"] * found.count("old") + ["new"] * found.count("new")
    assert found.count("old") > 10
    assert found.count("new") > 2
    assert num_files == len(names(tmp_path / "run0"))


def test_full_disk_interrupts_the_run_and_leaves_the_last_checkpoint(run, agreement, monkeypatch):
    checkpoint.save(run, agreement, state_after(1))

    def full(*_):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", full)
        with pytest.raises(RunInterruptedError, match=r"No space left on device; mend that, then `hansa server resume"):
            checkpoint.save(run, agreement, state_after(2))
    assert same(checkpoint.load(run, agreement), state_after(1))


# One that was touched


def kept(run, agreement):
    checkpoint.save(run, agreement, state_after(1))
    folder = run / "checkpoint"
    return folder / "state.json", sorted(path for path in folder.iterdir() if path.name not in {"state.json", "lock"})


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_changed_byte_is_refused(tmp_path_factory, agreement, data):
    run = tmp_path_factory.mktemp("run")
    checkpoint.prepare(run)
    state, arrays = kept(run, agreement)
    path = data.draw(st.sampled_from([state, *arrays]))
    content = bytearray(path.read_bytes())
    place = data.draw(st.integers(0, max(0, len(content) - 1)))
    content[place : place + 1] = bytes([(content[place] + data.draw(st.integers(1, 255))) % 256]) if content else b"x"
    path.write_bytes(bytes(content))
    with pytest.raises(CoordinatorError, match="cannot be used"):
        checkpoint.load(run, agreement)


def test_lost_or_shortened_array_is_refused(run, agreement):
    _, arrays = kept(run, agreement)
    whole = max(arrays, key=lambda path: path.stat().st_size)
    whole.write_bytes(whole.read_bytes()[:-4])
    with pytest.raises(CoordinatorError, match="does not have the bytes of its name"):
        checkpoint.load(run, agreement)
    whole.unlink()
    with pytest.raises(CoordinatorError, match="names an array that is not there"):
        checkpoint.load(run, agreement)


def test_checkpoint_of_another_agreement_is_refused(run, agreement, world):
    checkpoint.save(run, agreement, state_after(1))
    with pytest.raises(CoordinatorError, match="of another agreement"):
        checkpoint.load(run, world.agreement(seed=99))


def resealed(path, change):
    content = json.loads(path.read_bytes())["content"]
    change(content)
    path.write_bytes(checkpoint._sealed(content))


def put(path, value):
    def change(content):
        *where, last = path
        for key in where:
            content = content[key]
        content[last] = value

    return change


STRANGE = {
    "version": (["version"], 2),
    "format": (["format"], "pickle"),
    "unknown field": (["state", "more"], 1),
    "number as text": (["state", "sequence"], "3"),
    "truth as number": (["state", "sequence"], True),
    "whole as broken number": (["state", "rounds", 0, "seconds"], 1),
    "nothing where something is": (["state", "courses", 0, "state"], None),
    "no stage": (["state", "stages"], {"test": None}),
    "path as hash": (["state", "courses", 0, "state", "server", "weights", "sha256"], "../" * 21 + "x"),
    "other length": (["state", "courses", 0, "state", "server", "weights", "length"], 2),
    "list as object": (["state", "courses"], {}),
    "object as list": (["state", "stages"], []),
}


@pytest.mark.parametrize("name", STRANGE)
def test_what_the_encoder_does_not_write_is_refused_though_its_hash_fits(run, agreement, name):
    state, _ = kept(run, agreement)
    resealed(state, put(*STRANGE[name]))
    with pytest.raises(CoordinatorError, match="cannot be used"):
        checkpoint.load(run, agreement)


@pytest.mark.parametrize("text", ["", "{", "[]", "null", '{"content": {}}', "[" * 100_000])
def test_other_files_are_no_checkpoint(run, agreement, text):
    (run / "checkpoint" / "state.json").write_text(text)
    with pytest.raises(CoordinatorError, match="cannot be used"):
        checkpoint.load(run, agreement)


# One process at a time


def test_second_process_is_refused_while_the_first_runs_the_run(run, monkeypatch):
    monkeypatch.setattr(checkpoint, "RELEASE_SECONDS", 0.3)
    with checkpoint.held(run):
        assert checkpoint.is_held(run)
        with pytest.raises(UsageError, match="still going on in another process"), checkpoint.held(run):
            pass
    assert not checkpoint.is_held(run)


def test_asking_whether_a_run_is_held_leaves_nothing_in_its_folder(run):
    assert not checkpoint.is_held(run)
    assert names(run) == set()


def test_process_that_is_just_ending_is_waited_for(run):
    held, ends = durable_files.exclusive(run / "checkpoint"), threading.Event()
    held.__enter__()
    threading.Timer(0.3, lambda: (ends.set(), held.__exit__(None, None, None))).start()
    with checkpoint.held(run):
        assert ends.is_set()
