"""The names that Flower 1.41 does not promise to keep, in one module for the merchant's room: what its node starts, how
often it asks, and whose key it signs with. A test fails if another Flower is installed or one of the names has changed
its outside.

Its options let a node demand a signature; they do not let it say which bundle. A node of ours takes one alone, whose
bytes it makes itself from what is installed here (flower_bundle.py), so that nobody's signature brings in code. Nor do
they let it sign its requests without TLS of its own; ours comes as far as the forwarder, which has that.
"""

# ruff: noqa: SLF001 - private names are what this module is for

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from importlib.metadata import version
from types import MappingProxyType, SimpleNamespace
from typing import Any, Final

from cryptography.hazmat.primitives.asymmetric import ec
from flwr.supercore.constant import TaskType
from flwr.supercore.fab import Fab
from flwr.supernode import start_client_internal
from flwr.supernode.cli.flower_supernode import flower_supernode

from hansa_common import __version__
from hansa_common.errors import MerchantError
from hansa_common.flower_bundle import APP_ID, bundle_hash, flower_bundle

FLOWER_VERSION: Final = "1.41.0"
# Where a node was told of no publisher, Flower would look at no bundle at all.
_NO_PUBLISHER: Final = MappingProxyType({"": ""})

_log = logging.getLogger("flwr")


def check_version() -> None:
    """See that the Flower that is installed is the one whose names stand here.

    Raises:
        MerchantError: it is another.
    """
    installed = version("flwr")
    if installed != FLOWER_VERSION:
        raise MerchantError(
            f"Flower {installed} is installed, and only with {FLOWER_VERSION} is it known that nothing but Hansa's own "
            f"bundle is started: pip install flwr=={FLOWER_VERSION}"
        )


def run_supernode(
    poll_seconds: float, key: ec.EllipticCurvePrivateKey | None, on_connected: Callable[[], object]
) -> None:
    """Run `flower-supernode` with this process's arguments: it asks for work at least every `poll_seconds`, and starts
    no bundle but Hansa's own. It signs its requests with `key`, or without one registers a key that it draws. Once
    SuperLink knows it, `on_connected` is called.

    Raises:
        MerchantError: another Flower is installed.
    """
    check_version()
    start_client_internal.time = SimpleNamespace(sleep=lambda seconds: time.sleep(min(seconds, poll_seconds)))
    _take_nothing_but(bundle_hash(flower_bundle()))
    _connect_with(key, on_connected)
    flower_supernode()


def _connect_with(key: ec.EllipticCurvePrivateKey | None, on_connected: Callable[[], object]) -> None:
    connect = start_client_internal._init_connection

    @contextmanager
    def connected(*, authentication_keys: Any, **rest: Any) -> Iterator[Any]:
        own = authentication_keys if key is None else (key, key.public_key())
        with connect(authentication_keys=own, **rest) as connection:
            on_connected()
            yield connection

    start_client_internal._init_connection = connected


def _take_nothing_but(known: str) -> None:
    """Refuse every other bundle than the one of this hash before anything of it is read, and then, where the node was
    told of a publisher, one that this publisher did not sign.
    """
    pull, verify = start_client_internal._pull_and_store_message, start_client_internal._verify_fab

    def verify_known(fab: Fab, trusted: Any) -> bool:
        if bundle_hash(fab.content) != known:
            _log.error("the bundle %s is not Hansa's own, which is %s: not started", bundle_hash(fab.content), known)
            return False
        try:
            return trusted is _NO_PUBLISHER or bool(verify(fab, trusted))
        except (ValueError, TypeError, KeyError, AttributeError, OverflowError) as error:
            _log.error("what is said of the bundle's signature is no signature: %s", type(error).__name__)
            return False

    def pull_known(*, get_run: Any, trusted_entities: Any, **rest: Any) -> Any:
        def known_run(run_id: int) -> Any:
            # From these Flower makes the folder that it imports from, and the program that it starts.
            return replace(
                get_run(run_id), fab_id=APP_ID, fab_version=__version__, primary_task_type=TaskType.SERVER_APP
            )

        return pull(get_run=known_run, trusted_entities=trusted_entities or _NO_PUBLISHER, **rest)

    start_client_internal._verify_fab = verify_known
    start_client_internal._pull_and_store_message = pull_known
