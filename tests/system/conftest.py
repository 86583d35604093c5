"""What tests of real processes share: a coordinator who means harm, with a SuperLink of Flower's own."""

from __future__ import annotations

import hashlib
import io
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import pytest
from flwr.common.serde import fab_to_proto, user_config_to_proto
from flwr.proto.control_pb2 import StartRunRequest
from flwr.supercore.constant import NOOP_FEDERATION_ID, TaskType
from flwr.supercore.fab import Fab
from hansa_command import wait_until

from hansa_client import flower_node
from hansa_common import children
from hansa_common.addresses import Address
from hansa_common.flower_bundle import APP_SPEC, RUN_FOLDER_KEY, bundle_hash
from hansa_common.flower_environment import flower_environment
from hansa_server import flower_private, superlink

ANY_TOKEN = "any"  # noqa: S105 - a SuperLink of Flower's own looks at none
# The coordinator's half of a bundle with code: orders everyone something, and keeps the errors that come back.
HOSTILE_SERVER = """
import json, time
from pathlib import Path
from flwr.app import Message, RecordDict
from flwr.serverapp import ServerApp
app = ServerApp()

@app.main()
def main(grid, context):
    orders = [Message(RecordDict(), node_id, "train") for node_id in grid.get_node_ids()]
    replies = grid.send_and_receive(orders, timeout=200)
    errors = {str(reply.metadata.src_node_id): reply.error.code for reply in replies if reply.has_error()}
    Path(context.run_config["run-folder"], "errors.json").write_text(json.dumps(errors))
"""


def packed(files: Mapping[str, str]) -> bytes:
    """A bundle of these files, as Flower installs it."""
    content = "\n".join(f"{name},{hashlib.sha256(text.encode()).hexdigest()},0" for name, text in files.items())
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as bundle:
        for name, text in {**files, ".info/CONTENT": content}.items():
            bundle.writestr(name, text)
    return archive.getvalue()


def free_address() -> Address:
    return Address("127.0.0.1", flower_node.free_port())


class DishonestCoordinator:
    """A SuperLink of Flower's own, into whose database anything is put."""

    def __init__(self, folder: Path, address: Address) -> None:
        self.address = address
        self._folder = folder
        self._state = flower_private.open_database(folder / "state.db")

    def start(self, bundle: bytes, verifications: Mapping[str, str], run_folder: Path) -> int:
        self._state.store_app(
            fab=Fab(bundle_hash(bundle), bundle, dict(verifications)),
            federation_id=NOOP_FEDERATION_ID,
            app_id=APP_SPEC,
            app_type=TaskType.SERVER_APP,
            added_by="<id:none>",
        )
        with flower_private.control_api(str(self.address), ANY_TOKEN) as control:
            return control.StartRun(request(bundle_hash(bundle), b"", run_folder)).run_id

    def stop(self, run_id: int) -> None:
        with flower_private.control_api(str(self.address), ANY_TOKEN) as control:
            flower_private.stop_run(control, run_id)


def request(known: str, content: bytes, run_folder: Path) -> StartRunRequest:
    config = user_config_to_proto({RUN_FOLDER_KEY: str(run_folder)})
    spec = "" if content else APP_SPEC
    return StartRunRequest(fab=fab_to_proto(Fab(known, content, {})), app_spec=spec, override_config=config)


@contextmanager
def dishonest_coordinator(folder: Path) -> Iterator[DishonestCoordinator]:
    address = free_address()
    folder.mkdir()
    options = ["--insecure", "--host", address.host, "--port", str(address.port)]
    command = ["flower-superlink", *options, "--database", str(folder / "state.db")]
    environment = flower_environment(folder / "flower")
    with children.running("SuperLink", command, environment, log=folder / "superlink.log"):
        wait_until("SuperLink", lambda: superlink.is_superlink(address))
        yield DishonestCoordinator(folder, address)


def flowers_own(command: list[str]) -> list[str]:
    """The same node without our module."""
    return ["flower-supernode", *command[command.index("--insecure") :]]


@pytest.fixture(scope="session")
def dishonest() -> SimpleNamespace:
    """A dishonest coordinator, bundles for it, and nodes that are Flower's own."""
    return SimpleNamespace(
        coordinator=dishonest_coordinator,
        server_code=HOSTILE_SERVER,
        packed=packed,
        request=request,
        flowers_own=flowers_own,
        free_address=free_address,
    )
