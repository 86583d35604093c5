"""`hansa`: the commands of whatever rooms are installed, under one name.

For a room's author: an entry point in the group `hansa.commands` is a `typer.Typer` object. With one command and no
callback it is that command (`hansa agree`); with a callback it is a group (`hansa server start`). The entry point's
name is the command's name, its module imports fast, and an error is raised, not printed:

| raised                                | stderr                               | exit code             |
|---------------------------------------|--------------------------------------|-----------------------|
| HansaError                            | its message                          | the error's exit_code |
| OSError: not found, no permission ... | which file, and what the matter is   | 1                     |
| a wrong option or argument            | click's words                        | 2                     |
| an unknown command                    | the nearest command there is         | 2                     |
| Ctrl-C                                | nothing                              | 130                   |
| anything else                         | a traceback: that is a fault in here | 1                     |

No room is imported before its command is asked for, so that a fault in one leaves the others usable; only `--help`
looks at all of them.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Mapping
from importlib.metadata import EntryPoint, entry_points
from typing import Final, NoReturn

import click
import typer
from typer.core import TyperGroup
from typer.main import get_command

from hansa_common import __version__
from hansa_common.errors import HansaError, UsageError
from hansa_common.nearest import did_you_mean

GROUP: Final = "hansa.commands"
INTERRUPTED: Final = 130


class Commands(TyperGroup):
    """The group `hansa`, whose commands are imported when they are asked for."""

    def __init__(self, installed: Mapping[str, EntryPoint]) -> None:
        """Take the commands by name; nothing is loaded yet."""
        super().__init__(
            name="hansa",
            help="Federated learning for merchants who keep their own books.",
            no_args_is_help=True,
            params=[_version_option()],
        )
        self._installed = installed

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002 - click's signature
        return sorted(self._installed)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002 - click's signature
        entry_point = self._installed.get(cmd_name)
        return None if entry_point is None else _loaded(entry_point)

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args[0] not in self._installed and not args[0].startswith("-"):
            raise UsageError(f"no command {args[0]!r}{did_you_mean(args[0], self.list_commands(ctx))}")
        return super().resolve_command(ctx, args)


def installed_commands() -> dict[str, EntryPoint]:
    """The commands that the installed distributions register, by name."""
    return {entry_point.name: entry_point for entry_point in entry_points(group=GROUP)}


def run(arguments: list[str], installed: Mapping[str, EntryPoint]) -> int:
    """Run one command line and return its exit code; what goes wrong is told on stderr."""
    try:
        code = Commands(installed).main(arguments, prog_name="hansa", standalone_mode=False)
        # Now, so that a reader who has left is noticed here and not by a dying interpreter.
        sys.stdout.flush()
    except HansaError as error:
        return _failed(str(error), error.exit_code)
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except (KeyboardInterrupt, click.Abort):
        return INTERRUPTED
    except BrokenPipeError:
        # Whoever read our output has left (`hansa ... | head`); what Python still holds has nowhere to go.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except OSError as error:
        return _failed(f"{error.filename}: {error.strerror}" if error.filename else str(error), 1)
    # The code of an Exit; else what the command returned, which is None.
    return code if isinstance(code, int) else 0


def main() -> NoReturn:
    """Run the command line of this process."""
    sys.exit(run(sys.argv[1:], installed_commands()))


def _loaded(entry_point: EntryPoint) -> click.Command:
    try:
        app = entry_point.load()
    except (ImportError, AttributeError) as error:
        return _unusable(entry_point.name, f"cannot be loaded: {error}")
    if not isinstance(app, typer.Typer):
        return _unusable(entry_point.name, f"{entry_point.value} is not a typer.Typer")
    command = get_command(app)
    command.name = entry_point.name
    return command


def _unusable(name: str, reason: str) -> click.Command:
    """A command that `--help` can list and that says, when it is used, why it cannot be."""
    return click.Command(
        name,
        callback=_raising(UsageError(f"the command {name!r} is installed, but {reason}")),
        help=f"({reason})",
        add_help_option=False,
        context_settings={"ignore_unknown_options": True, "allow_extra_args": True},
    )


def _raising(error: HansaError) -> Callable[[], NoReturn]:
    def fail() -> NoReturn:
        raise error

    return fail


def _version_option() -> click.Option:
    def show(ctx: click.Context, _: click.Parameter, is_asked: bool) -> None:
        if is_asked:
            typer.echo(f"hansa {__version__}")
            ctx.exit()

    return click.Option(
        ["--version"], is_flag=True, is_eager=True, expose_value=False, callback=show, help="Show the version."
    )


def _failed(message: str, code: int) -> int:
    typer.echo(f"hansa: {message}", err=True)
    return code
