"""The dispatcher: lists and runs what is installed, imports nothing before it is asked, tells errors in one line."""

from __future__ import annotations

import json
import subprocess
import sys
from importlib.metadata import EntryPoint
from types import ModuleType

import pytest
import typer

from hansa_common import __version__, errors
from hansa_common.cli import GROUP, INTERRUPTED, run

FAILURES = {
    "usage": errors.UsageError("no such thing"),
    "agreement": errors.AgreementError("out of bounds"),
    "data": errors.DataError("row 3 is bad"),
    "run": errors.RunFailedError("nothing was aggregated"),
    "gone": FileNotFoundError(2, "No such file or directory", "table.csv"),
    "forbidden": PermissionError(13, "Permission denied", "runs/x"),
    "fault": ZeroDivisionError("a fault in here"),
    "interrupt": KeyboardInterrupt(),
    "exit": typer.Exit(7),
}


def failing_app() -> typer.Typer:
    app = typer.Typer()

    @app.command()
    def fail(how: str) -> None:
        """Fail in one way."""
        raise FAILURES[how]

    return app


def group_app() -> typer.Typer:
    app = typer.Typer(help="Do one of two things.")

    @app.callback()
    def group() -> None:
        """Do one of two things."""

    @app.command()
    def first(word: str = "none") -> None:
        typer.echo(f"first {word}")

    return app


@pytest.fixture
def installed(monkeypatch):
    room = ModuleType("hansa_room_of_the_test")
    room.fail, room.group, room.not_an_app = failing_app(), group_app(), object()
    monkeypatch.setitem(sys.modules, room.__name__, room)
    targets = {
        "fail": f"{room.__name__}:fail",
        "group": f"{room.__name__}:group",
        "wrong": f"{room.__name__}:not_an_app",
        "broken": "hansa_room_that_is_not_there:app",
    }
    return {name: EntryPoint(name, target, GROUP) for name, target in targets.items()}


@pytest.mark.parametrize(("how", "code"), [("usage", 2), ("agreement", 2), ("data", 1), ("run", 1)])
def test_error_of_ours_is_one_line_and_its_own_exit_code(installed, capsys, how, code):
    assert run(["fail", how], installed) == code
    captured = capsys.readouterr()
    assert captured.err == f"hansa: {FAILURES[how]}\n"
    assert captured.out == ""


@pytest.mark.parametrize(
    ("how", "line"),
    [("gone", "table.csv: No such file or directory"), ("forbidden", "runs/x: Permission denied")],
)
def test_file_trouble_names_the_file_without_a_traceback(installed, capsys, how, line):
    assert run(["fail", how], installed) == 1
    assert capsys.readouterr().err == f"hansa: {line}\n"


def test_ctrl_c_exits_with_130_and_exit_keeps_its_code(installed):
    assert run(["fail", "interrupt"], installed) == INTERRUPTED == 130
    assert run(["fail", "exit"], installed) == 7


def test_fault_in_the_program_is_not_hidden(installed):
    with pytest.raises(ZeroDivisionError):
        run(["fail", "fault"], installed)


@pytest.mark.parametrize(("typed", "meant"), [("grop", "did you mean 'group'?"), ("xyz", "there are: broken, fail")])
def test_unknown_command_suggests_the_nearest(installed, capsys, typed, meant):
    assert run([typed], installed) == 2
    assert meant in capsys.readouterr().err


def test_unknown_option_and_missing_argument_exit_with_2(installed, capsys):
    assert run(["--verison"], installed) == 2
    assert run(["fail", "--how", "x"], installed) == 2
    assert run(["fail"], installed) == 2
    assert "Missing argument" in capsys.readouterr().err


def test_group_runs_its_command(installed, capsys):
    assert run(["group", "first", "--word", "second"], installed) == 0
    assert capsys.readouterr().out == "first second\n"


def test_help_lists_every_command_and_what_is_wrong_with_a_broken_one(installed, capsys):
    assert run(["--help"], installed) == 0
    told = " ".join(capsys.readouterr().out.split())
    for expected in ("Fail in one way", "Do one of two things", "hansa_room_that_is_not_there", "is not a typer.Typer"):
        assert expected in told


@pytest.mark.parametrize("name", ["broken", "wrong"])
def test_broken_command_says_why_and_leaves_the_others_usable(installed, capsys, name):
    assert run([name, "--any", "thing"], installed) == 2
    assert f"the command '{name}' is installed, but" in capsys.readouterr().err
    assert run(["group", "first"], installed) == 0


def test_version(installed, capsys):
    assert run(["--version"], installed) == 0
    assert capsys.readouterr().out == f"hansa {__version__}\n"


def modules_after(*arguments: str) -> set[str]:
    script = (
        "import sys, json\n"
        "from hansa_common.cli import installed_commands, run\n"
        f"code = run({list(arguments)!r}, installed_commands())\n"
        "print()\nprint(json.dumps([code, sorted(sys.modules)]))"
    )
    told = subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True)
    code, modules = json.loads(told.stdout.splitlines()[-1])
    assert code == 0, told.stderr
    return set(modules)


def rooms(modules: set[str]) -> set[str]:
    return {name.split(".")[0] for name in modules if name.startswith("hansa_")} - {"hansa_common"}


def test_dispatcher_imports_no_room_and_a_command_only_its_own():
    assert rooms(modules_after("--version")) == set()
    modules = modules_after("agree", "--help")
    assert rooms(modules) == {"hansa_client"}
    # What makes a command line slow to answer.
    assert not modules & {"pandas", "pyarrow", "numpy", "tensorflow", "keras", "flwr", "grpc"}


def test_reader_who_leaves_early_sees_no_traceback():
    script = "from hansa_common.cli import main; main()"
    command = [sys.executable, "-c", script, "--help"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        process.stdout.close()
        told = process.stderr.read().decode()
    assert process.returncode == 1
    assert told == ""
