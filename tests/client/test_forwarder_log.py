"""Neither a gateway nor another user of the machine can fill a merchant's disk with what the forwarder says of them."""

from __future__ import annotations

import os
import socket
import ssl
import threading
from contextlib import suppress

import pytest

from hansa_client import local_peer
from hansa_client.forwarder import Diary, Forwarder, listening
from hansa_client.gateway_link import GatewayLink
from hansa_common.addresses import Address

# Five of a kind, as log_lines.Sparing says.
FEW = 5


def test_gateway_that_finds_ever_new_words_is_told_of_a_few_times_a_minute(caplog):
    diary = Diary()
    for number in range(100):
        diary.trouble(f"the gateway refuses a request: {number}")
        diary.served()
    assert len(caplog.messages) == 2 * FEW
    assert caplog.messages[:2] == ["not served: the gateway refuses a request: 0", "served: the gateway serves again"]


@pytest.mark.skipif(not local_peer.TABLE.exists(), reason="this system does not tell whose a connection is")
def test_other_users_connections_are_told_of_a_few_times_a_minute(caplog):
    link = GatewayLink(Address("127.0.0.1", 1), ssl.create_default_context())
    with listening() as listener:
        another = Forwarder(link, os.getuid() + 1)
        threading.Thread(target=_serve_until_closed, args=(another, listener)).start()
        for _ in range(30):
            with socket.create_connection(listener.getsockname()) as connection:
                assert connection.recv(1) == b""
        listener.shutdown(socket.SHUT_RDWR)
    assert len(caplog.messages) == FEW
    assert caplog.messages[0].startswith(f"not let in: user {os.getuid()} of this machine connected")


def _serve_until_closed(forwarder: Forwarder, listener: socket.socket) -> None:
    with suppress(OSError):
        forwarder.serve(listener)
