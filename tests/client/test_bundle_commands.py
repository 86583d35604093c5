"""`hansa bundle` and `hansa score` do what they say, refuse what they must with one line, and exit as they should."""

from __future__ import annotations

import csv
import dataclasses
import json
import subprocess
import sys

import numpy as np
import pytest

from hansa_client.bundle_files import OwnThreshold, read_threshold, write_threshold
from hansa_client.data import feature_rows
from hansa_common import durable_files
from hansa_common.bundle import MANIFEST_NAME, SIGNATURE_NAME, make_bundle, open_bundle
from hansa_common.errors import UsageError
from hansa_common.scorer import Scorer

FILES = 9


def folder_of(files: dict[str, bytes], path):
    path.mkdir(parents=True)
    for name, content in files.items():
        (path / name).write_bytes(content)
    return path


@pytest.fixture
def bundle(unfinished, tmp_path):
    """A bundle that is verified and compared, not run."""
    return folder_of(unfinished.files, tmp_path / "merchant" / "bundle")


def refused(result, code: int = 1) -> str:
    assert result.exit_code == code, result
    assert result.stdout == ""
    assert "Traceback" not in result.stderr
    return result.stderr


# --- verify -----------------------------------------------------------------------------------------------------------


def test_verify_takes_the_key_as_digits_as_a_file_or_from_beside_the_bundle(bundle, unfinished, hansa, tmp_path):
    digits = hansa("bundle", "verify", bundle, "--key", unfinished.trusted)
    assert digits.exit_code == 0
    assert unfinished.trusted in digits.stdout
    key = tmp_path / "some.pub"
    key.write_text(unfinished.trusted + "\n")
    assert hansa("bundle", "verify", bundle, "--key", key) == digits
    assert "--key" in refused(hansa("bundle", "verify", bundle), 2)
    (bundle.parent / "coordinator.pub").write_text(unfinished.trusted)
    assert hansa("bundle", "verify", bundle) == digits
    told = hansa("bundle", "verify", bundle, "--json")
    identity = open_bundle(unfinished.files, unfinished.trusted).bundle_id
    assert json.loads(told.stdout) == {"bundle": identity, "signer": unfinished.trusted}


def test_key_beside_the_bundle_is_found_from_inside_it(bundle, unfinished, hansa, monkeypatch):
    (bundle.parent / "coordinator.pub").write_text(unfinished.trusted)
    monkeypatch.chdir(bundle)
    assert hansa("bundle", "verify", ".").exit_code == 0


@pytest.mark.parametrize("key", ["0" * 63, "absent.pub", "x" * 5000])
def test_what_is_neither_a_key_nor_a_file_of_one_is_a_usage_error(bundle, hansa, key):
    assert "public key" in refused(hansa("bundle", "verify", bundle, "--key", key), 2)


def test_key_that_signed_something_else_is_refused(bundle, unfinished, hansa):
    told = refused(hansa("bundle", "verify", bundle, "--key", "0" * 64))
    assert unfinished.trusted in told
    assert "0" * 64 in told


def test_every_command_names_the_file_that_was_changed(bundle, unfinished, hansa, tmp_path):
    path = bundle / "weights.npz"
    path.write_bytes(path.read_bytes() + b"\0")
    (tmp_path / "new.csv").write_text("amount\n1\n")
    for words in (
        ("bundle", "verify", bundle, "--key", unfinished.trusted),
        ("bundle", "show", bundle),
        ("bundle", "diff", bundle, bundle),
        ("score", bundle, tmp_path / "new.csv", "-o", tmp_path / "scores.csv", "--key", unfinished.trusted),
    ):
        assert "weights.npz was changed" in refused(hansa(*words))
    assert not (tmp_path / "scores.csv").exists()


@pytest.mark.parametrize("kind", ["folder", "link"])
def test_folder_or_link_in_a_bundle_is_refused_by_its_name(bundle, unfinished, hansa, tmp_path, kind):
    if kind == "folder":
        (bundle / "extra").mkdir()
    else:
        (tmp_path / "elsewhere").write_bytes((bundle / "card.md").read_bytes())
        (bundle / "card.md").unlink()
        (bundle / "card.md").symlink_to(tmp_path / "elsewhere")
    name = "extra" if kind == "folder" else "card.md"
    assert f"{name} is not a plain file" in refused(hansa("bundle", "verify", bundle, "--key", unfinished.trusted))


def test_folder_that_is_not_there_or_no_bundle_is_told(unfinished, hansa, tmp_path):
    assert "absent" in refused(hansa("bundle", "show", tmp_path / "absent"), 2)
    (tmp_path / "empty").mkdir()
    assert "manifest.json is missing" in refused(hansa("bundle", "show", tmp_path / "empty"))


def test_unsigned_bundle_is_refused(bundle, unfinished, hansa):
    (bundle / SIGNATURE_NAME).unlink()
    for words in (("show", bundle), ("verify", bundle, "--key", unfinished.trusted)):
        assert "unsigned" in refused(hansa("bundle", *words))


def test_verify_says_whether_it_is_the_model_of_the_agreement_in_hand(bundle, unfinished, hansa, tmp_path):
    import tomli_w

    values = json.loads(unfinished.parts.agreement.canonical_json())
    plain = json.loads(json.dumps(values), object_pairs_hook=lambda pairs: {k: v for k, v in pairs if v is not None})
    agreed, other = tmp_path / "agreement.toml", tmp_path / "other.toml"
    agreed.write_text(tomli_w.dumps(plain))
    other.write_text(tomli_w.dumps({**plain, "seed": 5}))
    words = ("bundle", "verify", bundle, "--key", unfinished.trusted, "--agreement")
    assert hansa(*words, agreed).exit_code == 0
    assert "fingerprint" in refused(hansa(*words, other))


# --- show and diff ----------------------------------------------------------------------------------------------------


def test_show_says_what_the_bundle_is_and_whether_anybody_was_trusted(bundle, unfinished, hansa):
    told = json.loads(hansa("bundle", "show", bundle, "--json").stdout)
    manifest = json.loads(unfinished.files[MANIFEST_NAME])
    for name in ("agreement_fingerprint", "run_id", "hansa_version", "sparsity", "made_with", "hash_key_id"):
        assert told[name] == manifest[name]
    assert told["is_trusted"] is False
    assert told["files"] == {n: len(c) for n, c in unfinished.files.items() if not n.startswith("manifest.")}
    assert told["metrics"]["compressed"] == {"roc_auc": 0.929, "pr_auc": 0.738}
    assert told["scores_with"] == "int8.tflite"
    assert json.loads(hansa("bundle", "show", bundle, "--json", "--key", unfinished.trusted).stdout)["is_trusted"]
    text = hansa("bundle", "show", bundle).stdout
    for part in (told["bundle"], "whom to trust was not asked", "roc_auc 0.9290", "dense kernels 25.0 %", "amount"):
        assert part in text


def test_bundle_differs_from_itself_in_nothing(bundle, hansa):
    assert json.loads(hansa("bundle", "diff", bundle, bundle, "--json").stdout) == []
    assert hansa("bundle", "diff", bundle, bundle).stdout == "the two bundles are the same\n"


def test_diff_says_all_that_differs_and_nothing_else(bundle, unfinished, hansa, tmp_path):
    parts = dataclasses.replace(
        unfinished.parts,
        run_id="run 2",
        weights=unfinished.parts.weights + np.float32(0.5),
        int8_tflite=None,
        metrics={"federated": {"roc_auc": 0.95, "pr_auc": 0.74}},
    )
    other = folder_of(make_bundle(parts, bytes(32)), tmp_path / "other")
    found = {
        d["what"]: (d["first"], d["second"])
        for d in json.loads(hansa("bundle", "diff", bundle, other, "--json").stdout)
    }
    assert set(found) == {
        "signer", "run_id", "file weights.npz", "file int8.tflite", "file metrics.json", "file card.md",
        "largest change of a weight", "figure federated.roc_auc", "figure compressed.roc_auc",
        "figure compressed.pr_auc",
    }  # fmt: skip
    assert found["run_id"] == ("run 1", "run 2")
    assert found["figure federated.roc_auc"] == (0.93, 0.95)
    assert found["file int8.tflite"][1] is None
    assert found["largest change of a weight"][1] == pytest.approx(0.5, rel=1e-6)
    text = hansa("bundle", "diff", bundle, other).stdout
    assert "figure federated.roc_auc: 0.93 -> 0.95" in text
    assert len(text.splitlines()) == len(found)


# --- the threshold ----------------------------------------------------------------------------------------------------


def test_threshold_is_read_as_it_was_written_and_for_its_own_bundle_only(bundle):
    assert read_threshold(bundle, "0" * 64) is None
    write_threshold(bundle, "0" * 64, 0.1)
    assert read_threshold(bundle, "0" * 64) == 0.1
    assert {path.name for path in bundle.parent.iterdir()} == {"bundle", "threshold.json"}
    assert len(list(bundle.iterdir())) == FILES
    with pytest.raises(UsageError, match="compute it anew"):
        read_threshold(bundle, "1" * 64)


@pytest.mark.parametrize(
    "content", ["", "0.5", '{"threshold": 0.5}', json.dumps({"bundle": "0" * 64, "threshold": 1.5}), "\x00"]
)
def test_threshold_file_that_says_something_else_is_refused(bundle, content):
    (bundle.parent / "threshold.json").write_text(content)
    with pytest.raises(UsageError, match="cannot be read"):
        read_threshold(bundle, "0" * 64)


# --- score ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def at_merchant(finished, tmp_path, monkeypatch):
    """A merchant's folder: bundle, trusted key, hash key, and fifty rows of which two cannot be read."""
    folder_of(finished.files, tmp_path / "bundle")
    (tmp_path / "coordinator.pub").write_text(finished.trusted)
    durable_files.write(tmp_path / "hash.key", finished.hash_key.hex().encode())
    frame = finished.rows(50, seed=3)
    frame.loc[7, "age"] = None
    frame.loc[9, "gift"] = "perhaps"
    frame.to_csv(tmp_path / "new.csv", index=False)
    columns = feature_rows(frame, finished.parts.agreement.features, "the test").columns
    opened = open_bundle(finished.files, finished.trusted)
    monkeypatch.chdir(tmp_path)
    return opened, Scorer(opened, finished.hash_key).score(columns)


def lines_of(name: str) -> list[dict[str, str]]:
    with open(name, newline="") as file:  # noqa: PTH123 - csv's own example
        return list(csv.DictReader(file))


WORDS = ("score", "bundle", "new.csv", "--hash-key", "hash.key")


@pytest.mark.system
def test_score_without_a_threshold_leaves_decisions_out_and_says_so(at_merchant, hansa):
    _, expected = at_merchant
    told = hansa(*WORDS)
    assert told.exit_code == 0, told
    assert told.stderr == ""
    assert "48 rows scored: scores.csv" in told.stdout
    assert "2 rows could not be read: scores.rejected.csv" in told.stdout
    assert "no decisions" in told.stdout
    lines = lines_of("scores.csv")
    assert list(lines[0]) == ["row", "score"]
    assert [float(line["score"]) for line in lines] == expected.tolist()
    assert [int(line["row"]) for line in lines] == [row for row in range(2, 52) if row not in {9, 11}]
    rejected = lines_of("scores.rejected.csv")
    assert [(line["row"], line["column"], line["value"]) for line in rejected] == [
        ("9", "age", ""),
        ("11", "gift", "perhaps"),
    ]


@pytest.mark.system
def test_merchants_own_threshold_decides_and_the_command_lines_goes_before_it(at_merchant, hansa, tmp_path):
    opened, expected = at_merchant
    own = float(np.median(expected))
    write_threshold(tmp_path / "bundle", opened.bundle_id, own)
    told = json.loads(hansa(*WORDS, "--json").stdout)
    assert told == {
        "scores": "scores.csv",
        "num_scored": 48,
        "num_rejected": 2,
        "rejected": "scores.rejected.csv",
        "threshold": own,
        "num_positive": int((expected >= own).sum()),
    }
    lines = lines_of("scores.csv")
    assert [int(line["decision"]) for line in lines] == (expected >= own).astype(int).tolist()
    assert {float(line["threshold"]) for line in lines} == {own}
    told = json.loads(hansa(*WORDS, "--json", "--threshold", "0", "-o", "all.csv").stdout)
    assert told["num_positive"] == 48
    assert told["rejected"] == "all.rejected.csv"


@pytest.mark.system
def test_threshold_of_another_bundle_is_not_used(at_merchant, hansa, tmp_path):
    own = OwnThreshold(bundle="0" * 64, threshold=0.5)
    (tmp_path / "threshold.json").write_text(own.model_dump_json())
    assert "compute it anew" in refused(hansa(*WORDS), 2)


@pytest.mark.system
@pytest.mark.parametrize("name", ["scores.csv", "scores.rejected.csv"])
def test_files_are_written_over_only_where_that_was_said(at_merchant, hansa, tmp_path, name):
    (tmp_path / name).write_text("kept")
    assert "--force" in refused(hansa(*WORDS), 2)
    assert (tmp_path / name).read_text() == "kept"
    assert hansa(*WORDS, "--force").exit_code == 0
    assert (tmp_path / name).read_text() != "kept"


@pytest.mark.system
def test_rejected_rows_of_an_earlier_table_do_not_stay(at_merchant, finished, hansa, tmp_path):
    assert hansa(*WORDS).exit_code == 0
    finished.rows(5, seed=9).to_csv(tmp_path / "new.csv", index=False)
    assert hansa(*WORDS, "--force").exit_code == 0
    assert not (tmp_path / "scores.rejected.csv").exists()


@pytest.mark.system
def test_table_of_which_no_row_can_be_scored_fails_and_its_side_file_says_why(at_merchant, finished, hansa, tmp_path):
    finished.rows(5, seed=9).assign(age="old").to_csv(tmp_path / "new.csv", index=False)
    assert "no row" in refused(hansa(*WORDS))
    assert len(lines_of("scores.rejected.csv")) == 5


@pytest.mark.system
@pytest.mark.parametrize(
    ("change", "code", "reason"),
    [
        (("--hash-key", "absent.key"), 2, "absent.key"),
        (("--threshold", "1.5"), 2, "threshold"),
        (("--key", "0" * 64), 1, "manifest.sig"),
    ],
)
def test_wrong_option_is_told_and_nothing_is_written(at_merchant, hansa, tmp_path, change, code, reason):
    assert reason in refused(hansa(*WORDS, *change), code)
    assert not list(tmp_path.glob("scores*"))


@pytest.mark.system
def test_command_scores_without_importing_what_trains(at_merchant):
    script = (
        "import sys; from hansa_common.cli import installed_commands, run; "
        "code = run(sys.argv[1:], installed_commands()); "
        "print(code, sorted({'tensorflow', 'keras', 'jax', 'flwr'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", script, *WORDS], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "0 []"
