"""Flower's bundle: the same bytes for everyone who has this version, no code in it, and one that Flower installs."""

from __future__ import annotations

import io
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

from flwr.cli.install import install_from_fab
from flwr.common.config import get_fab_config, get_metadata_from_config

from hansa_common import __version__
from hansa_common.flower_bundle import APP_ID, bundle_hash, bundle_toml, flower_bundle

ROOT = Path(__file__).parents[2]
# Of a version that will never be; made once by flower_bundle("0.0.0-golden").
GOLDEN_HASH = "807c4b3d067e73bb375ab03644e359dc06bad426028b7a7ff040a06325a7414b"


def test_bytes_are_those_that_every_machine_makes():
    assert bundle_hash(flower_bundle("0.0.0-golden")) == GOLDEN_HASH


def test_another_process_makes_the_same_bytes():
    script = "from hansa_common.flower_bundle import *; print(bundle_hash(flower_bundle()))"
    told = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout
    assert told.strip() == bundle_hash(flower_bundle())


def test_another_version_has_another_bundle():
    assert bundle_hash(flower_bundle("9.9.9")) != bundle_hash(flower_bundle())


def test_bundle_carries_no_code():
    bundle = zipfile.ZipFile(io.BytesIO(flower_bundle()))
    assert sorted(bundle.namelist()) == [".info/CONTENT", "README.md", "pyproject.toml"]


def test_bundle_says_what_the_project_says():
    told, whole = (tomllib.loads(text) for text in (bundle_toml(), (ROOT / "pyproject.toml").read_text()))
    assert told["tool"]["flwr"]["app"] == whole["tool"]["flwr"]["app"]
    for key in ("name", "version", "description", "license"):
        assert told["project"][key] == whole["project"][key]


def test_flower_knows_it_by_our_name_and_installs_it(tmp_path):
    assert get_metadata_from_config(get_fab_config(flower_bundle())) == (APP_ID, __version__)
    installed = install_from_fab(flower_bundle(), tmp_path, skip_prompt=True)
    assert sorted(path.name for path in installed.iterdir()) == ["README.md", "pyproject.toml"]
    assert installed.name.endswith(bundle_hash(flower_bundle())[:8])
