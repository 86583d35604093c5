"""The run folder is the whole interface of the ServerApp: a run finished, failed or killed can be told apart in it,
and a finished one is safe."""

from __future__ import annotations

import json
import os
import re

import pytest
from flwr.app import Context, RecordDict

from hansa_common.errors import AgreementError, CoordinatorError, RunFailedError, RunInterruptedError, UsageError
from hansa_server import run_folder
from hansa_server.app import app
from hansa_server.federation import run_federation
from hansa_server.run_state import RunState


def context(folder):
    return Context(run_id=1, node_id=0, node_config={}, state=RecordDict(), run_config={"run-folder": str(folder)})


@pytest.fixture
def run(world, manual_clock, tmp_path):
    """Run the real ServerApp in a folder with shops, some of them changed."""

    def run_app(name="run", change=None, **sections):
        agreement = world.agreement(**sections)
        folder = tmp_path / name
        run_folder.create(folder, agreement)
        shops = [world.Shop(merchant, agreement) for merchant in agreement.roster]
        peers = [world.changed(shop, change) if change else shop for shop in shops]
        app(world.PeerGrid(dict(enumerate(peers)), manual_clock), context(folder))
        return folder

    return run_app


def files_of(folder):
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def test_finished_run_leaves_model_figures_and_report(run, world):
    folder = run()
    model = {"model/spec.json", "model/weights.npz", "model/preprocessing.json"}
    texts = {"agreement.json", "attendance.json", "rounds.jsonl", "metrics.json", "report.html"}
    assert files_of(folder) == texts | model
    metrics = run_folder.read_outcome(folder)
    assert metrics["agreement_fingerprint"] == world.agreement().fingerprint
    rounds = [json.loads(line) for line in (folder / "rounds.jsonl").read_text().splitlines()]
    assert rounds == metrics["rounds"]
    assert "<html" in (folder / "report.html").read_text()


def test_same_seed_leaves_the_same_model_bytes_and_another_run_id(run):
    first, second = run("first"), run("second")
    for name in ("spec.json", "weights.npz", "preprocessing.json"):
        assert (first / "model" / name).read_bytes() == (second / "model" / name).read_bytes(), name
    assert run_folder.read_outcome(first)["run_id"] != run_folder.read_outcome(second)["run_id"]


def test_run_progress_in_a_pipe_is_plain_lines(run, capsys):
    run()
    out, err = capsys.readouterr()
    assert err == ""
    assert "\x1b" not in out
    round_line = r"^round \d: 3 of 3 merchants, validation PR-AUC .*, at most \d+ s left$"
    assert len(re.findall(round_line, out, re.MULTILINE)) == 3


def test_failed_run_leaves_its_reason_and_no_figures(run, tmp_path, world):
    with pytest.raises(RunFailedError):
        run(change=lambda _, __: world.Error(code=2))
    folder = tmp_path / "run"
    assert "metrics.json" not in files_of(folder)
    with pytest.raises(RunFailedError, match="none of 3 rounds") as failed:
        run_folder.read_outcome(folder)
    assert "\n" not in str(failed.value)


def test_run_that_was_killed_is_not_finished(tmp_path, world):
    run_folder.create(tmp_path / "run", world.agreement())
    with pytest.raises(RunFailedError, match="did not finish"):
        run_folder.read_outcome(tmp_path / "run")


def test_agreement_comes_back_with_its_fingerprint(tmp_path, world):
    agreement = world.agreement(seed=12)
    run_folder.create(tmp_path / "run", agreement, toml="# as written\n")
    assert run_folder.open_run(tmp_path / "run").fingerprint == agreement.fingerprint
    assert (tmp_path / "run" / "agreement.toml").read_text() == "# as written\n"


def test_finished_run_is_refused_unless_told_otherwise(run, world):
    folder = run()
    for refused in (lambda: run_folder.create(folder, world.agreement()), lambda: run_folder.open_run(folder)):
        with pytest.raises(UsageError, match="finished run"):
            refused()
    assert run_folder.read_outcome(folder)
    run_folder.create(folder, world.agreement(), overwrite=True)
    assert files_of(folder) == {"agreement.json"}


def test_unfinished_run_makes_way_for_the_next(tmp_path, world):
    folder = tmp_path / "run"
    run_folder.create(folder, world.agreement())
    run_folder.add_round(folder, {"round": 1})
    (folder / "model.unfinished").mkdir()
    run_folder.create(folder, world.agreement(seed=9))
    assert files_of(folder) == {"agreement.json"}
    assert run_folder.open_run(folder).seed == 9


def test_folder_with_anything_else_in_it_is_left_alone(tmp_path, world):
    (tmp_path / "thesis.tex").write_text("years of work")
    for overwrite in (False, True):
        with pytest.raises(UsageError, match="other things"):
            run_folder.create(tmp_path, world.agreement(), overwrite=overwrite)
    assert files_of(tmp_path) == {"thesis.tex"}


def test_folder_that_cannot_be_made_is_a_usage_error(tmp_path, world):
    (tmp_path / "file").write_text("")
    for place in (tmp_path / "file", tmp_path / "file" / "run"):
        with pytest.raises(UsageError):
            run_folder.create(place, world.agreement())


def test_edited_agreement_is_refused(tmp_path, world):
    folder = tmp_path / "run"
    run_folder.create(folder, world.agreement())
    values = json.loads((folder / "agreement.json").read_text())
    (folder / "agreement.json").write_text(json.dumps({**values, "training": {"rounds": -1}}))
    with pytest.raises(AgreementError, match="rounds"):
        run_folder.open_run(folder)
    for text in ("{", "[]"):
        (folder / "agreement.json").write_text(text)
        with pytest.raises(UsageError):
            run_folder.open_run(folder)


def test_no_folder_no_run(tmp_path):
    with pytest.raises(UsageError, match="no run to begin"):
        run_folder.open_run(tmp_path / "nothing")


@pytest.mark.parametrize("damaged", ["{", "[]", "\xff"])
def test_damaged_figures_are_told(tmp_path, world, damaged):
    run_folder.create(tmp_path / "run", world.agreement())
    (tmp_path / "run" / "metrics.json").write_bytes(damaged.encode("latin-1"))
    with pytest.raises(CoordinatorError, match=r"metrics\.json"):
        run_folder.read_outcome(tmp_path / "run")


def test_disk_that_fails_at_any_step_leaves_all_of_a_run_or_no_finished_one(world, manual_clock, tmp_path, monkeypatch):
    agreement = world.agreement()
    grid = world.PeerGrid(dict(enumerate(world.Shop(name, agreement) for name in agreement.roster)), manual_clock)
    result = run_federation(grid, agreement, RunState("run"), on_event=lambda _: None)
    fsync, num_steps, finished = os.fsync, 0, False
    while not finished:
        folder = tmp_path / f"run{num_steps}"
        run_folder.create(folder, agreement)
        steps_left = iter(range(num_steps))

        def failing(descriptor, steps_left=steps_left):
            if next(steps_left, None) is None:
                raise OSError("the disk is gone")
            fsync(descriptor)

        with monkeypatch.context() as patched:
            patched.setattr(os, "fsync", failing)
            try:
                run_folder.finish(folder, result.to_json(), result.spec, result.weights, result.preprocessing)
            except OSError:
                finished = (folder / "metrics.json").exists()
            else:
                finished = True
        assert not finished or {"report.html", "model/weights.npz", "model/spec.json"} <= files_of(folder)
        num_steps += 1
    assert num_steps > 6


def test_baselines_can_be_added_to_a_finished_run(run):
    folder = run()
    metrics = run_folder.read_outcome(folder)
    run_folder.write_metrics(folder, {**metrics, "local": {"roc_auc": 0.7, "pr_auc": 0.4}})
    assert run_folder.read_outcome(folder)["local"]["pr_auc"] == 0.4


def test_disk_that_is_full_and_takes_no_reason_is_told_in_a_line_and_leaves_nothing(tmp_path, capsys, full_disk):
    with full_disk(), pytest.raises(RunInterruptedError, match="make room"), run_folder.failure_told(tmp_path):
        run_folder.add_round(tmp_path, {"round": 1})
    assert re.fullmatch(r"hansa: .*make room for it\n", capsys.readouterr().err)
    assert [path.name for path in tmp_path.iterdir() if path.stat().st_size] == []
    assert not (tmp_path / run_folder.INTERRUPTION).exists()


def test_disk_that_was_full_is_the_reason_that_is_left(tmp_path, capsys, full_disk):
    with pytest.raises(RunInterruptedError), run_folder.failure_told(tmp_path), full_disk():
        run_folder.write_rounds(tmp_path, [{"round": 1}])
    assert "make room" in (tmp_path / run_folder.INTERRUPTION).read_text()
    assert [path.name for path in tmp_path.iterdir()] == [run_folder.INTERRUPTION]
    assert capsys.readouterr().err == ""
