"""Text that came from elsewhere, made fit to be shown: one line of bounded length that no terminal obeys."""

from __future__ import annotations


def printable(text: str, max_chars: int) -> str:
    r"""The text with what cannot be printed (line ends, escapes, marks that turn a line round) as Python writes it.

    >>> printable("amount\x1b[2J\nERROR", 100)
    'amount\\x1b[2J\\nERROR'
    >>> printable("a" * 20, 10)
    'aaaaaaa...'
    """
    # Cut first: escaping a text of megabytes would be work for nothing.
    shown = "".join(letter if letter.isprintable() else repr(letter)[1:-1] for letter in text[: max_chars + 1])
    return shown if len(shown) <= max_chars else f"{shown[: max_chars - 3]}..."
