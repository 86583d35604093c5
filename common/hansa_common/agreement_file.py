"""The agreement as a file that people write and pass on."""

from __future__ import annotations

from pathlib import Path

from hansa_common.agreement import Agreement, parse_agreement
from hansa_common.errors import UsageError


def read_agreement(path: Path) -> tuple[Agreement, str]:
    """Read and check an agreement (TOML); its text comes with it, as its author wrote it.

    Raises:
        UsageError: there is no such file, or it may not be read.
        AgreementError: it is no agreement.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UsageError(f"the agreement {path} cannot be read: {reason}") from error
    return parse_agreement(text, str(path)), text
