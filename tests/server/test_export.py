"""What is exported is a finished run's, whole, and its bundle is the one that the agreement's coordinator signed."""

from __future__ import annotations

import json
import re
import shutil

import pytest

from hansa_common import durable_files
from hansa_common.bundle import FLOAT_NAME, INT8_NAME, TRUSTED_KEY_NAME
from hansa_common.errors import BundleError, RunFailedError, UsageError
from hansa_common.keys import public_key_of
from hansa_common.model import model_files
from hansa_common.trust import Trust
from hansa_server import run_folder
from hansa_server.export_command import export_run

KEYS = {name: number * 64 for name, number in (("alpha", "1"), ("beta", "2"), ("gamma", "3"))}


@pytest.fixture
def make_run(tmp_path, world, unfinished):
    """A run's folder as a run leaves it, with a small model that is not signed yet unless it is said so."""

    def make(
        name="run", *, key=unfinished.signing_key, coordinator=None, small=True, signed=True, run_id="run 1", **sections
    ):
        agreement = world.agreement(compression={"format": "int8"}, **sections)
        if coordinator is not None:
            agreement = agreement.with_trust(Trust(coordinator=coordinator, merchants=KEYS))
        folder, parts = tmp_path / name, unfinished.parts
        run_folder.create(folder, agreement)
        run_folder.add_round(folder, {"round": 1})
        model = model_files(parts.spec, parts.weights, parts.preprocessing)
        durable_files.write_folder(folder / run_folder.MODEL, model)
        if small:
            networks = {FLOAT_NAME: parts.float_tflite, INT8_NAME: parts.int8_tflite}
            durable_files.write_folder(folder / run_folder.SMALL, {**model, **networks})
        (folder / run_folder.REPORT).write_text("<html>")
        (folder / run_folder.METRICS).write_text(json.dumps({"run_id": run_id, "bundle": {"sparsity": 0.5}}))
        if signed:
            run_folder.write_bundle(folder, key)
        return folder

    return make


def test_export_holds_model_verified_bundle_figures_and_report_and_nothing_of_the_making(make_run, tmp_path):
    run, out = make_run(), tmp_path / "exports" / "out"
    names = export_run(run, out)
    assert names == ["agreement.json", "bundle", TRUSTED_KEY_NAME, "metrics.json", "model", "report.html"]
    for path in (path for path in out.rglob("*") if path.is_file()):
        assert path.read_bytes() == (run / path.relative_to(out)).read_bytes()
    assert {path.name for path in (out / "bundle").iterdir()} == {path.name for path in (run / "bundle").iterdir()}
    assert [path.name for path in out.parent.iterdir()] == ["out"]


def test_run_without_a_small_model_is_exported_without_a_bundle(make_run, tmp_path):
    run = make_run(small=False, signed=False)
    assert export_run(run, tmp_path / "out") == ["agreement.json", "metrics.json", "model", "report.html"]


def test_unfinished_run_is_refused_and_leaves_nothing(make_run, tmp_path):
    run = make_run()
    (run / run_folder.METRICS).unlink()
    with pytest.raises(RunFailedError, match="did not finish"):
        export_run(run, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_small_model_that_nobody_signed_is_refused_and_says_what_to_do(make_run, tmp_path):
    run = make_run(signed=False)
    with pytest.raises(UsageError, match=re.escape(f"hansa server deliver {run}")):
        export_run(run, tmp_path / "out")


@pytest.mark.parametrize("name", ["int8.tflite", "metrics.json", "manifest.json"])
def test_bundle_that_was_changed_is_refused_by_the_files_name(make_run, tmp_path, name):
    run = make_run()
    with (run / run_folder.BUNDLE / name).open("ab") as file:
        file.write(b" ")
    with pytest.raises(BundleError, match=re.escape(name)):
        export_run(run, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_bundle_by_another_key_than_the_agreements_coordinator_is_refused(make_run, tmp_path, unfinished):
    coordinator = public_key_of(unfinished.signing_key)
    assert "bundle" in export_run(make_run("honest", coordinator=coordinator), tmp_path / "out")
    # As whoever can write into the folder would put it: another's bundle, and its key beside it.
    forged, other = make_run("forged", coordinator=coordinator), make_run("other", key=bytes(32))
    shutil.rmtree(forged / run_folder.BUNDLE)
    shutil.copytree(other / run_folder.BUNDLE, forged / run_folder.BUNDLE)
    shutil.copyfile(other / TRUSTED_KEY_NAME, forged / TRUSTED_KEY_NAME)
    with pytest.raises(BundleError, match=public_key_of(bytes(32))):
        export_run(forged, tmp_path / "forged-out")


@pytest.mark.parametrize("other", [{"run_id": "run 2"}, {"seed": 77}], ids=["run", "agreement"])
def test_signed_bundle_of_another_run_is_refused(make_run, tmp_path, other):
    run, another = make_run("one"), make_run("two", **other)
    shutil.rmtree(run / run_folder.BUNDLE)
    shutil.copytree(another / run_folder.BUNDLE, run / run_folder.BUNDLE)
    with pytest.raises(BundleError, match="another run"):
        export_run(run, tmp_path / "out")


def test_folder_that_is_there_is_left_alone(make_run, tmp_path):
    run, out = make_run(), tmp_path / "out"
    out.mkdir()
    (out / "thesis.tex").write_text("years of work")
    with pytest.raises(UsageError, match="exists"):
        export_run(run, out)
    assert [path.name for path in out.iterdir()] == ["thesis.tex"]


def test_command_tells_what_it_made_and_an_unfinished_run_in_one_line(make_run, tmp_path, hansa):
    run = make_run()
    result = hansa("server", "export", run, "-o", tmp_path / "out")
    assert result.exit_code == 0, result.stderr
    assert "bundle" in result.stdout
    (run / run_folder.METRICS).unlink()
    result = hansa("server", "export", run, "-o", tmp_path / "again")
    assert result.exit_code == 1
    assert len(result.stderr.strip().splitlines()) == 1
