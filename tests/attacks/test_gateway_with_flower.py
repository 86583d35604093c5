"""What the gateway is there for: Flower's own SuperNode, behind a forwarder, takes part as it would without either."""

from __future__ import annotations

import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import pytest
from flwr.proto.control_pb2 import ListNodesRequest

from hansa_client import forwarder
from hansa_client.flower_node import free_port
from hansa_common import children
from hansa_common.flower_environment import flower_environment

pytestmark = [pytest.mark.system, pytest.mark.timeout(300)]

NUM_BYTES = 20_000_000
RUN_SECONDS = 200.0
PROJECT = """
[project]
name = "echo"
version = "0.1.0"
description = ""
license = "Apache-2.0"

[tool.flwr.app]
publisher = "test"
fab-include = ["/echo.py"]

[tool.flwr.app.components]
serverapp = "echo:server"
clientapp = "echo:client"

[tool.flwr.app.config]
"""
APP = """
import time
from flwr.app import ConfigRecord, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import ServerApp

client = ClientApp()
server = ServerApp()

@client.train()
def echo(message, context):
    return Message(message.content, reply_to=message)

@server.main()
def main(grid, context):
    while NODE_ID not in grid.get_node_ids():
        time.sleep(0.2)
    for size in (0, NUM_BYTES):
        content = RecordDict({"echo": ConfigRecord({"bytes": b"x" * size})})
        (reply,) = grid.send_and_receive([Message(content, NODE_ID, "train")], timeout=120)
        assert reply.has_content(), reply
        print("echoed", len(reply.content["echo"]["bytes"]), flush=True)
"""
# Flower's own but for one thing: it refuses to sign requests without TLS of its own, which the forwarder has.
SUPERNODE = """
import sys
from pathlib import Path
from cryptography.hazmat.primitives.serialization import load_ssh_private_key
from flwr.supernode import start_client_internal
from flwr.supernode.cli.flower_supernode import flower_supernode

key = load_ssh_private_key(Path(sys.argv.pop(1)).read_bytes(), None)
connect = start_client_internal._init_connection

def connected(*, authentication_keys, **rest):
    return connect(authentication_keys=(key, key.public_key()), **rest)

start_client_internal._init_connection = connected
flower_supernode()
"""


@contextmanager
def supernode(party, superlink, folder: Path):
    """Flower's SuperNode, which speaks plain HTTP to what it takes for SuperLink."""
    log = folder / "supernode.log"
    options = ["--superlink", str(superlink), "--insecure", "--host", "127.0.0.1", "--port", str(free_port())]
    program = [sys.executable, "-c", SUPERNODE, str(party.state / "node.key")]
    environment = flower_environment(folder / "node")
    with children.running("SuperNode", [*program, *options], environment, log=log) as child:
        yield child, log


def run_of(federation, node_id: int, folder: Path) -> subprocess.CompletedProcess[str]:
    """Flower's own command to run an app, as the coordinator does it on loopback."""
    app = folder / "echo"
    app.mkdir()
    (app / "pyproject.toml").write_text(PROJECT)
    (app / "echo.py").write_text(f"NODE_ID, NUM_BYTES = {node_id}, {NUM_BYTES}\n{APP}")
    connection = f'[superlink]\ndefault = "own"\n\n[superlink.own]\naddress = "{federation.superlink}"\n'
    (folder / "config.toml").write_text(f'{connection}root-certificates = "{federation.ca}"\n')
    words = [str(Path(sys.executable).with_name("flwr")), "run", str(app), "own", "--stream"]
    environment = {**flower_environment(folder), "PYTHONUNBUFFERED": "1"}
    return subprocess.run(
        words,
        env=environment,
        capture_output=True,
        text=True,
        timeout=RUN_SECONDS,
        stdin=subprocess.DEVNULL,
        check=False,
    )


def test_flowers_node_registers_comes_online_and_exchanges_messages_through_both_hops(
    federation, running_forwarder, tmp_path
):
    # A merchant of its own: Flower activates no node that counts as online, as others' tests may have left alpha's.
    delta = federation.coordinator.enrol("delta", tmp_path / "delta")
    federation.register_node(delta)
    with (
        running_forwarder(federation.gateway, delta.state) as (_, address),
        supernode(delta, address, tmp_path) as (node, log),
    ):
        run = run_of(federation, delta.node_id, tmp_path)
        assert "echoed 0\n" in run.stdout, run.stdout + run.stderr + log.read_text()
        assert f"echoed {NUM_BYTES}\n" in run.stdout, run.stdout + run.stderr + log.read_text()
        with federation.control() as control:
            nodes = control.ListNodes(ListNodesRequest()).nodes_info
        assert delta.node_id in {info.node_id for info in nodes if info.status == "online"}
        node.process.terminate()
        node.process.wait(30)
    assert (delta.state / forwarder.LOG_NAME).read_text() == ""
