"""Flower's SuperLink as a program of ours: it starts Hansa's own bundle and no other, and only for its coordinator.

The first argument is the coordinator's state folder, with the publisher key and the token, the second says which nodes
are let in (flower_private.Admits); the others are those of `flower-superlink`. superlink.py starts it; how Flower is
held to this is flower_private.py's. It ends with its parent.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

from hansa_common import children
from hansa_common.errors import HansaError
from hansa_common.flower_bundle import flower_bundle
from hansa_common.publisher import signed_by
from hansa_server.flower_private import Admits, run_superlink
from hansa_server.signing import publisher_key
from hansa_server.superlink import TOKEN_NAME


def main(state: Path, admits: Admits, arguments: list[str]) -> None:
    """Run the SuperLink until it is stopped."""
    children.end_with_parent()
    bundle = flower_bundle()
    verifications = signed_by(publisher_key(state), bundle, int(time.time()))
    token = (state / TOKEN_NAME).read_text(encoding="ascii").strip()
    run_superlink(arguments, bundle=bundle, verifications=verifications, token=token, admits=admits)


if __name__ == "__main__":
    try:
        main(Path(sys.argv[1]), "registered" if sys.argv[2] == "registered" else "anyone", sys.argv[3:])
    except HansaError as error:
        sys.exit(f"hansa: {error}")
