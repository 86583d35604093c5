"""The environment of every Flower process that either side starts: private, silent, with its helpers on the PATH.

Names only; nothing of Flower is imported here.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Final

# Telemetry, the update check, the installation of a run's dependencies before it starts, and proxies.
TURNED_OFF: Final = {
    "FLWR_TELEMETRY_ENABLED": "0",
    "FLWR_DISABLE_UPDATE_CHECK": "1",
    "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
    # They speak on this machine alone; a proxy of the machine's would be asked for that.
    "NO_PROXY": "*",
    "no_proxy": "*",
}


def flower_environment(home: Path) -> dict[str, str]:
    """This process's environment for a Flower process that keeps its own files in `home`."""
    # Flower starts its helpers by name, from the environment's own bin.
    programs = str(Path(sys.executable).parent)
    path = os.pathsep.join([programs, os.environ.get("PATH", os.defpath)])
    return {**os.environ, **TURNED_OFF, "PATH": path, "FLWR_HOME": str(home)}
