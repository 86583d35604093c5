"""Which requests a merchant's Flower node makes, and no other: the way between node and SuperLink lets these through.

The same rule stands at both ends of it, the merchant's forwarder and the coordinator's gateway. A request is one of
the methods and paths below, byte for byte, with no query, with these headers and no others, and with a body no longer
than its path may have. Nodes register nowhere themselves: the coordinator registers the keys that it issued. What is
refused is answered with a code that the other side can tell its user; SuperLink's own answers keep their status.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Final

from hansa_common.errors import TransportError
from hansa_common.http_heads import RequestHead, ResponseHead

NODE_KEY_HEADER: Final = "flwr-public-key"
REFUSAL_HEADER: Final = "hansa-refusal"
PUSH_MESSAGES: Final = "/v1/fleet/push-messages"
PUSH_OBJECT: Final = "/v1/fleet/push-object"
HEALTH: Final = "/health"
NODE_PATHS: Final = frozenset(
    f"/v1/fleet/{name}"
    for name in (
        "activate-node",
        "deactivate-node",
        "send-node-heartbeat",
        "pull-messages",
        "push-messages",
        "get-run",
        "get-fab",
        "push-object",
        "pull-object",
        "confirm-message-received",
    )
)
# Everything but an object is names, numbers and lists of hashes: 64 bytes for every 5 MB of a message.
MAX_SMALL_BYTES: Final = 1 << 20
# A message of Hansa's is at most 512 MiB; Flower puts a little around it.
MAX_OBJECT_BYTES: Final = (512 + 8) << 20

_CARRIED: Final = frozenset(
    {
        "accept",
        "content-type",
        NODE_KEY_HEADER,
        "flwr-timestamp",
        "flwr-signature",
        "flwr-package-name",
        "flwr-package-version",
        "flwr-component-name",
    }
)
# What every HTTP client says of itself and of its own connection; it ends here.
_DROPPED: Final = frozenset({"host", "content-length", "connection", "user-agent", "accept-encoding"})
_CARRIED_BACK: Final = frozenset({"content-type", "flwr-version-incompatibility-message"})
_CONNECTION: Final = frozenset({"", "keep-alive", "close"})


class RefusedError(TransportError):
    """A request that goes no further; `code` is what the peer is told, `status` how."""

    STATUS: ClassVar[Mapping[str, int]] = {
        "malformed": 400,
        "unknown-header": 400,
        "not-a-node-request": 403,
        "not-its-own-message": 403,
        "too-large": 413,
        "certificate-unknown": 401,
        "certificate-revoked": 401,
        "certificate-expired": 401,
        "other-node-key": 401,
        "too-many-requests": 503,
        "too-many-connections": 503,
        "unreachable": 503,
        "no-answer": 502,
    }

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason
        self.status = self.STATUS[reason]


def check_request(head: RequestHead, max_object_bytes: int = MAX_OBJECT_BYTES) -> None:
    """See that a node makes such a request.

    Raises:
        RefusedError: another method, path, header or length; no word of the request is repeated in its message.
    """
    if head.target == HEALTH:
        if head.method != "GET":
            raise RefusedError("not-a-node-request", "health is asked for with GET")
    elif head.method != "POST" or head.target not in NODE_PATHS:
        raise RefusedError("not-a-node-request", "no node makes this request")
    if not head.headers.keys() <= _CARRIED | _DROPPED:
        raise RefusedError("unknown-header", "the request has a header that no node sends")
    if head.headers.get("connection", "").lower() not in _CONNECTION:
        raise RefusedError("unknown-header", "the request asks for another protocol")
    allowed = 0 if head.target == HEALTH else max_object_bytes if head.target == PUSH_OBJECT else MAX_SMALL_BYTES
    if head.content_length > allowed:
        raise RefusedError("too-large", f"the request says {head.content_length} bytes; it may have {allowed}")


def onward_request(head: RequestHead, host: str) -> RequestHead:
    """A checked request as it goes on to the next host."""
    headers = {name: value for name, value in head.headers.items() if name in _CARRIED}
    return RequestHead(head.method, head.target, {"host": host, **headers}, head.content_length)


def onward_response(head: ResponseHead, more: Mapping[str, str]) -> ResponseHead:
    """A response as it goes back: its status, its type, Flower's word on versions, and what is added here."""
    headers = {name: value for name, value in head.headers.items() if name in _CARRIED_BACK}
    return ResponseHead(head.status, {**headers, **more}, head.content_length)


def is_last(head: RequestHead | ResponseHead) -> bool:
    """Whether its sender closes the connection after this message."""
    return head.headers.get("connection", "").lower() == "close"
