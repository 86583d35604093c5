"""The names that Flower 1.41 does not promise to keep, in one module for the coordinator's room: what starts, asks and
reads a SuperLink. A test fails if another Flower is installed or one of the names has changed its meaning's outside.

A SuperLink that `run_superlink` runs differs from Flower's in three things:

- its Control API answers only who has the coordinator's token;
- it holds one bundle, under the publisher's signature, and takes and starts no other, whoever asks;
- it plans no runs for later: Flower would start those without asking for the token.

Where it admits registered nodes only, none registers itself; one that died without a word may come back at once, and
what was handed to it is told as lost, so that nobody waits for it.
"""

from __future__ import annotations

import hmac
import sys
import threading
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final, Literal, NoReturn

import httpx
from flwr.common.constant import ACCESS_TOKEN_KEY, NOOP_FLWR_AID, Status
from flwr.common.serde import fab_to_proto, user_config_to_proto
from flwr.proto.control_pb2 import (
    ListNodesRequest,
    RegisterNodeRequest,
    StartRunRequest,
    StopRunRequest,
    StreamLogsRequest,
)
from flwr.server.superlink.linkstate import LinkState, LinkStateFactory
from flwr.supercore.auth.typing import AccountInfo
from flwr.supercore.constant import NOOP_FEDERATION_ID, NodeStatus, TaskType
from flwr.supercore.control import ControlHttpClient
from flwr.supercore.error import ApiErrorCode, FlowerError
from flwr.supercore.fab import Fab
from flwr.supercore.interceptors.http.runtime_version import RuntimeVersionHttpInterceptor
from flwr.supercore.object_store import ObjectStoreFactory
from flwr.superlink import main as superlink_main
from flwr.superlink.auth_plugin import NoOpControlAuthnPlugin
from flwr.superlink.cli.flower_superlink import flower_superlink
from flwr.superlink.federation import NoOpFederationManager

from hansa_common.errors import CoordinatorError, TransportError
from hansa_common.flower_bundle import APP_SPEC, RUN_FOLDER_KEY, bundle_hash, flower_bundle

FLOWER_VERSION: Final = "1.41.0"
# Which nodes a SuperLink lets in: whoever comes, or those whose keys were registered.
Admits = Literal["anyone", "registered"]


def check_version() -> None:
    """See that the Flower that is installed is the one whose names stand here.

    Raises:
        CoordinatorError: it is another.
    """
    installed = version("flwr")
    if installed != FLOWER_VERSION:
        raise CoordinatorError(
            f"Flower {installed} is installed, and only with {FLOWER_VERSION} is it known that nothing but Hansa's own "
            f"bundle is started: pip install flwr=={FLOWER_VERSION}"
        )


# The SuperLink's own process


def run_superlink(
    arguments: Sequence[str], *, bundle: bytes, verifications: Mapping[str, str], token: str, admits: Admits
) -> None:
    """Run `flower-superlink` with these arguments in this process, until it ends.

    `verifications` is what a publisher says of the bundle; `token` is what the Control API wants to see.
    """
    check_version()
    create_app = superlink_main.create_app

    def create_guarded_app(config: Any, lifespan: Any) -> Any:
        config.authn_plugin = _CoordinatorAlone(token)
        app = create_app(config, lifespan)
        state = app.state.linkstate_factory.state()
        _start_nothing_but(state, Fab(bundle_hash(bundle), bundle, dict(verifications)))
        if admits == "registered":
            # Flower's own option wants TLS here too, which ends at the gateway.
            app.state.enable_supernode_auth = True
            _let_back_in(state)
        return app

    superlink_main.create_app = create_guarded_app
    sys.argv[1:] = arguments
    flower_superlink()


class _CoordinatorAlone(NoOpControlAuthnPlugin):  # type: ignore[misc]  # Flower is followed as untyped
    """Flower's one account, for whoever has the token."""

    def __init__(self, token: str) -> None:
        super().__init__()
        self._token = token.encode()

    def validate_tokens_in_metadata(
        self, metadata: Sequence[tuple[str, str | bytes]]
    ) -> tuple[bool, AccountInfo | None]:
        given = dict(metadata).get(ACCESS_TOKEN_KEY, "")
        given = given if isinstance(given, bytes) else given.encode()
        if not hmac.compare_digest(given, self._token):
            return False, None
        account: tuple[bool, AccountInfo | None] = super().validate_tokens_in_metadata(metadata)
        return account


def _start_nothing_but(state: LinkState, fab: Fab) -> None:
    """Store a bundle, and from now on let no other in and no run of another begin."""
    state.store_app(
        fab=fab,
        federation_id=NOOP_FEDERATION_ID,
        app_id=APP_SPEC,
        app_type=TaskType.SERVER_APP,
        added_by=NOOP_FLWR_AID,
    )
    create_run = state.create_run

    def create_known_run(fab_id: str, fab_version: str, fab_hash: str, *rest: Any, **options: Any) -> int:
        if fab_hash != fab.hash_str:
            _refuse()
        run_id: int = create_run(fab_id, fab_version, fab_hash, *rest, **options)
        return run_id

    def refuse(*_: Any, **__: Any) -> NoReturn:
        _refuse()

    state.create_run = create_known_run
    # Storing our own bundle again, from what somebody sent, would take its signature off.
    state.store_app = state.store_fab = state.store_automation = refuse


def _let_back_in(state: LinkState) -> None:
    """Let a node that died come back before it is missed, and forget what was handed to it and not answered."""
    handed: defaultdict[int, set[str]] = defaultdict(set)
    lock = threading.Lock()
    hand, answer, activate = state.get_message_ins, state.store_message_res, state.activate_node

    def hand_out(node_id: int, limit: int | None, **rest: Any) -> Any:
        messages = hand(node_id, limit, **rest)
        with lock:
            handed[node_id].update(str(message.metadata.message_id) for message in messages)
        return messages

    def take_answer(message: Any) -> Any:
        with lock:
            handed[message.metadata.src_node_id].discard(message.metadata.reply_to_message_id)
        return answer(message)

    def let_in(node_id: int, heartbeat_interval: float) -> bool:
        with lock:
            lost = handed.pop(node_id, set())
        state.delete_messages(lost)
        state.deactivate_node(node_id)
        return bool(activate(node_id, heartbeat_interval))

    state.get_message_ins, state.store_message_res, state.activate_node = hand_out, take_answer, let_in


def _refuse() -> NoReturn:
    why = "this SuperLink starts Hansa's own bundle and no other, and nothing at a later time"
    raise FlowerError(ApiErrorCode.FAILED_TO_CREATE_RUN, why, public_details=why)


# A SuperLink as its coordinator asks it


class _Bearer:
    """Shows the token with every request."""

    def __init__(self, token: str) -> None:
        self._token = token

    def intercept(self, context: Any, call_next: Any) -> Any:
        context.request.headers["authorization"] = f"Bearer {self._token}"
        return call_next(context)


@contextmanager
def control_api(address: str, token: str) -> Iterator[ControlHttpClient]:
    """The Control API of the SuperLink at `host:port`.

    Raises:
        TransportError: in the block, a request failed.
    """
    check_version()
    interceptors = [RuntimeVersionHttpInterceptor(component_name="hansa"), _Bearer(token)]
    client = ControlHttpClient.from_server_address(address, True, None, interceptors)
    try:
        yield client
    except httpx.HTTPStatusError as error:
        raise TransportError(f"SuperLink at {address} refused: {_told(error.response)}") from error
    except httpx.HTTPError as error:
        raise TransportError(f"SuperLink at {address} did not answer: {error}") from error
    finally:
        client.close()


def start_run(control: ControlHttpClient, run_folder: Path) -> int:
    """Start a run of the stored bundle that writes into the folder, and return its id."""
    fab = Fab(bundle_hash(flower_bundle()), b"", {})
    config = user_config_to_proto({RUN_FOLDER_KEY: str(run_folder)})
    answer = control.StartRun(StartRunRequest(fab=fab_to_proto(fab), app_spec=APP_SPEC, override_config=config))
    if not answer.HasField("run_id"):
        raise TransportError("SuperLink did not start the run; its log says why")
    return int(answer.run_id)


def stop_run(control: ControlHttpClient, run_id: int) -> bool:
    """End a run before its time, and say whether it had not ended."""
    return bool(control.StopRun(StopRunRequest(run_id=run_id)).success)


def register_nodes(control: ControlHttpClient, public_keys: Iterable[str]) -> int:
    """Let the nodes with these keys (PEM) in from now on, and return how many were not known yet."""
    known = {bytes(node.public_key) for node in control.ListNodes(ListNodesRequest()).nodes_info}
    unknown = [key.encode() for key in public_keys if key.encode() not in known]
    for key in unknown:
        control.RegisterNode(RegisterNodeRequest(public_key=key))
    return len(unknown)


def run_log(control: ControlHttpClient, run_id: int) -> Iterator[str]:
    """What the run's ServerApp prints, in pieces as they come, until the run ends."""
    for piece in control.StreamLogs(StreamLogsRequest(run_id=run_id, after_timestamp=0.0)):
        yield str(piece.log_output)


def _told(response: httpx.Response) -> str:
    error = FlowerError.from_json(response.text)
    if response.status_code == httpx.codes.UNAUTHORIZED:
        return "it was started with another state folder; give that one with --state"
    if error is None:
        return f"HTTP status {response.status_code}"
    return str(error.public_details or error.message)


# What a SuperLink keeps


@dataclass(frozen=True)
class Node:
    """A merchant's node as Flower knows it: by a key, never by a name."""

    node_id: int
    public_key: bytes
    is_online: bool
    last_seen: datetime | None


@dataclass(frozen=True)
class KnownRun:
    """A run of a SuperLink: what became of it, and the folder that it writes into."""

    run_id: int
    is_over: bool
    outcome: str
    started: str
    folder: Path


def open_database(path: Path) -> LinkState:
    """The database of a SuperLink, which may be running."""
    check_version()
    factory = LinkStateFactory(str(path), NoOpFederationManager(), ObjectStoreFactory(str(path)))
    return factory.state()


def nodes(database: LinkState) -> list[Node]:
    """The nodes that ever registered, in the order of their registration."""
    infos = sorted(database.get_node_info(), key=lambda info: str(info.registered_at))
    return [Node(info.node_id, info.public_key, info.status == NodeStatus.ONLINE, _last_seen(info)) for info in infos]


def _last_seen(info: Any) -> datetime | None:
    if not info.online_until:
        return None
    # Flower keeps how long a node counts as online; an absent one was last heard of before that.
    return datetime.fromtimestamp(min(info.online_until, datetime.now(UTC).timestamp()), UTC)


def runs(database: LinkState) -> list[KnownRun]:
    """The runs that ever began, oldest first."""
    return [
        KnownRun(
            run_id=run.run_id,
            is_over=run.status.status == Status.FINISHED,
            outcome=run.status.sub_status,
            started=run.pending_at,
            folder=Path(str(run.override_config.get(RUN_FOLDER_KEY, ""))),
        )
        for run in database.get_run_info(order_by="pending_at")
    ]
