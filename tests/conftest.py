"""What tests of all rooms share: in which order they run, and what a machine must have for some of them.

Units come first, then doctests, then real processes, so that what fails fast is told first; the closing lines say
how long each of the three took. Of real processes the files that may take longest come first: two files run at a time,
and the last is waited for alone. A test marked `data` or `gpu` is skipped, with the reason, where the public data sets
or a GPU are not there.
"""

from __future__ import annotations

import dataclasses
import hashlib
import os
import resource
from collections import defaultdict
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Final

import numpy as np
import pytest
import wrapt

from hansa_client.tensorflow_devices import configure_devices
from hansa_common.cli import installed_commands, run

ROOT: Final = Path(__file__).parents[1]
DATA: Final = Path(os.environ.get("HANSA_DATA") or ROOT.parent / "shared" / "data")
STAGES: Final = ("units", "doctests", "real processes")


def stage(item: pytest.Item) -> str:
    if isinstance(item, pytest.DoctestItem):
        return "doctests"
    return "real processes" if item.get_closest_marker("system") else "units"


def longest_first(items: list[pytest.Item]) -> Callable[[pytest.Item], tuple[int, float]]:
    """The place of a test: its stage's, and in the last stage that of its file, by the time that it may take."""
    seconds: defaultdict[Path, float] = defaultdict(float)
    for item in items:
        if stage(item) == STAGES[-1] and (limit := item.get_closest_marker("timeout")):
            seconds[item.path] = max(seconds[item.path], limit.args[0])
    return lambda item: (
        STAGES.index(stage(item)),
        -seconds[item.path] if stage(item) == STAGES[-1] else 0.0,
    )


# TensorFlow's threads are settled before its first operation or never, and a test's own may come before a trainer's.
wrapt.register_post_import_hook(lambda _: configure_devices(), "tensorflow")


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items):
    # Last, so that the order is otherwise the random one.
    items.sort(key=longest_first(items))
    for item in items:
        item.user_properties.append(("stage", stage(item)))
        if item.get_closest_marker("data") and not DATA.is_dir():
            reason = f"the public data sets are not in {DATA}; name their folder in HANSA_DATA"
            item.add_marker(pytest.mark.skip(reason=reason))


def pytest_runtest_setup(item):
    if item.get_closest_marker("gpu") and not has_gpu():
        pytest.skip("TensorFlow finds no GPU on this machine")


def has_gpu() -> bool:
    import tensorflow as tf

    return bool(tf.config.list_physical_devices("GPU"))


def pytest_terminal_summary(terminalreporter):
    seconds = dict.fromkeys(STAGES, 0.0)
    for reports in terminalreporter.stats.values():
        for report in reports:
            if isinstance(report, pytest.TestReport):
                seconds[dict(report.user_properties)["stage"]] += report.duration
    told = ", ".join(f"{name} {took:.0f} s" for name, took in seconds.items() if took)
    terminalreporter.write_line(f"tests took: {told}" if told else "no test was run")


@pytest.fixture(scope="session", autouse=True)
def _own_state_home(tmp_path_factory):
    """Trainers note how far their ledgers are among the user's state, by their folder's path; paths of tests recur."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("XDG_STATE_HOME", str(tmp_path_factory.mktemp("state-home")))
        yield


@pytest.fixture(scope="session")
def public_data() -> Path:
    """The folder of the public data sets; for tests marked `data`."""
    return DATA


@pytest.fixture(scope="session")
def full_disk():
    """A context in which no file can grow, as on a disk that is full."""

    @contextmanager
    def full_disk():
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (0, hard))
        try:
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))

    return full_disk


@dataclass(frozen=True)
class CommandResult:
    """What one command line said and how it ended."""

    exit_code: int
    stdout: str
    stderr: str


@pytest.fixture
def hansa(capfd):
    """Run one `hansa` command line in this process, as the installed command does."""

    def run_line(*words: object) -> CommandResult:
        exit_code = run([str(word) for word in words], installed_commands())
        return CommandResult(exit_code, *capfd.readouterr())

    return run_line


# A finished model with a feature of every kind, and rows for it.
HASH_KEY: Final = bytes(range(32))
SIGNING_KEY: Final = bytes(range(32, 64))
FINISHED: Final = {
    "task": "fraud",
    "name": "Every kind | of feature",
    "label": {"column": "is_fraud"},
    "features": [
        {"kind": "numeric", "name": "amount", "low": 0, "high": 500, "scaling": "log"},
        {"kind": "numeric", "name": "age", "low": 18, "high": 90, "missing": "refuse"},
        {"kind": "numeric", "name": "basket", "low": -5, "high": 25, "scaling": "quantile", "bins": 16},
        {"kind": "boolean", "name": "gift"},
        {"kind": "timestamp", "name": "moment"},
        {"kind": "timestamp", "name": "clock", "unit": "seconds", "missing": "refuse"},
        {"kind": "categorical", "name": "country", "vocabulary": ["NO", "DE", "FR"]},
        {"kind": "categorical", "name": "device", "hash_buckets": 11},
        {"kind": "categorical", "name": "brand", "vocabulary": ["a", "b", "c"], "encoding": "embedding"},
        {"kind": "categorical", "name": "network", "hash_buckets": 50, "encoding": "embedding", "embedding_dim": 4},
    ],
    "model": {"hidden": [32, 16], "output_bias": -1.0},
    "privacy": {"hash_key_id": hashlib.sha256(HASH_KEY).hexdigest()},
}


def finished_rows(num_rows: int, seed: int = 0):
    """Rows as a merchant's table has them, as text; a tenth of what may be missing is."""
    import pandas as pd

    random = np.random.default_rng(seed)
    columns = {
        "amount": random.exponential(80, num_rows).round(2),
        "age": random.integers(10, 99, num_rows),
        "basket": random.normal(8, 8, num_rows).round(3),
        "gift": random.choice(["yes", "no"], num_rows),
        "moment": pd.Timestamp("2024-01-01") + pd.to_timedelta(random.integers(0, 10**7, num_rows), "s"),
        "clock": random.integers(0, 2 * 10**9, num_rows),
        "country": random.choice(["NO", "DE", "FR", "SE"], num_rows),
        "device": [f"device {i}" for i in random.integers(0, 40, num_rows)],
        "brand": random.choice(["a", "b", "c", "d"], num_rows),
        "network": [f"network {i}" for i in random.integers(0, 90, num_rows)],
    }
    frame = pd.DataFrame({name: np.asarray(values).astype(str) for name, values in columns.items()}).astype(object)
    for name in set(columns) - {"age", "clock"}:
        frame.loc[random.random(num_rows) < 0.1, name] = None
    return frame


def finished_parts(float_tflite: bytes, int8_tflite: bytes | None):
    """What a run ends with: preprocessing fitted to rows, weights as after training; the networks are given."""
    from hansa_client.data import feature_rows
    from hansa_common import statistics
    from hansa_common.agreement import validate_agreement
    from hansa_common.bundle import BundleParts
    from hansa_common.features import FittedPreprocessing
    from hansa_common.model import ModelSpec, initial_weights

    agreement = validate_agreement(FINISHED, "the test")
    frame = finished_rows(500, seed=1)
    columns = feature_rows(frame, agreement.features, "the test").columns
    labels = np.arange(len(frame)).astype(np.uint8) % 2
    spec = ModelSpec.from_agreement(agreement)
    return BundleParts(
        agreement=agreement,
        run_id="run 1",
        spec=spec,
        weights=3.0 * initial_weights(spec, 1),
        preprocessing=FittedPreprocessing.fit(agreement, statistics.measure(agreement, columns, labels)),
        float_tflite=float_tflite,
        int8_tflite=int8_tflite,
        metrics={
            "task": "fraud",
            "federated": {"roc_auc": 0.93, "pr_auc": 0.74, "best_f1_threshold": 0.31},
            "compressed": {"roc_auc": 0.929, "pr_auc": 0.738},
            "merchants": {"alder": {"threshold": 0.2, "federated": {"roc_auc": 0.9}}},
        },
        sparsity={"dense kernels": 0.25},
        made_with={"tensorflow": "2.21.0"},
    )


@pytest.fixture(scope="session")
def finished():
    """Real files of that model, made as a run makes them: in a process of its own, so its tests are marked `system`."""
    from hansa_client.data import feature_rows
    from hansa_common.activations import activation_histograms, ranges_from_histograms
    from hansa_common.bundle import make_bundle
    from hansa_common.keys import public_key_of
    from hansa_server.compression import compress

    parts = finished_parts(b"", None)
    columns = feature_rows(finished_rows(2000, seed=2), parts.agreement.features, "the test").columns
    inputs = parts.preprocessing.transform(columns, HASH_KEY)
    histograms = activation_histograms(parts.spec, parts.weights, inputs, 5)
    made = compress(parts.spec, parts.weights, ranges_from_histograms(parts.spec, histograms, 0.9999))
    parts = dataclasses.replace(parts, float_tflite=made.float_file, int8_tflite=made.int8_file)
    return SimpleNamespace(
        parts=parts,
        files=make_bundle(parts, SIGNING_KEY),
        trusted=public_key_of(SIGNING_KEY),
        signing_key=SIGNING_KEY,
        hash_key=HASH_KEY,
        rows=finished_rows,
    )


@pytest.fixture(scope="session")
def unfinished():
    """The same with networks that are none, in no time: for what does not run them."""
    from hansa_common.bundle import make_bundle
    from hansa_common.keys import public_key_of

    parts = finished_parts(b"a float network", b"an int8 network")
    return SimpleNamespace(
        parts=parts,
        files=make_bundle(parts, SIGNING_KEY),
        trusted=public_key_of(SIGNING_KEY),
        signing_key=SIGNING_KEY,
        hash_key=HASH_KEY,
        rows=finished_rows,
    )
