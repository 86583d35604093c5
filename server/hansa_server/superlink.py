"""Flower's SuperLink as the coordinator's transport: how it is started, and how it is handed a run.

The bundle that Flower distributes carries no code: it names this package's ServerApp and the merchant package's
ClientApp, and each side runs what it has installed. The one value of run config is the run's folder. Flower's
telemetry, update check and installation of dependencies are off, and its files stay in folders given here.
"""

from __future__ import annotations

import http.client
import json
import re
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Final

from hansa_common import __version__, children, durable_files
from hansa_common.addresses import Address
from hansa_common.children import Child
from hansa_common.errors import CoordinatorError, TransportError, UsageError
from hansa_common.flower_environment import flower_environment

CONNECTION: Final = "hansa"
LOG_NAME: Final = "superlink.log"
START_SECONDS: Final = 60.0
COMMAND_SECONDS: Final = 120.0
_HEALTH_SECONDS: Final = 2.0
_POLL_SECONDS: Final = 0.1

# The same tables stand in the project's own pyproject.toml, for whoever runs Flower's tools there.
BUNDLE_TOML: Final = f"""\
[project]
name = "hansa"
version = "{__version__}"
description = "Federated learning for merchants who keep their own books"
license = "Apache-2.0"

[tool.flwr.app]
publisher = "hansa"
fab-include = ["/README.md"]

[tool.flwr.app.components]
serverapp = "hansa_server.app:app"
clientapp = "hansa_client.app:app"

[tool.flwr.app.config]
run-folder = ""
"""
BUNDLE_README: Final = "Hansa carries no code in its bundle: each side runs the code that it has installed.\n"
# What Flower itself writes into a run's log; the ServerApp's own lines are the rest.
_FLOWER_LINE: Final = re.compile(rb"^(\x1b\[\d+m)?(DEBUG|INFO|Successfully installed) ")


def is_superlink(address: Address) -> bool:
    """Whether a SuperLink answers at the address."""
    connection = http.client.HTTPConnection(address.host, address.port, timeout=_HEALTH_SECONDS)
    try:
        connection.request("GET", "/health")
        return connection.getresponse().status == http.HTTPStatus.OK
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()


@contextmanager
def running(address: Address, state: Path) -> Iterator[Child]:
    """A SuperLink while the block runs, once it answers; its database and log are in the state folder.

    Raises:
        CoordinatorError: it ended, or did not answer in time.
        UsageError: others can open the state folder: every merchant's update passes through the database in it.
    """
    durable_files.make_private_folder(state)
    options = ["--insecure", "--host", address.host, "--port", str(address.port)]
    log = state / LOG_NAME
    command = ["flower-superlink", *options, "--database", str(state / "state.db")]
    with children.running("SuperLink", command, flower_environment(state / "flower"), log=log) as child:
        _wait_until_it_answers(child.process, address, log)
        yield child


def _wait_until_it_answers(process: subprocess.Popen[bytes], address: Address, log: Path) -> None:
    deadline = time.monotonic() + START_SECONDS
    while not is_superlink(address):
        try:
            process.wait(_POLL_SECONDS)
        except subprocess.TimeoutExpired:
            if time.monotonic() < deadline:
                continue
            raise CoordinatorError(f"SuperLink did not answer within {START_SECONDS:.0f} seconds; see {log}") from None
        raise CoordinatorError(f"SuperLink ended with code {process.returncode}; see {log}")


@dataclass(frozen=True)
class Control:
    """The way to hand a SuperLink a run, through Flower's own command in a folder of files for it."""

    workspace: Path

    @classmethod
    def prepared(cls, workspace: Path, server: Address) -> Control:
        """Write the connection and the bundle's source into an empty folder."""
        (workspace / "config.toml").write_text(
            f'[superlink]\ndefault = "{CONNECTION}"\n\n'
            f'[superlink.{CONNECTION}]\naddress = "{server}"\ninsecure = true\n'
        )
        bundle = workspace / "bundle"
        bundle.mkdir()
        (bundle / "pyproject.toml").write_text(BUNDLE_TOML)
        (bundle / "README.md").write_text(BUNDLE_README)
        return cls(workspace)

    def start_run(self, run_folder: Path) -> int:
        """Start a run that writes into the folder, and return its id.

        Raises:
            TransportError: Flower did not start it; says why.
        """
        config = self.workspace / "run.toml"
        # As a file, because on Flower's command line a path with a quote in it would not survive.
        config.write_text(f"run-folder = {json.dumps(str(run_folder.absolute()))}\n")
        bundle = str(self.workspace / "bundle")
        answer = self._flwr("run", bundle, CONNECTION, "--run-config", str(config), "--format", "json")
        try:
            return int(json.loads(answer.stdout)["run-id"])
        except (ValueError, KeyError, TypeError):
            reason = " ".join((answer.stdout + answer.stderr).split())
            raise TransportError(f"Flower did not start the run: {reason}") from None

    def stop_run(self, run_id: int) -> None:
        """End a run before its time; it is no error if it has ended."""
        self._flwr("stop", str(run_id), CONNECTION)

    def follow_run(self, run_id: int, output: IO[bytes]) -> None:
        """Pass on what the run's ServerApp prints, until the run ends; Flower's own lines are left out."""
        stream = subprocess.Popen(
            ["flwr", "log", str(run_id), CONNECTION, "--stream"],
            env=self._environment(),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            for line in stream.stdout or ():
                if not _FLOWER_LINE.match(line):
                    output.write(line)
                    output.flush()
        finally:
            Child("the log", stream).stop()

    def _flwr(self, *words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            ["flwr", *words],
            env=self._environment(),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=COMMAND_SECONDS,
            check=False,
        )

    def _environment(self) -> dict[str, str]:
        # Its output goes through a pipe; without this, lines would come in blocks.
        return {**flower_environment(self.workspace), "PYTHONUNBUFFERED": "1"}


def check_port_is_free(address: Address) -> None:
    """See that nothing listens at the address yet.

    Raises:
        UsageError: something does.
    """
    family = socket.AF_INET6 if ":" in address.host else socket.AF_INET
    with socket.socket(family) as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((address.host, address.port))
        except OSError as error:
            raise UsageError(f"{address} cannot be used ({error.strerror}); give another --address") from error
