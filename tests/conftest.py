"""What tests of all rooms share: in which order they run, and what a machine must have for some of them.

Units come first, then doctests, then real processes, so that what fails fast is told first; the closing lines say
how long each of the three took. A test marked `data` or `gpu` is skipped, with the reason, where the public data sets
or a GPU are not there.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import pytest

from hansa_common.cli import installed_commands, run

ROOT: Final = Path(__file__).parents[1]
DATA: Final = Path(os.environ.get("HANSA_DATA") or ROOT.parent / "shared" / "data")
STAGES: Final = ("units", "doctests", "real processes")


def stage(item: pytest.Item) -> str:
    if isinstance(item, pytest.DoctestItem):
        return "doctests"
    return "real processes" if item.get_closest_marker("system") else "units"


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items):
    # Last, so that the order inside each stage is the random one.
    items.sort(key=lambda item: STAGES.index(stage(item)))
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


@pytest.fixture(scope="session")
def one_thread() -> None:
    """TensorFlow's threads are settled before its first operation or never: for tests whose own comes first."""
    from hansa_client.tensorflow_program import configure_devices

    configure_devices()


@pytest.fixture(scope="session")
def public_data() -> Path:
    """The folder of the public data sets; for tests marked `data`."""
    return DATA


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
