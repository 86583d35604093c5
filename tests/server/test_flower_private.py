"""The private names that the coordinator's guarantees hang on are those of one version of Flower. If this module fails
after an upgrade, nothing may be released before somebody has read what became of them."""

from __future__ import annotations

import importlib
import inspect
import re
from dataclasses import fields
from pathlib import Path

import flwr
import pytest
from flwr.app import Message, RecordDict
from flwr.common.constant import NOOP_ACCOUNT_NAME, NOOP_FLWR_AID, SUPERLINK_NODE_ID, ErrorCode
from flwr.server.superlink.linkstate import LinkState, LinkStateFactory
from flwr.server.superlink.linkstate.sql_linkstate import SqlLinkState
from flwr.supercore.constant import NOOP_FEDERATION_ID, TaskType
from flwr.supercore.fab import Fab
from flwr.superlink import main as superlink_main
from flwr.superlink.auth_plugin import ControlAuthnPlugin
from flwr.superlink.config_loader import SuperLinkLifespanConfig
from flwr.superlink.routers.fleet import router as fleet_router
from flwr.superlink.servicer.control import control_handlers
from flwr.superlink.servicer.fleet import fleet_handlers

from hansa_common.errors import CoordinatorError
from hansa_server import flower_private
from hansa_server.exchange import LOST_CODE

# Beside a function of the same name in its package.
flower_superlink = importlib.import_module("flwr.superlink.cli.flower_superlink")
ROOM = Path(flower_private.__file__).parent


def parameters(function) -> list[str]:
    return list(inspect.signature(function).parameters)


def test_flower_is_the_version_that_the_names_were_read_in():
    assert flwr.__version__ == flower_private.FLOWER_VERSION == "1.41.0"


def test_another_flower_is_refused_before_anything_starts(monkeypatch):
    monkeypatch.setattr(flower_private, "version", lambda _: "1.42.0")
    for start in (
        lambda: flower_private.run_superlink([], bundle=b"", verifications={}, token="", admits="anyone"),
        lambda: flower_private.control_api("127.0.0.1:1", "").__enter__(),
        lambda: flower_private.open_database(Path("state.db")),
    ):
        with pytest.raises(CoordinatorError, match=re.escape("flwr==1.41.0")):
            start()


def test_superlink_makes_its_app_through_the_name_that_is_replaced():
    assert parameters(superlink_main.create_app) == ["config", "superlink_lifespan_class"]
    started = inspect.getsource(flower_superlink._run_superlink_http_api)
    assert "from flwr.superlink.main import" in started
    assert "create_app(lifespan_config, SuperLinkLifespan)" in started
    assert "authn_plugin" in {field.name for field in fields(SuperLinkLifespanConfig)}
    assert "authn_plugin = config.authn_plugin" in inspect.getsource(superlink_main.create_app)


def test_superlink_holds_one_state_whose_methods_can_be_replaced():
    assert "self.state_instance is not None" in inspect.getsource(LinkStateFactory.state)
    assert parameters(LinkState.create_run)[:4] == ["self", "fab_id", "fab_version", "fab_hash"]
    for name in ("store_app", "store_fab", "store_automation", "create_run"):
        assert callable(getattr(LinkState, name)), name


def test_nothing_starts_a_run_but_through_the_guarded_methods():
    source = inspect.getsource(control_handlers)
    assert source.count("state.create_run(") == 1
    assert source.count("state.store_app(") == 2
    assert source.count("state.store_fab(") == 1
    assert source.count("state.store_automation(") == 1


def test_bundle_is_stored_with_what_its_publisher_says():
    assert [field.name for field in fields(Fab)] == ["hash_str", "content", "verifications"]
    assert {"fab", "federation_id", "app_id", "app_type", "added_by"} <= set(parameters(LinkState.store_app))


def test_control_api_asks_the_plugin_for_every_request_but_those_that_log_in():
    assert parameters(ControlAuthnPlugin.validate_tokens_in_metadata) == ["self", "metadata"]
    from flwr.superlink.routers.control import middlewares

    open_routes = {path for _, path in middlewares.CONTROL_AUTH_ROUTE_KEYS}
    assert open_routes == {
        f"/v1/control/{name}" for name in ("get-login-details", "get-auth-tokens", "refresh-auth-tokens")
    }


def test_flowers_private_names_stand_in_this_one_module_of_the_room():
    # The messages of the wire, which every Flower of this transport speaks, are no private names.
    allowed = {"flwr.app", "flwr.serverapp", "flwr.proto.fleet_pb2"}
    for module in ROOM.glob("*.py"):
        names = set(re.findall(r"^\s*(?:from|import) (flwr[\w.]*)", module.read_text(), re.MULTILINE))
        assert module.name == "flower_private.py" or names <= allowed, module.name


# A node that died


class Orders:
    """A database of Flower's with one node and its orders, whose methods are replaced as in a SuperLink of ours."""

    def __init__(self, folder: Path) -> None:
        self.state = flower_private.open_database(folder / "state.db")
        flower_private._let_back_in(self.state)
        self.node_id = self.state.create_node(NOOP_FLWR_AID, NOOP_ACCOUNT_NAME, b"a key", 30.0)
        self.run_id = self.state.create_run(
            "hansa/hansa", "1", "0" * 64, {}, NOOP_FEDERATION_ID, None, NOOP_FLWR_AID, TaskType.SERVER_APP
        )

    def come(self) -> bool:
        return self.state.activate_node(self.node_id, 30.0)

    def order(self) -> str:
        message = Message(RecordDict(), self.node_id, "train", ttl=600.0)
        message.metadata.__dict__ |= {"_run_id": self.run_id, "_src_node_id": SUPERLINK_NODE_ID}
        message.metadata.__dict__["_message_id"] = message.object_id
        return self.state.store_message_ins(message)

    def taken(self) -> list[Message]:
        return self.state.get_message_ins(self.node_id, limit=1)

    def told(self, message_id: str) -> list[int | None]:
        """What the coordinator hears of an order: nothing, an error's code, or None for a reply."""
        replies = self.state.get_message_res({message_id}, self.run_id)
        return [reply.error.code if reply.has_error() else None for reply in replies]


def test_node_that_died_comes_back_at_once_and_only_what_it_had_taken_is_told_as_lost(tmp_path):
    orders = Orders(tmp_path)
    assert orders.come()
    taken, waiting = orders.order(), orders.order()
    (message,) = orders.taken()
    assert message.metadata.message_id == taken
    assert (orders.told(taken), orders.told(waiting)) == ([], [])
    assert orders.come()
    assert orders.told(taken) == [ErrorCode.MESSAGE_UNAVAILABLE] == [LOST_CODE]
    assert orders.told(waiting) == []
    (message,) = orders.taken()
    assert message.metadata.message_id == waiting


def test_what_a_node_had_answered_before_it_died_is_not_lost(tmp_path):
    orders = Orders(tmp_path)
    assert orders.come()
    order = orders.order()
    (message,) = orders.taken()
    reply = Message(RecordDict(), reply_to=message)
    reply.metadata.__dict__["_message_id"] = reply.object_id
    assert orders.state.store_message_res(reply)
    assert orders.come()
    assert orders.told(order) == [None]


def test_fleet_api_hands_out_takes_and_lets_in_through_the_replaced_methods():
    source = inspect.getsource(fleet_handlers)
    assert source.count("state.get_message_ins(node_id=node_id, limit=1)") == 1
    assert source.count("state.activate_node(node_id, request.heartbeat_interval)") == 1
    assert "self.store_message_res(message)" in inspect.getsource(SqlLinkState.store_message_and_object_tree)
    assert "app.state.enable_supernode_auth" in inspect.getsource(fleet_router)
