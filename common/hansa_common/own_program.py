"""How a process of ours begins when its module is run as a program.

An error that nobody expected ends it with a traceback of places alone: the one that typer draws shows the values of all
variables too, among them rows and keys, to a terminal or a log.
"""

from __future__ import annotations

from collections.abc import Callable

import typer


def run_program(main: Callable[..., None]) -> None:
    """Run `main` with the options of this process's command line, and end the process."""
    program = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    program.command()(main)
    program()
