"""The command that follows a run ends whatever dies, and every refusal to go on is one line that says why."""

from __future__ import annotations

import json
import threading

import pytest

from hansa_server import checkpoint, run_folder, run_process
from hansa_server.run_state import RunState


class Seconds:
    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now


@pytest.fixture
def run(tmp_path, world):
    folder = tmp_path / "run"
    run_folder.create(folder, world.agreement())
    checkpoint.prepare(folder)
    return folder


def test_process_that_let_go_of_its_run_is_missed_ten_seconds_later(run):
    seconds = Seconds()
    watch = run_process._Watch(run, seconds)
    with checkpoint.held(run):
        seconds.now = 10_000.0
        assert not watch.is_lost()
    seconds.now += run_process.LAST_WORDS_SECONDS
    assert not watch.is_lost()
    seconds.now += 1
    assert watch.is_lost()


def test_process_that_never_came_is_missed_after_two_minutes(run):
    seconds = Seconds()
    watch = run_process._Watch(run, seconds)
    seconds.now = run_process.START_SECONDS
    assert not watch.is_lost()
    seconds.now += 1
    assert watch.is_lost()


def damaged(run):
    (run / "checkpoint" / "state.json").write_text("{}")


def of_another_agreement(run, world):
    checkpoint.save(run, world.agreement(seed=77), RunState("run-1"))


REFUSED = {
    "finished": (lambda run: (run / "metrics.json").write_text(json.dumps({})), "holds a finished run", 2),
    "failed": (lambda run: (run / "failure.txt").write_text("nobody came\n"), "has failed: nobody came; mend that", 2),
    "simulated": (checkpoint.remove, "holds no checkpoint to go on from", 2),
    "no run": (lambda run: (run / "agreement.json").unlink(), "no run to begin", 2),
    "damaged": (damaged, "cannot be used: state.json is damaged", 1),
}


@pytest.mark.parametrize("name", REFUSED)
def test_run_that_cannot_go_on_is_refused_in_one_line_before_anything_is_started(run, hansa, name):
    change, words, code = REFUSED[name]
    change(run)
    refused = hansa("server", "resume", run)
    assert (refused.exit_code, refused.stdout) == (code, "")
    (line,) = refused.stderr.splitlines()
    assert line.startswith("hansa: ")
    assert words in line


def test_checkpoint_of_another_agreement_is_refused_in_one_line(run, world, hansa):
    of_another_agreement(run, world)
    assert "is of another agreement; restore it" in hansa("server", "resume", run).stderr


def test_run_that_is_still_going_on_is_refused(run, hansa, monkeypatch):
    monkeypatch.setattr(checkpoint, "RELEASE_SECONDS", 0.3)
    with checkpoint.held(run):
        refused = hansa("server", "resume", run)
    assert refused.exit_code == 2
    assert "still going on in another process" in refused.stderr


def test_run_that_ends_while_it_is_waited_for_is_told_as_finished(run, hansa):
    held = checkpoint.held(run)
    held.__enter__()

    def end():
        (run / "metrics.json").write_text("{}")
        checkpoint.remove(run)
        held.__exit__(None, None, None)

    threading.Timer(0.5, end).start()
    assert "holds a finished run, so there is nothing to resume" in hansa("server", "resume", run).stderr


def test_run_that_can_go_on_waits_for_a_superlink(run, hansa):
    refused = hansa("server", "resume", run, "--server", "127.0.0.1:1")
    assert refused.exit_code == 1
    assert "no SuperLink answers at 127.0.0.1:1" in refused.stderr
    assert checkpoint.is_kept(run)


def test_finished_run_whose_small_model_was_never_signed_goes_on_to_its_signature(run, hansa):
    """The command that trains was killed before it came to that."""
    (run / "metrics.json").write_text("{}")
    (run / "small").mkdir()
    assert run_folder.is_unsigned(run)
    # Signing and delivery are what is left, and merchants are reached through SuperLink.
    assert "no SuperLink answers" in hansa("server", "resume", run, "--server", "127.0.0.1:1").stderr
    (run / "bundle").mkdir()
    assert "holds a finished run, so there is nothing to resume" in hansa("server", "resume", run).stderr
