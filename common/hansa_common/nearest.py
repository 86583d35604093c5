"""The name that was probably meant, for messages."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from typing import Final

MAX_LISTED: Final = 8


def nearest(name: str, present: Sequence[str]) -> str | None:
    """The entry most like the name, in whatever case; None where none is like it."""
    by_folded = {entry.casefold(): entry for entry in present}
    found = difflib.get_close_matches(name.casefold(), list(by_folded), n=1, cutoff=0.5)
    return by_folded[found[0]] if found else None


def did_you_mean(name: str, present: Sequence[str]) -> str:
    """The end of a message about a name that is not there.

    >>> did_you_mean("revenue", ["Revenue", "Month"])
    "; did you mean 'Revenue'?"
    >>> did_you_mean("x", ["Revenue", "Month"])
    '; there are: Revenue, Month'
    """
    meant = nearest(name, present)
    if meant is not None:
        return f"; did you mean {meant!r}?"
    more = ", ..." if len(present) > MAX_LISTED else ""
    return f"; there are: {', '.join(present[:MAX_LISTED]) or 'none'}{more}"
