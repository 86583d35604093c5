"""How far a merchant's privacy ledger is, in one line of text: the number of its last entry, and that entry's hash.

A ledger only grows. Whoever has seen one state of it can tell that a later one is lower, or another at the same number:
somebody took an older copy of it, and could spend what was spent once more.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Annotated, Final, Self

from pydantic import Field

_PATTERN: Final = r"^(0|[1-9][0-9]{0,14}):[0-9a-f]{64}$"
# Empty: there is no ledger.
LedgerText = Annotated[str, Field(pattern=rf"^$|{_PATTERN}")]


@dataclass(frozen=True)
class LedgerState:
    """`number` of the last entry, 0 before the first, and the SHA-256 of it, 64 hexadecimal digits."""

    number: int
    head: str

    @classmethod
    def of_text(cls, text: str) -> Self:
        """Read what `str` writes.

        Raises:
            ValueError: it is something else.

        >>> LedgerState.of_text("7:" + 64 * "a").number
        7
        """
        if not re.fullmatch(_PATTERN, text):
            raise ValueError(f"{text[:100]!r} is no state of a ledger")
        number, _, head = text.partition(":")
        return cls(int(number), head)

    def __str__(self) -> str:
        return f"{self.number}:{self.head}"

    def is_behind(self, earlier: LedgerState) -> bool:
        """Whether a ledger in this state cannot have been in that one before.

        >>> seven, nine = LedgerState(7, "a" * 64), LedgerState(9, "b" * 64)
        >>> nine.is_behind(seven), seven.is_behind(nine), seven.is_behind(seven), seven.is_behind(LedgerState(7, "c"))
        (False, True, False, True)
        """
        return self.number < earlier.number or (self.number == earlier.number and self.head != earlier.head)
