"""The agreement as a file: TOML that people write and pass on, or the canonical JSON that programs keep."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Final

from hansa_common.agreement import Agreement, parse_agreement, validate_agreement
from hansa_common.errors import AgreementError, UsageError

CANONICAL_SUFFIX: Final = ".json"


def read_agreement(path: Path) -> tuple[Agreement, str]:
    """Read and check an agreement, JSON where its name ends so, else TOML; its text comes with it, as it stands there.

    Raises:
        UsageError: there is no such file, or it may not be read.
        AgreementError: it is no agreement.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UsageError(f"the agreement {path} cannot be read: {reason}") from error
    if path.suffix == CANONICAL_SUFFIX:
        return _of_json(text, str(path)), text
    return parse_agreement(text, str(path)), text


def _of_json(text: str, source: str) -> Agreement:
    try:
        values = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise AgreementError(f"{source} is not JSON: {error}") from error
    if not isinstance(values, dict):
        raise AgreementError(f"{source} is not an agreement")
    return validate_agreement(values, source)
