"""A node takes the one bundle that it makes itself, under a signature where it was told of a publisher; and the private
names that this hangs on are those of one version of Flower. If this module fails after an upgrade, nothing may be
released before somebody has read what became of them."""

from __future__ import annotations

import inspect
import re
from contextlib import contextmanager
from dataclasses import fields, replace
from pathlib import Path
from types import SimpleNamespace

import flwr
import pytest
import yaml
from cryptography.hazmat.primitives.asymmetric import ec
from flwr.supercore.fab import Fab
from flwr.supercore.run import Run
from flwr.supernode import fleet_http_connection, start_client_internal

from hansa_client import flower_private
from hansa_common import __version__
from hansa_common.errors import MerchantError
from hansa_common.flower_bundle import APP_ID, bundle_hash, flower_bundle
from hansa_common.keys import public_key_of
from hansa_common.publisher import signed_by, trusted_entities_yaml

KEY, OTHER_KEY = bytes(range(32)), bytes(range(1, 33))
BUNDLE, OTHER_BUNDLE = flower_bundle(), flower_bundle("9.9.9")
TRUSTED = yaml.safe_load(trusted_entities_yaml(public_key_of(KEY)))
ROOM = Path(flower_private.__file__).parent


def parameters(function) -> list[str]:
    return list(inspect.signature(function).parameters)


# What a node takes


@pytest.fixture
def node(monkeypatch):
    """Flower's own functions as a node of ours has changed them; `verify` and `pulled` call them as Flower does."""
    verify, pull = start_client_internal._verify_fab, start_client_internal._pull_and_store_message
    seen = SimpleNamespace()
    # Restores both afterwards; what stands in for pulling only notes what Flower would be given.
    monkeypatch.setattr(start_client_internal, "_verify_fab", verify)
    monkeypatch.setattr(start_client_internal, "_pull_and_store_message", lambda **given: vars(seen).update(given))
    flower_private._take_nothing_but(bundle_hash(BUNDLE))

    def pulled(trusted: dict[str, str] | None, run: Run | None = None) -> SimpleNamespace:
        rest = {name: None for name in parameters(pull) if name not in {"get_run", "trusted_entities"}}
        start_client_internal._pull_and_store_message(get_run=lambda _: run, trusted_entities=trusted, **rest)
        return seen

    def verified(bundle: bytes, verifications: dict[str, str], trusted: dict[str, str] | None) -> bool:
        known = pulled(trusted).trusted_entities
        # Flower looks at a bundle only where this holds.
        assert known
        return start_client_internal._verify_fab(Fab(bundle_hash(bundle), bundle, verifications), known)

    return SimpleNamespace(pulled=pulled, verified=verified)


def test_own_bundle_is_taken_under_the_publishers_signature(node):
    assert node.verified(BUNDLE, signed_by(KEY, BUNDLE, 1), TRUSTED)


def test_without_a_publisher_own_bundle_is_taken_whoever_signed_it(node):
    assert node.verified(BUNDLE, signed_by(OTHER_KEY, BUNDLE, 1), None)


@pytest.mark.parametrize("trusted", [TRUSTED, None, {}], ids=["a publisher", "none", "an empty file"])
def test_another_bundle_is_refused_even_under_the_publishers_signature(node, trusted):
    assert not node.verified(OTHER_BUNDLE, signed_by(KEY, OTHER_BUNDLE, 1), trusted)


@pytest.mark.parametrize(
    "verifications",
    [
        {},
        {"valid_license": "Valid"},
        signed_by(OTHER_KEY, BUNDLE, 1),
        {"valid_license": "Valid", "fpk_hansa": "{}"},
        {"valid_license": "Valid", "fpk_hansa": "[1]"},
        {"valid_license": "Valid", "fpk_hansa": "not JSON"},
        {"valid_license": "Valid", "fpk_hansa": '{"signature": "_", "signed_at": 1}'},
        {"valid_license": "Valid", "fpk_hansa": '{"signature": "AAAA", "signed_at": -1}'},
        {"valid_license": "Valid", "fpk_hansa": '{"signature": 3, "signed_at": "soon"}'},
    ],
)
def test_own_bundle_is_refused_without_the_publishers_signature_and_no_form_of_one_ends_the_node(node, verifications):
    assert not node.verified(BUNDLE, verifications, TRUSTED)


def test_what_is_started_and_from_where_is_not_the_coordinators_to_say(node):
    # From these two names Flower makes a path; from the third the program that it starts.
    hostile = replace(Run.create_empty(1), fab_id="/", fab_version="/../../x", primary_task_type="flwr-agentapp")
    run = node.pulled(TRUSTED, hostile).get_run(1)
    assert (run.fab_id, run.fab_version, run.primary_task_type) == (APP_ID, __version__, "flwr-serverapp")
    assert run.run_id == hostile.run_id


# Whose key it signs with


@pytest.mark.parametrize("key", [None, ec.generate_private_key(ec.SECP384R1())], ids=["none", "the merchant's"])
def test_requests_are_signed_with_the_key_that_the_node_was_given_and_being_known_is_told(monkeypatch, key):
    told, given = [], {}

    @contextmanager
    def connect(**options):
        given.update(options)
        told.append("asked")
        yield "a connection"

    monkeypatch.setattr(start_client_internal, "_init_connection", connect)
    flower_private._connect_with(key, lambda: told.append("known"))
    options = {"server_address": "127.0.0.1:1", "insecure": True, "authentication_keys": None}
    with start_client_internal._init_connection(**options) as connection:
        assert (connection, told) == ("a connection", ["asked", "known"])
    expected = None if key is None else (key, key.public_key())
    assert given == {**options, "authentication_keys": expected}


# What this hangs on


def test_flower_is_the_version_that_the_names_were_read_in():
    assert flwr.__version__ == flower_private.FLOWER_VERSION == "1.41.0"


def test_another_flower_is_refused_before_a_node_starts(monkeypatch):
    monkeypatch.setattr(flower_private, "version", lambda _: "1.42.0")
    with pytest.raises(MerchantError, match=re.escape("flwr==1.41.0")):
        flower_private.run_supernode(0.5, None, lambda: None)


def test_node_looks_at_a_bundle_through_the_names_that_are_replaced():
    pulling = inspect.getsource(start_client_internal._pull_and_store_message)
    assert parameters(start_client_internal._verify_fab) == ["fab", "trusted_entities"]
    assert {"get_run", "get_fab", "trusted_entities"} <= set(parameters(start_client_internal._pull_and_store_message))
    assert pulling.count("get_fab(") == pulling.count("state.store_fab(") == 1
    order = ["get_run(run_id)", "if trusted_entities:", "_verify_fab(fab, trusted_entities)", "fab.content",
             "state.store_run(run_info)", "state.store_fab(fab)"]  # fmt: skip
    places = [pulling.index(step) for step in order]
    assert places == sorted(places)


def test_node_calls_them_by_name_in_its_own_loop():
    loop = inspect.getsource(start_client_internal.start_client_internal)
    assert "_pull_and_store_message(\n" in loop
    assert "trusted_entities=trusted_entities" in loop
    assert "get_run=get_run" in loop
    assert "time.sleep(3)" in loop
    assert "start_client_internal(\n" in inspect.getsource(flower_private.flower_supernode)


def test_node_connects_by_name_with_the_keys_that_are_replaced_and_registers_itself_only_without():
    loop = inspect.getsource(start_client_internal.start_client_internal)
    call = loop.partition("with _init_connection(\n")[2].partition(") as conn:")[0]
    assert "authentication_keys=authentication_keys," in call
    # Otherwise what takes its place would not get them by name.
    assert all("=" in line for line in call.strip().splitlines())
    connection = inspect.getsource(fleet_http_connection.http_request_response)
    assert "self_registered = authentication_keys is None" in connection
    assert "NodeAuthHttpInterceptor(private_key, public_key)" in connection


def test_run_is_a_dataclass_with_the_names_that_are_set():
    assert {"fab_id", "fab_version", "primary_task_type"} <= {field.name for field in fields(Run)}


def test_flowers_private_names_stand_in_this_one_module_of_the_room():
    allowed = {"flwr.app", "flwr.clientapp"}
    for module in ROOM.glob("*.py"):
        names = set(re.findall(r"^\s*(?:from|import) (flwr[\w.]*)", module.read_text(), re.MULTILINE))
        assert module.name == "flower_private.py" or names <= allowed, module.name
