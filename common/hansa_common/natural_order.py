"""The order that a reader expects of names: numbers in them count as numbers, so that 2 stands before 10."""

from __future__ import annotations

import re

_PIECES = re.compile(r"[0-9]+|[^0-9]+")


def natural_key(text: str) -> tuple[tuple[int, int, str], ...]:
    """Sort key under which numbers inside text count as numbers, however long they are.

    >>> sorted(["b", "10", "2", "a 10", "a 9"], key=natural_key)
    ['2', '10', 'a 9', 'a 10', 'b']
    """
    return tuple(_piece_key(piece) for piece in _PIECES.findall(text))


def _piece_key(piece: str) -> tuple[int, int, str]:
    if piece[0] not in "0123456789":
        return 1, 0, piece
    # By length, then digit by digit: Python refuses to read a number of thousands of them.
    digits = piece.lstrip("0")
    return 0, len(digits), digits
