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
from flwr.server.superlink.linkstate import LinkState, LinkStateFactory
from flwr.supercore.fab import Fab
from flwr.superlink import main as superlink_main
from flwr.superlink.auth_plugin import ControlAuthnPlugin
from flwr.superlink.config_loader import SuperLinkLifespanConfig
from flwr.superlink.servicer.control import control_handlers

from hansa_common.errors import CoordinatorError
from hansa_server import flower_private

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
        lambda: flower_private.run_superlink([], bundle=b"", verifications={}, token=""),
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
