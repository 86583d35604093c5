"""What the gateway's listener meets before a connection is anybody's."""

from __future__ import annotations

import errno
import logging
import os
import ssl

import pytest

from hansa_common import durable_files
from hansa_common.addresses import Address
from hansa_server.gateway import Gateway
from hansa_server.gateway_conversation import Superlink
from hansa_server.gateway_limits import Limits
from hansa_server.gateway_rules import LiveRegister


class Listener:
    """A listening socket of a machine that has no descriptor left, until somebody stops the gateway."""

    def __init__(self, num_failures: int) -> None:
        self.num_left = num_failures

    def accept(self):
        if not self.num_left:
            raise KeyboardInterrupt
        self.num_left -= 1
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))


def test_gateway_outlives_a_machine_without_descriptors(tmp_path, caplog):
    state = tmp_path / "server"
    durable_files.make_private_folder(state)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    gateway = Gateway.of(context, LiveRegister(state), Superlink(Address("127.0.0.1", 1), None), Limits(), state)
    listener = Listener(3)
    with caplog.at_level(logging.WARNING), pytest.raises(KeyboardInterrupt):
        gateway.serve(listener)
    assert listener.num_left == 0
    assert "Too many open files" in caplog.text
