"""Text of others, fit to be shown."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from hansa_common.plain_text import printable


@given(st.text(), st.integers(3, 50))
def test_any_text_becomes_one_printable_line_of_bounded_length(text, max_chars):
    shown = printable(text, max_chars)
    assert shown.isprintable()
    assert len(shown) <= max_chars
    if text.isprintable() and len(text) <= max_chars:
        assert shown == text
