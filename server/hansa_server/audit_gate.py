"""Whether a finished run may be released under its agreement's [audit]: metrics.json says what an audit found.

A gate binds whoever signs with this program; it is no proof for anyone else, since a run's folder is its owner's to
write. Pure; auditing is the simulation's, and the only one to have every merchant's rows.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from hansa_common.agreement import Agreement
from hansa_common.errors import UsageError


def unaudited(agreement: Agreement) -> dict[str, Any]:
    """What metrics.json says of the audit before there was one: nothing, unless the agreement has a gate."""
    if not agreement.audit.is_gate:
        return {}
    waiting = "Not released: the agreement asks for an audit, and there was none yet (`hansa audit`)."
    return {"audit": {"passed": False, "verdict": waiting}}


def check_audited(agreement: Agreement, metrics: Mapping[str, Any]) -> None:
    """See that a release waits for no audit.

    Raises:
        UsageError: the agreement has a gate, and no audit of this very run passed it.
    """
    if not agreement.audit.is_gate:
        return
    audit = metrics.get("audit") or {}
    same = all(audit.get(key) == metrics.get(key) for key in ("run_id", "agreement_fingerprint"))
    if audit.get("passed") is not True or not same:
        raise UsageError(
            "the agreement releases nothing before an audit passes (audit.max_true_positive_rate "
            f"{agreement.audit.max_true_positive_rate:g}), and none of this run did: `hansa audit RUN DATA` for a "
            "simulation; the rows of real merchants are nowhere together to audit, so agree without that key"
        )
