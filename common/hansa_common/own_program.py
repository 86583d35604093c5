"""How a process of ours begins when its module is run as a program.

An error that nobody expected ends it with a traceback of places alone: the one that typer draws shows the values of all
variables too, among them rows and keys, to a terminal or a log.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import typer

from hansa_common import children
from hansa_common.errors import HansaError
from hansa_common.stopping import stopped_by_sigterm

_log = logging.getLogger(__name__)


def run_program(main: Callable[..., None]) -> None:
    """Run `main` with the options of this process's command line, and end the process."""
    program = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    program.command()(main)
    program()


@contextmanager
def serving_until_stopped() -> Iterator[None]:
    """What stands round the work of a process that serves: it ends with its parent, SIGTERM and Ctrl-C stop it, and an
    error of ours ends it with one line.
    """
    children.end_with_parent()
    try:
        with stopped_by_sigterm():
            yield
    except HansaError as error:
        typer.echo(f"hansa: {error}", err=True)
        raise typer.Exit(error.exit_code) from None
    except KeyboardInterrupt:
        _log.info("stopped")
