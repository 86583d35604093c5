"""What goes through is what Flower's nodes ask for, and nothing beside it."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from flwr.supernode import fleet_http_client

from hansa_common.fleet_api import (
    MAX_SMALL_BYTES,
    NODE_PATHS,
    PUSH_OBJECT,
    RefusedError,
    check_request,
    is_last,
    onward_request,
    onward_response,
)
from hansa_common.http_heads import RequestHead, ResponseHead


def head(method: str = "POST", target: str = "/v1/fleet/get-run", length: int = 3, **headers: str) -> RequestHead:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return RequestHead(method, target, {"host": "a", "content-length": str(length), **named}, length)


def test_paths_are_those_of_flowers_nodes_without_registration():
    asked = set(re.findall(r'path="([^"]+)"', Path(fleet_http_client.__file__).read_text(encoding="utf-8")))
    assert asked - NODE_PATHS == {"/v1/fleet/register-node", "/v1/fleet/unregister-node"}
    assert asked >= NODE_PATHS


def test_every_request_of_a_node_passes():
    for path in NODE_PATHS:
        check_request(head(target=path, user_agent="python-httpx/0.28.1", connection="keep-alive"))
    check_request(head("GET", "/health", 0))


@pytest.mark.parametrize(
    ("asked", "reason"),
    [
        *((head(target=target), "not-a-node-request") for target in (
            "/v1/control/start-run", "/v1/control/list-nodes", "/v1/runtime/pull-task-input", "/docs", "/openapi.json",
            "/", "/v1/fleet/register-node", "/v1/fleet/unregister-node", "/v1/fleet/", "/v1/fleet",
            "//v1/fleet/get-run", "/v1//fleet/get-run", "/v1/fleet/get-run/", "/v1/fleet/./get-run",
            "/v1/fleet/../fleet/get-run", "/v1/fleet/get-run/../../control/start-run", "/v1/fleet/%67et-run",
            "/v1%2ffleet/get-run", "/v1/fleet/get-run?a=1", "/v1/fleet/get-run?", "/v1/fleet/get-run#a",
            "/V1/fleet/get-run", "/v1/fleet/get-run;a", "/v1\\fleet\\get-run", "/v1/fleet/get-run%00",
        )),
        *((head(method), "not-a-node-request") for method in ("GET", "PUT", "HEAD", "OPTIONS", "CONNECT", "TRACE")),
        *((head(method, "/health", 0), "not-a-node-request") for method in ("POST", "HEAD", "OPTIONS")),
        (head("GET", "/health", 1), "too-large"),
        (head(length=MAX_SMALL_BYTES + 1), "too-large"),
        (head(target=PUSH_OBJECT, length=1001), "too-large"),
        (head(upgrade="h2c"), "unknown-header"),
        (head(expect="100-continue"), "unknown-header"),
        (head(te="trailers"), "unknown-header"),
        (head(trailer="x"), "unknown-header"),
        (head(content_encoding="gzip"), "unknown-header"),
        (head(x_forwarded_for="127.0.0.1"), "unknown-header"),
        (head(authorization="Bearer x"), "unknown-header"),
        (head(cookie="a=b"), "unknown-header"),
        (head(hansa_refusal="x"), "unknown-header"),
        (head(connection="upgrade"), "unknown-header"),
        (head(connection="keep-alive, flwr-public-key"), "unknown-header"),
    ],
)  # fmt: skip
def test_other_request_is_refused_with_its_reason(asked, reason):
    with pytest.raises(RefusedError) as refused:
        check_request(asked, max_object_bytes=1000)
    assert refused.value.reason == reason
    # What was asked for is the asker's choice, and stays out of logs.
    assert asked.target not in str(refused.value)


def test_only_an_object_may_be_large():
    check_request(head(target=PUSH_OBJECT, length=MAX_SMALL_BYTES + 1))
    check_request(head(length=MAX_SMALL_BYTES))


def test_what_a_client_says_of_itself_stays_behind():
    asked = head(user_agent="x", accept_encoding="gzip", connection="close", flwr_public_key="k", accept="*/*")
    onward = onward_request(asked, "127.0.0.1:8000")
    assert dict(onward.headers) == {"host": "127.0.0.1:8000", "flwr-public-key": "k", "accept": "*/*"}
    answer = ResponseHead(200, {"server": "uvicorn", "content-type": "a/b", "set-cookie": "a", "hansa-refusal": "x"}, 5)
    back = onward_response(answer, {"date": "now"})
    assert back == ResponseHead(200, {"content-type": "a/b", "date": "now"}, 5)


def test_connection_ends_where_its_sender_says_so():
    assert is_last(head(connection="Close"))
    assert not is_last(head(connection="keep-alive"))
    assert not is_last(head())
