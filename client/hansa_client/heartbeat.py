"""Sees that the trainer gives signs of life, and ends it when it gives none, so that it is started again.

What hangs on one order ends itself (watchdog.py). This is for a process that stands still as a whole: stopped, starved,
or stuck where none of its threads can move. It is asked with gRPC's own health check.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

# Before gRPC is loaded: what it does at a fork, so that children could use it, ends a child that is forked for another
# user while it is in use here.
os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from hansa_common.children import Child

ASK_SECONDS: Final = 5.0
# Long: a machine may be short of memory for a while, and one that is killed has to load everything again.
SILENT_SECONDS: Final = 30.0


def gives_sign_of_life(socket: Path, seconds: float) -> bool:
    """Whether a trainer at the socket answers within so many seconds, whatever it says of itself."""
    # A connection of its own each time: one that is kept waits ever longer before it tries again.
    with grpc.insecure_channel(f"unix:{socket}", options=(("grpc.use_local_subchannel_pool", 1),)) as channel:
        try:
            health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=seconds)
        except grpc.RpcError:
            return False
    return True


@contextmanager
def watched(child: Child, socket: Path, tell: Callable[[str], object]) -> Iterator[None]:
    """While the block runs, kill a child whose trainer gives no sign of life for SILENT_SECONDS, having told of it."""
    is_over = threading.Event()

    def watch() -> None:
        heard = time.monotonic()
        while not is_over.wait(ASK_SECONDS):
            if gives_sign_of_life(socket, ASK_SECONDS):
                heard = time.monotonic()
            elif time.monotonic() - heard >= SILENT_SECONDS and child.process.poll() is None:
                tell(f"{child.name} has given no sign of life for {SILENT_SECONDS:.0f} seconds")
                child.process.send_signal(signal.SIGKILL)
                return

    threading.Thread(target=watch, daemon=True).start()
    try:
        yield
    finally:
        is_over.set()
