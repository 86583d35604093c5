"""What `hansa audit` leaves in a run's folder.

file              holds
audit/audit.json  every attack with its figures, intervals and curve, the gate, and the verdict
audit/roc.png     the curves of the attacks on membership, both axes logarithmic (audit_figure.py)
metrics.json      the verdict and the strongest attack, so that the report and a bundle tell them
bundle/           signed, where the agreement's gate held it back until now; taken away where an audit does not pass

metrics.json comes before the bundle, which tells of it.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Final

from hansa_common import durable_files
from hansa_common.bundle import TRUSTED_KEY_NAME
from hansa_server import run_folder
from hansa_simulations.audit import Audit
from hansa_simulations.audit_figure import roc_png
from hansa_simulations.scenario import sign_bundle

AUDIT: Final = "audit.json"
FIGURE: Final = "roc.png"


def leave(audit: Audit, folder: Path) -> None:
    """Write an audit into its run's folder, in the place of an earlier one, and sign or take away what it releases."""
    text = json.dumps(audit.to_json(), indent=2, ensure_ascii=False, allow_nan=False)
    files = {AUDIT: f"{text}\n".encode(), FIGURE: roc_png(audit)}
    durable_files.write_folder(folder / run_folder.AUDIT, files)
    run_folder.write_metrics(folder, {**audit.run.metrics, "audit": audit.summary()})
    if audit.gate is None or not run_folder.has_small_model(folder):
        return
    if audit.gate.passed:
        sign_bundle(folder, audit.run.agreement)
    else:
        for name in (run_folder.BUNDLE, TRUSTED_KEY_NAME):
            durable_files.remove_all(folder / name)
